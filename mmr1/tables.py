"""What a run shows at its end: the numbers that each stage ends with."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Metrics = Mapping[str, float]

_POLICY = ('stage', 'greedy', 'sampled', 'n', 'length')
_EVAL = 'eval/'


class Table(NamedTuple):
  """For `log.Logger.table`."""
  rows: list[tuple[Any, ...]]
  columns: tuple[str, ...]
  title: str


def of(results: Mapping[str, Metrics]) -> list[Table]:
  """The accuracy of every stage of the policy; of stages that train another
  model a table for each set of metrics, 'eval/reward' as 'reward'.

  Args:
    results: {stage: {'eval/...': number}}, in order.
  """
  policy, others = [], {}
  for stage, m in results.items():
    if 'eval/accuracy_sampled' in m:
      policy.append((
          stage, _interval(m, 'eval/accuracy'),
          _interval(m, 'eval/accuracy_sampled'), str(int(m['eval/n'])),
          f'{m["eval/response_length_sampled"]:.1f}'))
    else:
      others.setdefault(_names(m), []).append(stage)
  tables = [Table(policy, _POLICY, 'accuracy on held-out problems '
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
  if f'{name}_low' in metrics:
    return _interval(metrics, name)
  value = metrics[name]
  return str(int(value)) if name == 'eval/n' else f'{value:.3f}'


def _interval(metrics: Metrics, name: str) -> str:
  """'0.912 (0.88-0.94)'."""
  return (f'{metrics[name]:.3f} ({metrics[f"{name}_low"]:.2f}-'
          f'{metrics[f"{name}_high"]:.2f})')
