"""What the runs of a sweep came to: a table over seeds, differences, a record.

A difference is paired: each run is compared with the first run on the same
seed, which has the same held-out problems. How far differences of seeds are
apart says something of the method; McNemar's p-value of a seed says whether
these two models differ on these problems.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import platform
import statistics
import subprocess
from typing import Any, NamedTuple

import jax

from mmr1 import compare
from mmr1 import significance

_EVAL = 'eval/'
# The metrics whose evaluations keep a record of every problem.
_DECODINGS = {'eval/accuracy': 'greedy', 'eval/accuracy_sampled': 'sampled'}


class Result(NamedTuple):
  """A run on a seed.

  Fields:
    run, seed: which.
    workdir: its folder.
    state: 'done', 'failed' or 'stopped'.
    evaluations: {stage: {'eval/...': number}} of those it has finished.
  """
  run: str
  seed: int
  workdir: pathlib.Path
  state: str
  evaluations: Mapping[str, Mapping[str, float]]


class Paired(NamedTuple):
  """A run against the first one, on one seed: the difference of a metric, and
  McNemar's p-value where both kept records of the same problems."""
  seed: int
  difference: float
  p: float | None


def evaluations(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
  """{stage: metrics} that a finished run ended with; {} of one that did not."""
  file = workdir / 'FINISHED'
  return json.loads(file.read_text()) if file.exists() else {}


def value(result: Result, metric: str) -> float | None:
  """'<metric>' of the last evaluation that has it, '<stage>:<metric>' of one."""
  stage, _, name = metric.rpartition(':')
  rows = [row for at, row in result.evaluations.items()
          if stage in ('', at) and name in row]
  return rows[-1][name] if rows else None


def paired(first: Result, other: Result, metric: str) -> Paired | None:
  """None where one of them lacks the metric."""
  a, b = value(first, metric), value(other, metric)
  if a is None or b is None:
    return None
  rights = [_rights(one, metric) for one in (first, other)]
  p = None
  if rights[0] and rights[1] and rights[0].keys() == rights[1].keys():
    uids = sorted(rights[0])
    p = significance.mcnemar(
        *([found[uid] for uid in uids] for found in rights)).p
  return Paired(first.seed, b - a, p)


def _rights(result: Result, metric: str) -> dict[int, bool] | None:
  """{uid: right} of the problems of the last evaluation; None: no records."""
  if metric not in _DECODINGS:
    return None
  stage = [at for at, row in result.evaluations.items() if metric in row][-1]
  done = json.loads(
      (result.workdir / 'DONE' / f'{stage}.json').read_text())
  file = result.workdir / 'eval' / f'{stage}_{done.get("step", 0)}.jsonl'
  if not file.exists():
    return None
  # Of several samples of a problem the first, as `compare` tests.
  return {uid: scores[0] >= 0.5 for uid, scores in compare.read(
      str(file), _DECODINGS[metric]).items()}


def pairs(results: Sequence[Result], metric: str) -> dict[str, list[Paired]]:
  """{run: against the first run, seed by seed}."""
  first = {one.seed: one for one in results if one.run == results[0].run}
  found: dict[str, list[Paired]] = {}
  for one in results:
    pair = one.seed in first and paired(first[one.seed], one, metric)
    if pair and one.run != results[0].run:
      found.setdefault(one.run, []).append(pair)
  return found


def table(results: Sequence[Result], metrics: Sequence[str]) -> str:
  """Markdown: a row per run, mean and spread over its seeds.

  Args:
    results: of all runs and seeds, those of the first run first.
    metrics: the columns; differences are those of the first one.
  """
  short = [name.replace(_EVAL, '') for name in metrics]
  against = pairs(results, metrics[0])
  head = ['run', 'seeds', *short, f'{short[0]} - {results[0].run}',
          'p by seed']
  rows = []
  for run in dict.fromkeys(one.run for one in results):
    every = [one for one in results if one.run == run]
    values = [[x for one in every if (x := value(one, name)) is not None]
              for name in metrics]
    found = against.get(run, [])
    done = sum(one.state == 'done' for one in every)
    rows.append([
        run, str(done) if done == len(every) else f'{done} of {len(every)}',
        *map(spread, values),
        spread([pair.difference for pair in found], sign='+'),
        ', '.join('-' if pair.p is None else f'{pair.p:.2g}'
                  for pair in found)])
  widths = [max(map(len, column)) for column in zip(head, *rows)]
  lines = [head, ['-' * width for width in widths], *rows]
  return '\n'.join('| ' + ' | '.join(
      cell.ljust(width) for cell, width in zip(line, widths)) + ' |'
                   for line in lines)


def spread(values: Sequence[float], sign: str = '') -> str:
  """'mean +- standard deviation' over seeds (n - 1); one value alone has
  none."""
  if not values:
    return '-'
  digits = 1 if max(map(abs, values)) >= 10 else 3
  mean = f'{statistics.mean(values):{sign}.{digits}f}'
  return mean if len(values) == 1 else (
      f'{mean} +- {statistics.stdev(values):.{digits}f}')


def summary(question: str, command: str, text: str) -> str:
  """The page of Markdown beside the record."""
  return (
      f'# {question}\n\n`{command}`\n\n{text}\n\n'
      'Mean over seeds +- their standard deviation. Differences are paired by '
      'seed; p: McNemar\'s exact test on the problems of a seed, which says '
      'whether two models differ there, and nothing of other seeds.\n')


def versions() -> dict[str, str]:
  """Of what computed, and the commit; '+' where files differ from it."""
  found = {'python': platform.python_version(), 'jax': jax.__version__,
           'machine': platform.machine(), 'system': platform.system()}
  try:
    at = ['git', '-C', str(pathlib.Path(__file__).parent)]
    commit, changed = (subprocess.run(
        [*at, *args], capture_output=True, text=True, check=True).stdout.strip()
                       for args in (('rev-parse', '--short=12', 'HEAD'),
                                    ('status', '--porcelain', '-uno')))
    found['commit'] = commit + ('+' if changed else '')
  except (OSError, subprocess.CalledProcessError):
    found['commit'] = 'unknown'  # not a checkout
  return found


def record(results: Sequence[Result], metrics: Sequence[str],
           about: Mapping[str, Any]) -> dict[str, Any]:
  """JSON of all: `about`, versions, every run, differences by metric."""
  return {
      **about, 'versions': versions(), 'metrics': list(metrics),
      'results': [{**one._asdict(), 'workdir': str(one.workdir)}
                  for one in results],
      'differences': {
          metric: {run: [pair._asdict() for pair in found]
                   for run, found in pairs(results, metric).items()}
          for metric in metrics}}
