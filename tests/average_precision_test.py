"""Average precision, by hand and by another way of counting."""

import itertools

import numpy as np
import pytest

from mmr1 import average_precision as ap

A, B, C = [0, 0, 2, 2], [4, 4, 6, 6], [8, 0, 10, 2]


def boxes(corners, classes, scores=None):
  return ap.Boxes(np.asarray(corners, float).reshape(-1, 4),
                  np.asarray(classes, int),
                  None if scores is None else np.asarray(scores, float))


def at_half(found, truth):
  return ap.average_precision(found, truth, (0.5,))[0.5]


def test_perfect_detections_have_1():
  truth = [boxes([A, B], [0, 1])]
  found = [boxes([A, B], [0, 1], [.9, .2])]
  assert set(ap.average_precision(found, truth).values()) == {1.0}
  assert len(ap.THRESHOLDS) == 10


def test_nothing_found_and_nothing_there():
  truth = [boxes([A], [0])]
  assert at_half([boxes([], [], [])], truth) == 0
  assert at_half([boxes([B], [0], [.9])], truth) == 0
  assert np.isnan(at_half([boxes([A], [0], [.9])], [boxes([], [])]))


def test_a_false_one_in_front_by_hand():
  # By score: wrong, right, right of two boxes: precision 0, 1/2, 2/3 at recall
  # 0, .5, 1. The envelope is 2/3 everywhere.
  truth = [boxes([A, B], [0, 0])]
  found = [boxes([C, A, B], [0, 0, 0], [.9, .8, .7])]
  assert at_half(found, truth) == pytest.approx(2 / 3)


def test_half_of_the_boxes_by_hand():
  # Precision 1 up to recall .5, which 51 of the 101 recalls reach.
  truth = [boxes([A, B], [0, 0])]
  assert at_half([boxes([A], [0], [.9])], truth) == pytest.approx(51 / 101)


def test_a_box_is_found_once():
  # The second of the same box is false: after it, so the envelope stays 1.
  truth = [boxes([A], [0])]
  assert at_half([boxes([A, A], [0, 0], [.9, .8])], truth) == 1
  truth = [boxes([A, B], [0, 0])]
  # Right, false (a double), right: 1 up to .5, then 2/3.
  assert at_half([boxes([A, A, B], [0, 0, 0], [.9, .8, .7])], truth) == (
      pytest.approx((51 + 50 * 2 / 3) / 101))


def test_the_threshold_decides():
  # [0, 0, 2, 2] and [0, 0, 2, 1.3]: IoU .65.
  truth, found = [boxes([A], [0])], [boxes([[0, 0, 2, 1.3]], [0], [.9])]
  by = ap.average_precision(found, truth)
  assert [by[t] for t in (.5, .65, .7)] == [1, 1, 0]


def test_classes_count_alike_and_are_apart():
  truth = [boxes([A, B, C], [0, 0, 1])]
  found = [boxes([A, B, C], [0, 0, 0], [.9, .8, .7])]
  assert at_half(found, truth) == pytest.approx((1 + 0) / 2)


def test_scores_are_compared_over_pictures():
  truth = [boxes([A], [0]), boxes([A], [0])]
  found = [boxes([A], [0], [.5]), boxes([B, A], [0, 0], [.9, .6])]
  # Wrong, right, right: 2/3.
  assert at_half(found, truth) == pytest.approx(2 / 3)


@pytest.mark.parametrize('seed', range(3))
def test_against_counting_at_every_score(seed):
  """One class, boxes apart from each other: the matching is plain, and the
  curve is that of `detections with at least this score`."""
  rng = np.random.default_rng(seed)
  places = [[4 * i, 4 * j, 4 * i + 2, 4 * j + 2]
            for i, j in itertools.product(range(4), range(4))]
  truth, found = [], []
  for _ in range(3):
    real = rng.permutation(16)[:5]
    said = rng.permutation(16)[:8]
    truth.append(boxes([places[i] for i in real], [0] * 5))
    found.append(boxes([places[i] for i in said], [0] * 8, rng.random(8)))
  right = [any((d == t).all() for t in one.corners)
           for f, one in zip(found, truth) for d in f.corners]
  scores = np.concatenate([f.scores for f in found])
  points = []
  for least in scores:
    hits = sum(r for r, s in zip(right, scores) if s >= least)
    points.append((hits / 15, hits / (scores >= least).sum()))
  want = np.mean([max([p for r, p in points if r >= at], default=0)
                  for at in np.linspace(0, 1, 101)])
  assert at_half(found, truth) == pytest.approx(want)


def test_iou():
  np.testing.assert_allclose(
      ap.iou(np.float64([A]), np.float64([[1, 1, 3, 3], B, A])),
      [[1 / 7, 0, 1]])


def test_against_pycocotools():
  mask = pytest.importorskip('pycocotools.coco')
  from pycocotools import cocoeval
  rng = np.random.default_rng(0)
  truth, found, annotations, results = [], [], [], []
  for n in range(12):
    make = lambda k: np.concatenate([
        (low := rng.uniform(0, 40, (k, 2))), low + rng.uniform(10, 40, (k, 2))
    ], 1)
    real, kinds = make(4), rng.integers(0, 3, 4)
    near = np.concatenate([real + rng.normal(0, 2, real.shape), make(3)])
    labels = np.concatenate([kinds, rng.integers(0, 3, 3)])
    scores = rng.random(7)
    truth.append(boxes(real, kinds))
    found.append(boxes(near, labels, scores))
    form = lambda b: [b[0], b[1], b[2] - b[0], b[3] - b[1]]
    annotations += [dict(
        id=len(annotations) + i + 1, image_id=n + 1, category_id=int(k),
        bbox=form(b), area=float((b[2] - b[0]) * (b[3] - b[1])), iscrowd=0)
                    for i, (b, k) in enumerate(zip(real, kinds))]
    results += [dict(image_id=n + 1, category_id=int(k), bbox=form(b),
                     score=float(s)) for b, k, s in zip(near, labels, scores)]
  coco = mask.COCO()
  coco.dataset = dict(
      images=[dict(id=n + 1) for n in range(12)], annotations=annotations,
      categories=[dict(id=k) for k in range(3)])
  coco.createIndex()
  evaluation = cocoeval.COCOeval(coco, coco.loadRes(results), 'bbox')
  evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
  by = ap.average_precision(found, truth)
  assert np.mean([*by.values()]) == pytest.approx(evaluation.stats[0], abs=1e-6)
  assert by[0.5] == pytest.approx(evaluation.stats[1], abs=1e-6)
