"""How far is each model family from transformers?

  python -m experiments.parity

Runs the tests that compare a family with `transformers` (torch, float32, eager
attention) on small random checkpoints with the real structure of the family,
and makes tables of what they measured: results/parity.json, and the rows
between the markers of README.md (some columns) and docs/models.md (all). Needs
requirements-test.txt.
"""

import collections
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

from absl import flags

_FLAGS = flags.FlagValues()  # its own: tests import this beside other commands
flags.DEFINE_string('out', 'experiments/results/parity.json',
                    'File for the figures.', flag_values=_FLAGS)
flags.DEFINE_string('root', '.', 'Folder of the two pages.',
                    flag_values=_FLAGS)

TESTS = ('tests/models', 'tests/data', 'tests/stages/families_test.py')
BEGIN, END = '<!-- PARITY TABLE -->', '<!-- /PARITY TABLE -->'
FEWEST = ('greedy',)  # figures of which the smallest counts, not the largest
COLUMNS = {
    'logits/text': 'text', 'logits/image': 'one image',
    'logits/images': 'three images', 'logits/video': 'video', 'bf16': 'bf16',
    'positions': 'positions', 'pixels': 'pixels', 'greedy': 'greedy',
    'gradient': 'gradient', 'export': 'export'}
PAGES = {  # {page: its columns}
    'README.md': ('logits/text', 'logits/image', 'logits/video', 'gradient',
                  'greedy'),
    'docs/models.md': tuple(COLUMNS)}


def measure() -> dict[str, dict[str, float]]:
  """{family: {what: the worst of its figures}}.

  Raises:
    SystemExit: a test failed.
  """
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'figures.jsonl'
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-n', '2', '--dist', 'loadfile',
         '-m', 'parity', *TESTS],
        env={**os.environ, 'MMR1_PARITY': str(file)})
    if done.returncode:
      raise SystemExit(done.returncode)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
  found: dict[str, dict[str, float]] = collections.defaultdict(dict)
  for family, what, value in lines:
    worst = min if what in FEWEST else max
    found[family][what] = worst(value, found[family].get(what, value))
  return {family: found[family] for family in sorted(found)}


def cell(what: str, value: float | None) -> str:
  """A figure as the table shows it; '-': the family has nothing to measure."""
  if value is None:
    return '-'
  if what == 'positions':
    return 'equal' if value == 0 else f'differ by {value:g}'
  if what == 'greedy':
    return f'{value:.0f} equal'
  return '0' if value == 0 else f'{value:.1e}'


def table(families: dict[str, dict[str, float]],
          columns: tuple[str, ...] = tuple(COLUMNS)) -> str:
  """Markdown, a row per family."""
  lines = ['| `model_type` | ' + ' | '.join(
      COLUMNS[what] for what in columns) + ' |',
           '|---' * (1 + len(columns)) + '|']
  lines += [f'| `{family}` | ' + ' | '.join(
      cell(what, figures.get(what)) for what in columns) + ' |'
            for family, figures in families.items()]
  return '\n'.join(lines)


def write(families: dict[str, dict[str, float]], root: pathlib.Path) -> None:
  """Puts the tables between the markers of the pages."""
  for name, columns in PAGES.items():
    page = root / name
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(
        f'{before}{BEGIN}\n{table(families, columns)}\n{END}{after}')


def main(argv: list[str]) -> None:
  _FLAGS(argv)
  families = measure()
  result = dict(
      command='python -m experiments.parity', families=families,
      versions={name: importlib.metadata.version(name)
                for name in ('jax', 'flax', 'torch', 'transformers')},
      python=platform.python_version(), machine=platform.machine())
  pathlib.Path(_FLAGS.out).write_text(json.dumps(result, indent=2) + '\n')
  write(families, pathlib.Path(_FLAGS.root))
  print(table(families))


if __name__ == '__main__':
  main(sys.argv)
