"""COCO's average precision of boxes. NumPy only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
_RECALLS = np.linspace(0, 1, 101)


class Boxes(NamedTuple):
  """Of one picture: corners f64[n, 4], class i[n] and, of detections, score
  f64[n]."""
  corners: np.ndarray
  classes: np.ndarray
  scores: np.ndarray | None = None


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """f64[n, m], intersection over union of corners [n, 4] and [m, 4]."""
  low = np.maximum(a[:, None, :2], b[None, :, :2])
  high = np.minimum(a[:, None, 2:], b[None, :, 2:])
  inner = np.prod(np.maximum(high - low, 0), -1)
  area = lambda x: np.prod(np.maximum(x[:, 2:] - x[:, :2], 0), -1)
  union = area(a)[:, None] + area(b)[None] - inner
  return inner / np.maximum(union, 1e-12)


def average_precision(
    found: Sequence[Boxes], truth: Sequence[Boxes],
    thresholds: Sequence[float] = THRESHOLDS, *, most: int = 100,
) -> dict[float, float]:
  """{IoU threshold: AP, mean over the classes that occur}.

  By class and threshold detections are taken by score; each is right if it
  overlaps a box of its picture and class that no earlier one took, the one with
  the largest overlap. AP is the mean over 101 recalls of the largest precision
  at that recall or above (pycocotools, `COCOeval`, area 'all').

  Args:
    found: of every picture.
    truth: of the same pictures.
    thresholds: of IoU.
    most: detections of a picture that count, the best ones of each class.
  """
  classes = sorted({int(c) for one in truth for c in one.classes})
  result = {}
  for threshold in thresholds:
    each = [_of_class(found, truth, c, threshold, most) for c in classes]
    result[threshold] = float(np.mean(each)) if each else float('nan')
  return result


def _of_class(found, truth, number, threshold, most) -> float:
  scores, right, total = [], [], 0
  for one, real in zip(found, truth):
    boxes = real.corners[real.classes == number]
    total += len(boxes)
    of = np.flatnonzero(one.classes == number)
    of = of[np.argsort(-one.scores[of], kind='stable')][:most]
    overlap = iou(one.corners[of], boxes)
    free = np.ones(len(boxes), bool)
    for row in overlap:
      allowed = np.where(free & (row >= threshold - 1e-10), row, -1.0)
      best = int(np.argmax(allowed)) if len(boxes) else -1
      hit = best >= 0 and allowed[best] >= 0
      if hit:
        free[best] = False
      right.append(hit)
    scores += one.scores[of].tolist()
  order = np.argsort(-np.asarray(scores), kind='stable')
  hits = np.cumsum(np.asarray(right, bool)[order])
  if not total or not len(hits):
    return 0.0
  recall = hits / total
  precision = hits / np.arange(1, len(hits) + 1)
  precision = np.maximum.accumulate(precision[::-1])[::-1]
  at = np.searchsorted(recall, _RECALLS, side='left')
  return float(np.append(precision, 0.0)[np.minimum(at, len(hits))].mean())
