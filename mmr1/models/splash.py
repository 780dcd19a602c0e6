"""Attention on TPU: jax's splash kernel, forward and backward.

It walks over blocks of the mask and skips the empty ones. That part of the
mask which only shapes decide is known when the program is built (`Group`): a
group's completions are one sequence of G T queries, its keys are the prompt's,
once, and then the completions' own. What data decides, padding and packed
segments, is by numbers that a query and its keys must share. Scores never leave
the chip, and the gradient of the prompt's keys is summed over the group in the
kernel.

Over several devices the kernel runs under `shard_map`, N and the heads divided
over them: the partitioner cannot look into it.

Letters: N prompts, G completions per prompt, T queries, P prompt keys, H query
heads, K key/value heads, d head width.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask)
import jax.numpy as jnp
import numpy as np

from mmr1.models import partition as partition_lib
from mmr1.models import sight as sight_lib

Array = jax.Array
_LANES = 128  # the smallest block
_BLOCKS = (512, 256, _LANES)
# Queries of a group are told to the kernel as (start of their completion in
# units of _LANES, index in it), two numbers in one.
_HALF = 16
_PADDED = -1  # the number of a key that is none
# The axes of what the kernel reads, see `_sequences`.
_NAMES = (jax.P('rows', 'heads'), jax.P('rows', 'kv_heads'),
          jax.P('rows', 'kv_heads'),
          splash_kernel.SegmentIds(jax.P('rows'), jax.P('rows')))


@dataclasses.dataclass(frozen=True)
class Group(splash_mask.Mask):
  """Which of [prompt ++ completions] the tokens of the completions see.

  Fields:
    prompt: keys before those of the completions, all seen; 0: there are none.
    count: completions.
    length: of each.
    causal: a token sees those of its completion up to itself, else all.
    window: so many tokens, itself included; None: all. The prompt's last key
      is taken to stand just before the completion.
    block: queries and keys of a block; it divides `prompt` and `length`.
  """
  prompt: int
  count: int
  length: int
  causal: bool
  window: int | None
  block: int

  @property
  def shape(self) -> tuple[int, int]:
    queries = self.count * self.length
    return queries, self.prompt + queries

  @property
  def q_sequence(self) -> np.ndarray:
    """i32[G T], what `mask_function` is told of every query."""
    index = np.arange(self.shape[0], dtype=np.int32)
    completion, token = np.divmod(index, self.length)
    return (completion * (self.length // _LANES) << _HALF) | token

  @property
  def mask_function(self) -> Callable[[Any, Any], Any]:
    """The mask of queries and keys, for the inside of the kernel."""
    return self.sees

  @property
  def visits(self) -> int:
    """Blocks of scores that the kernel does not skip, of one head."""
    side, blocks = self.block, self.length // self.block
    keys = self.prompt // side + (
        blocks if self.causal else blocks * self.count)
    return self.count * sum(
        bool(not self.causal or self[
            slice(row * side, (row + 1) * side),
            slice(column * side, (column + 1) * side)].any())
        for row in range(blocks) for column in range(keys))

  def sees(self, query: Any, key: Any) -> Any:
    """i32, i32 -> bool: a query of `q_sequence` and a key's index."""
    token = query & ((1 << _HALF) - 1)
    # Index in the query's own completion; below it there is the prompt.
    own = key - (self.prompt + (query >> _HALF) * _LANES)
    seen = (own >= 0) & (own <= token if self.causal else own < self.length)
    if self.window is not None:
      seen = seen & (own > token - self.window)
    if not self.prompt:
      return seen
    before = key < self.prompt
    if self.window is not None:
      before = before & (key - self.prompt > token - self.window)
    return before | seen

  def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
    """One block. Most are all or nothing, which their place alone decides: the
    kernel's tables ask for every block several times."""
    rows, columns = index
    size = rows.stop - rows.start, columns.stop - columns.start
    if size == (self.block, self.block):
      completion, token = divmod(rows.start, self.length)
      own = columns.start - self.prompt - completion * self.length
      if columns.start >= self.prompt and not 0 <= own < self.length:
        return _constant(False, self.block)
      if columns.start < self.prompt:
        own = columns.start - self.prompt
      # How far the block's keys are before its queries, at least and at most.
      least = token - own - self.block + 1
      most = token - own + self.block - 1
      causal = self.causal and columns.start >= self.prompt
      reach = math.inf if self.window is None else self.window
      if (causal and most < 0) or least >= reach:
        return _constant(False, self.block)
      if (least >= 0 or not causal) and most < reach:
        return _constant(True, self.block)
    return self.sees(self.q_sequence[rows, None],
                     np.arange(columns.start, columns.stop)[None])


