"""Fuses a model that sees and one that reasons, over seeds, in every way.

  python -m experiments.frank --seeds=0,1,2

Leaves experiments/results/frank/: a JSON for every seed (command, evaluations,
what was measured, coefficients), models.png and summary.md. A seed whose JSON
is there is not run again. Beside accuracy it counts, in the answers of the
evaluation, how often the digits were read right (seeing) and how often the
answer is that of the operation on the digits that were read (reasoning).
"""

import json
import pathlib
import re
import statistics
import subprocess
import sys
import time

from absl import app
from absl import flags
import jax
import matplotlib
import matplotlib.pyplot as plt

from configs import frank
from mmr1.data.tasks import digits

flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds to run.')
flags.DEFINE_string('work', 'runs/papers', 'Where the runs go.')
FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parent / 'results' / 'frank'
PARENTS = ('base', 'vision', 'reasoning')
_READ = re.compile(r'digits ([\d,]+)')


def world(seed: int, uid: int):
  """A problem of the evaluation, by the tiny config's task."""
  section = frank.get_config().tasks.digits.to_dict()
  section.pop('fn')
  return digits.digits(seed, 'eval', uid, **section)


def apart(rows: list[dict], seed: int) -> dict[str, float]:
  """How much of the greedy answers was read right, and how many follow from
  what was read."""
  rows = [row for row in rows if row['decoding'] == 'greedy']
  read = follows = 0
  for row in rows:
    example = world(seed, row['uid'])
    assert example.answer == row['gold'], row
    said = _READ.search(row['text'])
    values = [int(x) for x in said[1].split(',') if x] if said else []
    read += values == list(example.meta['scene']['digits'])
    if len(values) > 1:
      result, _ = digits.operate(example.meta['form'], values)
      follows += (row['extracted'] or '').strip() == str(result)
  return {'seeing': read / len(rows), 'reasoning': follows / len(rows)}


def run(seed: str) -> dict:
  """One run from scratch, and what it left."""
  workdir = pathlib.Path(FLAGS.work) / f'frank_{seed}'
  line = [sys.executable, '-m', 'mmr1.main', '--config=configs/frank.py:compare',
          f'--workdir={workdir}', '--fresh', f'--config.seed={seed}']
  started = time.time()
  subprocess.run(line, check=True)
  models = {}
  for file in sorted((workdir / 'eval').glob('*.jsonl')):
    name = file.stem.rpartition('_')[0]
    rows = [json.loads(one) for one in file.read_text().splitlines()]
    card = json.loads(file.with_suffix('.json').read_text())
    models[name] = {**card['metrics'], **apart(rows, int(seed))}
  return {
      'command': ' '.join(line[1:]), 'seed': int(seed),
      'seconds': round(time.time() - started), 'jax': jax.__version__,
      'models': models,
      'merged': {file.stem: json.loads(file.read_text())
                 for file in sorted((workdir / 'merged').glob('*.json'))}}


def order(results: list[dict]) -> list[str]:
  """The base, the parents, and the ways to fuse them."""
  stages = frank.get_config('compare').stages
  return [*PARENTS, *(name for name in stages
                      if name in results[0]['merged'])]


def table(results: list[dict]) -> str:
  """Markdown: a row for every model, a number for every seed."""
  lines = ['| model | greedy | sampled | read right | follows | '
           'coefficient of `vision` |', '|---' * 6 + '|']
  for name in order(results):
    every = [result['models'][name] for result in results]
    cells = [', '.join(f'{one[key]:.3f}' for one in every) for key in (
        'eval/accuracy', 'eval/accuracy_sampled', 'seeing', 'reasoning')]
    merged = [result['merged'].get(name) for result in results]
    cells.append(', '.join(
        f'{statistics.mean(one["coefficients"]["vision"]):.2f}'
        for one in merged) if merged[0] else '-')
    lines.append('| ' + ' | '.join([f'`{name}`', *cells]) + ' |')
  return '\n'.join(lines)


def draw(results: list[dict], path: pathlib.Path) -> None:
  """Every model's numbers, a dot a seed; and what the layers look at."""
  matplotlib.use('Agg')
  names = order(results)
  figure, axes = plt.subplots(1, 5, figsize=(17, 4))
  for axis, key, title in zip(axes, (
      'eval/accuracy', 'eval/accuracy_sampled', 'seeing', 'reasoning'), (
      'accuracy, greedy', 'accuracy, sampled', 'digits read right',
      'answer follows from what was read')):
    for i, name in enumerate(names):
      values = [result['models'][name][key] for result in results]
      colour = 'C7' if name in PARENTS else 'C3' if name == 'frank' else 'C0'
      axis.barh(i, statistics.mean(values), color=colour, alpha=0.5)
      axis.plot(values, [i] * len(values), 'o', color=colour, markersize=4)
    axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_title(title)
  for result in results:
    merged = result['merged']['frank']
    layers = range(1, len(merged['share']) + 1)
    axes[-1].plot(layers, merged['share'], 'o-', color='C2')
    axes[-1].plot(layers, merged['coefficients']['vision'], 's--', color='C3')
  axes[-1].set_xticks([*layers])
  axes[-1].set_xlabel('layer')
  axes[-1].set_title('green: attention to the image\nred: what is taken of '
                     '`vision`', fontsize=10)
  figure.tight_layout()
  figure.savefig(path, dpi=110)


def main(argv):
  del argv
  ROOT.mkdir(parents=True, exist_ok=True)
  results = []
  for seed in FLAGS.seeds:
    file = ROOT / f'{seed}.json'
    if not file.exists():
      file.write_text(json.dumps(run(seed), indent=1) + '\n')
    results.append(json.loads(file.read_text()))
  draw(results, ROOT / 'models.png')
  (ROOT / 'summary.md').write_text(
      f'`python -m experiments.frank --seeds={",".join(FLAGS.seeds)}`\n\n'
      f'{table(results)}\n')


if __name__ == '__main__':
  app.run(main)
