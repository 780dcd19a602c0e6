"""Evaluations on a report's page: every completion of every problem.

Evaluations of the same problems are one set: the completions of a problem by
all of them lie together, so that two of them can be put beside each other. What
does not fit is left out by whole problems, evenly.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmr1.reporting import entries
from mmr1.reporting import reading

_BY = ('rule', 'chance', 'judge', 'unjudged')  # what may have given a score


class Problems(NamedTuple):
  """A set.

  Fields:
    name: of the problems; '' are a run's own held-out ones.
    evaluations: {'run', 'stage', 'step'}, in order.
    index: {column: values of each completion}.
    chunks: of entries.
    rows: the rows, as `entries.entry` reads them.
  """
  name: str
  evaluations: list[dict[str, Any]]
  index: dict[str, list[Any]]
  chunks: list[str]
  rows: list[dict[str, Any]]


def collect(runs: Sequence[reading.Run], budget: int) -> list[Problems]:
  """The sets of some runs, within `budget` characters of chunks."""
  names = dict.fromkeys(e.name for run in runs for e in run.evaluations)
  return [_set(name, runs, budget // len(names)) for name in names]


def _set(name: str, runs: Sequence[reading.Run], budget: int) -> Problems:
  evaluations, found = [], {}
  for i, run in enumerate(runs):
    mine = [one for one in run.evaluations if one.name == name]
    asked = _asked([row for one in mine for row in one.rows])
    for one in mine:
      here = len(evaluations)
      evaluations.append({'run': i, 'stage': one.stage, 'step': one.step})
      for row in one.rows:
        # Runs of other data may have another problem of this number.
        problem = *_number(row), asked.get(_number(row))
        found.setdefault(problem, []).append((here, row))
  problems = [sorted(part, key=lambda x: (
      x[0], x[1].get('decoding') != 'greedy', _int(x[1].get('sample'))))
              for part in found.values()]
  made = [[_row(row) for _, row in part] for part in problems]
  chosen, chunks = entries.fitted(made, budget)
  if len(chosen) < len(problems):
    runs[0].notes.append(
        f'{len(chosen)} of {len(problems)} problems of the evaluation'
        f'{f" {name}" if name else ""} are on this page; all are in eval/.')
  rows = [(number, *x) for number, k in enumerate(chosen)
          for x in problems[k]]
  return Problems(
      name, evaluations, {
          **entries.at(len(rows)),
          'problem': [number for number, *_ in rows],
          'evaluation': [here for _, here, _ in rows],
          **_columns([row for *_, row in rows])},
      chunks, [row for k in chosen for row in made[k]])


def _number(row: Mapping[str, Any]) -> tuple[str, str]:
  """Which problem of its run's data."""
  return repr(row.get('uid')), repr(row.get('gold'))


def _asked(rows: Sequence[Mapping[str, Any]],
           ) -> dict[tuple[str, str], tuple[str, str]]:
  """{number: question and pictures} of a run's problems; loops between two
  models leave neither."""
  return {_number(row): (repr(row['prompt']), repr(row.get('images')))
          for row in rows if row.get('prompt') is not None}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
  return {
      'sampled': [int(row.get('decoding') == 'sampled') for row in rows],
      'sample': [_int(row.get('sample')) for row in rows],
      'correct': [_right(row) for row in rows],
      'score': [entries.number(row.get('score')) for row in rows],
      'by': [_BY.index(row['by']) if row.get('by') in _BY else 0
             for row in rows],
      'unparsed': [int(_last(row.get('extracted')) is None) for row in rows],
      'extracted': [_short(_last(row.get('extracted'))) for row in rows],
      'error': [int(bool(row.get('error') or row.get('errors')))
                for row in rows],
      'truncated': [int(row.get('truncated') is True) for row in rows],
      'length': [entries.number(row.get('length')) or 0 for row in rows]}


def _int(value: Any) -> int:
  return value if type(value) is int else 0


def _last(value: Any) -> Any:
  """What holds in the end, of a loop that says it after every round."""
  if isinstance(value, list):
    return value[-1] if value else None
  return value


def _right(row: Mapping[str, Any]) -> int:
  return int(_last(row.get('correct')) is True)


def _short(value: Any) -> str | None:
  return None if value is None else str(value)[:40]


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
  """A record as a row of samples."""
  turns = row.get('turns')
  text = row.get('text')
  if isinstance(turns, list) and turns and all(
      isinstance(turn, dict) and 'answer' in turn for turn in turns):
    # Of a loop between two models: an answer, what the other says of it, ...
    text = turns[-1].get('answer')
    turns = [x for turn in turns for x in (
        ['assistant', turn.get('answer')], ['critic', turn.get('critique')])
             if x[1] is not None]
  made = {'prompt': row.get('prompt'), 'images': row.get('images'),
          'completion': text, 'answer': row.get('gold'), 'turns': turns}
  more = {'id': row.get('id'), 'uid': row.get('uid'),
          'extracted': _last(row.get('extracted')),
          'error': row.get('error') or row.get('errors'),
          'end': row.get('end'), 'source': row.get('source')}
  labels = row.get('labels')
  if isinstance(labels, dict):
    more |= {f'label {key}': value for key, value in labels.items()}
  return {key: value for key, value in {**made, **more}.items()
          if value not in (None, '', [])}
