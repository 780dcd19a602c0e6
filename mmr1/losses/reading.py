"""What a term reads of scores and blocks, and how it sums what it made."""

from collections.abc import Mapping
from typing import Any

import jax

from mmr1 import types
from mmr1.losses import reduce

Array = jax.Array


def sampled(block: types.Block) -> types.Block:
  """The block with a mask of what the policy itself made."""
  return block.replace(mask=block.mask & (
      block.completions.kind != types.KIND_EXPERT))


def experts(block: types.Block) -> types.Block:
  """The block with a mask of what traces of the data say."""
  return block.replace(mask=block.mask & (
      block.completions.kind == types.KIND_EXPERT))


def over_block(
    value: Array, block: types.Block, reduction: Mapping[str, Any],
) -> tuple[Array, Array]:
  """Over the block's kept tokens; of packed rows every segment is a row."""
  return reduce.reduce(
      value, block.mask, segment=block.completions.segment,
      times=block.times, **reduction)


def look(scores: types.Scores, block: types.Block, name: str) -> Array:
  """f32[N, G, T], log-probs of a look, of this update or of the rollout.

  Raises:
    ValueError: there is no such look.
  """
  if name in scores.views:
    return scores.views[name]
  if f'view/{name}' not in block.extra:
    made = [key for key in block.extra if key.startswith('view/')]
    raise ValueError(
        f'A term reads the view {name!r}; there are {sorted(scores.views)} of '
        f'this update and {made} of the rollout.')
  return block.extra[f'view/{name}']


def own(block: types.Block) -> Array:
  """f32[N, G, T], log-probs of the policy that made the rollout.

  With old='self' there was no pass that made them again: the sampler's.
  """
  return block.extra['sampler_logp'] if block.old is None else block.old


def old(scores: types.Scores, block: types.Block) -> Array:
  """f32[N, G, T], the denominator of the ratio: without `block.old` the
  policy's own, whose ratio is 1 with the gradient of logp."""
  if block.old is None:
    return jax.lax.stop_gradient(scores.logp)
  return block.old
