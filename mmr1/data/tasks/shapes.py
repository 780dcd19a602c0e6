"""`shapes`: counting, attributes and relations of coloured shapes on a grid.

A scene is a few flat objects, each inside its own 16-pixel cell. Pictures are
divided between the splits by what they show (kind, colour and cell of every
object), so no scene of one split occurs in another, under any seed.

The facts of an item name all that has to be seen; its steps start with the
facts, and the last step ends with the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmr1 import records
from mmr1.data.tasks import draw
from mmr1.data.tasks import items
from mmr1.data.tasks import scenes

RGB = {
    'red': (220, 40, 40),
    'green': (30, 160, 60),
    'blue': (40, 70, 220),
    'yellow': (232, 190, 10),
}

# {a}, {b}: one object in words; {aa}, {bb}: in the plural.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    'count_colour': (
        'How many {aa} are there?', 'How many {aa} are in the picture?',
        'Count the {aa}.'),
    'count_kind': (
        'How many {aa} are there?', 'How many {aa} are in the picture?',
        'Count the {aa}.'),
    'count_both': (
        'How many {aa} are there?', 'How many {aa} are in the picture?',
        'Count the {aa}.'),
    'colour_of': (
        'What colour is the {a}?', 'Which colour does the {a} have?',
        'Name the colour of the {a}.'),
    'kind_of': (
        'What shape is the {a}?', 'Which shape does the {a} have?',
        'Name the shape of the {a}.'),
    'relation': (
        'Is the {a} {relation} the {b}?',
        'Does the {a} lie {relation} the {b}?'),
    'compare': (
        'Are there more {aa} than {bb}?',
        'Does the picture show more {aa} than {bb}?'),
    'total': (
        'How many {aa} and {bb} are there together?',
        'How many {aa} and {bb} are there in total?',
        'Count the {aa} and {bb} together.'),
    'difference': (
        'How many more {aa} than {bb} are there?',
        'By how many do the {aa} outnumber the {bb}?'),
    'cost': (
        'Each {a} costs {p} and each {b} costs {q}. '
        'What do they cost together?',
        'A {a} is worth {p} points and a {b} {q} points. '
        'How many points are there in total?'),
}
FORMS = scenes.FORMS
solve = scenes.solve

_PAIRS = tuple(
    (colour, kind) for colour in scenes.COLOURS for kind in scenes.KINDS)


def shapes(
    seed: int, split: str, i: int, *, uid_offset: int = 0,
    form: Sequence[str] | None = None, as_choice: bool = False,
    objects: tuple[int, int] = (2, 7), grid: tuple[int, int] = (4, 4),
) -> records.Example:
  """Item `i` of the split, computed on its own (random access).

  Args:
    seed: non-negative; another seed is another stream of the same splits.
    split: 'train', 'eval' or 'test'.
    i: index, from 0, without an upper end.
    uid_offset: added to `i` to give the uid.
    form: which of `FORMS` to ask, each equally often; None = all.
    as_choice: ask for a letter among listed options.
    objects: fewest and most objects in a scene, 2 <= fewest <= most <= 9.
    grid: rows and columns of cells, each 2..9; 16 pixels per cell.

  Returns:
    Example whose meta has `form`, `query`, `scene` (the arguments of `solve`),
    `answer_type`, `difficulty`, `caption`, `facts`, `steps` and, for choices,
    `choices` (the options' texts) and `value` (the text behind the letter).

  Raises:
    ValueError: for arguments outside the ranges above.
  """
  _check(objects, grid)
  known = items.forms('shapes', FORMS, form)
  rng = items.generator('shapes', seed, split, i)
  name = items.pick(rng, known)
  while True:
    query, scene = _draw_scene(rng, name, objects, grid)
    if items.owns(split, _content(scene)):
      break
  image, scene = _render(rng, scene, grid)
  answer = scenes.solve(scene, name, query)
  facts, steps = scenes.reason(scene, name, query, answer)
  question = items.pick(rng, TEMPLATES[name]).format(**_words(query))
  meta = {
      'answer_type': 'number' if answer.isdigit() else 'text',
      'form': name,
      'difficulty': 1 + len(steps) - len(facts),
      'caption': f'{len(scene)} shapes on a light background',
      'facts': facts,
      'steps': steps,
      'query': query,
      'scene': scene,
  }
  if as_choice:
    letter, options = items.lettered(rng, answer, _wrong(rng, name, answer))
    question = items.with_letters(question, options)
    meta.update(
        answer_type='choice', choices=options, value=answer,
        steps=steps + (f'{answer}={letter}',))
    answer = letter
  return records.Example(
      uid=uid_offset + int(i), question=f'<image>{question}', answer=answer,
      images=(image,), source='shapes', meta=meta)


def _check(objects: tuple[int, int], grid: tuple[int, int]) -> None:
  few, most = objects
  if not all(2 <= n <= 9 for n in grid):
    raise ValueError(
        f'shapes: grid={tuple(grid)} must be two numbers from 2 to 9.')
  if not 2 <= few <= most <= min(9, grid[0] * grid[1]):
    raise ValueError(
        f'shapes: objects={tuple(objects)} must satisfy 2 <= fewest <= most '
        f'<= {min(9, grid[0] * grid[1])} on a grid of {tuple(grid)}.')


def _content(scene: scenes.Scene) -> str:
  """What a picture shows, without its pixel-level variation."""
  return ';'.join(sorted(
      f'{o["row"]},{o["column"]},{o["colour"]},{o["kind"]}' for o in scene))


def _two_specs(rng, *, mixed: bool) -> tuple[scenes.Spec, scenes.Spec]:
  """Two kinds, two colours or (if `mixed`) a colour and a kind."""
  way = rng.integers(3 if mixed else 2)
  colours = [scenes.COLOURS[j] for j in rng.permutation(4)[:2]]
  kinds = [scenes.KINDS[j] for j in rng.permutation(4)[:2]]
  if way == 0:
    return (None, kinds[0]), (None, kinds[1])
  if way == 1:
    return (colours[0], None), (colours[1], None)
  specs = (colours[0], None), (None, kinds[0])
  return specs if rng.integers(2) else specs[::-1]


def _draw_query(rng, form: str, most: int):
  """(query, [(spec, how many of it)]): answers are near to uniform."""
  colour, kind = items.pick(rng, _PAIRS)
  if form.startswith('count'):
    spec = {'count_colour': (colour, None), 'count_kind': (None, kind),
            'count_both': (colour, kind)}[form]
    return {'a': spec}, [(spec, rng.integers(min(most, 5) + 1))]
  if form in ('colour_of', 'kind_of'):
    spec = (None, kind) if form == 'colour_of' else (colour, None)
    return {'a': spec}, [(spec, 1)]
  if form == 'relation':
    a, b = (_PAIRS[j] for j in rng.permutation(len(_PAIRS))[:2])
    query = {'a': a, 'b': b, 'relation': items.pick(rng, scenes.RELATIONS)}
    return query, [(a, 1), (b, 1)]
  a, b = _two_specs(rng, mixed=form == 'compare')
  query = {'a': a, 'b': b}
  if form == 'compare':
    return query, []
  if form == 'total':
    total = rng.integers(2, most + 1)
    n = rng.integers(1, total)
    return query, [(a, n), (b, total - n)]
  if form == 'difference':
    gap = rng.integers(1, min(most, 5) + 1)
    n = rng.integers((most - gap) // 2 + 1)
    return query, [(a, n + gap), (b, n)]
  p, q = (rng.permutation(4)[:2] + 2).tolist()  # prices 2..5, distinct
  query['prices'] = (p, q)
  n = rng.integers(1, min(3, most - 1) + 1)
  return query, [(a, n), (b, rng.integers(1, min(3, most - n) + 1))]


def _draw_scene(rng, form: str, objects, grid):
  """A query and a scene that it fits; yes and no are equally likely."""
  want = scenes.yes(rng.integers(2))
  while True:
    query, wants = _draw_query(rng, form, objects[1])
    pairs = []
    for spec, number in wants:
      pool = [p for p in _PAIRS if scenes.fits(*p, spec)]
      pairs += [pool[j] for j in rng.integers(len(pool), size=number)]
    low = max(objects[0], len(pairs))
    extra = rng.integers(low, objects[1] + 1) - len(pairs)
    pool = [p for p in _PAIRS if not any(scenes.fits(*p, s) for s, _ in wants)]
    pairs += [pool[j] for j in rng.integers(len(pool), size=extra)]
    cells = rng.permutation(grid[0] * grid[1])[:len(pairs)].tolist()
    scene = tuple(
        {'kind': kind, 'colour': colour, 'row': 1 + cell // grid[1],
         'column': 1 + cell % grid[1]}
        for (colour, kind), cell in zip(pairs, cells))
    if form == 'relation':
      axis, _ = scenes.axis_of(query['relation'])
      if scene[0][axis] == scene[1][axis]:
        continue  # neither left nor right: nothing to ask
    if form in ('relation', 'compare'):
      if scenes.solve(scene, form, query) != want:
        continue
    return query, scene


def _render(
    rng: np.random.Generator, scene: scenes.Scene, grid: tuple[int, int]
) -> tuple[Image.Image, scenes.Scene]:
  """The picture, and the scene with the `box` of every object added."""
  image = draw.canvas(rng, *grid)
  boxed = []
  for o in sorted(scene, key=lambda o: (o['row'], o['column'])):
    size = int(rng.integers(10, 15))
    slack = draw.CELL - size
    jitter = slack // 2 - 1  # a free pixel on every side: 0, 1 or 2
    dx, dy = rng.integers(-jitter, jitter + 1, 2).tolist()
    left = (o['column'] - 1) * draw.CELL + slack // 2 + dx
    top = (o['row'] - 1) * draw.CELL + slack // 2 + dy
    box = (left, top, left + size - 1, top + size - 1)
    draw.shape(image, o['kind'], box, draw.tint(rng, RGB[o['colour']], 12))
    boxed.append({**o, 'box': box})
  return image, tuple(boxed)


def _words(query) -> dict[str, Any]:
  """The fillers of the templates."""
  words = {key: query[key] for key in ('relation',) if key in query}
  if 'prices' in query:
    words['p'], words['q'] = query['prices']
  for key in ('a', 'b'):
    if key in query:
      colour, kind = query[key]
      noun = scenes.named((colour, kind or 'object'))
      words[key] = noun
      words[key * 2] = noun + ('es' if kind == 'cross' else 's')
  return words


def _wrong(
    rng: np.random.Generator, form: str, answer: str) -> tuple[str, ...]:
  if answer.isdigit():
    return items.near(rng, int(answer))
  every = {'colour_of': scenes.COLOURS, 'kind_of': scenes.KINDS}.get(
      form, ('yes', 'no'))
  return tuple(text for text in every if text != answer)
