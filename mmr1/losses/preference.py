r"""Losses of pairs: `(scores, block, knobs, *, ...) -> (sum, count)` of pairs.

A pair is a prompt with G = 2 completions, the chosen one first: tokens [N, 2,
T]. log pi(y) of a completion is the sum over its kept tokens (`length='sum'`)
or their mean ('mean'); h is the difference of log pi / pi_ref between the two,

    h = [log pi(y_c) - log ref(y_c)] - [log pi(y_r) - log ref(y_r)].

A pair counts if both of its completions have a kept token, so that counts
depend on masks alone. Such a function may carry two attributes:

  fn.reference  True if it reads `block.ref`: the stage then makes that pass
  fn.rewards    (scores, block, **kwargs) -> f32[N, 2], what it takes for the
                rewards of both, to be logged

Sources: DPO (arXiv:2305.18290, eq. 7), label smoothing (cDPO, the note of
Mitchell 2023, eq. 3), IPO (arXiv:2310.12036, eq. 17), SimPO
(arXiv:2405.14734, eq. 6).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import masked
from mmr1 import types
from mmr1.losses import reading

Array = jax.Array
Knobs = Mapping[str, Array]
Term = tuple[Array, Array]
LENGTHS = ('sum', 'mean')


def dpo(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    beta: float | Array = 0.1,
    length: str = 'sum',
    label_smoothing: float | Array = 0.0,
) -> Term:
  r"""-(1 - e) log sigma(beta h) - e log sigma(-beta h).

  Where h = 2 and beta = .1 it is -log sigma(.2) = .598139. With unchanged
  parameters it is ln 2, whatever beta is.

  Args:
    scores: of the policy; reads logp f32[N, 2, T].
    block: reads mask and ref.
    knobs: not read.
    beta: how near the reference is kept.
    length: 'sum' (DPO) or 'mean' (length-normalised; TRL's `sigmoid_norm`).
    label_smoothing: e, chance that a label is wrong, 0 to below 1/2.

  Returns:
    (sum f32[], count f32[]).

  Raises:
    ValueError: no pairs, packed rows, no reference, an unknown length.
  """
  del knobs
  h = beta * _difference(ratios(scores, block, length))
  loss = -(1 - label_smoothing) * jax.nn.log_sigmoid(h) - (
      label_smoothing * jax.nn.log_sigmoid(-h))
  return _over_pairs(loss, block)


def ipo(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    beta: float | Array = 0.1,
    length: str = 'mean',
) -> Term:
  r"""(h - 1 / (2 beta))^2, beta being the paper's tau.

  The paper writes sums; its authors normalised by length (TRL), which is the
  default here.

  Args: as of `dpo`.
  """
  del knobs
  h = _difference(ratios(scores, block, length))
  return _over_pairs(jnp.square(h - 1 / (2 * beta)), block)


def simpo(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    beta: float | Array = 2.0,
    gamma: float | Array = 1.0,
) -> Term:
  r"""-log sigma(beta (mean log pi(y_c) - mean log pi(y_r)) - gamma).

  There is no reference. TRL's `simpo_gamma` is this gamma.

  Args:
    scores: of the policy; reads logp f32[N, 2, T].
    block: reads mask.
    knobs: not read.
    beta: scale of the rewards.
    gamma: margin that the chosen one is to be ahead by.
  """
  del knobs
  margin = _difference(log_probs(scores.logp, block, 'mean'))
  return _over_pairs(-jax.nn.log_sigmoid(beta * margin - gamma), block)


def _relative(scores, block, *, beta=0.1, length='sum', label_smoothing=0.0):
  del label_smoothing
  return beta * ratios(scores, block, length)


def _relative_means(scores, block, *, beta=0.1, length='mean'):
  return beta * ratios(scores, block, length)


def _mean(scores, block, *, beta=2.0, gamma=1.0):
  del gamma
  return beta * log_probs(scores.logp, block, 'mean')


dpo.reference, dpo.rewards = True, _relative
ipo.reference, ipo.rewards = True, _relative_means
simpo.reference, simpo.rewards = False, _mean


def nll(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    reduction: Mapping[str, Any],
) -> Term:
  """Negative log-likelihood of the chosen completions.

  `reduction` as of `reduce.reduce`: token_mean (TRL), or seq_mean, where every
  chosen completion weighs the same (LLaMA-Factory).
  """
  del knobs
  first = jnp.arange(block.mask.shape[1])[:, None] == 0
  block = block.replace(mask=block.mask & first)
  return reading.over_block(
      -masked.fill(scores.logp, block.mask), block, reduction)


def log_probs(logp: Array, block: types.Block, length: str) -> Array:
  """f32[N, 2], log-prob of each completion; f32[N, 2, T] of its tokens.

  For tokens [-1, -2, -3] of which the first is masked: -5, or -2.5 as 'mean'.
  """
  n_completions = block.mask.shape[1]
  if n_completions != 2 or block.completions.segment is not None:
    raise ValueError(
        f'A loss of pairs got groups of {n_completions}'
        f'{", packed" if block.completions.segment is not None else ""}; it '
        'needs [chosen, rejected] of every prompt, one sequence a row.')
  if length not in LENGTHS:
    raise ValueError(f'length: got {length!r}; allowed are {LENGTHS}.')
  total = masked.sum(logp, block.mask, axis=-1)
  if length == 'sum':
    return total
  return total / jnp.maximum(masked.count(block.mask, axis=-1), 1)


def ratios(scores: types.Scores, block: types.Block, length: str) -> Array:
  """f32[N, 2], log pi / pi_ref of each completion."""
  if block.ref is None:
    raise ValueError('A loss of pairs needs block.ref, which is None: score '
                     'the reference first, or take a loss without one.')
  return log_probs(masked.fill(scores.logp, block.mask)
                   - masked.fill(block.ref, block.mask), block, length)


def metrics(
    scores: types.Scores,
    block: types.Block,
    rewards: Array | None,
) -> dict[str, Term]:
  """{name: (sum, count)} over pairs, as TRL names them.

    logps/chosen, logps/rejected     sums over tokens
    rewards/chosen, rewards/rejected  where the loss has rewards f32[N, 2]
    rewards/margins                   their difference
    rewards/accuracies                how often the chosen one's is larger
  """
  said = log_probs(scores.logp, block, 'sum')
  values = {'logps/chosen': said[:, 0], 'logps/rejected': said[:, 1]}
  if rewards is not None:
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    values |= {
        'rewards/chosen': chosen, 'rewards/rejected': rejected,
        'rewards/margins': chosen - rejected,
        'rewards/accuracies': (chosen > rejected).astype(jnp.float32)}
  return {name: _over_pairs(x, block) for name, x in values.items()}


def _difference(values: Array) -> Array:
  """f32[N] of f32[N, 2]."""
  return values[:, 0] - values[:, 1]


def _over_pairs(values: Array, block: types.Block) -> Term:
  """Sum and count of f32[N] over pairs that are there."""
  there = jnp.all(jnp.any(block.mask, axis=-1), axis=-1)
  return masked.sum(values, there), masked.count(there)
