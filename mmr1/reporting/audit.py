"""Reward audit: what each reward of a stage says, and what looks wrong.

Counts are over the samples that the run wrote, not over all it made. A row of
advice is a suspicion with its number, never a verdict.
"""

from collections.abc import Mapping, Sequence
import collections
from typing import Any, NamedTuple

import numpy as np

from mmr1.reporting import entries
from mmr1.reporting import reading
from mmr1.reporting import samples as samples_lib

_ENOUGH = 20  # samples below which nothing is suspected
_STRONG = 0.7  # correlation with length
_SPAM = 0.2  # of the best samples, that say the same to different questions
_LENGTH = 60


class Line(NamedTuple):
  """One reward in one stage.

  Fields:
    stage, name: which.
    n: samples that have it; none: share that has no value.
    mean, std, low, high: of the values.
    top: share at `high`.
    flat: share of groups in which it is the same for all; None: no groups.
    with_length, with_advantage: correlations; None: nothing varies.
  """
  stage: str
  name: str
  n: int
  none: float
  mean: float | None
  std: float | None
  low: float | None
  high: float | None
  top: float | None
  flat: float | None
  with_length: float | None
  with_advantage: float | None


class Audit(NamedTuple):
  """Of a run.

  Fields:
    lines: of every stage and reward.
    pairs: (stage, one, other, correlation, share of samples in which one is
      high and the other low).
    advice: sentences.
  """
  lines: list[Line]
  pairs: list[tuple[str, str, str, float | None, float]]
  advice: list[str]


def audit(run: reading.Run, rows: Sequence[Mapping[str, Any]]) -> Audit:
  """Audits the rewards of a run's samples; `rows` are those on the page."""
  lines, pairs, advice = [], [], _from_metrics(run)
  stages: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    if samples_lib.rewards_of(row):
      stages.setdefault(row['stage'], []).append(row)
  for stage, part in stages.items():
    columns = _columns(part)
    length = np.array([_or_nan(row.get('length')) for row in part])
    advantage = np.array([_or_nan(row.get('advantage')) for row in part])
    groups = _groups(part)
    for name, values in columns.items():
      line = _line(stage, name, values, length, advantage, groups)
      lines.append(line)
      advice += _suspected(line, len(values))
    pairs += _pairs(stage, columns)
    advice += _repeated(stage, part)
  return Audit(lines, pairs, advice)


def _or_nan(value: Any) -> float:
  found = entries.finite(value)
  return np.nan if found is None else found


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """{reward: f64[samples]}, nan where there is no value."""
  found = [samples_lib.rewards_of(row) for row in rows]
  names = dict.fromkeys(name for one in found for name in one)
  return {name: np.array([np.nan if one.get(name) is None else one[name]
                          for one in found]) for name in names}


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
  """Indices of the samples of each group of two or more."""
  found: dict[Any, list[int]] = {}
  for i, row in enumerate(rows):
    if type(row.get('group')) is int:
      found.setdefault((row['step'], row['group']), []).append(i)
  return [np.array(part) for part in found.values() if len(part) > 1]


def _line(stage: str, name: str, values: np.ndarray, length: np.ndarray,
          advantage: np.ndarray, groups: list[np.ndarray]) -> Line:
  there = values[np.isfinite(values)]
  none = float(1 - len(there) / len(values))
  if not len(there):
    return Line(stage, name, 0, none, *[None] * 8)
  high = float(there.max())
  flat = [not _varies(part[np.isfinite(part)])
          for part in (values[i] for i in groups) if np.isfinite(part).any()]
  return Line(
      stage, name, len(there), none, float(there.mean()), float(there.std()),
      float(there.min()), high, float((there == high).mean()),
      float(np.mean(flat)) if flat else None,
      correlation(values, length), correlation(values, advantage))


def _varies(values: np.ndarray) -> bool:
  """By more than what adding in another order does to a sum."""
  return bool(np.ptp(values) > 1e-9 * np.abs(values).max())


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
  """Pearson's, where both are finite; None if one of them does not vary."""
  both = np.isfinite(a) & np.isfinite(b)
  a, b = a[both], b[both]
  if len(a) < 3 or not _varies(a) or not _varies(b):
    return None
  return float(np.corrcoef(a, b)[0, 1])


