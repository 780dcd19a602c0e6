"""Estimates of KL(pi || pi_ref) from the log-probs of sampled tokens.

x = log pi, y = log pi_ref of the sampled token; see "Approximating KL
divergence", http://joschu.net/blog/kl-approx.html. All are finite for any
|x - y| that fp32 can square.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmr1.losses import ratio

Array = jax.Array
Estimator = Callable[..., Array]


def k1(logp: Array, ref: Array) -> Array:
  """x - y: unbiased, of both signs; its gradient is that of logp alone."""
  return logp - ref


def absolute(logp: Array, ref: Array) -> Array:
  """|x - y|, with slope 0 at equality (that of jnp.abs is 1 there)."""
  difference = logp - ref
  return jax.lax.stop_gradient(jnp.sign(difference)) * difference


def k2(logp: Array, ref: Array) -> Array:
  """(x - y)^2 / 2: its expected gradient is that of the KL divergence."""
  return 0.5 * jnp.square(logp - ref)


def k3(
    logp: Array, ref: Array, *,
    difference_clamp: float | None = 20.0,
    value_clamp: float | None = 10.0,
) -> Array:
  """exp(d) - d - 1 with d = y - x: unbiased in value and never negative.

  GRPO's estimator (arXiv:2402.03300, eq. 4). verl and EasyR1 clamp d to +-20
  and the value to 10; TRL clamps nothing (None, None). Where a clamp binds
  the gradient is 0.
  """
  d = ratio.bound(ref - logp, difference_clamp)
  # expm1 keeps small differences; rounding may still leave -1e-15.
  value = jnp.maximum(jnp.expm1(d) - d, 0)
  return value if value_clamp is None else jnp.minimum(value, value_clamp)


def k3_plus(
    logp: Array, ref: Array, *,
    difference_clamp: float | None = 20.0,
    value_clamp: float | None = 10.0,
) -> Array:
  """The value of k3 with the gradient of k2 (verl's 'k3+')."""
  value = k3(
      logp, ref, difference_clamp=difference_clamp, value_clamp=value_clamp)
  slope = k2(logp, ref)
  return jax.lax.stop_gradient(value - slope) + slope


def named(name: str) -> Estimator:
  """The estimator of this module that a config calls `name`.

  Raises:
    ValueError: there is none.
  """
  known = {fn.__name__: fn for fn in (k1, absolute, k2, k3, k3_plus)}
  if name not in known:
    raise ValueError(f'kl estimator {name!r} is not one of {tuple(known)}.')
  return known[name]
