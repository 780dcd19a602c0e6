"""Sums, means and spreads over the entries that a mask keeps.

Masked entries may hold anything, nan and inf included: they are replaced
before any arithmetic, so that neither values nor gradients see them. Over an
empty selection every function here is exactly 0 with gradient 0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array
Axis = int | Sequence[int] | None


def fill(x: Array, mask: Array, value: float = 0.0) -> Array:
  """`x` where `mask`, else `value`; shapes broadcast. Floating point."""
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    x = x.astype(jnp.float32)
  return jnp.where(mask, x, jnp.asarray(value, x.dtype))


def sum(  # pylint: disable=redefined-builtin
    x: Array, mask: Array, axis: Axis = None, *, keepdims: bool = False
) -> Array:
  """Sum of x where mask. x f32[...], mask bool[...] broadcastable."""
  return jnp.sum(fill(x, mask), axis=axis, keepdims=keepdims)


def count(
    mask: Array, axis: Axis = None, *, keepdims: bool = False
) -> Array:
  """Number of kept entries, f32[...]."""
  return jnp.sum(
      mask, axis=axis, keepdims=keepdims, dtype=jnp.float32)


def mean(
    x: Array, mask: Array, axis: Axis = None, *, keepdims: bool = False
) -> Array:
  """Mean of x where mask; 0 where nothing is kept."""
  mask = jnp.broadcast_to(mask, jnp.broadcast_shapes(x.shape, mask.shape))
  n = count(mask, axis, keepdims=keepdims)
  return sum(x, mask, axis, keepdims=keepdims) / jnp.maximum(n, 1)


def var(
    x: Array, mask: Array, axis: Axis = None, *, ddof: int = 0,
    keepdims: bool = False,
) -> Array:
  """Variance of x where mask, divisor n - ddof; 0 where n <= ddof."""
  mask = jnp.broadcast_to(mask, jnp.broadcast_shapes(x.shape, mask.shape))
  centred = fill(fill(x, mask) - mean(x, mask, axis, keepdims=True), mask)
  n = count(mask, axis, keepdims=keepdims)
  squares = jnp.sum(jnp.square(centred), axis=axis, keepdims=keepdims)
  return jnp.where(n > ddof, squares / jnp.maximum(n - ddof, 1), 0)


def std(
    x: Array, mask: Array, axis: Axis = None, *, ddof: int = 0,
    keepdims: bool = False,
) -> Array:
  """Standard deviation of x where mask; 0 with gradient 0 at no variance."""
  v = var(x, mask, axis, ddof=ddof, keepdims=keepdims)
  # The square root has no finite slope at 0.
  return jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1)), 0)


def max(  # pylint: disable=redefined-builtin
    x: Array, mask: Array, axis: Axis = None, *, keepdims: bool = False
) -> Array:
  """Largest x where mask; 0 where nothing is kept."""
  mask = jnp.broadcast_to(mask, jnp.broadcast_shapes(x.shape, mask.shape))
  largest = jnp.max(fill(x, mask, -jnp.inf), axis=axis, keepdims=keepdims)
  return fill(largest, jnp.any(mask, axis=axis, keepdims=keepdims))


def top_fraction(x: Array, mask: Array, fraction: float | Array) -> Array:
  """True on the ceil(fraction * n) largest of each row's n kept entries.

  Of equals the first. x f32[..., T], mask bool[..., T] -> bool[..., T].
  """
  known = fill(x, mask, -jnp.inf)
  order = jnp.argsort(-known, axis=-1, stable=True)
  rank = jnp.argsort(order, axis=-1, stable=True)
  # 0.4 * 5 is 2.0000000298 in fp32, whose ceiling would be 3.
  wanted = jnp.ceil(fraction * count(mask, -1, keepdims=True) - 1e-4)
  return mask & (rank < wanted)


def whiten(
    x: Array, mask: Array, *, ddof: int = 1, eps: float = 1e-8
) -> Array:
  """(x - mean) / sqrt(var + eps) over all kept entries; 0 elsewhere.

  verl's `masked_whiten` (ddof 1, eps 1e-8). Entries that are all equal give
  exactly 0: in fp32 their computed mean may miss their value by a rounding
  error, which 1 / sqrt(eps) would blow up.

  Args:
    x: f32[...].
    mask: bool[...], same shape.
    ddof: 1 for the sample variance, 0 for the population's.
    eps: added to the variance.

  Returns:
    f32[...], of the shape of x.
  """
  flat = max(x, mask) == -max(-x, mask)
  scale = jax.lax.rsqrt(var(x, mask, ddof=ddof) + eps)
  return fill((fill(x, mask) - mean(x, mask)) * scale, mask & ~flat)
