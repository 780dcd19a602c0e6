"""ARES (arXiv 2510.08457): a KL term that weighs more or less by difficulty.

The advantage `graded` hands each response's weight and difficulty to the term
`by_difficulty`, which measures the KL of each difficulty as well; the hook
`steered` moves the betas by what was measured in the step before. Source:
`verl/workers/actor/dp_actor.py` of https://github.com/shawn0728/ARES.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmr1 import advantages
from mmr1 import columns
from mmr1 import masked
from mmr1 import types
from mmr1.losses import kl
from mmr1.losses import reading
from mmr1.losses import terms
from mmr1.papers.ares import duals
from mmr1.papers.ares import shaping

Array = jax.Array


def graded(
    rewards: np.ndarray,
    tokens: columns.Tokens,
    *,
    easy: float = 1.0,
    medium: float = 1.0,
    hard: float = 1.0,
    accuracy: str = 'result',
    cost: str = 'soft_cost',
    form: str = 'code',
    relaxed: float = 0.67,
    least: float = 0.5,
    ddof: int = 1,
    eps: float = 1e-6,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """GRPO's advantage, and what the term `by_difficulty` reads.

  Args:
    rewards: float[N, G, 1].
    tokens: reads columns.
    easy, medium, hard: beta of each difficulty; `steered` moves them.
    accuracy, cost: names of columns, see `duals.kl_weight`.
    form: of `shaping.difficulty`.
    relaxed, least: of `duals.kl_weight`; relaxed=1 gives no second chances.
    ddof, eps: of the standard deviation.

  Returns:
    float[N, G, 1], and [N, G, 1] each: 'kl_weight', beta_d zeta, and 'easy',
    'medium', 'hard', 1 on responses to such problems, else 0.

  Raises:
    ValueError: a column that is not there.
  """
  known = columns.need(tokens, 'columns', 'graded')
  for name in (accuracy, cost):
    if name not in known:
      raise ValueError(f'graded: there is no column {name!r}; the columns are '
                       f'{sorted(known)}.')
  level = shaping.difficulty(known[accuracy], form)
  weight = duals.kl_weight(
      level, known[accuracy], known[cost], (easy, medium, hard),
      relaxed=relaxed, least=least)
  shape = (*rewards.shape[:2], 1)
  inside = {name: np.broadcast_to((level == d)[:, None, None], shape)
            for d, name in enumerate(shaping.BUCKETS)}
  return advantages.grpo(rewards, ddof=ddof, eps=eps), {
      'kl_weight': weight[..., None], **inside}


graded.hands = ('kl_weight', *shaping.BUCKETS)


def by_difficulty(
    scores: types.Scores,
    block: types.Block,
    knobs: Mapping[str, Array],
    *,
    target: str = 'ref',
    reduction: Mapping[str, Any] = terms.TOKEN_MEAN,
) -> terms.Term:
  """beta_d zeta_i k3 of each token of response i.

  Args:
    scores: of the policy; reads logp.
    block: reads mask, ref, and extra['kl_weight'] of `graded`.
    knobs: not read.
    target: 'ref'; asks the stage for a reference.
    reduction: see `reduce.reduce`.

  Raises:
    ValueError: another target, or the stage's advantage is not `graded`.
  """
  del knobs
  return reading.over_block(
      _k3(scores, block, target) * block.extra['kl_weight'], block, reduction)


def measured(
    scores: types.Scores,
    block: types.Block,
    knobs: Mapping[str, Array],
    *,
    target: str = 'ref',
    reduction: Mapping[str, Any] = terms.TOKEN_MEAN,
) -> dict[str, terms.Term]:
  """The KL of each difficulty, unweighted, as parts of that of all tokens.

  '<difficulty>': its sum of k3 over the number of all tokens; '<difficulty>
  _share': its tokens over that number. Their ratio is the mean of a difficulty,
  and a share of 0 says that there is none.
  """
  del knobs, reduction
  values = _k3(scores, block, target)
  found = {}
  for name in shaping.BUCKETS:
    inside = block.extra[name]
    found[name], found[f'{name}_share'] = (
        reading.over_block(x, block, terms.TOKEN_MEAN)
        for x in (values * inside, inside))
  return found


by_difficulty.parts = measured


def steered(
    knobs: Mapping[str, float], state: Mapping[str, Any],
    columns: Mapping[str, Any], metrics: Mapping[str, float | None],
    step: int, *, knob: Sequence[str], metric: str = 'term/kl_by_difficulty',
    calls: int = 1, target: float = 0.01, every: int = 100, decay: float = 0.97,
    lr: float = 0.05,
) -> tuple[dict[str, float], dict[str, Any]]:
  """A hook: the beta of each difficulty by `duals.kl_controller`.

  The controller of the code sees every microbatch; here the KL of a step, the
  mean over its updates, counts as that of `calls` of them.

  Args:
    knobs, state, columns, metrics, step: see `mmr1.hooks`.
    knob: the three, easy first; betas start where they do.
    metric: of the term `by_difficulty`.
    calls: microbatches of the code that a step stands for, 1 at least.
    target, every, decay, lr: of `duals.kl_controller`.

  Returns:
    The knobs with the three betas, and the state of the controller.

  Raises:
    ValueError: not three knobs, calls below 1, or the term is not there.
  """
  del columns, step
  if len(knob) != len(shaping.BUCKETS) or calls < 1:
    raise ValueError(f'steered: got knob={knob!r}, calls={calls}; needed are '
                     'three knobs, of easy, medium and hard, and 1 at least.')
  state = state or {**duals.kl_start(), 'beta': [knobs[name] for name in knob]}
  if metrics:
    if f'{metric}/{shaping.BUCKETS[0]}' not in metrics:
      raise ValueError(f'steered: there is no metric {metric!r} of '
                       'difficulties; name the term `by_difficulty`.')
    found = []
    for name in shaping.BUCKETS:
      part, share = (metrics[f'{metric}/{name}{end}'] for end in ('', '_share'))
      found.append(part / share if part is not None and share else None)
    for _ in range(int(calls)):
      state = duals.kl_controller(
          state, found, target=target, every=every, decay=decay, lr=lr)
  return {**knobs, **dict(zip(knob, state['beta']))}, state


def _k3(scores: types.Scores, block: types.Block, target: str) -> Array:
  if target != 'ref' or block.ref is None:
    raise ValueError(f'by_difficulty: got target={target!r}; it is a KL to the '
                     "reference, 'ref'.")
  if 'kl_weight' not in block.extra:
    raise ValueError("by_difficulty: there is no weight; set rl.advantage.fn to "
                     "'mmr1.papers.ares.penalty:graded'.")
  return kl.k3(masked.fill(scores.logp, block.mask),
               masked.fill(block.ref, block.mask))
