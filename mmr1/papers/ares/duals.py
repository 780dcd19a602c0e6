"""ARES (arXiv 2510.08457): the weight of the KL term per difficulty.

Source: `verl/workers/actor/dp_actor.py` and, of `dual_ascent`,
`verl/trainer/ray_trainer.py` of https://github.com/shawn0728/ARES. Lists have
an entry per difficulty: easy, medium, hard, as in `shaping.BUCKETS`.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

EASY = 0
_LEAST = 1e-8  # no smaller target divides


def kl_start(beta: float = 1.0, buckets: int = 3) -> dict[str, Any]:
  """The state of `kl_controller` before its first call; JSON keeps it whole."""
  return {'beta': [float(beta)] * buckets, 'kl': [None] * buckets,
          'error': [0.0] * buckets, 'calls': 0}


def kl_controller(
    state: Mapping[str, Any],
    kl: Sequence[float | None],
    *,
    target: float | Sequence[float] = 0.01,
    decay: float = 0.97,
    dead: float = 0.02,
    every: int = 100,
    lr: float = 0.05,
    clip: float = 0.2,
    least: float = 1e-4,
    most: float = 1e2,
) -> dict[str, Any]:
  """One step of beta, each difficulty by itself.

      KL    <- (1 - decay) kl + decay KL, the first as it is
      e      = KL / target - 1
      at every `every`-th call, where |e| >= dead:
      error <- (1 - decay) e + decay error, from 0
      beta  <- exp(clip(log beta + lr clip(error, +-clip)))   in [least, most]

  At KL = .02, target .01: e = 1, error .03, beta = exp(.0015) = 1.001501. The
  average of errors moves only where beta does: a thousand calls with twice the
  KL raise beta by 7%, a property of the code.

  Args:
    state: see `kl_start`; not changed.
    kl: mean per token of the responses of each difficulty in this call, one
      microbatch of the code; None or not finite: there are none, and nothing of
      that difficulty moves.
    target: KL aimed at, of all or of each.
    decay: of both averages.
    dead: errors below it do not count.
    every: calls.
    lr: of log beta.
    clip: the largest error that counts.
    least, most: bounds of beta.

  Returns:
    The next state.

  Raises:
    ValueError: lists of other lengths than the state's, or a number out of
      range.
  """
  many = len(state['beta'])
  aims = list(target) if isinstance(target, Sequence) else [target] * many
  if not len(kl) == len(aims) == many:
    raise ValueError(f'kl_controller: got kl {list(kl)} and target {target}; '
                     f'needed are {many} numbers.')
  if not (0 <= decay <= 1 and every >= 1 and 0 < least <= most):
    raise ValueError(
        f'kl_controller: got decay={decay}, every={every}, least={least}, '
        f'most={most}; needed: 0 <= decay <= 1 <= every, 0 < least <= most.')
  new = {key: list(state[key]) for key in ('beta', 'kl', 'error')}
  new['calls'] = state['calls'] + 1
  for d, value in enumerate(kl):
    if value is None or not math.isfinite(value):
      continue
    last = value if new['kl'][d] is None else new['kl'][d]
    new['kl'][d] = (1 - decay) * float(value) + decay * float(last)
    e = new['kl'][d] / max(aims[d], _LEAST) - 1
    if abs(e) < dead or new['calls'] % int(every):
      continue
    new['error'][d] = (1 - decay) * e + decay * new['error'][d]
    beta = min(max(new['beta'][d], least), most)
    moved = math.log(beta) + lr * min(max(new['error'][d], -clip), clip)
    new['beta'][d] = min(max(math.exp(moved), least), most)
  return new


def kl_weight(
    level: np.ndarray,
    accuracy: np.ndarray,
    cost: np.ndarray,
    beta: Sequence[float],
    *,
    relaxed: float = 0.67,
    least: float = 0.5,
) -> np.ndarray:
  """beta_d zeta, f64[N, G], of the KL of each response.

      zeta = relaxed   easy, wrong (accuracy < .5) and cost >= least: a second
                       chance for what hesitated and failed
             1         else

  The released trainer hands over neither costs nor accuracies, so that its zeta
  is always 1. The paper's zeta is one of tokens, below 1 in windows of high
  entropy; its value is not known.

  Args:
    level: i[N], 0 easy, 1 medium, 2 hard; -1: not known, as medium.
    accuracy: f[N, G]; nan: not known, zeta 1.
    cost: f[N, G], soft costs (`entropy.high_entropy`); nan: zeta 1.
    beta: of each difficulty.
    relaxed: zeta of a second chance.
    least: soft cost, nats.
  """
  level = np.asarray(level)
  chance = ((level == EASY)[:, None] & (np.asarray(accuracy) < 0.5)
            & (np.asarray(cost) >= least))
  known = np.where(level < 0, 1, level)
  return np.asarray(beta, np.float64)[known][:, None] * np.where(
      chance, relaxed, 1.0)


def dual_ascent(
    weight: Sequence[float], cost: Sequence[float | None],
    budget: Sequence[float], *, lr: float = 0.01, most: float = 10.0,
) -> list[float]:
  """lambda + lr (mean soft cost - budget), in [0, most], per difficulty.

  The code keeps it, starting from 0 and with the first targets N* as budgets,
  of which they have not the unit; no reward of it reads it.

  Args:
    weight: lambda of the step before.
    cost: the mean soft cost of each difficulty's responses; None: its lambda
      stays, as the code has it with fewer than 8.
    budget: the cost aimed at.
    lr, most: step and bound.
  """
  return [float(old if x is None else min(max(old + lr * (x - aim), 0.0), most))
          for old, x, aim in zip(weight, cost, budget, strict=True)]
