"""Attention on GPUs where cuDNN's does not fit: a Pallas kernel, blockwise.

Every source of keys gives a partial result and the logarithm of its sum of
exponentials; both are merged outside. So all G T queries of a group read their
prompt's keys where they are, once, and the gradient of those keys is summed
over the group inside the kernel (flash attention,
https://arxiv.org/abs/2307.08691, by parts).

What a query sees is an interval of places and a number that the key must have:
causal, windows, blocks, padding and packed segments alike. Blocks of keys
beyond every interval are not read. Tests interpret it and lower it for CUDA;
`experiments.bench.card` runs it against XLA's on a card.

Letters: N prompts, G completions per prompt, T queries, H query heads, K
key/value heads, d head width; in the kernel B sequences of L queries and U
keys: B = N, L = G T for keys that a group shares, else B = N G, L = T.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mmr1.models import partition as partition_lib
from mmr1.models import sight as sight_lib
from mmr1.models import triton_kernels as kernels

Array = jax.Array
Part = kernels.Part
_BLOCK = kernels.BLOCK
_LOWEST, _HIGHEST = -2**31, 2**31 - 1
_PADDED = -1  # the number of a key that is none
_WIDEST = 128  # of a head: more would not fit beside the rest on a card


def refusal(query: Array, sources: Sequence[Any], *, precision: str,
            cap: float | None) -> str | None:
  """Why the kernel cannot compute this; None: it can.

  Args:
    query: [N, G, T, H, d].
    sources: of keys, see `attention.Source`; none of them empty.
    precision: of the matrix products.
    cap: of the scores. The kernel knows it.
  """
  del cap
  if not all(isinstance(s.visible, sight_lib.Sight) for s in sources):
    return 'what is seen must be a mmr1.models.sight.Sight, not a function'
  if precision != 'default':
    return f"precision {precision!r}: it multiplies at 'default' only"
  if query.shape[-1] > _WIDEST:
    return f'heads of width {query.shape[-1]}: at most {_WIDEST}'
  if any(source.seats is not None for source in sources):
    return 'rows in seats of their prompts'
  return None


def pays(query: Array) -> bool:
  """Whether it is faster than XLA's: in 16 bits, with blocks to fill. In
  float32 it would multiply as XLA's 'default' does, and was not measured."""
  return (query.dtype in (jnp.bfloat16, jnp.float16)
          and query.shape[2] >= 2 * _BLOCK)


def attend(query: Array, sources: Sequence[Any], *, scale: float,
           cap: float | None,
           partition: partition_lib.Partition | None = None,
           interpret: bool = False) -> Array:
  """`attention.attend` for what `refusal` does not refuse.

  Args:
    query: [N, G, T, H, d].
    sources: of keys, see `attention.Source`; none of them empty.
    scale: factor of the scores.
    cap: of the scores.
    partition: how N and the heads lie over devices.
    interpret: run the kernel as ordinary operations, for tests.

  Returns:
    [N, G, T, H, d]; 0 where nothing is visible.
  """
  t, width = query.shape[2], query.shape[-1]
  room = (-t % _BLOCK, (1 << (width - 1).bit_length()) - width)
  query = jnp.pad(query, ((0, 0), (0, 0), (0, room[0]), (0, 0), (0, room[1])))
  parts = tuple(_part(source, query.shape[:3], t, room[1])
                for source in sources)
  how = kernels.How(scale, cap, interpret)
  of_query, keys, rows = (jax.P(*names) for names in (
      ('rows', None, None, 'heads'), ('rows', 'kv_heads'), ('rows',)))
  run = partition_lib.kernel(
      lambda *a: _attention(*a, how), partition,
      (of_query, (Part(keys, keys, (rows,) * 3, (rows,) * 2),) * len(parts)),
      of_query)
  out = run(query, parts)
  return out[:, :, :t, :, :width]


