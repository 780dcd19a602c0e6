"""Procedural worlds as they are by default: the sections of `tasks`."""

from ml_collections import config_dict

ConfigDict = config_dict.ConfigDict


def tasks() -> ConfigDict:
  return ConfigDict(dict(
      digits=dict(
          fn='digits.digits', min_digits=2, max_digits=4,
          forms=('sum', 'minus_last', 'double_first', 'product_first')),
      shapes=dict(
          fn='shapes.shapes', grid=(4, 4), objects=(2, 7), form=(
              'count_colour', 'count_kind', 'count_both', 'colour_of',
              'kind_of', 'relation', 'compare', 'total', 'difference',
              'cost')),
      geometry=dict(fn='geometry.geometry'),
      reading=dict(fn='digits.reading', min_digits=2, max_digits=4),
      grounding=dict(
          fn='grounding.grounding', objects=(1, 3), grid=(4, 4),
          colour='red', kind='square'),
      motion=dict(fn='motion.motion', form=('end',), frames=(2, 4)),
      puzzles=dict(
          fn='puzzles.puzzles', levels=(1, 5), kinds=(
              'sliding', 'maze', 'sudoku', 'ordering', 'twenty_four',
              'container')),
  ))
