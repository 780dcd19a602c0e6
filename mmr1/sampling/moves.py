"""Caches of completions in other rows, of another size, closed up.

Letters as in `mmr1.sampling.rows`; U tokens of a cache.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmr1.models import attention

Array = jax.Array


def regroup(cache: Array, source: Array) -> Array:
  """Keys or values [..., D, R, K, ., .] of the rows `source` i32[D, R']."""
  return over_layers(lambda x: attention.take(x, source), cache, 5)


def resize(cache: Array, shift: Array, size: int, axis: int) -> Array:
  """Keys or values in a cache of another size.

  Args:
    cache: one array of `State.cache`.
    shift: i32[], tokens dropped from the front.
    size: tokens of the new cache.
    axis: of the tokens.
  """
  # Past the last token there is nothing, and nobody looks.
  index = jnp.minimum(shift + jnp.arange(size), cache.shape[axis] - 1)
  return jnp.take(cache, index, axis=axis)


def close(cache: Array, start: Array, end: Array, t: Array, begin: Array,
          axis: int) -> Array:
  """Keys or values of rows without the holes in them.

  A row is in [start, end) and goes on at t; it comes to be one piece from
  `begin` on. So rows that have stopped at different tokens end together.

  Args:
    cache: one array of `State.cache`.
    start, end, begin: i32[D, R].
    t: i32[].
    axis: of the tokens.
  """
  size = cache.shape[axis]
  behind = jnp.arange(size) - begin[..., None]
  own = (end - start)[..., None]
  index = jnp.where(behind < own, start[..., None] + behind, t + behind - own)
  index = jnp.clip(index, 0, size - 1)

  def rows(x):
    return jax.vmap(jax.vmap(
        lambda row, i: jnp.take(row, i, axis=axis)))(x, index)
  return over_layers(rows, cache, 5)


def over_layers(fn: Callable[[Array], Array], x: Array, ndim: int) -> Array:
  """`fn` of an array with so many axes; scanned layers are one more, in
  front."""
  return fn(x) if x.ndim == ndim else jax.vmap(fn)(x)
