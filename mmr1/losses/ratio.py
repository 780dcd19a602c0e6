"""Importance ratios in log space: the first axis of an objective."""

import jax
import jax.numpy as jnp

from mmr1 import masked

Array = jax.Array

LEVELS = ('token', 'sequence', 'sequence_token')
SEQUENCES = ('geometric', 'product')

# exp(40) = 2.4e17: its square is still finite in fp32, and so are sums over a
# batch and the norm of a gradient.
EXPONENT_MAX = 40.0


def bound(x: Array, clamp: float | tuple[float, float] | None) -> Array:
  """Clips exponents to +-clamp or (low, high), and always to +-40.

  Between the bounds the value is x itself; outside the gradient is 0. None
  ('no clamp') therefore equals unclamped arithmetic for every exponent whose
  exponential an fp32 gradient can carry.
  """
  if clamp is None:
    low, high = -EXPONENT_MAX, EXPONENT_MAX
  elif isinstance(clamp, (tuple, list)):
    low, high = clamp
  else:
    low, high = -clamp, clamp
  return jnp.clip(
      x, jnp.maximum(low, -EXPONENT_MAX), jnp.minimum(high, EXPONENT_MAX))


def log_ratio(
    logp: Array,
    old: Array,
    mask: Array,
    *,
    level: str = 'token',
    sequence: str = 'geometric',
    clamp: float | tuple[float, float] | None = 20.0,
) -> Array:
  """Log of the importance ratio pi / pi_old.

  token: d_t = logp_t - old_t.
  sequence (GSPO, arXiv:2507.18071, eq. 7): s = mean_t d_t, or sum_t d_t for
    the plain product of the probabilities; one number a row.
  sequence_token (GSPO-token, eq. 14): sg(s) + logp_t - sg(logp_t), the value
    of the sequence with the gradient of the token.

  Args:
    logp: f32[N, G, T].
    old: f32[N, G, T].
    mask: bool[N, G, T].
    level: 'token', 'sequence' or 'sequence_token'.
    sequence: 'geometric' (mean of d, the geometric mean of the token ratios)
      or 'product' (sum of d).
    clamp: bound on the result: verl takes 20 for tokens and (-inf, 10) for
      sequences, TRL none. See `bound`.

  Returns:
    f32[N, G, T], 0 where masked; for 'sequence' f32[N, G, 1].

  Raises:
    ValueError: for an unknown level or sequence.
  """
  if level not in LEVELS:
    raise ValueError(f'ratio level {level!r} is not one of {LEVELS}.')
  if sequence not in SEQUENCES:
    raise ValueError(
        f'sequence ratio {sequence!r} is not one of {SEQUENCES}.')
  logp, old = masked.fill(logp, mask), masked.fill(old, mask)
  delta = logp - old
  if level == 'token':
    return bound(delta, clamp)
  pool = masked.mean if sequence == 'geometric' else masked.sum
  row = pool(delta, mask, -1, keepdims=True)
  if level == 'sequence':
    return bound(row, clamp)
  stop = jax.lax.stop_gradient
  return bound(masked.fill(stop(row) + (logp - stop(logp)), mask), clamp)
