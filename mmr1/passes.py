"""Passes without gradient over a block: old, reference, looks, scores.

Chunks and buckets of lengths are those of the update (`mmr1.update`), so that
nothing here needs more memory than it does.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import buckets as buckets_lib
from mmr1 import forward
from mmr1 import types
from mmr1 import update
from mmr1.losses import divergence as divergences

Array = jax.Array


def log_probs(
    policy: forward.Policy,
    params: Any,
    block: types.Block,
    temperature: Array,
    *,
    chunks: int = 1,
    buckets: tuple[int, ...] = (),
    hidden: bool = False,
    rows: bool = False,
) -> tuple[Array, Array | None]:
  """A pass without gradient over the kept tokens: old, or the reference.

  Args:
    policy: the model and its constants.
    params: all parameters.
    block: N prompts, G completions each; reads completions and mask.
    temperature: f32[].
    chunks, buckets: as in `gradient`.
    hidden: return the hidden states too.
    rows: chunks are of rows, prompts included, and groups stay whole; rows
      keep their order.

  Returns:
    f32[N, G, T], 0 where masked, and the hidden states [N, G, T, D], aligned
    to the token they predict, or None. Past a chunk's bucket both are 0.
  """
  if rows and chunks > 1:
    made = jax.lax.map(
        lambda part: log_probs(
            policy, params, part, temperature, buckets=buckets, hidden=hidden),
        update.split_rows(block, chunks))
    # As `split_rows` took them: chunk c has rows c, c + chunks, ...
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(
        (-1,) + x.shape[2:]), made)
  prefix = policy.prompt_pass(params, block.prompts)

  def cut(piece):
    states = forward.hidden_states(
        policy, params, prefix, block.prompts, piece.completions)
    logp = forward.token_scores(
        policy, params, states, piece.completions.tokens, piece.mask,
        temperature).logp
    return logp, states if hidden else None
  return _by_piece(cut, block, chunks, buckets)


def pair(
    policy: forward.Policy,
    params: Any,
    block: types.Block,
    shown: types.Prompts,
    temperature: Array,
    *,
    divergence: divergences.Divergence,
    chunks: int = 1,
    buckets: tuple[int, ...] = (),
) -> types.Seen:
  """The completions after their own prompts and after `shown`, together.

  Args:
    policy: the model and its constants.
    params: all parameters.
    block: N prompts, G completions each.
    shown: the same N prompts with other images.
    temperature: f32[].
    divergence: of the first distribution from the second.
    chunks, buckets: as in `log_probs`.
  """
  own = policy.prompt_pass(params, block.prompts)
  other = policy.prompt_pass(params, shown)

  def cut(piece):
    mine, theirs = (
        forward.hidden_states(
            policy, params, prefix, block.prompts, piece.completions)
        for prefix in (own, other))
    made = forward.token_scores(
        policy, params, mine, piece.completions.tokens, piece.mask,
        temperature, other_params=params, other_hidden=theirs,
        divergence=divergence)
    return types.Seen(logp=made.other, pair=made.pair, entropy=made.entropy)
  return _by_piece(cut, block, chunks, buckets)


def scores(
    policy: forward.Policy,
    params: Any,
    block: types.Block,
    temperature: Array,
    *,
    chunks: int = 1,
    buckets: tuple[int, ...] = (),
) -> types.Scores:
  """Log-probs, entropies and values (where there is a critic) of a policy."""
  prefix = policy.prompt_pass(params, block.prompts)

  def cut(piece):
    return forward.score(
        policy, params, prefix,
        piece.replace(prompts=block.prompts, ref_hidden=None), temperature)
  return _by_piece(cut, block, chunks, buckets)


def _by_piece(
    cut: Callable[[types.Block], Any], block: types.Block, chunks: int,
    buckets: tuple[int, ...]) -> Any:
  """`cut` of every chunk of each group, at the length it has; as one block.

  Args:
    cut: block -> tree of [N, g, t, ...].
    block: N prompts, G completions each.
    chunks, buckets: as in `update.gradient`.
  """
  def whole(piece):
    return jax.lax.stop_gradient(jax.tree.map(
        lambda x: buckets_lib.pad(x, block.mask.shape[2]), cut(piece)))

  def one(piece):
    return buckets_lib.at_length(whole, piece, buckets)

  if chunks == 1 or block.mask.shape[1] == 1:  # a group of one has no parts
    return one(block)
  block, undo = buckets_lib.ordered(block, buckets)
  return undo(jax.tree.map(
      lambda x: jnp.moveaxis(x, 0, 1).reshape(block.mask.shape + x.shape[4:]),
      jax.lax.map(one, update.split(block, chunks))))
