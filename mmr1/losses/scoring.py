r"""Losses of reward models: `(scores, block, knobs, *, ...) -> (sum, count)`.

They read `scores.reward` f32[N, G, 1], one number s for each completion. Of a
pair (G = 2) the chosen completion comes first, s_w, then the rejected, s_l. A
pair counts if both have a kept token, a completion if it has one, so that
counts depend on masks alone. `fn.whole`: it compares completions of a group.

Sources: Bradley and Terry 1952 in the form of InstructGPT (arXiv:2203.02155,
eq. 1); the margin of Llama 2 (arXiv:2307.09288, eq. 2); the zero coefficient
and the length normalisation that BaseReward (arXiv:2509.16127, section 3.2)
tried and left out.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmr1 import masked
from mmr1 import types

Array = jax.Array
Knobs = Mapping[str, Array]
Term = tuple[Array, Array]


def bradley_terry(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    margin: float | Array = 0.0,
    length_norm: bool = False,
) -> Term:
  r"""-log sigma(s_w - s_l - margin m), mean over pairs.

  For s_w = 1.3, s_l = .4: -log sigma(.9) = .341154.

  Args:
    scores: reads reward.
    block: reads mask, and `extra['margin']` f32[N, 2, 1]: m of each pair, 1
      where the data has none.
    knobs: not read.
    margin: what s_w is to be ahead by, for m = 1.
    length_norm: s / ln(1 + tokens of the completion) in place of s.
  """
  del knobs
  s = _pairs(scores, block, length_norm)
  m = block.extra['margin'][:, 0, 0]
  return _over_pairs(
      -jax.nn.log_sigmoid(s[:, 0] - s[:, 1] - margin * m), block)


def _seen(scores, block, knobs, *, margin=0.0, length_norm=False):
  """Means to be logged: how often and how far the chosen one is ahead."""
  del knobs, margin
  s = _pairs(scores, block, length_norm)
  return {name: _over_pairs(x, block) for name, x in {
      'accuracy': (s[:, 0] > s[:, 1]).astype(jnp.float32),
      'ahead': s[:, 0] - s[:, 1], 'chosen': s[:, 0],
      'rejected': s[:, 1]}.items()}


def zero(
    scores: types.Scores, block: types.Block, knobs: Knobs,
    *, length_norm: bool = False) -> Term:
  """(s_w + s_l)^2, mean over pairs: holds scores around 0.

  For 1.3 and .4 with coefficient .01: .01 x 1.7^2 = .0289.
  """
  del knobs
  s = _pairs(scores, block, length_norm)
  return _over_pairs(jnp.square(s[:, 0] + s[:, 1]), block)


def square(
    scores: types.Scores, block: types.Block, knobs: Knobs) -> Term:
  """s^2, mean over completions: holds every score near 0."""
  del knobs
  there = jnp.any(block.mask, axis=-1)
  return (masked.sum(jnp.square(scores.reward[..., 0]), there),
          masked.count(there))


def bce(
    scores: types.Scores, block: types.Block, knobs: Knobs) -> Term:
  r"""-y log sigma(s) - (1 - y) log sigma(-s), mean over completions.

  Reads `block.extra['label']` f32[N, G, 1], y from 0 to 1: of data with
  `labels`, else 1 of the chosen and 0 of the rejected.
  """
  del knobs
  s, y = scores.reward[..., 0], block.extra['label'][..., 0]
  there = jnp.any(block.mask, axis=-1)
  loss = -y * jax.nn.log_sigmoid(s) - (1 - y) * jax.nn.log_sigmoid(-s)
  return masked.sum(loss, there), masked.count(there)


bradley_terry.parts = _seen
# Both of a pair are of one chunk.
bradley_terry.whole = zero.whole = square.whole = bce.whole = True


def normalised(s: Array, length: Array) -> Array:
  """s / ln(1 + length): 1.3 of 120 tokens is .271071."""
  return s / jnp.log1p(jnp.maximum(length, 1).astype(jnp.float32))


def _pairs(
    scores: types.Scores, block: types.Block, length_norm: bool) -> Array:
  """f32[N, 2]."""
  if block.mask.shape[1] != 2:
    raise ValueError(f'A loss of pairs got groups of {block.mask.shape[1]}; it '
                     'needs [chosen, rejected] of every prompt.')
  s = scores.reward[..., 0]
  return normalised(s, masked.count(block.mask, axis=-1)) if length_norm else s


def _over_pairs(values: Array, block: types.Block) -> Term:
  there = jnp.all(jnp.any(block.mask, axis=-1), axis=-1)
  return masked.sum(values, there), masked.count(there)
