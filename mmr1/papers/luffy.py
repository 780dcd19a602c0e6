"""LUFFY (Yan et al., arXiv 2504.14945, NeurIPS 2025): what only it needs.

The last of every group is a demonstration that the data brought along. Its
reward is in the group's statistics, and its tokens learn by a weight of their
own, since nobody knows with which probability they were written.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import columns
from mmr1 import masked
from mmr1 import types
from mmr1.losses import reading
from mmr1.losses import reduce
from mmr1.losses import terms

Array = jax.Array


def shaped(
    scores: types.Scores,
    block: types.Block,
    knobs: Mapping[str, Array],
    *,
    gamma: float = 0.1,
    shape: bool = True,
    reduction: Mapping[str, Any] = terms.TOKEN_MEAN,
) -> terms.Term:
  r"""The policy term of demonstrations: -A f(p), f(p) = p / (p + gamma).

  p is the policy's probability of the token. The demonstration counts as
  written with probability 1, so the importance ratio would be p itself: a
  token that the policy finds unlikely would hardly learn. Shaped, the weight of
  grad log p is gamma p / (p + gamma)^2, largest at p = gamma, where it is 1/4.
  No clipping; the block's old log-probs are not read. Source: eq. 7 and
  `mix_core_alg.py` of https://github.com/ElliottYan/LUFFY (p_div_p_0.1).

  Args:
    scores: of the policy; reads logp.
    block: reads mask, kind, advantage.
    knobs: not read.
    gamma: above 0.
    shape: False is the ablation, -A p.
    reduction: see `reduce.reduce`.
  """
  del knobs
  block = reading.experts(block)
  p = jnp.exp(masked.fill(scores.logp, block.mask))
  weight = p / (p + gamma) if shape else p
  reduce.check_shape('block.advantage', block.advantage, block.mask)
  return reading.over_block(-block.advantage * weight, block, reduction)


def imitation(
    scores: types.Scores,
    block: types.Block,
    knobs: Mapping[str, Array],
) -> terms.Term:
  """-log p of demonstrations: the paper's baseline 'RL with an SFT loss'.

      sum of -log p over their tokens / how many these are

  However the policy's is summed. Source: `compute_sft_pure_loss` of the
  repository's `mix_core_alg.py`.
  """
  return terms.nll(scores, reading.experts(block).replace(weight=None), knobs)


def split_mean(rewards: np.ndarray, tokens: columns.Tokens) -> np.ndarray:
  """R - the mean of the group's own samples, f64[N, G, 1].

  The repository's 'split' option: demonstrations do not move the baseline. For
  rewards [1 (demonstration), 0, 0, 1, 0, 0, 0, 0] the mean is 1/7. A group in
  which nothing varies, demonstrations included, is exactly 0.

  Args:
    rewards: float[N, G, K].
    tokens: reads expert bool[N, G].
  """
  xp, valid, values = columns.split(rewards)
  expert = columns.need(tokens, 'expert', 'split_mean')[..., None]
  own = valid & ~expert
  mean = xp.sum(values * own, axis=1, keepdims=True) / xp.maximum(
      xp.sum(own, axis=1, keepdims=True), 1)
  keep = valid & ~columns.flat(xp, values, valid, 1)
  return xp.sum(xp.where(keep, values - mean, 0), axis=-1, keepdims=True)
