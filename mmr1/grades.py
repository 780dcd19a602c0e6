"""Whether answers are right, and how often, for evaluations."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from mmr1 import records
from mmr1 import text
from mmr1.rewards import answer
from mmr1.rewards import pool

PARSERS = ('strict', 'lenient')


class Grade(NamedTuple):
  """One answer: what was extracted, whether it is right, and why it could not
  be checked ('' where it could; otherwise it counts as wrong)."""
  extracted: str | None
  right: bool
  error: str = ''


def grade(said: str, example: records.Example, *, parser: str,
          prefilled: bool = False) -> Grade:
  """Of a completion; `prefilled` as in `text.extract_answer`."""
  extracted = text.extract_answer(
      said, strict=parser == 'strict', prefilled=prefilled)
  try:
    return Grade(extracted, bool(answer.match(extracted, example)))
  except (pool.TimedOut, pool.WorkerDied, pool.RemoteError) as error:
    return Grade(extracted, False, str(error))


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
  """95% interval of a proportion (Wilson 1927, eq. for the score interval).

  For 8 of 10: centre (.8 + .192) / 1.384 = .717, half width .226.
  """
  p, z2 = correct / n, z * z
  centre = (p + z2 / (2 * n)) / (1 + z2 / n)
  half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
  return max(0.0, centre - half), min(1.0, centre + half)  # of rounding


def summary(
    grades: Sequence[Grade],
    samples: Sequence[records.Sample],
    suffix: str,
) -> dict[str, float]:
  """Metrics of one way of decoding; `suffix` is '' (greedy) or '_sampled'."""
  n, correct = len(grades), sum(grade.right for grade in grades)
  low, high = wilson(correct, n)
  return {
      f'eval/accuracy{suffix}': correct / n,
      f'eval/accuracy{suffix}_low': low,
      f'eval/accuracy{suffix}_high': high,
      f'eval/response_length{suffix}': float(
          np.mean([s.length for s in samples])),
      f'eval/truncated_frac{suffix}': float(
          np.mean([s.truncated for s in samples])),
      f'eval/unparsed_frac{suffix}': float(
          np.mean([grade.extracted is None for grade in grades])),
      f'eval/unchecked_frac{suffix}': float(
          np.mean([bool(grade.error) for grade in grades])),
      'eval/n': n,
  }
