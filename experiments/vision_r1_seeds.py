"""Runs Vision-R1 with the embedded model on several seeds, and draws curves.

  python -m experiments.vision_r1_seeds --seeds=0,1,2

Leaves experiments/results/vision_r1/: one JSON per seed (evaluation of every
stage, training curves, seconds, versions), curves.png, and a table in
summary.md. A seed whose JSON is there is not run again: delete it to do so.
Further arguments after `--` go to mmr1.main.
"""

import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

from absl import app
from absl import flags
import jax
import matplotlib
import matplotlib.pyplot as plt

from experiments.bench import machine
from mmr1 import log

flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds to run.')
flags.DEFINE_string('arg', '', "Config argument: '', 'zero', 'long', 'ci'.")
flags.DEFINE_string('work', 'runs/vision_r1_seeds', 'Where the runs go.')
flags.DEFINE_string('out', 'experiments/results/vision_r1', 'Results.')
FLAGS = flags.FLAGS

STAGES = ('base', 'cold_start', 'think_short', 'think_long')
CURVES = ('reward/mean', 'response_length/mean', 'response_length/clip_frac',
          'entropy', 'kl', 'group/zero_std_frac', 'grad_norm',
          'sampler/logp_diff_max', 'ratio/first', 'compile/count',
          'time/step_s')


def run(seed: str, extra: list[str]) -> dict:
  """One run from scratch; the rows of its metrics file."""
  config = 'configs/vision_r1.py' + (f':{FLAGS.arg}' if FLAGS.arg else '')
  name = f'{FLAGS.arg or "default"}_{seed}'
  workdir = pathlib.Path(FLAGS.work) / name
  command = [sys.executable, '-m', 'mmr1.main', f'--config={config}',
             f'--workdir={workdir}', '--fresh', f'--config.seed={seed}',
             *extra]
  started = time.time()
  subprocess.run(command, check=True)
  rows = log.read_rows(workdir / 'metrics.jsonl')
  evals = {row['stage']: {k: v for k, v in row.items() if k[:5] == 'eval/'}
           for row in rows if 'eval/accuracy' in row}
  curves = {
      stage: {key: [row.get(key) for row in rows
                    if row['stage'] == stage and 'grad_norm' in row]
              for key in CURVES}
      for stage in STAGES if stage in evals}
  return {
      'command': ' '.join(command[1:]), 'seed': int(seed),
      'seconds': round(time.time() - started), 'jax': jax.__version__,
      'python': platform.python_version(), 'machine': platform.machine(),
      'cores': machine.describe()['cores'],
      'evaluations': evals, 'curves': curves}


def table(results: list[dict]) -> str:
  """Markdown: greedy / sampled accuracy and length per stage and seed."""
  lines = ['| seed | seconds | ' + ' | '.join(STAGES) + ' |',
           '|---' * (2 + len(STAGES)) + '|']
  for result in results:
    cells = []
    for stage in STAGES:
      e = result['evaluations'].get(stage)
      cells.append('-' if e is None else (
          f'{e["eval/accuracy"]:.3f} / {e["eval/accuracy_sampled"]:.3f} '
          f'({e["eval/response_length_sampled"]:.0f})'))
    lines.append(f'| {result["seed"]} | {result["seconds"]} | '
                 + ' | '.join(cells) + ' |')
  gains = [
      [r['evaluations']['think_long'][key]
       - r['evaluations']['cold_start'][key] for r in results
       if {'think_long', 'cold_start'} <= set(r['evaluations'])]
      for key in ('eval/accuracy', 'eval/accuracy_sampled')]
  if gains[0]:
    lines.append('')
    lines.append(
        'think_long over cold_start: greedy '
        f'{100 * statistics.mean(gains[0]):+.1f} points (least '
        f'{100 * min(gains[0]):+.1f}), sampled '
        f'{100 * statistics.mean(gains[1]):+.1f} (least '
        f'{100 * min(gains[1]):+.1f}).')
  return '\n'.join(lines)


def ran_on(results: list[dict]) -> str:
  """jax and cores of the runs; records of before lack the cores."""
  return '; '.join(sorted({
      f'jax {result["jax"]}' + (
          f', {result["cores"]} CPU cores' if 'cores' in result else '')
      for result in results}))


def draw(results: list[dict], path: pathlib.Path) -> None:
  """Reward, length, share of cut completions and entropy over rl steps."""
  matplotlib.use('Agg')
  shown = CURVES[:4]
  figure, axes = plt.subplots(1, len(shown), figsize=(14, 3.2))
  for axis, key in zip(axes, shown):
    for result in results:
      values, switch = [], None
      for stage in ('think_short', 'think_long'):
        values += result['curves'].get(stage, {}).get(key, [])
        switch = len(values) if switch is None else switch
      axis.plot(values, label=f'seed {result["seed"]}', linewidth=1)
    axis.axvline(switch - 0.5, color='grey', linestyle=':')
    axis.set_title(key)
    axis.set_xlabel('rl step')
  axes[0].legend()
  figure.tight_layout()
  figure.savefig(path, dpi=110)


def main(argv):
  out = pathlib.Path(FLAGS.out)
  out.mkdir(parents=True, exist_ok=True)
  results = []
  suffix = f'_{FLAGS.arg}' if FLAGS.arg else ''
  for seed in FLAGS.seeds:
    file = out / f'seed{seed}{suffix}.json'
    if not file.exists():
      file.write_text(json.dumps(run(seed, argv[1:])) + '\n')
    results.append(json.loads(file.read_text()))
  text = (f'# Vision-R1{suffix}, embedded model\n\n'
          'Held-out accuracy, greedy / sampled at T = 1, and mean response '
          'length in tokens.\n\n'
          f'Command: `python -m experiments.vision_r1_seeds --seeds='
          f'{",".join(FLAGS.seeds)}'
          f'{f" --arg={FLAGS.arg}" if FLAGS.arg else ""}`, '
          f'{ran_on(results)}.\n\n{table(results)}\n')
  (out / f'summary{suffix}.md').write_text(text)
  if FLAGS.arg in ('',):
    draw(results, out / 'curves.png')
  print(text)


if __name__ == '__main__':
  app.run(main)
