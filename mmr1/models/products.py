"""Attention by XLA's products, which compute everything and are what the kernels
are tested against.

The gradient is made by hand: jax's own would keep all scores. Letters: N
prompts, G completions per prompt, T queries, U keys, H query heads, K key/value
heads, d head width, R = H / K.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmr1.models import sight as sight_lib

Array = jax.Array
# Far below every score yet finite: a query without any visible key averages
# garbage instead of giving NaN, and its gradient stays finite.
_MASKED = -1e30
# Two towers of 4,096 patches on 2 cores: 16 MiB of scores at a time took .33 s
# forward, 128 MiB .44 and all at once .78. With 8 queries at a time it was the
# products of completions that got slow.
_CACHED_SCORES = 1 << 22
_FEWEST = 16


class How(NamedTuple):
  """What `attend` was told; see there."""
  precision: str
  chunk: int
  scale: float
  cap: float | None


def attend(query: Array, sources: Sequence[Any], *, precision: str, chunk: int,
           scale: float, cap: float | None, platform: str) -> Array:
  """`attention.attend` of anything.

  Args:
    query: [N, G, T, H, d].
    sources: of keys, see `attention.Source`; none of them empty.
    precision: of the products.
    chunk: the most queries handled at once.
    scale: factor of the scores.
    cap: of the scores.
    platform: of the devices.

  Returns:
    [N, G, T, H, d].
  """
  if platform == 'cpu':
    chunk = min(chunk, _queries_in_cache(query, sources))
  return _attention(query, tuple(
      source if isinstance(source.visible, sight_lib.Sight) else
      source._replace(visible=jax.tree_util.Partial(source.visible))
      for source in sources), How(precision, chunk, scale, cap))


def _queries_in_cache(query: Array, sources: Sequence[Any]) -> int:
  """How many queries to take at once so that their scores stay in a CPU's
  cache between the products."""
  n, g, _, heads, _ = query.shape
  count = sum(source.keys.shape[-2] for source in sources)
  return max(_FEWEST, _CACHED_SCORES // max(n * g * heads * count, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attention(query: Array, sources: tuple[Any, ...], how: How) -> Array:
  return _attention_forward(query, sources, how)[0]


def _attention_forward(query, sources, how):
  def some(carry, rows, query):
    return carry, _attend(query, rows, sources, how)[0]
  _, out = by_chunks(some, None, (query,), how.chunk)
  return out, (query, sources, out)


def _attention_backward(how, kept, slope):
  """Scores are made again: nothing [T, U] is kept for it
  (https://arxiv.org/abs/2205.14135, appendix B), nor their log-sums. XLA would
  fuse a forward pass that hands those out otherwise than one without gradient,
  and log-probs of one model would differ between the two; for the same reason
  it may not share the scores with it."""
  query, sources, out = kept
  query, sources = jax.lax.optimization_barrier((query, sources))
  drift = jnp.sum(slope.astype(jnp.float32) * out.astype(jnp.float32), -1)
  zeros = [tuple(jnp.zeros(x.shape, jnp.float32) for x in source[:2])
           for source in sources]

  def some(sums, rows, query, slope, drift):
    log_sum = _attend(query, rows, sources, how)[1]
    dquery, slopes = _attend_gradient(
        query, slope, log_sum, drift, rows, sources, how)
    return jax.tree.map(jnp.add, sums, slopes), dquery
  slopes, dquery = by_chunks(
      some, zeros, (query, slope, drift), how.chunk)
  return dquery, tuple(
      source._replace(
          keys=dk.astype(source.keys.dtype),
          values=dv.astype(source.values.dtype), visible=None, seats=None)
      for (dk, dv), source in zip(slopes, sources))


_attention.defvjp(_attention_forward, _attention_backward)


def by_chunks(fn: Callable[..., Any], carry: Any, xs: Sequence[Array],
               chunk: int) -> tuple[Any, Any]:
  """carry, outs = fn(carry, rows, *xs) for some of the queries at a time.

  Args:
    fn: reads and returns arrays [N, G, T', ...] of the queries `rows` i32[T'].
    carry: what goes from one call to the next.
    xs: [N, G, T, ...].
    chunk: the largest T'.
  """
  n, g, t = xs[0].shape[:3]
  if t <= chunk:
    return fn(carry, jnp.arange(t), *xs)
  count = -(-t // chunk)
  chunk = -(-t // count)  # even ones: 1025 queries are not padded to 2048

  def cut(x):
    x = jnp.pad(x, [(0, 0)] * 2 + [(0, count * chunk - t)]
                + [(0, 0)] * (x.ndim - 3))
    return jnp.moveaxis(x.reshape(n, g, count, chunk, *x.shape[3:]), 2, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(n, g, count * chunk, *x.shape[4:])[:, :, :t]
  rows = jnp.minimum(jnp.arange(count * chunk), t - 1).reshape(count, chunk)
  carry, outs = jax.lax.scan(
      lambda carry, x: fn(carry, *x), carry, (rows, *map(cut, xs)))
  return carry, jax.tree.map(join, outs)


def weights(query: Array, rows: Array, source: Any, how: How) -> Array:
  """f32[N, G, K, T', R, U], softmax of the queries [N, G, T', H, d] of index
  `rows` over keys of every row's own."""
  score, mask = _products(_by_kv_head(query, [source]), rows, source, how)
  return jax.nn.softmax(jnp.where(mask, score * _left(how), _MASKED), -1)


def soft_cap(x: Array, cap: float | None) -> Array:
  """`cap * tanh(x / cap)`; x if there is no cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def _attend(query, rows, sources, how):
  """The queries of index `rows`, all at once: what `attend` returns, and the
  logarithm of the sum of their exponentials f32[N, G, T, H]."""
  n, g, t, heads, width = query.shape
  query = _by_kv_head(query, sources)
  products = [_products(query, rows, source, how) for source in sources]
  scores = [jnp.where(mask, score, _MASKED) for score, mask in products]
  top = functools.reduce(
      jnp.maximum, _over_keys(jnp.max, scores, sources, -jnp.inf))
  # Scaled after the difference: `score * scale - top` is rounded once or twice,
  # as the program around it has it, and one model's log-probs in two programs
  # would differ by more than they must.
  scale = _left(how)
  weights = [jnp.exp((score - source.from_rows(top)[..., None]) * scale)
             for score, source in zip(scores, sources)]
  total = sum(_over_keys(jnp.sum, weights, sources, 0.0))
  out = sum(_values(weight, source, how.precision)
            for weight, source in zip(weights, sources))
  out = out / jnp.moveaxis(total, 2, 3)[..., None]
  log_sum = jnp.moveaxis(top * scale + jnp.log(total), 2, 3)
  return (out.reshape(n, g, t, heads, width).astype(query.dtype),
          log_sum.reshape(n, g, t, heads))


def _by_kv_head(x: Array, sources: Sequence[Any]) -> Array:
  """[N, G, T, H, ...] -> [N, G, T, K, R, ...]."""
  kv_heads = sources[0].keys.shape[-3]
  return x.reshape(*x.shape[:3], kv_heads, -1, *x.shape[4:])


def _attend_gradient(query, slope, log_sum, drift, rows, sources, how):
  """Of some queries: their gradient, and [(keys', values')] f32 of sources."""
  shape = query.shape
  query, slope, log_sum, drift = (
      _by_kv_head(x, sources) for x in (query, slope, log_sum, drift))
  dquery, slopes = 0.0, []
  for source in sources:
    dq, dk, dv = _source_gradient(
        query, slope, log_sum, drift, rows, source, how)
    dquery += dq
    slopes.append((dk, dv))
  return dquery.reshape(shape).astype(query.dtype), slopes


def _source_gradient(query, slope, log_sum, drift, rows, source, how):
  """f32: of the queries [N, G, T, K, R, d], the keys and the values.

  What sums over queries is a product (a^T b)^T whose b has the [T, U] numbers:
  the other way round XLA would copy those transposed.
  """
  shape, (keys, values) = query.shape, source[:2]
  to = functools.partial(_in_rows, source=source)
  times = functools.partial(jnp.einsum, precision=how.precision,
                            preferred_element_type=jnp.float32)
  score, mask = _products(query, rows, source, how)
  mask = jnp.broadcast_to(mask, score.shape)
  score, mask = (x.reshape(*keys.shape[:-2], -1, keys.shape[-2])
                 for x in (score, mask))
  query, slope = to(query), to(slope).astype(values.dtype)
  # The exponential last: XLA then makes the weights in one go.
  weight = jnp.exp(
      jnp.where(mask, score * _left(how) - to(log_sum)[..., None], _MASKED))
  dweight = times('...md,...ud->...mu', slope, values)
  dscore = weight * (dweight - to(drift)[..., None]) * how.scale
  if how.cap is not None:  # score is the capped one already
    dscore *= 1 - (score / how.cap)**2
  weight, dscore = weight.astype(values.dtype), dscore.astype(keys.dtype)
  dquery = times('...mu,...ud->...md', dscore, keys)
  dkeys = times('...md,...mu->...du', query, dscore)
  dvalues = times('...md,...mu->...du', slope, weight)
  return (_out_of_rows(dquery, shape, source), jnp.swapaxes(dkeys, -1, -2),
          jnp.swapaxes(dvalues, -1, -2))


def _in_rows(x: Array, source: Any) -> Array:
  """[N, G, T, K, R, ...] -> [N, K, G T R, ...] of shared keys, else
  [N, G, K, T R, ...]."""
  x = jnp.moveaxis(x, 3, 1 if source.shared else 2)
  return x.reshape(*source.keys.shape[:-2], -1, *x.shape[5:])


def _out_of_rows(x: Array, shape: tuple[int, ...], source: Any) -> Array:
  """The way back from `_in_rows` to `shape`."""
  n, g, t, k, r, d = shape
  if source.shared:
    return jnp.moveaxis(x.reshape(n, k, g, t, r, d), 1, 3)
  return jnp.moveaxis(x.reshape(n, g, k, t, r, d), 2, 3)


def _products(query, rows, source, how):
  """f32[N, G, K, T, R, U], or [N, K, G, T, R, U] if the keys are shared, and
  what of them is visible: scores up to the factor `_left`."""
  if source.seats is not None:
    query = source.to_seats(query)
  shared = source.shared
  score = jnp.einsum(
      'ngtkrd,nkud->nkgtru' if shared else 'ngtkrd,ngkud->ngktru',
      query, source.keys, precision=how.precision,
      preferred_element_type=jnp.float32)
  mask = source.visible(rows)
  mask = mask[:, None, :, :, None] if shared else mask[:, :, None, :, None]
  if how.cap is not None:
    score = soft_cap(score * how.scale, how.cap)
  return score, mask


def _left(how: How) -> float:
  """What `_products` are to be multiplied by: soft caps take the scale in."""
  return how.scale if how.cap is None else 1.0


def _values(weight, source, precision):
  """f32[N, G, T, K, R, d] of rows: the sum of the values by their weights."""
  weight = weight.astype(source.values.dtype)
  kw = dict(precision=precision, preferred_element_type=jnp.float32)
  # In the products' own order: straight to 'ngtkrd' the operands would be
  # swapped, and XLA's CPU backend has no such product in bfloat16.
  if source.shared:
    part = jnp.einsum('nkgtru,nkud->nkgtrd', weight, source.values, **kw)
    out = jnp.moveaxis(part, 1, 3)
    return out if source.seats is None else source.seats.to_rows(out)
  part = jnp.einsum('ngktru,ngkud->ngktrd', weight, source.values, **kw)
  return jnp.moveaxis(part, 2, 3)


def _over_keys(reduce: Callable[..., Array], xs: Sequence[Array],
               sources: Sequence[Any], initial: float) -> list[Array]:
  """Reduces every source over its keys, to [N, G, K, T, R] of rows each."""
  return [source.to_rows(reduce(x, axis=-1, initial=initial))
          for x, source in zip(xs, sources)]
