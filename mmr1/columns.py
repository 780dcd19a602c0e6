"""Reward columns float[N, G, K] with missing values, and their statistics.

nan means 'this column has no value for this sample'; 0.0 is a value. All
functions compute in the library and precision of what they get: NumPy float64
on the host, where the stage calls them, or JAX arrays.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

Array = Any  # a NumPy or a JAX array


class Tokens(NamedTuple):
  """What an estimator may know about completions; None: not given.

  Fields:
    mask: bool[N, G, T], sampled tokens.
    lengths: int[N, G], number of sampled tokens.
    rewards: f32[N, G, T], dense rewards that come on top of the outcome (a
      KL penalty, process rewards).
    values: f32[N, G, T], of the critic that was there when sampling.
    baseline: f32[N], reward of the greedy completion.
    expert: bool[N, G], traces of the data.
    branch: int[N], number of the view that the row was sampled from.
    logp: f32[N, G, T], of the policy that sampled.
    looks: {name: Seen}, what the rollout's looks saw.
    columns: {name: f64[N, G]}, of rewards and probes before `combine`.
    turn: i8[N, G, T], the assistant's turn that each token is of, or -1.
    turn_rewards: f64[N, G, K], of up to K of them, by an environment.
    rng: np.random.Generator of this step, for what is drawn on the host.
  """
  mask: Array | None = None
  lengths: Array | None = None
  rewards: Array | None = None
  values: Array | None = None
  baseline: Array | None = None
  expert: Array | None = None
  branch: Array | None = None
  logp: Array | None = None
  looks: Mapping[str, Any] | None = None
  columns: Mapping[str, Array] | None = None
  turn: Array | None = None
  turn_rewards: Array | None = None
  rng: np.random.Generator | None = None


def look(tokens: Tokens | None, view: str, name: str) -> Any:
  """What the look `view` saw, or the error of an estimator that lacks it."""
  looks = need(tokens, 'looks', name)
  if view not in looks:
    raise ValueError(f'advantage {name!r} reads the view {view!r}; there are '
                     f'{sorted(looks)}.')
  return looks[view]


def need(tokens: Tokens | None, field: str, name: str) -> Array:
  """`tokens.field`, or the error of an estimator that lacks it."""
  value = None if tokens is None else getattr(tokens, field)
  if value is None:
    raise ValueError(
        f'advantage {name!r} needs tokens.{field}, which was not given.')
  return value


def split(rewards: Array) -> tuple[Any, Array, Array]:
  """(array library, bool valid, values with 0 where missing), [N, G, K].

  Raises:
    ValueError: not three axes, or an infinite reward (checked on the host).
  """
  if rewards.ndim != 3:
    raise ValueError(
        f'rewards must be [prompts, samples, columns], got shape '
        f'{tuple(rewards.shape)}.')
  xp = np if isinstance(rewards, np.ndarray) else jnp
  if not xp.issubdtype(rewards.dtype, xp.floating):
    rewards = rewards.astype(float)
  if xp is np and np.isinf(rewards).any():
    where = tuple(int(i) for i in np.argwhere(np.isinf(rewards))[0])
    raise ValueError(
        f'Infinite reward at [prompt, sample, column] {where}; rewards are '
        'finite, or nan where a column has no value.')
  valid = ~xp.isnan(rewards)
  return xp, valid, xp.where(valid, rewards, 0)


def total(rewards: Array) -> Array:
  """[N, G], each sample's sum of what has a value; nan where nothing has."""
  xp, valid, values = split(rewards)
  return xp.where(valid.any(-1), values.sum(-1), xp.nan)


def flat(xp: Any, values: Array, valid: Array, axis: Any) -> Array:
  """True where the valid values differ by no more than rounding.

  The extremes decide: in fp32 eight values of 0.9 have a mean that misses 0.9
  and a standard deviation of 1e-7 (invariant M7).
  """
  high = xp.max(
      xp.where(valid, values, -xp.inf), axis=axis, keepdims=True)
  low = xp.min(xp.where(valid, values, xp.inf), axis=axis, keepdims=True)
  biggest = xp.maximum(xp.abs(high), xp.abs(low))
  rounding = 4 * xp.finfo(values.dtype).eps * biggest
  # high < low: nothing is valid.
  return (high <= low) | (high - low <= rounding)


def centre(xp: Any, values: Array, valid: Array) -> tuple[Array, Array]:
  """Value minus the mean of its group, and the number of values of the group.

  [N, G, K], exactly 0 where missing or where the group is flat; [N, 1, K].
  """
  n = xp.sum(valid, axis=1, keepdims=True)
  mean = xp.sum(values, axis=1, keepdims=True) / xp.maximum(n, 1)
  keep = valid & ~flat(xp, values, valid, 1)
  return xp.where(keep, values - mean, 0), n


def std(
    xp: Any, values: Array, valid: Array, axis: Any, ddof: int,
    floor: float = 0.0,
) -> Array:
  """sqrt(max(variance, floor)) over `axis`, divisor n - ddof; axes are kept.

  With n <= ddof the variance is 0.
  """
  n = xp.sum(valid, axis=axis, keepdims=True)
  mean = xp.sum(values * valid, axis=axis, keepdims=True) / xp.maximum(n, 1)
  squares = xp.where(valid, xp.square(values - mean), 0)
  variance = xp.sum(squares, axis=axis, keepdims=True) / xp.maximum(
      n - ddof, 1)
  return xp.sqrt(xp.maximum(xp.where(n > ddof, variance, 0), floor))
