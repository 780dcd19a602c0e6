"""How well a box that was written covers the one that is meant."""

import math
import re
from collections.abc import Mapping

from mmr1 import boxes
from mmr1 import records
from mmr1 import text

FORMS = ('exact', 'released')
_NUMBER = r'\s*(-?\d{1,6}(?:\.\d+)?)\s*'
_BOX = re.compile(rf'[\[(]{",".join([_NUMBER] * 4)}[\])]')


def iou(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    form: str = 'exact',
    strict: bool = True,
    prefilled: bool = False,
) -> float | None:
  """Intersection over union of the answer's box and `meta['box']`, 0 to 1.

  0 where there is no answer, or not one box in it; None where the example has
  no box. See `overlap`.

  Args:
    sample: the completion.
    knobs: unused.
    form: of `overlap`.
    strict, prefilled: see `text.extract_answer`.
  """
  del knobs
  if sample.example.meta.get('box') is None:
    return None
  said = text.extract_answer(sample.text, strict=strict, prefilled=prefilled)
  return overlap(said, sample.example, form=form)


iou.range = (0.0, 1.0)
iou.perfect = 1.0


def overlap(
    answer: str | None, example: records.Example, *, form: str = 'exact',
) -> float:
  """Intersection over union of the one box of an answer and the example's.

  Numbers are read in the frame that the model's family writes,
  `meta['box_frame']` with the size `meta['seen']` of the resized image, as the
  encoder notes them; without, in pixels of the image as it came.

  'released' counts as the code of VLM-R1 and its descendants does: both boxes
  have to share more than one pixel each way. For [0, 0, 10, 10] and
  [5, 5, 15, 15] both give 25 / 175.

  Args:
    answer: as extracted | None.
    example: with `meta['box']`, four numbers in pixels of its first image, or
      of none at all where the family's frame is that of the image.
    form: of FORMS.

  Raises:
    ValueError: an unknown form, an example whose box is not four numbers.
  """
  if form not in FORMS:
    raise ValueError(f'grounding: got form={form!r}; allowed are {FORMS}.')
  gold = _gold(example)
  found = _BOX.findall(answer or '')
  if len(found) != 1:
    return 0.0
  image, seen = _sizes(example)
  said = boxes.convert(
      boxes.Box(*map(float, found[0]), example.meta.get(
          'box_frame', 'original')), 'original', image=image, seen=seen)
  if form == 'released' and min(
      min(said.right, gold.right) - max(said.left, gold.left),
      min(said.bottom, gold.bottom) - max(said.top, gold.top)) <= 1:
    return 0.0
  return boxes.iou(said, gold, image=image, seen=seen)


def _gold(example: records.Example) -> boxes.Box:
  numbers = example.meta.get('box')
  try:
    left, top, right, bottom = map(float, numbers)
    fine = math.isfinite(left + top + right + bottom)
  except (TypeError, ValueError):
    fine = False
  if not fine or not (left < right and top < bottom):
    raise ValueError(
        f"{example.source or 'example'} {example.uid}: meta box={numbers!r}; "
        'needed are left, top, right and bottom in pixels, in this order.')
  return boxes.Box(left, top, right, bottom, 'original')


def _sizes(example: records.Example) -> tuple[boxes.Size, boxes.Size | None]:
  """Of the first image, as it came and as the model sees it."""
  seen = example.meta.get('seen')
  width, height = example.images[0].size if example.images else (1, 1)
  return boxes.Size(height, width), seen and boxes.Size(*seen)
