"""Whether answers are right, and how often, for evaluations."""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import numpy as np

from mmr1.data import benchmarks
from mmr1 import records
from mmr1 import resolve
from mmr1 import significance
from mmr1 import text
from mmr1.rewards import answer
from mmr1.rewards import official
from mmr1.rewards import pool

PARSERS = ('strict', 'lenient')


class Grade(NamedTuple):
  """One answer: what was extracted, whether it is right, and why it could not
  be checked ('' where it could; otherwise it counts as wrong)."""
  extracted: str | None
  right: bool
  error: str = ''


class Scored(NamedTuple):
  """A Grade of a benchmark: also the score and what gave it, as in
  `official.Verdict`; right from a score of .5 on."""
  extracted: str | None
  right: bool
  error: str
  score: float
  by: str


def check(section: Any) -> None:
  """Refuses a parser that does not exist or fit, and half a benchmark."""
  allowed = PARSERS if section.benchmark is None else ('strict', 'official')
  if section.parser not in allowed:
    raise ValueError(f'{section.where}.parser: got {section.parser!r} with '
                     f'benchmark={section.benchmark!r}; allowed are {allowed}.')
  if (section.benchmark is None) != (section.benchmark_path is None):
    raise ValueError(
        f'{section.where}: got benchmark={section.benchmark!r} and '
        f'benchmark_path={section.benchmark_path!r}; set both or none.')
  if section.benchmark is not None and (
      section.benchmark not in benchmarks.NAMES):
    raise ValueError(
        f'{section.where}.benchmark: got {section.benchmark!r}. '
        f'{resolve.nearest(section.benchmark, benchmarks.NAMES)}')
  if section.judge is not None:
    if section.parser != 'official':
      raise ValueError(f'{section.where}.judge: got {section.judge!r}; only '
                       "parser='official' asks one.")
    resolve.function(section.judge, 'mmr1.rewards')


def of_benchmark(said: str, example: records.Example, *, parser: str,
                 judge: str | None, prefilled: bool = False) -> Scored:
  """Of a completion, by the rule of the example's benchmark; `judge` names a
  function (completion, example) -> answer | None."""
  try:
    if parser == 'strict':
      found = official.strict(said, example, prefilled=prefilled)
    else:
      found = official.official(
          said, example, judge=judge and resolve.function(
              judge, 'mmr1.rewards'))
  except (pool.TimedOut, pool.WorkerDied, pool.RemoteError) as error:
    return Scored(None, False, str(error), 0.0, 'rule')
  return Scored(found.extracted, found.score >= 0.5, '', found.score, found.by)


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
    grades: Sequence[Grade | Scored],
    samples: Sequence[records.Sample],
    suffix: str,
) -> dict[str, float]:
  """Metrics of one way of decoding; `suffix` is '' (greedy) or '_sampled'."""
  n, correct = len(grades), sum(grade.right for grade in grades)
  low, high = wilson(correct, n)
  accuracy, more = correct / n, {}
  if n and isinstance(grades[0], Scored):
    scores = [grade.score for grade in grades]
    accuracy = float(np.mean(scores))
    low, high = significance.bootstrap(scores, seed=0)
    more = {f'eval/{by}_frac{suffix}': float(
        np.mean([grade.by == by for grade in grades]))
            for by in ('chance', 'judge', 'unjudged')}
  return {
      **more,
      f'eval/accuracy{suffix}': accuracy,
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