@functools.cache
def _constant(value: bool, block: int) -> np.ndarray:
  return np.full((block, block), value)


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
  own, *prompts = sources
  sights = [source.visible for source in sources]
  if not all(isinstance(s, sight_lib.Sight) for s in sights):
    return 'what is seen must be a mmr1.models.sight.Sight, not a function'
  if precision != 'default':
    return f"precision {precision!r}: it multiplies at 'default' only"
  if query.dtype not in (jnp.float32, jnp.bfloat16):
    return f'{query.dtype}: it reads float32 and bfloat16'
  if query.shape[-1] % 8:
    return f'heads of width {query.shape[-1]}: it must be a multiple of 8'
  if own.shared or own.keys.shape[3] != query.shape[2] or (
      sights[0].at is not None):
    return 'queries against a cache: it reads whole sequences'
  if sights[0].blocks is not None:
    return 'blocks of tokens that see each other both ways (prompts of Gemma 3)'
  if sights[0].slides and not sights[0].causal:
    return 'a window that is not causal'
  if not prompts:
    return None
  if len(prompts) > 1 or not prompts[0].shared or prompts[0].seats is not None:
    return 'keys other than those of one prompt per group'
  if not sights[0].causal or sights[1].causal:
    return 'completions that are not causal, or prompts that are'
  if sights[1].slides and sights[1].segments is not None:
    return 'a window over packed prompts: it measures from the end of the row'
  if sights[1].slides and sights[1].places is None:
    return 'a window over a prompt whose places nothing says'
  return _refused_segments(*(s.segments for s in sights))


def _refused_segments(own, prompt):
  if own is prompt is None:
    return None
  if own is None or prompt is None or own[0] is not prompt[0]:
    return ('segments of the completions or of the prompt alone: a query has '
            'one number for both')
  return None


def pays(query: Array) -> bool:
  """Whether there are enough queries to fill a block. Not measured."""
  return query.shape[2] >= _LANES