def _part(source: Any, shape: tuple[int, ...], t: int, room: int) -> Part:
  """`source` for queries [N, G, L] of which t are real, heads `room` wider."""
  n, g, length = shape
  keys, values = (x if source.shared else x.reshape(-1, *x.shape[2:])
                  for x in source[:2])
  u = keys.shape[2]
  batch, pad = keys.shape[0], -u % _BLOCK
  keys, values = (jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, room)))
                  for x in (keys, values))
  reach, stand = _intervals(source.visible, t, u)
  reach = tuple(
      jnp.pad(jnp.broadcast_to(x, (n, g, t)), ((0, 0), (0, 0), (0, length - t)),
              constant_values=value).reshape(batch, -1)
      for x, value in zip(reach, (_HIGHEST, _LOWEST, 0)))  # empty intervals
  stand = tuple(
      jnp.pad(jnp.broadcast_to(x, (n, batch // n, u)).reshape(batch, u),
              ((0, 0), (0, pad)), constant_values=_PADDED) for x in stand)
  return Part(keys, values, reach, stand)


def _intervals(sight: sight_lib.Sight, t: int, u: int) -> tuple[Any, Any]:
  """`Part.reach` and `Part.stand`, broadcastable to [N, G, T] and [N, G, U]."""
  first = jnp.int32(0) if sight.at is None else sight.at
  asked, place = sight.places or (
      (first + jnp.arange(t))[None, None], jnp.arange(u)[None, None])
  low, high = jnp.full_like(asked, _LOWEST), jnp.full_like(asked, _HIGHEST)
  if sight.slides:
    low = jnp.where(sight.sliding, asked - sight.window + 1, low)
  if sight.causal:
    high = asked
  if sight.blocks is not None:
    start, end = (x[:, None] for x in _runs(sight.blocks))
    high = jnp.maximum(high, end)
    low = low if sight.blocks_slide else jnp.minimum(low, start)
  zeros = jnp.zeros((1, 1, 1), jnp.int32)
  number, held = sight.segments or (zeros, zeros)
  if sight.keys is not None:
    held = jnp.where(sight.keys, held, _PADDED)
  return tuple(tuple(x.astype(jnp.int32) for x in xs) for xs in (
      (low, high, number), (place, held)))


def _runs(blocks: Array) -> tuple[Array, Array]:
  """First and last index i32[N, T] of the block of each token, its own where
  it is in none. The tokens of a block stand next to each other."""
  index = jnp.arange(blocks.shape[1])
  edge = jnp.pad((blocks[:, 1:] != blocks[:, :-1]) | (blocks[:, 1:] == 0),
                 ((0, 0), (1, 1)), constant_values=True)
  start = jax.lax.cummax(jnp.where(edge[:, :-1], index, 0), axis=1)
  end = jax.lax.cummin(
      jnp.where(edge[:, 1:], index, _HIGHEST), axis=1, reverse=True)
  return start, end


def _ranges(part: Part) -> tuple[Array, Array]:
  """First block and one past the last that may see each other: of keys for
  every block of queries i32[B, L / 64, 2], of queries for one of keys."""
  low, high, _ = (x.reshape(len(x), -1, 1, _BLOCK) for x in part.reach)
  place = part.stand[0].reshape(len(part.keys), 1, -1, _BLOCK)
  real = (part.stand[1] != _PADDED).reshape(place.shape)
  near = (low.min(-1) <= jnp.where(real, place, _LOWEST).max(-1)) & (
      high.max(-1) >= jnp.where(real, place, _HIGHEST).min(-1))

  def ends(near):
    count = near.shape[-1]
    stop = jnp.where(near, jnp.arange(1, count + 1), 0).max(-1)
    start = jnp.where(near, jnp.arange(count), count).min(-1)
    return jnp.stack([jnp.minimum(start, stop), stop], -1).astype(jnp.int32)
  return ends(near), ends(jnp.swapaxes(near, 1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attention(query: Array, parts: tuple[Part, ...],
               how: kernels.How) -> Array:
  """[N, G, L, H, d] over all parts, to the same."""
  return _attention_forward(query, parts, how)[0]


def _attention_forward(query, parts, how):
  outs, sums = [], []
  for part in parts:
    out, log_sum = kernels.forward(
        _to(query, part), part, _ranges(part)[0], how)
    outs.append(_from(out, query))
    sums.append(_from(log_sum, query))
  log_sum = jax.nn.logsumexp(jnp.stack(sums), axis=0)
  out = sum(x * jnp.exp(s - log_sum)[..., None] for x, s in zip(outs, sums))
  out = out.astype(query.dtype)
  return out, (query, parts, out, log_sum)


def _attention_backward(how, kept, slope):
  query, parts, out, log_sum = kept
  wide = slope.astype(jnp.float32)
  drift = jnp.sum(wide * out.astype(jnp.float32), -1)
  dq, dparts = 0.0, []
  for part in parts:
    for_queries, for_keys = _ranges(part)
    given = [_to(x, part) for x in (query, slope, log_sum, drift)]
    dq += _from(kernels.query_gradient(
        *given, part, for_queries, how), query)
    slopes = kernels.key_gradient(*given, part, for_keys, how)
    # Each query head has made its own; they share keys.
    shape = (*part.keys.shape[:2], -1, *part.keys.shape[2:])
    dk, dv = (jnp.sum(x.reshape(shape), 2).astype(part.keys.dtype)
              for x in slopes)
    dparts.append(Part(dk, dv, (None,) * 3, (None,) * 2))
  return dq.astype(query.dtype), tuple(dparts)


_attention.defvjp(_attention_forward, _attention_backward)


def _to(x: Array, part: Part) -> Array:
  """[N, G, L, H, ...] -> [B, H, L, ...] of the part."""
  return jnp.swapaxes(
      x.reshape(part.keys.shape[0], -1, *x.shape[3:]), 1, 2)


def _from(x: Array, query: Array) -> Array:
  """The way back from `_to`."""
  return jnp.swapaxes(x, 1, 2).reshape(*query.shape[:4], *x.shape[3:])
