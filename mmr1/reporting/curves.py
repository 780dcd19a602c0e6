"""Curves over all stages of a run: columns of numbers, and charts of them."""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

from mmr1.reporting import reading

ROWS = 4000  # of one run; more are averaged
_NOT = ('stage', 'step', 'time')


class Chart(NamedTuple):
  """A picture: patterns of metrics, where a `*` stands for one name.

  Fields:
    title: for a person.
    metrics: names and patterns; what no run has is left out.
    kind: 'line', 'area' (stacked) or 'points' (values far apart).
    log: the vertical axis is logarithmic.
    without: metrics that patterns would take and that are not meant.
  """
  title: str
  metrics: tuple[str, ...]
  kind: str = 'line'
  log: bool = False
  without: tuple[str, ...] = ()


CHARTS = (
    Chart('Reward', ('reward/mean', 'reward/std')),
    Chart('Reward components', ('reward/*/mean',)),
    Chart('Held-out accuracy',
          ('eval/accuracy', 'eval/accuracy_sampled', 'eval/*/accuracy'),
          'points'),
    Chart('KL', ('kl', 'kl_old', 'kl/*')),
    Chart('Entropy', ('entropy', 'entropy/*')),
    Chart('Clip fractions', ('clip_frac/*',)),
    Chart('Response length',
          ('response_length/mean', 'response_length/max',
           'eval/response_length_sampled')),
    Chart('Ended by the cap', ('response_length/clip_frac',)),
    Chart('Gradient norm', ('grad_norm', 'grad_norm/*')),
    Chart('Sampler and trainer: difference of log-probs',
          ('sampler/logp_diff_mean', 'sampler/logp_diff_max'), log=True),
    Chart('Time by phase, s', ('time/*_s',), 'area', without=('time/step_s',)),
    Chart('Loss', ('loss', 'loss/*')),
    Chart('Groups without variance', ('group/zero_std_frac',)),
    Chart('Ratio', ('ratio/mean', 'ratio/max')),
    Chart('Learning rate', ('lr',)),
    Chart('Tokens per second', ('tokens_per_s',)),
    Chart('Failures', ('reward/error_frac', 'reward/timeout_frac',
                       'reward/none_frac', 'env/errors', 'update/skipped')),
    Chart('Environment', ('env/turns', 'env/calls', 'env/answered_frac')),
    Chart('Data', ('data/broken', 'data/dropped_long')),
    Chart('Held-out, unparsed or cut',
          ('eval/unparsed_frac', 'eval/truncated_frac_sampled'), 'points'),
)


class Series(NamedTuple):
  """A run's numbers.

  Fields:
    x: steps over all stages.
    minutes: since the first row.
    stage: of each row, an index into `stages`.
    stages: {'name', 'kind', 'begin' and 'minute' where it begins, 'steps'}.
    columns: {metric: numbers of each row, None where there is none}.
  """
  x: list[int]
  minutes: list[float]
  stage: list[int]
  stages: list[dict[str, Any]]
  columns: dict[str, list[float | None]]


def matches(pattern: str, name: str) -> bool:
  """True if `name` is `pattern` with one part, or a piece of it, for `*`."""
  head, star, tail = pattern.partition('*')
  if not star:
    return name == pattern
  middle = name[len(head):len(name) - len(tail)]
  return (name.startswith(head) and name.endswith(tail) and bool(middle)
          and len(name) > len(head) + len(tail) and '/' not in middle)


def charts(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The charts that some run has numbers for.

  Args:
    columns: of each run.
  """
  names = dict.fromkeys(name for one in columns for name in one)
  result = []
  for chart in CHARTS:
    found = [name for pattern in chart.metrics for name in names
             if matches(pattern, name) and name not in chart.without]
    found = [*dict.fromkeys(found)]
    if found:
      result.append({'title': chart.title, 'metrics': found,
                     'kind': chart.kind, 'log': chart.log})
  return result


def series(run: reading.Run) -> Series:
  """A run's numbers on one axis over its stages."""
  rows, odd = [], {}
  names = run.stages
  order = {name: i for i, name in enumerate(names)}
  for row in sorted(run.rows, key=lambda row: (order[row['stage']],
                                               row['step'])):
    numbers = {}
    for name, value in row.items():
      if name in _NOT:
        continue
      if type(value) in (int, float) and math.isfinite(value):
        numbers[name] = value
      else:
        odd[name] = odd.get(name, 0) + 1
    rows.append((row['stage'], row['step'], _number(row.get('time')), numbers))
  for name, count in sorted(odd.items()):
    run.notes.append(
        f'metrics.jsonl: {count} values of {name} are no finite numbers; the '
        'curve has gaps there.')
  steps = {name: max((step for stage, step, *_ in rows if stage == name),
                     default=0) for name in names}
  begin, at = {}, 0
  for name in names:
    begin[name], at = at, at + steps[name]
  times = [time for *_, time, _ in rows if time is not None]
  first = min(times, default=0.0)
  thin = _thin(rows)
  if len(thin) < len(rows):
    run.notes.append(f'{len(rows)} rows are drawn as {len(thin)} means of rows '
                     'that follow each other.')
  stages = [{'name': name, 'kind': run.kind(name), 'begin': begin[name],
             'steps': steps[name], 'minute': min(
                 (time - first for stage, _, time, _ in rows
                  if stage == name and time is not None), default=0.0) / 60}
            for name in names]
  columns = {name: [_short(row[3].get(name)) for row in thin]
             for name in dict.fromkeys(key for row in thin for key in row[3])}
  return Series(
      [begin[stage] + step for stage, step, *_ in thin],
      [round(((first if time is None else time) - first) / 60, 4)
       for _, _, time, _ in thin],
      [order[stage] for stage, *_ in thin], stages, columns)


def _number(value: Any) -> float | None:
  good = type(value) in (int, float) and math.isfinite(value)
  return float(value) if good else None


def _short(value: float | None) -> float | None:
  """Six digits: what a screen shows, in a third of the bytes."""
  if value is None:
    return None
  value = float(f'{value:.6g}')
  return int(value) if value.is_integer() and abs(value) < 1e15 else value


def _thin(rows: list[tuple[str, int, float | None, dict[str, float]]],
          ) -> list[tuple[str, int, float | None, dict[str, float]]]:
  """At most about ROWS rows: means over neighbours of one stage."""
  width = -(-len(rows) // ROWS)
  if width <= 1:
    return rows
  result, start = [], 0
  while start < len(rows):
    end = start + 1
    while (end < len(rows) and end - start < width
           and rows[end][0] == rows[start][0]):
      end += 1
    part, sums = rows[start:end], {}
    for *_, numbers in part:
      for name, value in numbers.items():
        total, count = sums.get(name, (0.0, 0))
        sums[name] = total + value, count + 1
    stage, step, time, _ = part[-1]
    result.append((stage, step, time, {
        name: total / count for name, (total, count) in sums.items()}))
    start = end
  return result