def attend(query: Array, sources: Sequence[Any], *, scale: float,
           cap: float | None,
           partition: partition_lib.Partition | None = None,
           interpret: bool = False) -> Array:
  """`attention.attend` for what `refusal` does not refuse.

  Queries are scaled before they are rounded to their dtype, where XLA's
  attention scales the scores.

  Args:
    query: [N, G, T, H, d].
    sources: of keys, see `attention.Source`; none of them empty.
    scale: factor of the scores.
    cap: of the scores.
    partition: how N and the heads lie over devices.
    interpret: run the kernel as ordinary operations, for tests.

  Returns:
    [N, G, T, H, d].
  """
  n, g, t, heads, width = query.shape
  query = (query.astype(jnp.float32) * scale).astype(query.dtype)
  own, *prompts = sources
  arrays, length = _sequences(query, own, prompts[0] if prompts else None)
  queries, prompt = arrays[0].shape[2], arrays[1].shape[2] - arrays[0].shape[2]
  block = next(b for b in _BLOCKS if length % b == prompt % b == 0)

  def run(window: int | None) -> Array:
    group = Group(
        prompt=prompt, count=queries // length, length=length,
        causal=own.visible.causal, window=window, block=block)

    def local(query, *rest):
      kernel = _kernel(group, query.shape[1], cap, interpret)
      # The name is for `mmr1.planning.costs`: the grid alone does not say it.
      blocks = _visits(group) * query.shape[1]
      with jax.named_scope(f'visits_{blocks}_blocks'):
        return jax.vmap(kernel)(query, *rest)
    return partition_lib.kernel(local, partition, _NAMES, _NAMES[0])(*arrays)

  sight = own.visible
  if isinstance(sight.sliding, bool) or not sight.slides:
    out = run(sight.window if sight.slides else None)
  else:
    out = jax.lax.cond(
        sight.sliding, lambda: run(sight.window), lambda: run(None))
  out = out.reshape(-1, heads, queries // length, length, width)
  return jnp.moveaxis(out, 1, 3).reshape(n, g, length, heads, width)[:, :, :t]


def _sequences(query: Array, own: Any, prompt: Any) -> tuple[Any, int]:
  """What the kernel reads of a group, or of every row if there is no prompt.

  Returns:
    queries [B, H, L, d], keys and values [B, K, P + L, d], and the numbers
    that must agree (i32[B, L], i32[B, P + L]); and the length of a completion,
    which divides L.
  """
  n, g, t, heads, width = query.shape
  length = _whole(t)
  sight, after, rest = own.visible, (0, length - t), ((0, 0),) * 2
  batch = n if prompt is not None else n * g
  asked = _full(sight.segments[0] if sight.segments else 0, (n, g, t))
  asked, held = (
      jnp.pad(x, (*rest, after), constant_values=value).reshape(batch, -1)
      for x, value in ((asked, 0), (_held(sight, (n, g, t)), _PADDED)))
  query = jnp.pad(query, (*rest, after, *rest))
  query = jnp.swapaxes(query.reshape(batch, -1, heads, width), 1, 2)
  keys, values = (
      jnp.moveaxis(
          jnp.pad(x, ((0, 0), *rest, after, (0, 0))).reshape(
              batch, -1, x.shape[2], length, width), 1, 2)
      .reshape(batch, x.shape[2], -1, width) for x in own[:2])
  if prompt is not None:
    p = prompt.keys.shape[2]
    before = (_whole(p) - p, 0)  # the last key stays next to the completions
    keys, values = (
        jnp.concatenate([jnp.pad(x, (*rest, before, (0, 0))), y], 2)
        for x, y in zip(prompt[:2], (keys, values)))
    number = _held(prompt.visible, (n, 1, p))[:, 0]
    held = jnp.concatenate([
        jnp.pad(number, ((0, 0), before), constant_values=_PADDED), held], 1)
  return (query, keys, values, splash_kernel.SegmentIds(asked, held)), length


def _held(sight: sight_lib.Sight, shape: tuple[int, ...]) -> Array:
  """i32[N, G, U], the number of every key."""
  held = sight.segments[1] if sight.segments else 0
  if sight.keys is not None:
    held = jnp.where(sight.keys, held, _PADDED)
  return _full(held, shape)


def _full(x: Any, shape: tuple[int, ...]) -> Array:
  return jnp.broadcast_to(jnp.asarray(x, jnp.int32), shape)


def _whole(size: int) -> int:
  """`size` and some padding: as large blocks as a quarter more allows."""
  for block in _BLOCKS:
    padded = -(-size // block) * block
    if 4 * padded <= 5 * size:
      return padded
  return -(-size // _LANES) * _LANES


@functools.lru_cache(maxsize=64)
def _visits(group: Group) -> int:
  return group.visits


@functools.lru_cache(maxsize=64)
def _kernel(group: Group, heads: int, cap: float | None,
            interpret: bool) -> splash_kernel.SplashAttentionKernel:
  """Its tables are made once per shape, in numpy: any trace may use them."""
  names = ('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv',
           'block_kv_dkv', 'block_kv_dkv_compute', 'block_q_dq', 'block_kv_dq')
  mask = group if group.causal else splash_mask.FullMask(group.shape)
  with jax.ensure_compile_time_eval():
    kernel = splash_kernel.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads), head_shards=1,
        q_seq_shards=1, attn_logits_soft_cap=cap, interpret=interpret,
        block_sizes=splash_kernel.BlockSizes(
            **dict.fromkeys(names, group.block)))
    return jax.tree.map(np.asarray, kernel)
