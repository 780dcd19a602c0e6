"""Figures of metrics over the steps of several runs."""

from collections.abc import Iterable, Sequence
import pathlib
import statistics

import matplotlib
import matplotlib.pyplot as plt


def smooth(values: list[float | None], width: int = 5) -> list[float]:
  """The mean over a window around each step; a step without a value is left
  out, and a window without any is nan."""
  half = width // 2
  windows = [[x for x in values[max(i - half, 0):i + half + 1] if x is not None]
             for i in range(len(values))]
  return [statistics.mean(one) if one else float('nan') for one in windows]


def draw(arms: Iterable[str], curves: Sequence[str], results: list[dict],
         path: pathlib.Path) -> None:
  """A panel per metric: every seed thin, the mean of an arm thick; a seed is
  drawn as its mean over five steps, because problems differ between steps.

  Args:
    arms: names of what is compared.
    curves: metrics.
    results: of each run its 'arm', and 'curves' {metric: [a value per step]}.
    path: of the picture.
  """
  matplotlib.use('Agg')
  figure, axes = plt.subplots(
      1, len(curves), figsize=(3.4 * len(curves), 3.2))
  for axis, key in zip(axes, curves):
    for i, arm in enumerate(arms):
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
