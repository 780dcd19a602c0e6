"""Boxes, costs, matching and losses of detectors, by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from mmr1.losses import detection

WEIGHTS = detection.Weights(label=2.0, l1=5.0, giou=2.0)


def random_case(seed, b=4, q=7, m=3, c=3):
  rng = np.random.default_rng(seed)
  boxes = lambda *shape: np.concatenate([
      rng.uniform(.3, .7, (*shape, 2)), rng.uniform(.1, .5, (*shape, 2))], -1)
  truth = detection.Truth(
      jnp.float32(boxes(b, m)), jnp.int32(rng.integers(0, c, (b, m))),
      jnp.asarray(np.arange(m) < rng.integers(0, m + 1, (b, 1))))
  return jnp.float32(rng.normal(size=(b, q, c))), jnp.float32(
      boxes(b, q)), truth


def test_giou_by_hand():
  # Intersection 1, union 7, hull 9: 1/7 = .1429, less 2/9: -.0794.
  a, b = jnp.float32([0, 0, 2, 2]), jnp.float32([1, 1, 3, 3])
  assert float(detection.giou(a, b)) == pytest.approx(-.0794, abs=1e-4)
  assert float(detection.giou(a, a)) == pytest.approx(1)
  # Apart: the further, the lower, down to -1.
  far = [float(detection.giou(a, jnp.float32([x, 0, x + 2, 2])))
         for x in (2, 10, 1000)]
  assert far[0] == pytest.approx(0) and far[0] > far[1] > far[2] > -1


def test_corners():
  np.testing.assert_allclose(
      detection.corners(jnp.float32([.5, .4, .2, .6])), [.4, .1, .6, .7])


def test_focal_by_hand():
  # p = .5: .25 x .25 x ln 2 where it should be 1, .75 x .25 x ln 2 where 0.
  got = detection.focal(jnp.zeros(2), jnp.float32([1, 0]))
  np.testing.assert_allclose(got, [.0433217, .1299651], atol=1e-6)


def test_a_class_that_nobody_asked_for_costs_nothing():
  x = jnp.float32([-jnp.inf, 1.0])
  loss = lambda x: detection.focal(x, jnp.float32([0, 1])).sum()
  value, gradient = jax.value_and_grad(loss)(x)
  assert np.isfinite(value) and float(gradient[0]) == 0


def test_costs_by_hand():
  # p = .5: .25 .25 ln 2 - .75 .25 ln 2 = -.0866434; L1 .2; GIoU of [.4, .4,
  # .6, .6] and the same moved by .1 on both axes: IoU .01 / .07, hull .09, so
  # 1/7 - 2/9; cost 2 (-.0866434) + 5 (.2) - 2 (-.0793651) = .985443.
  truth = detection.Truth(
      jnp.float32([[[.6, .6, .2, .2], [.5, .5, 1, 1]]]),
      jnp.int32([[1, 0]]), jnp.asarray([[True, False]]))
  cost = detection.costs(
      jnp.zeros((1, 1, 2)), jnp.float32([[[.5, .5, .2, .2]]]), truth, WEIGHTS)
  assert float(cost[0, 0, 0]) == pytest.approx(.985443, abs=1e-5)
  assert float(cost[0, 0, 1]) >= 1e3  # there is no such box


@pytest.mark.parametrize('seed', range(4))
def test_matches_are_those_of_scipy_and_of_trying_all(seed):
  logits, boxes, truth = random_case(seed)
  cost = np.asarray(detection.costs(logits, boxes, truth, WEIGHTS))
  query = np.asarray(jax.jit(detection.match)(cost))
  for n, row in enumerate(query):
    assert len({*row.tolist()}) == len(row)  # one to one
    real = np.flatnonzero(truth.real[n])
    part = cost[n][:, real]
    total = part[row[real], np.arange(len(real))].sum()
    i, j = optimize.linear_sum_assignment(part)
    assert total == pytest.approx(part[i, j].sum(), abs=1e-4)
    assert total == pytest.approx(min(
        part[list(rows), np.arange(len(real))].sum()
        for rows in itertools.permutations(range(7), len(real))), abs=1e-4)


def test_perfect_boxes_cost_their_class_alone():
  logits, boxes, truth = random_case(0)
  query = jnp.broadcast_to(jnp.arange(3), truth.classes.shape)
  boxes = boxes.at[:, :3].set(truth.boxes)
  _, parts = detection.matched(logits, boxes, truth, query, WEIGHTS)
  assert float(parts['l1']) == 0
  assert float(parts['giou']) == pytest.approx(0, abs=1e-5)
  assert float(parts['label']) > 0


def test_padding_has_no_gradient_and_no_weight():
  logits, boxes, truth = random_case(1)
  query = detection.match(detection.costs(logits, boxes, truth, WEIGHTS))
  loss = jax.jit(lambda t: detection.matched(
      logits, boxes, t, query, WEIGHTS)[0])
  other = truth._replace(
      boxes=jnp.where(truth.real[..., None], truth.boxes, .9),
      classes=jnp.where(truth.real, truth.classes, 0))
  assert float(loss(truth)) == pytest.approx(float(loss(other)), rel=1e-6)
  none = truth._replace(real=jnp.zeros_like(truth.real))
  assert np.isfinite(float(loss(none)))


def test_m9_without_any_box_classes_alone_have_a_loss():
  logits, boxes, truth = random_case(1)
  none = truth._replace(real=jnp.zeros_like(truth.real))
  query = detection.match(detection.costs(logits, boxes, none, WEIGHTS))
  loss = lambda x, b: detection.matched(x, b, none, query, WEIGHTS)[0]
  by_logits, by_boxes = jax.grad(loss, (0, 1))(logits, boxes)
  assert not np.asarray(by_boxes).any()
  assert np.isfinite(by_logits).all() and np.asarray(by_logits).all()


@pytest.mark.parametrize('far', [1e4, -1e4])
def test_m8_logits_and_boxes_without_measure_are_finite(far):
  """Points, boxes of negative size, and certainty on either side."""
  logits, boxes, truth = random_case(1)
  for size in (0.0, -.2):
    odd = boxes.at[..., 2:].set(size)
    cost = detection.costs(far + 0 * logits, odd, truth, WEIGHTS)
    assert np.isfinite(cost).all()
    query = detection.match(cost)
    value, slopes = jax.value_and_grad(lambda x, b: detection.matched(
        x, b, truth, query, WEIGHTS)[0], (0, 1))(far + 0 * logits, odd)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in slopes)


def test_alignment_by_hand():
  # Two instances of class 0, one of class 1, one that is not there.
  alike = jnp.log(jnp.float32([[3, 1], [1, 1], [1, 4], [9, 9]]))
  got = detection.alignment(
      alike, jnp.int32([0, 0, 1, 0]), jnp.asarray([1, 1, 1, 0], bool))
  rows = -np.log([.75, .5, .8]).mean()
  # Of class 0: columns 3, 1, 1 of 5; of class 1: 1, 1, 4 of 6.
  classes = -(np.log([.6, .2]).mean() + np.log(4 / 6)) / 2
  assert float(got) == pytest.approx((rows + classes) / 2, abs=1e-5)
