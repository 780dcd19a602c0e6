"""Runs engines round by round and tells what they took.

Every engine is a process of its own per workload. They take turns, A B C, A B
C, ..., and only one computes at a time, so that whatever else the machine does
hits all of them alike; a ratio is that of two measurements of one round.
"""

import collections
from collections.abc import Iterable
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import NamedTuple

from absl import flags
from rich import console as console_lib
from rich import table as table_lib

from experiments.bench import environments
from experiments.bench import machine
from experiments.bench import workloads

flags.DEFINE_list('workloads', None, 'Which ones; None: all of the command.')
flags.DEFINE_list('engines', None, 'Which ones; None: all of the command.')
flags.DEFINE_integer('rounds', 5, 'Measurements of each engine.')
flags.DEFINE_integer('warm', 2, 'Calls before the first round.')
flags.DEFINE_integer(
    'cpu_devices', 2, 'Devices that the CPU is for mmr1, see configs/common.py')
flags.DEFINE_string('out', None, 'File of the record; None: under results/.')
FLAGS = flags.FLAGS

RESULTS = pathlib.Path(__file__).parents[1] / 'results' / 'bench'
OWN = ('mmr1', 'repeated')
ENGINES = (*OWN, *environments.PINS)
_PACKAGES = {
    'mmr1': ('jax', 'jaxlib', 'flax', 'optax', 'numpy'),
    'trl': ('trl', 'torch', 'transformers', 'accelerate'),
    'tunix': ('google-tunix', 'jax', 'jaxlib', 'flax', 'qwix')}


def command(engine: str, folder: pathlib.Path) -> list[str]:
  """What starts an engine on the folder of a workload."""
  if engine in OWN:
    return [sys.executable, '-m', 'experiments.bench.engine_mmr1',
            f'--folder={folder}', f'--repeated={engine == "repeated"}',
            f'--cpu_devices={FLAGS.cpu_devices}']
  script = pathlib.Path(__file__).parent / 'peers' / f'{engine}_engine.py'
  return [str(environments.python(environments.folder(engine))), str(script),
          str(folder)]


class Engine:
  """The other end of `peers.lines.Lines`."""

  def __init__(self, arguments: list[str], log: pathlib.Path):
    self._log = log
    with open(log, 'w') as errors:
      self._process = subprocess.Popen(
          arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
          stderr=errors, text=True,
          env={**os.environ, 'JAX_PLATFORMS': 'cpu',
               'TOKENIZERS_PARALLELISM': 'false'})

  def ask(self, do: str, **request) -> dict:
    """The reply to a request.

    Raises:
      RuntimeError: the process is gone; with the end of what it printed.
    """
    try:
      print(json.dumps({'do': do, **request}), file=self._process.stdin,
            flush=True)
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ''
    if not line:
      self._process.wait()
      raise RuntimeError(
          f'{self._process.args}: ended with code '
          f'{self._process.returncode}:\n{self._log.read_text()[-3000:]}')
    return json.loads(line)

  def close(self) -> dict:
    """Ends the process; its last reply."""
    reply = self.ask('close')
    self._process.wait()
    return reply

  def kill(self) -> None:
    if self._process.poll() is None:
      self._process.kill()
      self._process.wait()


class Lane(NamedTuple):
  """One column of a comparison.

  Fields:
    engine: one of ENGINES.
    workload: what it runs.
    rows: prompts and completions of each; None: those of a step.
  """
  engine: str
  workload: workloads.Workload
  rows: tuple[int, int] | None = None


def measure(lanes: dict[str, Lane], do: str) -> dict[str, dict]:
  """{label: {first: reply, rounds: [reply], peak_bytes}}, in turns.

  Args:
    lanes: by label; those of one workload must do the same work.
    do: 'step' or 'generate'.
  """
  found, running, folders = {}, {}, {}
  with tempfile.TemporaryDirectory() as root:
    try:
      for label, lane in lanes.items():
        if lane.workload not in folders:
          folder = pathlib.Path(root) / str(len(folders))
          workloads.build(lane.workload, folder)
          folders[lane.workload] = folder
        print(f'{lane.workload.about}: {label} starts', file=sys.stderr,
              flush=True)
        running[label] = Engine(
            command(lane.engine, folders[lane.workload]),
            pathlib.Path(root) / f'{label}.log')
        replies = [running[label].ask(do, rows=lane.rows)
                   for _ in range(FLAGS.warm)]
        found[label] = dict(engine=lane.engine, first=replies[0], rounds=[])
      for _ in range(FLAGS.rounds):
        for label, lane in lanes.items():
          found[label]['rounds'].append(
              running[label].ask(do, rows=lane.rows))
      for label in lanes:
        found[label].update(running[label].close())
    finally:
      for engine in running.values():
        engine.kill()
  _check_equal_work(lanes, found)
  return found


