"""Advantages of episodes: credit by turn. Socket of `mmr1.returns`.

With an environment every turn of the assistant has a reward, and the last one
the combined rewards of the completion on top. `tokens.turn` says which turn a
token is of; one that others said has none, and no advantage. Credit by
trajectory is what `mmr1.advantages` gives: one for all tokens.
"""

from typing import Any

import numpy as np

from mmr1 import columns

Array = Any
NORMS = ('group', 'turn', 'none')


def _turns(rewards: Array, tokens: columns.Tokens, name: str):
  """f64[N, G, K] rewards of turns with the outcome on the last, bool[N, G, K]
  which turns there are, bool[N, G, T] tokens of turns."""
  xp, valid, values = columns.split(np.asarray(rewards))
  del xp
  number = np.asarray(columns.need(tokens, 'turn', name))
  own = np.asarray(columns.need(tokens, 'turn_rewards', name), np.float64)
  mask = np.asarray(columns.need(tokens, 'mask', name)) & (number >= 0)
  mask &= valid.any(-1)[..., None]
  k = own.shape[-1]
  there = np.stack([(mask & (number == i)).any(-1) for i in range(k)], -1)
  last = there & (np.cumsum(there[..., ::-1], -1)[..., ::-1] == 1)
  return (np.where(there, own, 0) + last * values.sum(-1)[..., None],
          there, mask)


def to_go(reward: Array, there: Array, gamma: float) -> np.ndarray:
  """f64[N, G, K]: G_k = r_k + gamma G_{k+1}, over the turns there are.

  For gamma .5 and rewards [0, 0, 1]: [.25, .5, 1].
  """
  result, running = np.zeros(reward.shape), np.zeros(reward.shape[:-1])
  for k in reversed(range(reward.shape[-1])):
    running = np.where(there[..., k], reward[..., k] + gamma * running, running)
    result[..., k] = np.where(there[..., k], running, 0)
  return result


def by_turn(
    rewards: Array,
    tokens: columns.Tokens,
    *,
    gamma: float = 1.0,
    norm: str = 'group',
    eps: float = 1e-6,
) -> np.ndarray:
  """Reward to go of each turn, normalised, on the tokens of the turn.

  (G_k - mean) / (sigma + eps), sigma with ddof 1. What does not vary is 0.

  Args:
    rewards: float[N, G, K'], summed over K'; added to the last turn's.
    tokens: reads mask, turn, turn_rewards.
    gamma: discount from turn to turn, in [0, 1].
    norm: mean and sigma over all turns of the 'group', over those of the same
      number ('turn'), or 'none'.
    eps: added to sigma.

  Returns:
    f32[N, G, T], 0 where nobody of the policy spoke.
  """
  if norm not in NORMS:
    raise ValueError(f'norm {norm!r} is not one of {NORMS}.')
  reward, there, mask = _turns(rewards, tokens, 'by_turn')
  back = to_go(reward, there, gamma)
  if norm != 'none':
    axis = (1, 2) if norm == 'group' else 1
    n = there.sum(axis, keepdims=True)
    mean = back.sum(axis, keepdims=True) / np.maximum(n, 1)
    spread = columns.std(np, back, there, axis, 1)
    keep = there & ~columns.flat(np, back, there, axis)
    back = np.where(keep, (back - mean) / (spread + eps), 0)
  return _spread(back, tokens, mask)


def _spread(of_turn: Array, tokens: columns.Tokens, mask: Array) -> np.ndarray:
  number = np.maximum(np.asarray(tokens.turn), 0).astype(np.int64)
  return np.where(mask, np.take_along_axis(of_turn, number, -1), 0).astype(
      np.float32)


def bi_level(
    rewards: Array,
    tokens: columns.Tokens,
    *,
    gamma_turn: float = 0.95,
    lam_turn: float = 1.0,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    eps: float = 1e-8,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Advantages over turns, then over the tokens of each (VAGEN's bi-level GAE).

  At the last token of each turn, with the critic's value V there:

      delta_k = r_k + gamma_turn V_{k+1} - V_k
      A_k     = delta_k + gamma_turn lam_turn A_{k+1}

  A_k + V_k is then the reward of that token, and inside a turn advantages run
  back over its tokens with gamma and lam; nothing crosses from turn to turn.
  Turn ends are those of `tokens.turn`, also where the reward is 0.

  Args:
    rewards: float[N, G, K'], summed over K'; added to the last turn's.
    tokens: reads mask, turn, turn_rewards, values.
    gamma_turn, lam_turn: from turn to turn; gamma, lam: from token to token.
    whiten: over all tokens of the batch, with ddof 1.
    eps: added to the variance.

  Returns:
    f32[N, G, T], 0 where nobody of the policy spoke; and 'values' and 'returns'
    (raw advantage + V) for the term `critic`.
  """
  reward, _, mask = _turns(rewards, tokens, 'bi_level')
  values = np.asarray(columns.need(tokens, 'values', 'bi_level'), np.float64)
  number = np.asarray(tokens.turn).astype(np.int64)
  result = np.zeros(mask.shape)
  for at in np.ndindex(mask.shape[:2]):
    result[at] = _bi_level(
        reward[at], number[at], mask[at], values[at], gamma_turn, lam_turn,
        gamma, lam)
  extra = {'values': np.where(mask, values, 0).astype(np.float32),
           'returns': np.where(mask, result + values, 0).astype(np.float32)}
  if whiten and mask.any():
    kept = result[mask]
    var = kept.var(ddof=1) if kept.size > 1 else 0.0
    flat = kept.max() - kept.min() <= 1e-9 * max(1.0, np.abs(kept).max())
    result = np.where(mask, 0.0 if flat else (result - kept.mean())
                      / np.sqrt(var + eps), 0)
  return result.astype(np.float32), extra


bi_level.needs = 'values'


def _bi_level(reward, number, mask, values, gamma_turn, lam_turn, gamma, lam):
  """f64[T] of one episode."""
  spoken = np.flatnonzero(mask)
  ends = {}
  for t in spoken:
    ends[number[t]] = t  # the last one of each
  target, following, advantage = {}, 0.0, 0.0
  for k in sorted(ends, reverse=True):
    value = values[ends[k]]
    advantage = (reward[k] + gamma_turn * following - value
                 + gamma_turn * lam_turn * advantage)
    target[ends[k]], following = advantage + value, value
  result, following, advantage = np.zeros(len(mask)), 0.0, 0.0
  for t in spoken[::-1]:
    if t in target:
      following, advantage = 0.0, 0.0
    advantage = (target.get(t, 0.0) + gamma * following - values[t]
                 + gamma * lam * advantage)
    result[t], following = advantage, values[t]
  return result
