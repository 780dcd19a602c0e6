"""Attention on NVIDIA GPUs: cuDNN's kernel, through `jax.nn`.

It computes what one row of keys per row of queries can say: the causal pass
over prompts, the frames, tiles and windows of vision towers, packed texts, and
completions that are alone with their prompt (G = 1). Padding, segments, windows
and blocks become one bias [N G, 1, T, U] in the compute dtype. Completions that
share a prompt stay with XLA: cuDNN would have to read the prompt's keys once
for each of them, or compute every completion against every other.

Letters: N prompts, G completions per prompt, T queries, U keys, H query heads,
K key/value heads, d head width.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmr1.models import sight as sight_lib

Array = jax.Array
_WIDEST = 128  # of a head, on every card that cuDNN's kernel knows


def refusal(query: Array, sources: Sequence[Any], *, precision: str,
            cap: float | None) -> str | None:
  """Why the kernel cannot compute this; None: it can.

  Args:
    query: [N, G, T, H, d].
    sources: of keys, see `attention.Source`; none of them empty.
    precision: of the matrix products.
    cap: of the scores.
  """
  if cap is not None:
    return f'scores capped at {cap}: it has no soft cap'
  if precision != 'default':
    return f"precision {precision!r}: it multiplies at 'default' only"
  if query.dtype not in (jnp.bfloat16, jnp.float16):
    return f'{query.dtype}: it reads bfloat16 and float16'
  if query.shape[-1] % 8 or query.shape[-1] > _WIDEST:
    return (f'heads of width {query.shape[-1]}: it must be a multiple of 8 up '
            f'to {_WIDEST}')
  if any(source.seats is not None for source in sources):
    return 'rows in seats of their prompts'
  if query.shape[1] > 1 and any(source.shared for source in sources):
    return (f'{query.shape[1]} completions that share a prompt: it would need '
            'its keys repeated')
  count = sum(source.keys.shape[-2] for source in sources)
  if query.shape[2] % 2 or count % 2:  # jax asks for it under a gradient
    return f'{query.shape[2]} queries and {count} keys: both must be even'
  return None


def pays(query: Array) -> bool:
  """Whether there are enough queries: on an H200 windows of 64 patches take
  .70 ms here and .56 by XLA, frames of 4,096 6.4 and 12.8 (forward and
  backward)."""
  return query.shape[2] >= 128


def attend(query: Array, sources: Sequence[Any], *, scale: float,
           cap: float | None, partition: Any = None) -> Array:
  """`attention.attend` for what `refusal` does not refuse.

  Args:
    query: [N, G, T, H, d].
    sources: of keys, see `attention.Source`; none of them empty.
    scale: factor of the scores.
    cap: None.
    partition: not needed, the partitioner knows this kernel.

  Returns:
    [N, G, T, H, d].
  """
  del cap, partition
  n, g, t, heads, width = query.shape
  keys, values = (
      jnp.concatenate([_row(x, source.shared) for x, source in
                       zip(part, sources)], 1)
      for part in zip(*(source[:2] for source in sources)))
  mask = None
  if _biased(sources):
    rows = jnp.arange(t)
    mask = jnp.concatenate([
        jnp.broadcast_to(
            source.visible(rows),
            (n, g, t, _row(source.keys, source.shared).shape[1]))
        for source in sources], -1).reshape(n * g, 1, t, -1)
  out = jax.nn.dot_product_attention(
      query.reshape(n * g, t, heads, width), keys, values, mask=mask,
      scale=scale, is_causal=_causal(sources), implementation='cudnn')
  return out.reshape(n, g, t, heads, width)


def _row(x: Array, shared: bool) -> Array:
  """Keys or values [N G, U, K, d] of every row."""
  return jnp.swapaxes(x if shared else x.reshape(-1, *x.shape[2:]), 1, 2)


def _biased(sources: Sequence[Any]) -> bool:
  """False if everything is seen."""
  sight = sources[0].visible
  return len(sources) > 1 or not (
      isinstance(sight, sight_lib.Sight) and sight.whole)


def _causal(sources: Sequence[Any]) -> bool:
  """Whether cuDNN may skip what comes after its query: the bias says so too."""
  sight = sources[0].visible
  return (len(sources) == 1 and isinstance(sight, sight_lib.Sight)
          and sight.causal and sight.at is None and sight.blocks is None)
