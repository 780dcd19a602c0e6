"""ARES (arXiv 2510.08457): rewards by how hard a problem is.

Too many moments of high entropy are punished on easy problems, too few on hard
ones, towards a target per difficulty.

Source: https://github.com/shawn0728/ARES, `examples/reward_function/aepo.py`
(the table) and `verl/trainer/ray_trainer.py` (what is kept between steps).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmr1.rewards import combine

FORMS = ('code', 'paper')
BUCKETS = ('easy', 'medium', 'hard')
EASY, MEDIUM, HARD = range(3)

# Least mean accuracy of a problem that is easy, and that is of medium
# difficulty. The paper counts 6 and 3 of 8.
_SHARES = {'code': (2 / 3, 1 / 3), 'paper': (6 / 8, 3 / 8)}
_ROUNDING = 1e-12

Three = tuple[float, float, float]  # of easy, medium and hard problems


class Constants(NamedTuple):
  """The table's, each of (easy, medium, hard).

  Fields:
    margin: f, width of the band around the target in which nothing counts, as
      a part of the target; the band is 1 at least.
    bend: kappa, above 0; from there on a penalty grows in a straight line.
    temperature: T, above 0; how slowly a bonus saturates.
    cap: c, the most that is paid, in alphas.
    wrong: what is paid to wrong answers, as a part of the cap.
  """
  margin: Three = (.15, .25, .35)
  bend: Three = (2., 3., 4.)
  temperature: Three = (2., 2.5, 3.)
  cap: Three = (1., 1., 1.2)
  wrong: Three = (.6, .8, 1.)


CONSTANTS = Constants()


def difficulty(accuracy: np.ndarray, form: str = 'code') -> np.ndarray:
  """0 easy, 1 medium, 2 hard, by the mean accuracy of a group.

      code   easy from 2/3 on, medium from 1/3 on
      paper  easy from 6/8 on, medium from 3/8 on

  Of f[N, G], nan where there is no value: i64[N], -1 where no response of a
  group has one. Raises a ValueError at an unknown form.
  """
  if form not in FORMS:
    raise ValueError(f'ARES: got form={form!r}; allowed are {FORMS}.')
  mean = _mean(np.asarray(accuracy, np.float64))
  easy, medium = (np.nan_to_num(mean) >= share - _ROUNDING
                  for share in _SHARES[form])
  found = np.where(easy, EASY, np.where(medium, MEDIUM, HARD))
  return np.where(np.isnan(mean), -1, found)


def bucket_means(count: np.ndarray, level: np.ndarray) -> list[float | None]:
  """The mean over each difficulty's groups of their mean N; None: no group.

  Of N_HE f[N, G], nan where there is no value, and `difficulty` i[N].
  """
  mean = _mean(np.asarray(count, np.float64))
  inside = [mean[(level == d) & ~np.isnan(mean)] for d in range(len(BUCKETS))]
  return [float(x.mean()) if x.size else None for x in inside]


def targets(
    means: Sequence[float | None], before: Sequence[float | None],
) -> list[float | None]:
  """N* per difficulty: the rounded means, halves to the even neighbour.

  Of an empty bucket that before; None: there was never a group.
  """
  return [old if mean is None else float(round(mean))
          for mean, old in zip(means, before, strict=True)]


def alphas(
    alpha: Sequence[float], means: Sequence[float | None],
    target: Sequence[float | None], *, lr: float = 0.05, most: float = 2.0,
) -> list[float]:
  """alpha + lr (mean N - N*), of hard problems + lr (N* - mean N).

  Clipped to [0, most]; an empty bucket's stays. As N* is that same mean,
  rounded, a step moves it by lr / 2 at most: a property of the code.
  """
  over = [0.0 if mean is None else mean - aim
          for mean, aim in zip(means, target, strict=True)]
  return [float(np.clip(old + (-lr if d == HARD else lr) * x, 0.0, most))
          for d, (old, x) in enumerate(zip(alpha, over, strict=True))]


def lambdas(
    count: np.ndarray, level: np.ndarray, target: Sequence[float | None], *,
    eps: float = 1e-6,
) -> list[float]:
  """The paper's lambda_d = max(0, (E[N | d] - N*_d) / (Var[N | d] + eps)).

  Mean and variance (ddof 0) are of the responses of a bucket, of f[N, G] and
  `difficulty` i[N]; 0 where it is empty. ddof and eps are ours.
  """
  inside = [x[~np.isnan(x)] for x in (
      np.asarray(count, np.float64)[level == d] for d in range(len(target)))]
  return [max(0.0, float((x.mean() - aim) / (x.var() + eps))) if x.size else 0.0
          for x, aim in zip(inside, target)]


def entropy_score(
    accuracy: np.ndarray, n: np.ndarray, target: np.ndarray,
    level: np.ndarray, alpha: np.ndarray, *,
    constants: Constants = CONSTANTS,
) -> np.ndarray:
  """E of the code: what a response's N adds to its reward.

  With D = N - N*, m = max(1, f max(N*, 1)), cap = alpha c, s(x) = 1 /
  (1 + exp(-x / T)), pen(x) = x^2 / (2 kappa) up to kappa, x - kappa / 2 above:

      easy, right            -min(cap, pen(max(D - m, 0)) / (m + kappa) cap)
      medium, right          the same of |D|
      easy, medium, wrong    wrong s(max(D - m, 0)) cap
      hard, right, D >= -m   s(D + m) cap
      hard, right, D < -m    -min(cap, .5 pen(-D - m) / (m + kappa) cap)
      hard, wrong            wrong s(max(D - m, 0)) cap

  s(0) is .5: every wrong answer is paid, .15 on easy problems at alpha = .5, .3
  on hard ones. An accuracy of 1 is right, anything below wrong. Arguments
  broadcast against each other.

  Args:
    accuracy: f[...], 0 to 1.
    n: f[...], N_HE.
    target: f[...], N* of the problem's difficulty.
    level: i[...], 0 easy, 1 medium, 2 hard.
    alpha: f[...], from 0.
    constants: see `Constants`.

  Returns:
    f64[...], -cap to cap; nan where accuracy or n is.
  """
  accuracy, n, target, alpha = (
      np.asarray(x, np.float64) for x in (accuracy, n, target, alpha))
  level = np.asarray(level)
  f, kappa, t, c, paid = (np.asarray(x)[level] for x in constants)
  m = np.maximum(1.0, f * np.maximum(target, 1.0))
  cap, delta = alpha * c, n - target

  def penalty(x, part=1.0):
    x = np.maximum(x, 0.0)
    pen = np.where(x <= kappa, x * x / (2 * kappa), x - kappa / 2)
    return -np.minimum(cap, part * pen / (m + kappa) * cap)

  def bonus(x):
    return cap / (1 + np.exp(-np.maximum(x, 0.0) / t))

  wrong = paid * bonus(delta - m)
  right = np.where(
      level == HARD,
      np.where(delta >= -m, bonus(delta + m), penalty(-delta - m, 0.5)),
      penalty(np.where(level == EASY, delta, np.abs(delta)) - m))
  known = ~np.isnan(accuracy) & ~np.isnan(n)
  return np.where(known, np.where(accuracy >= 1, right, wrong), np.nan)


def paper_score(
    accuracy: np.ndarray, n: np.ndarray, target: np.ndarray,
    level: np.ndarray, weight: np.ndarray,
) -> np.ndarray:
  """E of the paper: -lambda_d g_d(D) of a wrong answer, 0 of a right one.

      g_easy = max(0, D)   g_medium = |D|   g_hard = max(0, -D)

  Args, Returns: as `entropy_score`, with weight = lambda_d (`lambdas`).
  """
  accuracy, n = (np.asarray(x, np.float64) for x in (accuracy, n))
  delta, level = n - target, np.asarray(level)
  g = np.where(level == EASY, np.maximum(delta, 0.0), np.where(
      level == MEDIUM, np.abs(delta), np.maximum(-delta, 0.0)))
  known = ~np.isnan(accuracy) & ~np.isnan(n)
  return np.where(known, np.where(accuracy >= 1, 0.0, -weight * g), np.nan)


def shaped(
    columns: np.ndarray,
    names: Sequence[str],
    knobs: Mapping[str, float],
    state: Any,
    *,
    weights: Mapping[str, float],
    accuracy: str = 'result',
    count: str = 'high_entropy',
    form: str = 'code',
    alpha: float = 0.5,
    lr: float = 0.05,
    most: float = 2.0,
    constants: Mapping[str, Sequence[float]] | None = None,
) -> combine.Combined:
  """The weighted sum of the rewards + E, `entropy_score` or `paper_score`.

  At each step the groups are sorted by difficulty, then targets and alphas move
  and then the rewards are made, all of this step's responses: nothing is kept
  of a problem. The code with its online filter scores groups before it has
  sorted them, by its defaults: easy, alpha .5, a constant target.

  In the paper's form lambda and E compare N with the target of the step before,
  at first with its own [ours]: with its own, the mean of N, lambda is 0 but for
  the rounding. The dual ascent on a lambda that the code keeps and does not use
  is `duals.dual_ascent`.

  Args:
    columns: f64[N, G, K], nan where there is no value. A response without
      accuracy or count gets no E.
    names: K names.
    knobs, weights: as in `combine.weighted_sum`.
    state: {'alpha', 'target', in the paper's form 'lambda'}, of each three
      numbers, by difficulty; {} at first. A target is None before its first.
    accuracy, count: names of the columns; the count has weight 0.
    form: 'code' or 'paper', of difficulties too.
    alpha: at the first step; lr, most: of `alphas`.
    constants: fields of `Constants` to replace.

  Returns:
    f64[N, G, 1], numbers to log and the state. 'aepo/<difficulty>/alpha',
    .../share, of the groups, and once there are any .../target, .../count, the
    mean N of this step, and .../lambda; 'reward/entropy_score/mean'.

  Raises:
    ValueError: a column that is not there, or an unknown form.
  """
  for name in (accuracy, count):
    if name not in names:
      raise ValueError(f'AEPO: there is no column {name!r}; the columns are '
                       f'{list(names)}.')
  total, says, _ = combine.weighted_sum(
      columns, names, knobs, None, weights=weights)
  acc, n = (columns[..., list(names).index(name)] for name in (accuracy, count))
  level = difficulty(acc, form)
  means = bucket_means(n, level)
  before = state.get('target', [None] * 3)
  target = targets(means, before)
  new = {'target': target, 'alpha': alphas(
      state.get('alpha', [alpha] * 3), means, target, lr=lr, most=most)}
  # Of a group without accuracy any bucket does: its E is nan.
  of = lambda values: np.asarray(values, np.float64)[level][:, None]
  if form == 'code':
    extra = entropy_score(
        acc, n, of(target), level[:, None], of(new['alpha']),
        constants=CONSTANTS._replace(**constants or {}))
  else:
    aims = [now if old is None else old for old, now in zip(before, target)]
    new['lambda'] = lambdas(n, level, aims)
    extra = paper_score(
        acc, n, of(aims), level[:, None], of(new['lambda']))
  known = ~np.isnan(extra)
  if known.any():
    says = {**says, 'reward/entropy_score/mean': float(extra[known].mean())}
  return total + np.where(known, extra, 0.0)[..., None], {
      **says, **_said(new, means, level)}, new


def _said(state, means, level) -> dict[str, float]:
  says = {}
  for d, name in enumerate(BUCKETS):
    values = {key: state[key][d] for key in ('alpha', 'target', 'lambda')
              if key in state}
    values |= {'share': float((level == d).mean()), 'count': means[d]}
    says |= {f'aepo/{name}/{key}': value for key, value in values.items()
             if value is not None}
  return says


def _mean(x: np.ndarray) -> np.ndarray:
  """f64[N], of the values of each row that are there; nan: none is."""
  there = ~np.isnan(x)
  n = there.sum(-1)
  return np.where(n > 0, np.where(there, x, 0.0).sum(-1) / np.maximum(n, 1),
                  np.nan)