def _pairs(stage: str, columns: Mapping[str, np.ndarray],
           ) -> list[tuple[str, str, str, float | None, float]]:
  """Every two rewards; high is above the middle of a reward's range."""
  names, result = list(columns), []
  for i, one in enumerate(names):
    for other in names[i + 1:]:
      a, b = columns[one], columns[other]
      both = np.isfinite(a) & np.isfinite(b)
      if both.any():
        x, y = (part > (part.min() + part.max()) / 2
                for part in (a[both], b[both]))
        result.append((stage, one, other, correlation(a, b),
                       float((x != y).mean())))
  return result


def _suspected(line: Line, seen: int) -> list[str]:
  """`seen`: samples, with those that do not have it."""
  where = f'{line.stage}, {line.name}: '
  if seen < _ENOUGH:
    return []
  if not line.n:
    return [where + 'has no value in any sample.']
  if not _varies(np.array([line.low, line.high])):
    return [where + f'is {line.low:g} in all {line.n} samples; it teaches '
            'nothing.']
  advice = []
  if line.with_length is not None and abs(line.with_length) > _STRONG:
    longer = 'longer' if line.with_length > 0 else 'shorter'
    advice.append(where + f'correlates with length at {line.with_length:.2f}; '
                  f'is it paying for {longer} answers?')
  if line.flat is not None and line.flat > 0.9:
    advice.append(where + f'is the same within {line.flat:.0%} of groups; an '
                  'advantage by group gets little from it.')
  if line.with_advantage is not None and line.with_advantage < -0.1:
    advice.append(where + 'goes against the advantage (correlation '
                  f'{line.with_advantage:.2f}): other rewards outweigh it.')
  return advice


def _repeated(stage: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """One text that earns the most with several questions of other answers."""
  totals = [samples_lib.total_of(row) for row in rows]
  known = [x for x in totals if x is not None]
  if len(known) < _ENOUGH or min(known) == max(known):
    return []
  best = [row for row, x in zip(rows, totals) if x == max(known)]
  said = collections.Counter(str(row.get('completion')) for row in best)
  text, count = said.most_common(1)[0]
  answers = {str(row.get('answer')) for row in best
             if str(row.get('completion')) == text}
  if len(best) < _ENOUGH or count < _SPAM * len(best) or len(answers) < 3:
    return []
  cut = text if len(text) <= _LENGTH else text[:_LENGTH] + '...'
  return [f'{stage}: {count} of the {len(best)} best samples are the same text '
          f'with {len(answers)} different gold answers: {cut!r}.']


def _from_metrics(run: reading.Run) -> list[str]:
  """Rewards that fail, and rewards that rise while accuracy falls."""
  advice = []
  for stage in run.stages:
    rows = [row for row in run.rows if row['stage'] == stage]
    for name, what in (('reward/error_frac', 'failed'),
                       ('reward/timeout_frac', 'ran out of time')):
      worst = max((x for x in (entries.finite(row.get(name)) for row in rows)
                   if x is not None), default=0.0)
      if worst > 0:
        advice.append(f'{stage}: up to {worst:.1%} of the reward calls of a '
                      f'step {what}.')
    reward, accuracy = (_ends(rows, name) for name in (
        'reward/mean', 'eval/accuracy_sampled'))
    if reward and accuracy and (
        reward[1] > reward[0] and accuracy[1] < accuracy[0] - 0.05):
      advice.append(
          f'{stage}: the reward rose from {reward[0]:.3f} to {reward[1]:.3f} '
          f'while held-out accuracy fell from {accuracy[0]:.3f} to '
          f'{accuracy[1]:.3f}; read the best samples.')
  return advice


def _ends(rows: Sequence[Mapping[str, Any]],
          name: str) -> tuple[float, float] | None:
  """Means of the first and of the last quarter of a metric."""
  values = [x for x in (entries.finite(row.get(name)) for row in rows)
            if x is not None]
  if len(values) < 2:
    return None
  part = max(1, len(values) // 4)
  return (sum(values[:part]) / part, sum(values[-part:]) / part)
