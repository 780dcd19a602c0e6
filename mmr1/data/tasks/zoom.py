"""Digits that are large enough to be read at a glance, or too small.

A white square with two handwritten digits in a row. Seen at a quarter of its
size (`data.max_pixels=1024`: 32 x 32 pixels, four cells of the embedded model),
large digits have a cell each, and small ones four pixels: these can only be
read from the picture itself. With two regions there are two such rows, and the
question is about all four digits.
"""

import numpy as np
from PIL import Image

from mmr1 import records
from mmr1.data.tasks import digits
from mmr1.data.tasks import items

_DIGITS = 2  # in a row
_HALVES = 2  # places along each side, at most


def zoom(
    seed: int,
    split: str,
    i: int,
    *,
    uid_offset: int = 0,
    scale: int = 4,
    small: float = 0.5,
    regions: int = 1,
    columns: int = _HALVES,
    forms: tuple[str, ...] = ('sum',),
) -> records.Example:
  """Item `i` of the split.

  `meta`: 'needs_zoom'; 'box' of the digits in pixels of the picture (of the
  first row), and 'regions', of all rows; 'form' is 'small' or 'large'.

  Args:
    seed: non-negative; (seed, split, i) fixes the item.
    split: 'train' uses the training scans; 'eval' and 'test' share the
      held-out ones.
    i: index, from 0, without an upper end.
    uid_offset: added to `i` to make the uid.
    scale: the picture is so many times 32 pixels wide and high, 2..16.
    small: share of items whose digits are small.
    regions: rows of small digits, 1 or 2; large ones have one.
    columns: small digits are in the left half (1) or in either (2), and above or
      below.
    forms: operations to draw from, of `digits.FORMS`.

  Raises:
    ValueError: an unknown split or form, or a number outside its range.
  """
  if not (2 <= scale <= 16 and 0 <= small <= 1 and regions in (1, 2)
          and columns in (1, 2)):
    raise ValueError(
        f'zoom: got scale={scale}, small={small}, regions={regions}, columns='
        f'{columns}; allowed are 2 <= scale <= 16, 0 <= small <= 1, and 1 or 2 '
        'regions and columns.')
  forms = items.forms('zoom', digits.FORMS, forms)
  rng = items.generator('zoom', seed, split, i)
  scans, labels = digits.scans_of(split)
  needs = bool(rng.random() < small)
  rows = regions if needs else 1
  chosen = rng.integers(0, len(labels), (rows, _DIGITS))
  values = [int(v) for v in labels[chosen].ravel()]
  image, boxes = _drawn(rng, scans[chosen], scale, 1 if needs else scale,
                        columns)
  form = str(rng.choice(np.asarray(forms)))
  answer, steps = digits.operate(form, values)
  listed = ','.join(map(str, values))
  return records.Example(
      uid=uid_offset + i, answer=str(answer), images=(image,), source='zoom',
      question='<image>' + str(rng.choice(np.asarray(digits.questions(form)))),
      meta={
          'answer_type': 'number', 'form': 'small' if needs else 'large',
          'needs_zoom': needs, 'box': boxes[0], 'regions': tuple(boxes),
          'difficulty': len(steps), 'facts': (f'digits {listed}',),
          'steps': steps, 'caption': f'{len(values)} handwritten digits'})


def _drawn(rng: np.random.Generator, scans: np.ndarray, scale: int,
           times: int, columns: int,
           ) -> tuple[Image.Image, list[tuple[int, ...]]]:
  """Rows of scans u8[rows, digits, 8, 8], so many times their size, each in a
  place of its own; and their boxes."""
  side, cell = 2 * digits.CELL * scale, digits.CELL * times
  canvas = np.clip(rng.normal(255.0, 4.0, (side, side, 3)), 0, 255)
  image, boxes = Image.fromarray(canvas.astype(np.uint8)), []
  width = scans.shape[1] * cell
  step = max(side // _HALVES, cell)
  free = [(x, y) for y in range(0, side - cell + 1, step)
          for x in range(0, side - width + 1, step)[:columns]]
  for at, row in zip(sorted(rng.permutation(len(free))[:len(scans)]), scans):
    x, y = free[at]
    picture = digits.picture(row, rng)
    image.paste(picture.resize((width, cell), Image.Resampling.BICUBIC), (x, y))
    boxes.append((x, y, x + width, y + cell))
  return image, boxes
