"""What a run shows at its end: the numbers that each stage ends with, where
things lie, and what to do next."""

from collections.abc import Mapping, Sequence
import resource
from typing import Any, NamedTuple

from etils import epath

from mmr1 import log
from mmr1 import progress

Metrics = Mapping[str, float]

_POLICY = ('stage', 'greedy', 'sampled', 'n', 'length')
_EVAL = 'eval/'


class Table(NamedTuple):
  """For `log.Logger.table`."""
  rows: list[tuple[Any, ...]]
  columns: tuple[str, ...]
  title: str


def of(results: Mapping[str, Metrics],
       seconds: Mapping[str, float] | None = None) -> list[Table]:
  """The accuracy of every stage of the policy; of stages that train another
  model a table for each set of metrics, 'eval/reward' as 'reward'.

  Args:
    results: {stage: {'eval/...': number}}, in order.
    seconds: {stage: of its steps}, a column of the first table; None: there
      is none.
  """
  policy, others = [], {}
  for stage, m in results.items():
    if 'eval/accuracy_sampled' in m:
      policy.append((
          stage, progress.interval(m, 'eval/accuracy'),
          progress.interval(m, 'eval/accuracy_sampled'), str(int(m['eval/n'])),
          f'{m["eval/response_length_sampled"]:.1f}',
          *(() if seconds is None else (
              progress.clock(seconds[stage]) if stage in seconds else '',))))
    else:
      others.setdefault(_names(m), []).append(stage)
  columns = (*_POLICY, 'training') if seconds is not None else _POLICY
  tables = [Table(policy, columns, 'accuracy on held-out problems '
                  '(95% interval)')] if policy else []
  for names, stages in others.items():
    rows = [(stage, *(_cell(results[stage], name) for name in names))
            for stage in stages]
    tables.append(Table(
        rows, ('stage', *(name.removeprefix(_EVAL) for name in names)),
        'on held-out examples'))
  return tables


def _names(metrics: Metrics) -> tuple[str, ...]:
  """Those that have a column: bounds stand beside what they bound."""
  bounds = {f'{name}{end}' for name in metrics for end in ('_low', '_high')}
  return tuple(name for name in metrics if name not in bounds)


def _cell(metrics: Metrics, name: str) -> str:
  return (str(int(metrics[name])) if name == 'eval/n'
          else progress.interval(metrics, name))


def trained(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """{stage: seconds of its steps}, of rows of metrics.jsonl.

  A row that stands for several steps (`log_every`) counts as often; the first
  step, which compiles, once.
  """
  found: dict[str, float] = {}
  last: dict[str, int] = {}
  for row in rows:
    if 'time/step_s' not in row:
      continue
    stage, step = row['stage'], row['step']
    count = step - last[stage] if stage in last else 1
    found[stage] = found.get(stage, 0.0) + count * float(row['time/step_s'])
    last[stage] = step
  return found


def end(logger: log.Logger, path: Any, results: Mapping[str, Metrics],
        stages: Sequence[str], seconds: float) -> None:
  """Prints the tables, and what there is to be looked at.

  Args:
    logger: of the run.
    path: the workdir.
    results: as of `of`.
    stages: of the run.
    seconds: that this process took.
  """
  path = epath.Path(path)
  file = path / 'metrics.jsonl'
  rows = log.read_rows(file) if file.exists() else []
  for table in of(results, trained(rows)):
    logger.table(*table)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  logger.note(f'{progress.clock(seconds)}, {peak:.1f} GiB of memory at most; '
              f'everything is in {path}')
  there = {x.name for x in (path / 'checkpoints').iterdir()} if (
      path / 'checkpoints').exists() else ()
  kept = [name for stage in stages for name in sorted(there)
          if name.rpartition('_')[0] == stage]
  for name, text in (
      ('report.html', 'curves, samples and evaluations; opens in a browser'),
      ('samples', 'what was said, step by step'),
      ('eval', 'a card for every evaluation, and each answer'),
      ('checkpoints', ', '.join(kept))):
    if (path / name).exists():
      logger.note(f'  {name:12} {text}')
  logger.note('Next: ' + (
      f'python -m mmr1.export --workdir={path} --out={path}/export  (a folder '
      'for transformers)' if kept else
      f'python -m mmr1.report --workdir={path}  (the page again)'))
