"""Draws and tabulates what the arms of a paper came to, for papers.py."""

import pathlib
import statistics
from typing import Any

import matplotlib
import matplotlib.pyplot as plt


def table(spec: Any, stage: str, results: list[dict]) -> str:
  """Markdown: what every arm and seed ended with.

  Args:
    spec: a `papers.Paper`.
    stage: whose evaluations `ends` are.
    results: of all arms and seeds.
  """
  head = ['arm', 'seed', *spec.ends, *(
      f'{key}: first 5, last 5 steps' for key in spec.curves)]
  lines = [' | '.join(['', *head, '']).strip(),
           '|---' * len(head) + '|']
  for result in results:
    cells = [result['arm'], str(result['seed']), *(
        f'{_evaluated(result, stage, key):.3f}'
        for key in spec.ends)]
    for key in spec.curves:
      values = [x for x in result['curves'][key] if x is not None]
      cells.append(f'{statistics.mean(values[:5]):.3f}, '
                   f'{statistics.mean(values[-5:]):.3f}' if values else '-')
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def _evaluated(result: dict, stage: str, key: str) -> float:
  """A metric of an evaluation, `key` as in `Paper.ends`; nan if that stage is
  not in this arm."""
  other, _, metric = key.rpartition(':')
  return result['evaluations'].get(other or stage, {}).get(
      metric, float('nan'))


def smooth(values: list[float | None], width: int = 5) -> list[float]:
  """The mean over a window around each step; a step without a value is left
  out, and a window without any is nan."""
  half = width // 2
  windows = [[x for x in values[max(i - half, 0):i + half + 1] if x is not None]
             for i in range(len(values))]
  return [statistics.mean(one) if one else float('nan') for one in windows]


def draw(spec: Any, results: list[dict], path: pathlib.Path) -> None:
  """A panel per metric: every seed thin, the mean of an arm thick; a seed is
  drawn as its mean over five steps, because problems differ between steps."""
  matplotlib.use('Agg')
  figure, axes = plt.subplots(
      1, len(spec.curves), figsize=(3.4 * len(spec.curves), 3.2))
  for axis, key in zip(axes, spec.curves):
    for i, arm in enumerate(spec.arms):
      every = [r['curves'][key] for r in results if r['arm'] == arm]
      every = [smooth(one) for one in every]
      for one in every:
        axis.plot(one, color=f'C{i}', linewidth=0.6, alpha=0.5)
      axis.plot([statistics.mean(step) for step in zip(*every)],
                color=f'C{i}', linewidth=2, label=arm)
    axis.set_title(key)
    axis.set_xlabel('rl step')
  axes[0].legend()
  figure.tight_layout()
  figure.savefig(path, dpi=110)
