"""The moving shape: pictures show the walk, letters name its end."""

import collections

import numpy as np
import pytest

from mmr1.data.tasks import motion
from mmr1.data.tasks import shapes


def item(i, split='train', **kw):
  return motion.motion(0, split, i, **kw)


def seen(image, colour):
  """The cell whose pixels are nearest to the colour."""
  pixels = np.asarray(image, np.float64)
  near = np.abs(pixels - shapes.RGB[colour]).max(-1) < 30
  counts = {cell: near[cell[0] * 16:cell[0] * 16 + 16,
                       cell[1] * 16:cell[1] * 16 + 16].sum()
            for cell in motion.CELLS}
  assert sorted(counts.values())[-2] == 0  # one shape, inside its cell
  return max(counts, key=counts.get)


@pytest.mark.parametrize('i', range(12))
def test_the_pictures_show_the_walk_and_the_letter_names_its_end(i):
  example = item(i, form=None)
  meta = example.meta
  walk = [tuple(cell) for cell in meta['scene']['walk']]
  assert [seen(image, meta['scene']['colour'])
          for image in example.images] == walk
  assert all(a != b for a, b in zip(walk, walk[1:]))
  wanted = walk[-1] if meta['form'] == 'end' else walk[0]
  assert meta['choices']['ABCD'.index(example.answer)] == (
      f'row {wanted[0] + 1}, column {wanted[1] + 1}')
  assert sorted(meta['choices']) == sorted(map(motion.named, motion.CELLS))
  assert example.question.count('<image>') == len(walk)


def test_items_are_addressed_and_splits_apart():
  assert item(3).question == item(3).question
  assert item(3, uid_offset=10).uid == 13
  contents = {split: {str(item(i, split).meta['scene']) for i in range(150)}
              for split in ('train', 'eval')}
  assert not contents['train'] & contents['eval']


def test_letters_and_lengths_are_balanced():
  examples = [item(i) for i in range(300)]
  letters = collections.Counter(e.answer for e in examples)
  assert set(letters) == set('ABCD') and min(letters.values()) > 45
  lengths = collections.Counter(len(e.images) for e in examples)
  assert set(lengths) == {2, 3, 4} and min(lengths.values()) > 70


@pytest.mark.parametrize('frames', [(1, 3), (3, 2), (2, 5)])
def test_frames_out_of_range_are_refused(frames):
  with pytest.raises(ValueError, match='frames='):
    item(0, frames=frames)
