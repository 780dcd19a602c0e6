"""`motion`: a shape moves from frame to frame; where does it end?

Two to four pictures in a row stand for the frames of a clip, each a grid of 2 x
2 cells of 16 pixels with one coloured shape. The last frame answers the
question, the others tempt. Answers are letters; the options are the four cells
in random order. Walks are divided between the splits by colour, kind and cells.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmr1 import records
from mmr1.data.tasks import draw
from mmr1.data.tasks import items
from mmr1.data.tasks import scenes
from mmr1.data.tasks import shapes

SIDE = 2  # cells
CELLS = tuple((row, column) for row in range(SIDE) for column in range(SIDE))
QUESTIONS = {
    'end': ('Where is the {a} in the last picture?',
            'In which cell is the {a} at last?'),
    'start': ('Where is the {a} in the first picture?',),
}
FORMS = tuple(QUESTIONS)


def named(cell: tuple[int, int]) -> str:
  """'row 1, column 2', counted from 1."""
  return f'row {cell[0] + 1}, column {cell[1] + 1}'


def motion(
    seed: int, split: str, i: int, *, uid_offset: int = 0,
    form: Sequence[str] | None = ('end',), frames: tuple[int, int] = (2, 4),
) -> records.Example:
  """Item `i` of the split, computed on its own (random access).

  Args:
    seed: non-negative; another seed is another stream of the same splits.
    split: 'train', 'eval' or 'test'.
    i: index, from 0, without an upper end.
    uid_offset: added to `i` to give the uid.
    form: which of `FORMS` to ask, each equally often; None = all.
    frames: fewest and most pictures, 2 <= fewest <= most <= 4.

  Returns:
    Example whose meta has `form`, `scene` (colour, kind, the cells of all
    frames), `answer_type` 'choice', `choices`, `value`, `difficulty`,
    `caption`, `facts` and `steps`.

  Raises:
    ValueError: for arguments outside the ranges above.
  """
  few, most = frames
  if not 2 <= few <= most <= 4:
    raise ValueError(f'motion: frames={tuple(frames)} must satisfy 2 <= fewest '
                     '<= most <= 4.')
  known = items.forms('motion', FORMS, form)
  rng = items.generator('motion', seed, split, i)
  asked = items.pick(rng, known)
  while True:
    colour, kind = (items.pick(rng, scenes.COLOURS),
                    items.pick(rng, scenes.KINDS))
    walk = _walk(rng, int(rng.integers(few, most + 1)))
    if items.owns(split, f'{colour},{kind},{walk}'):
      break
  pictures = tuple(_picture(rng, colour, kind, cell) for cell in walk)
  value = named(walk[-1] if asked == 'end' else walk[0])
  letter, options = items.lettered(
      rng, value, [named(cell) for cell in CELLS if named(cell) != value])
  question = items.pick(rng, QUESTIONS[asked]).format(
      a=scenes.named((colour, kind)))
  return records.Example(
      uid=uid_offset + int(i),
      question='<image>' * len(walk) + items.with_letters(question, options),
      answer=letter, images=pictures, source='motion', meta={
          'answer_type': 'choice', 'choices': options, 'value': value,
          'form': asked, 'difficulty': len(walk),
          'caption': f'{len(walk)} pictures of one moving shape',
          'facts': tuple(named(cell) for cell in walk),
          'steps': (f'{value}={letter}',),
          'scene': {'colour': colour, 'kind': kind, 'walk': walk}})


def _walk(rng: np.random.Generator, count: int) -> tuple[tuple[int, int], ...]:
  """Cells of all frames; each step goes to another cell."""
  walk = [items.pick(rng, CELLS)]
  while len(walk) < count:
    walk.append(items.pick(rng, [c for c in CELLS if c != walk[-1]]))
  return tuple(walk)


def _picture(rng: np.random.Generator, colour: str, kind: str,
             cell: tuple[int, int]) -> Image.Image:
  image = draw.canvas(rng, SIDE, SIDE)
  size = int(rng.integers(10, 15))
  slack = draw.CELL - size
  left = cell[1] * draw.CELL + int(rng.integers(1, slack))
  top = cell[0] * draw.CELL + int(rng.integers(1, slack))
  draw.shape(image, kind, (left, top, left + size - 1, top + size - 1),
             draw.tint(rng, shapes.RGB[colour], 12))
  return image
