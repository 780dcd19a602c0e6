"""The table of a run's evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmr1.reporting import entries
from mmr1.reporting import reading

_FIRST = ('accuracy', 'accuracy_sampled', 'n', 'response_length',
          'response_length_sampled', 'unparsed_frac', 'unparsed_frac_sampled',
          'truncated_frac', 'truncated_frac_sampled')


class Table(NamedTuple):
  """Evaluations with the same metrics.

  Fields:
    columns: names without 'eval/'.
    rows: (run, stage, step, cells as text); a number that has bounds shows
      them: '0.912 (0.88-0.94)'.
  """
  columns: list[str]
  rows: list[tuple[str, str, int, list[str]]]


def tables(runs: list[reading.Run]) -> list[Table]:
  """A table for the policy, and one for each other set of metrics."""
  found: dict[tuple[str, ...], list[tuple[str, str, int, dict]]] = {}
  for run in runs:
    for row in run.rows:
      made = {key.removeprefix('eval/'): entries.number(value)
              for key, value in row.items() if key.startswith('eval/')}
      if made:
        kind = (('accuracy',) if 'accuracy' in made
                else tuple(sorted(made)))
        found.setdefault(kind, []).append(
            (run.name, row['stage'], row['step'], made))
  result = []
  for rows in found.values():
    names = dict.fromkeys(name for *_, made in rows for name in made)
    bounds = {f'{name}{end}' for name in names for end in ('_low', '_high')}
    columns = [name for name in _FIRST if name in names]
    columns += sorted(name for name in names
                      if name not in bounds and name not in columns)
    result.append(Table(columns, [
        (name, stage, step, [_cell(made, column) for column in columns])
        for name, stage, step, made in rows]))
  return result


def _cell(made: Mapping[str, float | None], name: str) -> str:
  value = made.get(name)
  if value is None:
    return ''
  low, high = made.get(f'{name}_low'), made.get(f'{name}_high')
  if low is not None and high is not None:
    return f'{value:.3f} ({low:.2f}-{high:.2f})'
  # Of counts and lengths all digits are meant.
  return f'{value:.0f}' if 1e4 <= abs(value) < 1e15 else f'{value:.4g}'


def cards(run: reading.Run) -> list[dict[str, Any]]:
  """What the cards say of how a run was evaluated, one for each way."""
  seen: dict[str, dict[str, Any]] = {}
  for card in run.cards:
    about = {key: card.get(key) for key in (
        'n', 'samples_per_problem', 'ks', 'broken', 'broken_rows',
        'prompt_hash', 'parser', 'matcher', 'judge', 'pixels', 'interval',
        'subset', 'sampling') if key in card}
    entry = seen.setdefault(repr(sorted(about.items(), key=str)),
                            {'about': about, 'files': []})
    entry['files'].append(card['file'])
  return list(seen.values())


def groups(runs: Sequence[reading.Run]) -> list[tuple[str, Table]]:
  """Accuracies of the parts that benchmarks name, a table for each label:
  (label, table), whose columns are the label's values."""
  found: dict[str, list[tuple[reading.Run, dict, dict]]] = {}
  for run in runs:
    for card in run.cards:
      parts = card.get('groups')
      for label, values in (parts.items() if isinstance(parts, dict) else ()):
        if isinstance(values, dict):
          found.setdefault(str(label), []).append((run, card, values))
  return [(label, _grouped(rows)) for label, rows in found.items()]


def _grouped(rows: Sequence[tuple[reading.Run, dict, dict]]) -> Table:
  columns = [*dict.fromkeys(name for *_, values in rows for name in values)]
  return Table(columns, [
      (run.name, str(card.get('stage', '')), card.get('step', 0),
       [_part(values.get(name)) for name in columns])
      for run, card, values in rows])


def _part(found: Any) -> str:
  """Of one value of a label: '0.500 (0.30-0.70), n 12'."""
  if not isinstance(found, dict):
    return ''
  text = _cell({key: entries.number(found.get(key)) if key == 'accuracy' else
                entries.number(found.get(key.removeprefix('accuracy_')))
                for key in ('accuracy', 'accuracy_low', 'accuracy_high')},
               'accuracy')
  return f'{text}, n {found.get("n", "?")}' if text else ''
