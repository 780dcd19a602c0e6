"""`geometry`: lengths and angles read off small labelled figures.

Labels are large pixel digits, each inside its own 16-pixel cell that no line
of the figure touches. Figures are not drawn to scale; of two different sides
the longer one is drawn longer. Pictures are divided between the splits by what
they show (figure, numbers, placement, colour), so none occurs in two splits,
under any seed; the numbers alone do recur.

The facts of an item name all that has to be seen; its steps start with the
facts, and the last step ends with the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageDraw

from mmr1 import records
from mmr1.data.tasks import draw
from mmr1.data.tasks import items
from mmr1.data.tasks import layouts

RGB = {
    'red': (210, 50, 50),
    'green': (30, 150, 70),
    'blue': (50, 90, 220),
    'purple': (150, 70, 190),
    'orange': (225, 130, 30),
}
INK = (30, 30, 30)

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    'rectangle_perimeter': (
        'What is the perimeter of the rectangle?',
        'Find the perimeter of this rectangle.',
        'How long is the outline of the rectangle?'),
    'rectangle_area': (
        'What is the area of the rectangle?',
        'Find the area of this rectangle.',
        'How large is the area of the rectangle?'),
    'rectangle_side': (
        'The perimeter of the rectangle is {perimeter}. '
        'How long is the other side?',
        'The rectangle has perimeter {perimeter}. Find the side without a '
        'label.'),
    'square_perimeter': (
        'What is the perimeter of the square?',
        'Find the perimeter of this square.',
        'How long is the outline of the square?'),
    'square_area': (
        'What is the area of the square?',
        'Find the area of this square.',
        'How large is the area of the square?'),
    'triangle_angle': (
        'What is the third angle of the triangle?',
        'Two angles of the triangle are given. How large is the third?',
        'Find the angle marked ? in degrees.'),
    'segment': (
        'Point C lies on the segment AB. How long is AB?',
        'What is the length of AB?',
        'Find the total length of the segment AB.'),
    'path': (
        'How long is the whole path?',
        'What is the total length of the path?',
        'Add the three parts. How long is the path?'),
}
FORMS = tuple(TEMPLATES)

_CAPTIONS = {
    'rectangle': 'a rectangle with labelled sides',
    'square': 'a square with a labelled side',
    'triangle': 'a triangle with two labelled angles',
    'segment': 'a segment AB with a point C on it',
    'path': 'a path of three labelled parts',
}


def geometry(
    seed: int, split: str, i: int, *, uid_offset: int = 0,
    form: Sequence[str] | None = None, as_choice: bool = False,
) -> records.Example:
  """Item `i` of the split, computed on its own (random access), 64x64 pixels.

  Args:
    seed: non-negative; another seed is another stream of the same splits.
    split: 'train', 'eval' or 'test'.
    i: index, from 0, without an upper end.
    uid_offset: added to `i` to give the uid.
    form: which of `FORMS` to ask, each equally often; None = all.
    as_choice: ask for a letter among listed options.

  Returns:
    Example whose meta has `form`, `query`, `scene` (the arguments of `solve`),
    `answer_type`, `difficulty`, `caption`, `facts`, `steps` and, for choices,
    `choices` (the options' texts) and `value` (the text behind the letter).

  Raises:
    ValueError: for an unknown split or form, or a negative seed or index.
  """
  known = items.forms('geometry', FORMS, form)
  rng = items.generator('geometry', seed, split, i)
  name = items.pick(rng, known)
  while True:
    values, query = _draw_numbers(rng, name)
    scene = _draw_scene(rng, name, values)
    if items.owns(split, repr(sorted(scene.items()))):
      break
  answer = solve(scene, name, query)
  facts, steps = _reason(scene, name, query)
  question = items.pick(rng, TEMPLATES[name]).format(**query)
  meta = {
      'answer_type': 'number',
      'form': name,
      'difficulty': 1 + len(steps) - len(facts),
      'caption': _CAPTIONS[scene['figure']],
      'facts': facts,
      'steps': steps,
      'query': query,
      'scene': scene,
  }
  image = _render(rng, scene)
  if as_choice:
    step = 10 if name == 'triangle_angle' else 1
    letter, options = items.lettered(
        rng, answer, items.near(rng, int(answer), step=step))
    question = items.with_letters(question, options)
    meta.update(
        answer_type='choice', choices=options, value=answer,
        steps=steps + (f'{answer}={letter}',))
    answer = letter
  return records.Example(
      uid=uid_offset + int(i), question=f'<image>{question}', answer=answer,
      images=(image,), source='geometry', meta=meta)


def solve(
    scene: Mapping[str, Any], form: str, query: Mapping[str, Any]) -> str:
  """The answer of a question, from the numbers of the scene alone.

  Args:
    scene: holds `values`, the numbers shown.
    form: one of `FORMS`.
    query: `perimeter` for the form rectangle_side, else empty.
  """
  values = scene['values']
  if form == 'rectangle_perimeter':
    return str(2 * sum(values))
  if form == 'rectangle_area':
    return str(values[0] * values[1])
  if form == 'rectangle_side':
    return str(query['perimeter'] // 2 - values[0])
  if form == 'square_perimeter':
    return str(4 * values[0])
  if form == 'square_area':
    return str(values[0] ** 2)
  if form == 'triangle_angle':
    return str(180 - sum(values))
  if form in ('segment', 'path'):
    return str(sum(values))
  raise ValueError(
      f'geometry: form {form!r} does not exist; allowed: {FORMS}.')


def _draw_numbers(
    rng: np.random.Generator, form: str
) -> tuple[tuple[int, ...], dict[str, int]]:
  """(numbers of the figure, query): lengths 1..9, angles 20..90."""
  if form == 'triangle_angle':
    while True:
      angles = (10 * rng.integers(2, 10, 2)).tolist()
      if sum(angles) <= 160:
        return tuple(angles), {}
  if form.startswith('rectangle'):
    sides = tuple((rng.permutation(9)[:2] + 1).tolist())
    return sides, (
        {'perimeter': 2 * sum(sides)} if form == 'rectangle_side' else {})
  count = {'segment': 2, 'path': 3}.get(form, 1)
  return tuple(rng.integers(1, 10, count).tolist()), {}


def _draw_scene(
    rng: np.random.Generator, form: str, values: tuple[int, ...]
) -> dict[str, Any]:
  """The symbolic scene: what is shown, where, in which colour.

  Returns:
    `figure`; `values`, the numbers shown in the order of the facts; `colour`
    of the lines; `lines`, `labels` and the rest as `layouts` describes them.
  """
  figure = form.split('_')[0]
  if figure == 'rectangle':
    shown = (True, True)
    if form == 'rectangle_side':
      shown = (True, False) if rng.integers(2) else (False, True)
    layout = layouts.box(rng, values, shown)
  elif figure == 'square':
    shown = (True, False) if rng.integers(2) else (False, True)
    layout = layouts.box(rng, values * 2, shown)
  else:
    place = {'triangle': layouts.triangle, 'segment': layouts.segment,
             'path': layouts.path}[figure]
    layout = place(rng, values)
  return {
      'figure': figure, 'colour': items.pick(rng, tuple(RGB)), **layout}


def _render(rng: np.random.Generator, scene: Mapping[str, Any]) -> Image.Image:
  """The picture; tints, brightness and positions (by two pixels) vary."""
  image = draw.canvas(rng, layouts.ROWS, layouts.ROWS)
  pen = ImageDraw.Draw(image)
  colour = draw.tint(rng, RGB[scene['colour']], 12)
  dx, dy = rng.integers(-2, 3, 2).tolist()
  for line in scene['lines']:
    pen.line([(x + dx, y + dy) for x, y in line], colour, width=2)
  for text, row, column in scene['labels'] + scene['marks']:
    ink = colour if not text.isdigit() else draw.tint(rng, INK, 20)
    for k, char in enumerate(text):
      dx, dy = rng.integers((-2, -1), (3, 2)).tolist()
      draw.glyph(image, char, row, column + k, (dx, dy), ink)
  return image


def _reason(
    scene: Mapping[str, Any], form: str, query: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """(facts, steps): steps = the facts, then one inference per step."""
  values = scene['values']
  noun = {'rectangle': 'side', 'square': 'side', 'triangle': 'angle'}.get(
      scene['figure'], 'part')
  a, b = values[0], values[-1]
  many = 's' if len(values) > 1 else ''
  facts = (f'{noun}{many} {",".join(map(str, values))}',)
  if form == 'rectangle_perimeter':
    steps = (f'{a}+{b}={a + b}', f'2*{a + b}={2 * (a + b)}')
  elif form == 'rectangle_area':
    steps = (f'{a}*{b}={a * b}',)
  elif form == 'rectangle_side':
    half = query['perimeter'] // 2
    steps = (f'{2 * half}/2={half}', f'{half}-{a}={half - a}')
  elif form == 'square_perimeter':
    steps = (f'4*{a}={4 * a}',)
  elif form == 'square_area':
    steps = (f'{a}*{a}={a * a}',)
  elif form == 'triangle_angle':
    steps = (f'{a}+{b}={a + b}', f'180-{a + b}={180 - a - b}')
  elif form == 'segment':
    steps = (f'{a}+{b}={a + b}',)
  else:
    two = a + values[1]
    steps = (f'{a}+{values[1]}={two}', f'{two}+{b}={two + b}')
  return facts, facts + steps
