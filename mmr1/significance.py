"""How sure a measured accuracy is, and whether two differ (numpy only)."""

import collections
from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np


def pass_at_k(n: int, correct: int, k: int) -> float:
  """Chance that k of n samples, drawn without replacement, hold a right one.

  1 - C(n - correct, k) / C(n, k), the unbiased estimator of Chen et al. 2021
  (2107.03374, eq. 1). For 1 right of 4 and k = 2: 1 - 3 / 6.

  Raises:
    ValueError: not 1 <= k <= n or not 0 <= correct <= n.
  """
  if not 1 <= k <= n or not 0 <= correct <= n:
    raise ValueError(f'pass@k: got n={n}, correct={correct}, k={k}; needed are '
                     '1 <= k <= n and 0 <= correct <= n.')
  return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers: Sequence[str | None]) -> int | None:
  """Index of the first sample with the most frequent answer.

  What could not be parsed (None) has no vote; among equals the answer that
  came first wins. None where nothing was parsed.
  """
  votes = collections.Counter(x for x in answers if x is not None)
  return answers.index(votes.most_common(1)[0][0]) if votes else None


def bootstrap(
    scores: Sequence[float], *, seed: int, draws: int = 2000,
    level: float = 0.95) -> tuple[float, float]:
  """Percentile interval of the mean: examples are drawn again, `draws` times.

  Args:
    scores: one number per example; samples of one example are averaged first,
      since they are not independent.
    seed: of numpy's default generator.
    draws, level: how many, and how much the interval holds.

  Raises:
    ValueError: no scores.
  """
  if not len(scores):
    raise ValueError('bootstrap: no scores; needed is at least one.')
  scores, rng = np.asarray(scores, np.float64), np.random.default_rng(seed)
  means = [scores[rng.integers(len(scores), size=len(scores))].mean()
           for _ in range(draws)]
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def wilson(correct: float, n: int, z: float = 1.959964) -> tuple[float, float]:
  """95% interval of a proportion (Wilson 1927, eq. for the score interval).

  For 8 of 10: centre (.8 + .192) / 1.384 = .717, half width .226.
  """
  p, z2 = correct / n, z * z
  centre = (p + z2 / (2 * n)) / (1 + z2 / n)
  half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
  return max(0.0, centre - half), min(1.0, centre + half)  # of rounding


def interval(scores: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
  """95% interval of the mean of scores of 0 to 1, one per example.

  A bootstrap; but where all scores are equal it would have no width, however
  few they are: then Wilson's of that proportion, since among numbers of 0 to 1
  with the same mean zeros and ones vary most. For 10 zeros: 0 to .278.
  """
  if len(set(scores)) == 1:
    return wilson(float(sum(scores)), len(scores))
  return bootstrap(scores, seed=seed)


class AtK(NamedTuple):
  """Of the first k samples of every problem, one number per problem: the chance
  that one of k is right, the score of the majority, and the mean score."""
  passed: list[float]
  majority: list[float]
  mean: list[float]


def at_k(scores: Sequence[Sequence[float]],
         answers: Sequence[Sequence[str | None]], k: int) -> AtK:
  """Of several samples of each problem.

  pass@k is estimated from all samples (`pass_at_k`), right from a score of .5
  on. The majority has the score of the first sample that said it, and 0 where
  nothing has a vote.

  Args:
    scores: of each sample of each problem, 0 to 1.
    answers: what each votes for, as `majority`.
    k: at most the samples of a problem.
  """
  votes = [majority(said[:k]) for said in answers]
  return AtK(
      [pass_at_k(len(one), sum(score >= 0.5 for score in one), k)
       for one in scores],
      [0.0 if vote is None else float(one[vote])
       for one, vote in zip(scores, votes)],
      [float(np.mean(one[:k])) for one in scores])


class McNemar(NamedTuple):
  """Pairs both got right, only one of them, none; and the p-value."""
  both: int
  first: int
  second: int
  neither: int
  p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
  """McNemar's exact test of two runs on the same examples, two-sided.

  Of b + c examples that they differ on, b is Binomial(b + c, 1/2) if they are
  equally good: p = min(1, 2 P(X <= min(b, c))); 1 where they never differ.
  For b = 1 and c = 5: 2 (1 + 6) / 64 = .21875.

  Raises:
    ValueError: not as many of one as of the other.
  """
  if len(first) != len(second):
    raise ValueError(f'mcnemar: {len(first)} results against {len(second)}; '
                     'needed are the same examples.')
  pairs = collections.Counter(
      (bool(a), bool(b)) for a, b in zip(first, second))
  b, c = pairs[True, False], pairs[False, True]
  tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
  return McNemar(pairs[True, True], b, c, pairs[False, False],
                 min(1.0, 2 * tail / 2 ** (b + c)))
