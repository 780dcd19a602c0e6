"""The inside of `mmr1.models.triton`: blocks of queries against blocks of keys.

Letters: B sequences of L queries and U keys, H query heads, K key/value heads,
d head width.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

Array = jax.Array
BLOCK = 64  # queries and keys of a block; not measured
_MASKED = -1e30


class Part(NamedTuple):
  """One source of keys.

  Fields:
    keys, values: [B, K, U, d].
    reach: (i32[B, L], i32[B, L], i32[B, L]), first and last place that each
      query sees, and the number that the keys must have.
    stand: (i32[B, U], i32[B, U]), place and number of each key.
  """
  keys: Array
  values: Array
  reach: tuple[Array, Array, Array]
  stand: tuple[Array, Array]


class How(NamedTuple):
  """What is static: factor and cap of the scores, run as plain operations."""
  scale: float
  cap: float | None
  interpret: bool


def forward(query: Array, part: Part, ranges: Array,
            how: How) -> tuple[Array, Array]:
  """Attention to one source.

  Args:
    query: [B, H, L, d].
    part: the keys.
    ranges: i32[B, L / BLOCK, 2], blocks of keys to read, from and up to.
    how: what is static.

  Returns:
    f32[B, H, L, d], 0 where nothing is seen, and the logarithm of the sum of
    exponentials f32[B, H, L], very low where nothing is.
  """
  return _call(
      _forward_kernel, how, query, part, ranges, [query], keys_first=False,
      outs=[query.shape, query.shape[:3]])


def query_gradient(query: Array, slope: Array, log_sum: Array, drift: Array,
                   part: Part, ranges: Array, how: How) -> Array:
  """f32[B, H, L, d], the gradient of the queries through one source.

  Args:
    query: [B, H, L, d].
    slope: [B, H, L, d], gradient of the result over all sources.
    log_sum: f32[B, H, L], of all sources.
    drift: f32[B, H, L], product of the result and its gradient.
    part, ranges, how: as in `forward`.
  """
  return _call(
      _query_kernel, how, query, part, ranges,
      [query, slope, log_sum, drift], keys_first=False, outs=[query.shape])[0]


def key_gradient(query: Array, slope: Array, log_sum: Array, drift: Array,
                 part: Part, ranges: Array, how: How) -> tuple[Array, Array]:
  """f32[B, H, U, d] twice: of keys and of values, by every query head.

  Args:
    query, slope, log_sum, drift, part, how: as in `query_gradient`.
    ranges: i32[B, U / BLOCK, 2], blocks of queries to read, from and up to.
  """
  shape = (*query.shape[:2], part.keys.shape[2], query.shape[3])
  return _call(
      _key_kernel, how, query, part, ranges,
      [query, slope, log_sum, drift], keys_first=True, outs=[shape, shape])


def _call(kernel: Callable[..., None], how: How, query: Array, part: Part,
          ranges: Array, of_queries: Sequence[Array], keys_first: bool,
          outs: Sequence[tuple[int, ...]]) -> Any:
  """One program for every block of queries, or of keys if `keys_first`; it
  gets a block of the one and may read all of the other."""
  batch, heads, length, _ = query.shape
  shared = heads // part.keys.shape[1]

  def spec(shape, whole, index):
    """Of an array [B, ...] whose axis `len(index)` is the sequence."""
    axis = len(index)
    block = (None,) * axis + (shape[axis] if whole else BLOCK,)
    return pl.BlockSpec(
        (*block, *shape[axis + 1:]), lambda b, h, i: (
            *(f(b, h) for f in index), 0 if whole else i,
            *(0 for _ in shape[axis + 1:])))

  row, head = lambda b, h: b, lambda b, h: h
  kv_head = lambda b, h: h // shared
  specs = [pl.BlockSpec((None, None, 2), lambda b, h, i: (b, i, 0))]
  specs += [spec(x.shape, keys_first, (row, head)) for x in of_queries]
  specs += [spec(x.shape, keys_first, (row,)) for x in part.reach]
  specs += [spec(x.shape, not keys_first, (row, kv_head)) for x in part[:2]]
  specs += [spec(x.shape, not keys_first, (row,)) for x in part.stand]
  count = (part.keys.shape[2] if keys_first else length) // BLOCK
  return pl.pallas_call(
      functools.partial(kernel, how=how),
      grid=(batch, heads, count), in_specs=specs,
      out_specs=[spec(shape, False, (row, head)) for shape in outs],
      out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in outs],
      compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
      interpret=how.interpret, name=f'attention{kernel.__name__}',
  )(ranges, *of_queries, *part.reach, *part[:2], *part.stand)


def _dot(a: Array, b: Array) -> Array:
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _scores(q: Array, k: Array, reach: Sequence[Array],
            stand: Sequence[Array], how: How) -> tuple[Array, Array, Array]:
  """f32[queries, keys] of two blocks, what is seen of them, and the slope of
  the scores over the plain products."""
  score = _dot(q, k.T) * how.scale
  slope = jnp.full_like(score, how.scale)
  if how.cap is not None:
    bent = jnp.tanh(score / how.cap)
    score, slope = how.cap * bent, slope * (1 - bent * bent)
  low, high, number = (x[:, None] for x in reach)
  place, held = (x[None, :] for x in stand)
  seen = (low <= place) & (place <= high) & (number == held)
  return jnp.where(seen, score, _MASKED), seen, slope


def _at(block: Any) -> Any:
  return pl.ds(block * BLOCK, BLOCK)


def _forward_kernel(ranges, query, low, high, number, keys, values, place,
                    held, out, log_sum, *, how):
  q = query[...]
  reach = low[...], high[...], number[...]

  def step(j, carry):
    top, total, acc = carry
    here = _at(j)
    score, seen, _ = _scores(
        q, keys[here, :], reach, (place[here], held[here]), how)
    new = jnp.maximum(top, jnp.max(score, 1))
    weight = jnp.where(seen, jnp.exp(score - new[:, None]), 0.0)
    shrink = jnp.exp(top - new)
    v = values[here, :]
    acc = acc * shrink[:, None] + _dot(weight.astype(v.dtype), v)
    return new, total * shrink + jnp.sum(weight, 1), acc

  start = (jnp.full((BLOCK,), _MASKED, jnp.float32),
           jnp.zeros((BLOCK,), jnp.float32), jnp.zeros(q.shape, jnp.float32))
  top, total, acc = jax.lax.fori_loop(ranges[0], ranges[1], step, start)
  some = total > 0
  total = jnp.where(some, total, 1.0)
  out[...] = acc / total[:, None]
  log_sum[...] = jnp.where(some, top + jnp.log(total), _MASKED)


def _query_kernel(ranges, query, slope, log_sum, drift, low, high, number,
                  keys, values, place, held, out, *, how):
  q, do = query[...], slope[...]
  total, mean = log_sum[...][:, None], drift[...][:, None]
  reach = low[...], high[...], number[...]

  def step(j, acc):
    here = _at(j)
    k = keys[here, :]
    score, seen, bend = _scores(q, k, reach, (place[here], held[here]), how)
    weight = jnp.where(seen, jnp.exp(score - total), 0.0)
    ds = weight * (_dot(do, values[here, :].T) - mean) * bend
    return acc + _dot(ds.astype(k.dtype), k)

  out[...] = jax.lax.fori_loop(
      ranges[0], ranges[1], step, jnp.zeros(q.shape, jnp.float32))


def _key_kernel(ranges, query, slope, log_sum, drift, low, high, number,
                keys, values, place, held, dk_out, dv_out, *, how):
  k, v = keys[...], values[...]
  stand = place[...], held[...]

  def step(i, carry):
    dk, dv = carry
    here = _at(i)
    q, do = query[here, :], slope[here, :]
    score, seen, bend = _scores(
        q, k, (low[here], high[here], number[here]), stand, how)
    weight = jnp.where(seen, jnp.exp(score - log_sum[here][:, None]), 0.0)
    ds = weight * (_dot(do, v.T) - drift[here][:, None]) * bend
    return (dk + _dot(ds.T.astype(q.dtype), q),
            dv + _dot(weight.T.astype(do.dtype), do))

  zeros = jnp.zeros(k.shape, jnp.float32)
  dk_out[...], dv_out[...] = jax.lax.fori_loop(
      ranges[0], ranges[1], step, (zeros, zeros))