def _check_equal_work(lanes, found) -> None:
  """Same prompts everywhere; same number of tokens unless rows end early."""
  done = collections.defaultdict(set)
  for label, lane in lanes.items():
    for reply in found[label]['rounds']:
      done[lane.workload].add((
          reply['prompt_tokens'],
          None if lane.workload.mean else reply['tokens']))
  for workload, kinds in done.items():
    if len(kinds) > 1:
      raise RuntimeError(f'{workload.about}: the engines did different work; '
                         f'(prompt tokens, sampled tokens): {sorted(kinds)}.')


def seconds(entry: dict, part: str | None = None) -> list[float]:
  """Of every round; of a part of the step, or of all of it."""
  return [r['parts'][part] if part else r['seconds'] for r in entry['rounds']]


def rates(entry: dict, key: str = 'tokens',
          part: str | None = None) -> list[float]:
  """Tokens per second of every round: 'tokens' that were sampled (useful), or
  'raw', rows times the longest."""
  return [r[key] / s for r, s in zip(entry['rounds'], seconds(entry, part))]


def ratios(found: dict[str, dict], part: str | None = None) -> dict[str, dict]:
  """{other label: {min, median, rounds}}: mmr1's useful tokens per second over
  the other's, round by round; where both do the same work, the other's seconds
  over mmr1's."""
  if 'mmr1' not in found:
    return {}
  ours, result = rates(found['mmr1'], part=part), {}
  for label, entry in found.items():
    if label != 'mmr1':
      each = [a / b for a, b in zip(ours, rates(entry, part=part))]
      result[label] = dict(
          min=min(each), median=statistics.median(each), rounds=each)
  return result


COLUMNS = ('workload', 'engine', 'least s', 'median s',
           'sample / ref / update s', 'mmr1 is faster by, min / median',
           'tokens/s useful / raw', 'peak GiB', 'compilations')
_PARTS = ('sample', 'reference', 'update')


def rows(name: str, found: dict[str, dict], absent: Iterable[str] = (),
         part: str | None = None) -> list[tuple]:
  """A row per lane for `show` with COLUMNS; `absent` are not measured."""
  compared, result = ratios(found, part), []
  for label, entry in found.items():
    ratio, last = compared.get(label), entry['rounds'][-1]
    every, each = last.get('parts', ()), seconds(entry, part)
    result.append((
        name, label, f'{min(each):.2f}', f'{statistics.median(each):.2f}',
        ' / '.join(f'{statistics.median(seconds(entry, p)):.2f}'
                   for p in _PARTS if p in every),
        f'{ratio["min"]:.2f} / {ratio["median"]:.2f}' if ratio else '',
        ' / '.join(f'{statistics.median(rates(entry, key, part)):.0f}'
                   for key in ('tokens', 'raw')),
        f'{entry["peak_bytes"] / 2**30:.2f}',
        f'{last["compile_count"]}, {last["compile_seconds"]:.0f} s'
        if 'compile_count' in last else '-'))
  return result + [
      (name, label, 'not measured', *[''] * 6) for label in absent]


def able(engines: Iterable[str], w: workloads.Workload) -> list[str]:
  """Engines that can run a workload: Tunix has no RL on pictures."""
  return [engine for engine in engines if not (w.image and engine == 'tunix')]


def present(engines: Iterable[str]) -> tuple[list[str], dict[str, str]]:
  """Engines that can run, and {engine: why it cannot, and what installs it}.

  Raises:
    ValueError: an engine that does not exist.
  """
  for engine in engines:
    if engine not in ENGINES:
      raise ValueError(f'engine {engine!r}: allowed are {ENGINES}.')
  absent = {}
  for engine in engines:
    reason = None if engine in OWN else environments.message(engine)
    if reason:
      absent[engine] = reason
      print(reason, file=sys.stderr, flush=True)
  return [e for e in engines if e not in absent], absent


def versions(engines: list[str]) -> dict[str, dict]:
  """{engine: {package: version}} of those that ran."""
  return {
      name: environments.versions(
          sys.executable if name == 'mmr1' else environments.python(
              environments.folder(name)), *packages)
      for name, packages in _PACKAGES.items()
      if name in engines or (name == 'mmr1' and set(OWN) & set(engines))}


def record(name: str, results: dict, engines: list[str],
           absent: dict[str, str], **more) -> dict:
  """Writes and returns the record of a command."""
  entry = dict(
      command=f'python -m experiments.bench.{name} '
      + ' '.join(sys.argv[1:]), machine=machine.describe(),
      cpu_devices=FLAGS.cpu_devices, versions=versions(engines),
      not_measured=absent, workloads=results, **more)
  path = pathlib.Path(FLAGS.out) if FLAGS.out else RESULTS / f'{name}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(entry, indent=1) + '\n')
  print(f'written to {path}')
  return entry


def show(title: str, table_rows: list[tuple],
         columns: tuple[str, ...] = COLUMNS) -> None:
  """Prints a table; its first two columns are names."""
  table = table_lib.Table(title=title)
  for i, column in enumerate(columns):
    table.add_column(column, justify='left' if i < 2 else 'right')
  for row in table_rows:
    table.add_row(*map(str, row))
  console_lib.Console(width=130).print(table)
