"""`detection`: one to four coloured shapes; where is each of a class?

Circles, squares and triangles in red, green and blue, none over another, on a
light background. Classes are the colours or the kinds; a detector is shown what
one is by an instance of it in another picture.
"""

import numpy as np
from PIL import Image

from mmr1 import records
from mmr1.data.tasks import draw
from mmr1.data.tasks import items
from mmr1.data.tasks import shapes

CLASSES = {'colour': ('red', 'green', 'blue'),
           'kind': ('circle', 'square', 'triangle')}
_TRIES = 100


def detection(
    seed: int, split: str, i: int, *, uid_offset: int = 0, canvas: int = 32,
    objects: tuple[int, int] = (1, 4), sides: tuple[int, int] = (6, 14),
    by: str = 'colour',
) -> records.Example:
  """Item `i` of the split, computed on its own (random access).

  Args:
    seed: non-negative; another seed is another stream of the same splits.
    split: 'train', 'eval' or 'test'; none shares a picture with another.
    i: index, from 0, without an upper end.
    uid_offset: added to `i` to give the uid.
    canvas: side of the picture in pixels.
    objects: fewest and most shapes; fewer are there if no more fit.
    sides: least and largest side of a shape in pixels.
    by: what classes are, a key of CLASSES.

  Returns:
    Example with meta `boxes`, ((left, top, right, bottom), ...) in pixels, the
    last two just outside, and `classes`, their numbers in CLASSES[by].

  Raises:
    ValueError: for arguments outside the ranges above.
  """
  few, most = objects
  room = (canvas // (sides[1] + 1))**2
  if not 1 <= few <= min(most, room) or not (
      4 <= sides[0] <= sides[1] < canvas):
    raise ValueError(
        f'detection: got objects={tuple(objects)}, sides={tuple(sides)}, '
        f'canvas={canvas}; allowed are 1 <= fewest <= most, 4 <= least side <= '
        f'largest side < canvas, and fewest up to {room}, which fit.')
  if by not in CLASSES:
    raise ValueError(f'detection: by={by!r}; allowed are {[*CLASSES]}.')
  rng = items.generator('detection', seed, split, i)
  while True:
    count = int(rng.integers(few, most + 1))
    boxes = _boxes(rng, count, canvas, sides)
    looks = {name: tuple(int(x) for x in rng.integers(3, size=len(boxes)))
             for name in CLASSES}
    if len(boxes) >= few and items.owns(split, f'{boxes} {looks}'):
      break
  level = int(rng.integers(230, 250))
  grey = rng.integers(level - 5, level + 6, (canvas, canvas, 1), dtype=np.uint8)
  image = Image.fromarray(np.repeat(grey, 3, 2))
  for (left, top, right, bottom), colour, kind in zip(
      boxes, looks['colour'], looks['kind']):
    draw.shape(
        image, CLASSES['kind'][kind], (left, top, right - 1, bottom - 1),
        draw.tint(rng, shapes.RGB[CLASSES['colour'][colour]], 20))
  return records.Example(
      uid=uid_offset + int(i), question='<image>Where is each shape?',
      images=(image,), source='detection',
      meta={'boxes': boxes, 'classes': looks[by]})


def _boxes(rng: np.random.Generator, count: int, size: int,
           sides: tuple[int, int]) -> tuple[tuple[int, int, int, int], ...]:
  """Boxes with a pixel between each other."""
  found: list[tuple[int, int, int, int]] = []
  for _ in range(_TRIES):
    if len(found) == count:
      break
    side = int(rng.integers(sides[0], sides[1] + 1))
    left, top = (int(x) for x in rng.integers(0, size - side + 1, 2))
    box = left, top, left + side, top + side
    if all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1]
           for b in found):
      found.append(box)
  return tuple(found)
