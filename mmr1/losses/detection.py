"""Losses of detectors. Boxes are centre x, y, width, height in 0 .. 1.

Letters: B pictures, Q queries, M boxes of a picture, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
_FAR = 1e4  # cost of a box that is not there


class Truth(NamedTuple):
  """What is in B pictures.

  Fields:
    boxes: f32[B, M, 4]; classes: i32[B, M].
    real: bool[B, M], False: padding.
  """
  boxes: Array
  classes: Array
  real: Array


class Weights(NamedTuple):
  """Of class, L1 and GIoU, in a cost or a loss."""
  label: float
  l1: float
  giou: float


def corners(box: Array) -> Array:
  """Left, top, right, bottom."""
  return jnp.concatenate(
      [box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], -1)


def giou(a: Array, b: Array) -> Array:
  """Generalised IoU of corners [..., 4], in -1 .. 1 (arXiv:1902.09630).

  IoU - (hull - union) / hull, hull the area of the smallest box around both.
  """
  area = lambda x: jnp.prod(jnp.maximum(x[..., 2:] - x[..., :2], 0), -1)
  box = lambda low, high: jnp.concatenate(
      [low(a[..., :2], b[..., :2]), high(a[..., 2:], b[..., 2:])], -1)
  inner = area(box(jnp.maximum, jnp.minimum))
  hull = jnp.maximum(area(box(jnp.minimum, jnp.maximum)), 1e-9)
  union = jnp.maximum(area(a) + area(b) - inner, 1e-9)
  return inner / union - (hull - union) / hull


def focal(logits: Array, target: Array, *, alpha: float = 0.25,
          gamma: float = 2.0) -> Array:
  """-a_t (1 - p_t)^gamma ln p_t, elementwise (arXiv:1708.02002, eq. 5).

  A logit of -inf (a class that nobody asked for) costs 0.
  """
  known = jnp.isfinite(logits)
  x = jnp.where(known, logits, 0.0)
  ce = optax.sigmoid_binary_cross_entropy(x, target)
  p = jax.nn.sigmoid(x)
  miss = p * (1 - target) + (1 - p) * target
  weight = alpha * target + (1 - alpha) * (1 - target)
  return jnp.where(known, weight * miss**gamma * ce, 0.0)


def costs(logits: Array, boxes: Array, truth: Truth, weights: Weights, *,
          alpha: float = 0.25, gamma: float = 2.0) -> Array:
  """f32[B, Q, M], of taking query q for box m: mmdetection's matcher.

  The class part is binary focal: the loss of the class as a positive less that
  as a negative. Boxes that are not there cost `_FAR`.

  Args:
    logits: f32[B, Q, C]; boxes: f32[B, Q, 4].
    truth, weights: see above.
    alpha, gamma: of the focal part.
  """
  x = jnp.where(jnp.isfinite(logits), logits, -20.0)
  x = jnp.take_along_axis(x, truth.classes[:, None], 2)
  p, one = jax.nn.sigmoid(x), jax.nn.log_sigmoid
  label = -alpha * (1 - p)**gamma * one(x) + (
      1 - alpha) * p**gamma * one(-x)
  a, b = boxes[:, :, None], truth.boxes[:, None]
  total = (weights.label * label + weights.l1 * jnp.abs(a - b).sum(-1)
           - weights.giou * giou(corners(a), corners(b)))
  return jnp.where(truth.real[:, None], total, _FAR)


def match(cost: Array) -> Array:
  """i32[B, M], the query of each box, one to one at the least total cost.

  Boxes that are not there have queries that nobody else takes.
  """
  def one(cost):
    query, box = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(cost.shape[1], jnp.int32).at[box].set(
        query.astype(jnp.int32))
  return jax.vmap(one)(jax.lax.stop_gradient(cost))


def matched(logits: Array, boxes: Array, truth: Truth, query: Array,
            weights: Weights) -> tuple[Array, dict[str, Array]]:
  """f32[], DETR's losses of one layer over the number of boxes; its parts.

  Args:
    logits: f32[B, Q, C]; boxes: f32[B, Q, 4].
    truth: see above.
    query: i32[B, M], from `match`.
    weights: of the loss.
  """
  count = jnp.maximum(truth.real.sum(), 1).astype(jnp.float32)
  rows = jnp.arange(len(query))[:, None]
  target = jnp.zeros_like(logits).at[rows, query, truth.classes].add(
      truth.real.astype(logits.dtype))
  chosen = boxes[rows, query]
  real = truth.real.astype(jnp.float32)
  parts = {
      'label': focal(logits, target).sum() / count,
      'l1': (jnp.abs(chosen - truth.boxes).sum(-1) * real).sum() / count,
      'giou': ((1 - giou(corners(chosen), corners(truth.boxes))) * real).sum()
              / count}
  return sum(getattr(weights, name) * x for name, x in parts.items()), parts


def alignment(alike: Array, classes: Array, real: Array) -> Array:
  """f32[], symmetric cross-entropy of instances and class names.

  Args:
    alike: f32[R, C], scaled similarities; classes: i32[R]; real: bool[R].

  An instance says its class; a class, of those that are there, its instances,
  whose logarithms are averaged.
  """
  one = jax.nn.one_hot(classes, alike.shape[1]) * real[:, None]
  by_row = -(one * jax.nn.log_softmax(alike, 1)).sum() / jnp.maximum(
      one.sum(), 1)
  columns = jax.nn.log_softmax(jnp.where(real[:, None], alike, -1e9), 0)
  size = one.sum(0)
  by_class = -(one * columns).sum(0) / jnp.maximum(size, 1)
  there = size > 0
  return (by_row + (by_class * there).sum() / jnp.maximum(there.sum(), 1)) / 2
