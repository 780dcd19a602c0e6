"""Whether answers are right, and how often, for evaluations."""

from collections.abc import Sequence
import re
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
_MOST = 10  # values of a label that are metrics


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


def ks(section: Any) -> tuple[int, ...]:
  """The k of pass@k and so on; () with one sample of a problem."""
  if section.samples_per_problem == 1:
    return ()
  return section.at_k or (section.samples_per_problem,)


def check(section: Any) -> None:
  """Refuses a parser that does not exist or fit, half a benchmark, one that is
  not there, and a k of more samples than there are."""
  count = section.samples_per_problem
  if count < 1:
    raise ValueError(f'{section.where}.samples_per_problem: got {count}; '
                     'allowed: at least 1.')
  wrong = [k for k in section.at_k if not 1 <= k <= count]
  if wrong or (section.at_k and count == 1):
    raise ValueError(
        f'{section.where}.at_k: got {section.at_k} with samples_per_problem='
        f'{count}; allowed are 1 to samples_per_problem, which must be above '
        '1.')
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
  if section.benchmark is not None:
    benchmarks.files(section.benchmark_path)
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


def scores(marks: Sequence[Grade | Scored], count: int) -> list[list[float]]:
  """Of each problem the scores of its `count` samples; right is 1."""
  flat = [mark.score if isinstance(mark, Scored) else float(mark.right)
          for mark in marks]
  return [flat[i:i + count] for i in range(0, len(flat), count)]


def summary(
    grades: Sequence[Grade | Scored],
    samples: Sequence[records.Sample],
    suffix: str,
    count: int = 1,
) -> dict[str, float]:
  """Metrics of one way of decoding.

  Args:
    grades, samples: `count` of each problem, problem after problem.
    suffix: '' (greedy) or '_sampled'.
    count: samples of a problem. Of several the interval is that of their mean
      per problem, since they are not independent.
  """
  means, more = [float(np.mean(x)) for x in scores(grades, count)], {}
  scored = bool(grades) and isinstance(grades[0], Scored)
  low, high = significance.interval(means) if scored or count > 1 else (
      significance.wilson(sum(grade.right for grade in grades), len(grades)))
  if scored:
    more = {f'eval/{by}_frac{suffix}': float(
        np.mean([grade.by == by for grade in grades]))
            for by in ('chance', 'judge', 'unjudged')}
  return {
      **more,
      f'eval/accuracy{suffix}': float(np.mean(means)),
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
      'eval/n': len(means),
  }


def several(
    grades: Sequence[Grade | Scored], samples: Sequence[records.Sample],
    count: int, ks: Sequence[int]) -> dict[str, float]:
  """pass@k, maj@k and mean@k with their intervals, of `count` samples of each
  problem, problem after problem; draws by chance have no vote."""
  answers = [None if mark.extracted is None or (
      isinstance(mark, Scored) and mark.by == 'chance') else
             answer.canonical(mark.extracted, s.example)
             for mark, s in zip(grades, samples)]
  votes = [answers[i:i + count] for i in range(0, len(answers), count)]
  metrics = {}
  for k in ks:
    found = significance.at_k(scores(grades, count), votes, k)
    for name, values in (('pass', found.passed), ('maj', found.majority),
                         ('mean', found.mean)):
      key = f'eval/{name}_at_{k}'
      low, high = significance.interval(values)
      metrics |= {key: float(np.mean(values)), f'{key}_low': low,
                  f'{key}_high': high}
  return metrics


def by_label(
    grades: Sequence[Grade | Scored], samples: Sequence[records.Sample],
) -> dict[str, dict[str, dict[str, float]]]:
  """{label: {its value: n, accuracy, low, high}} of the examples' labels, in
  the order of the reader of their rows."""
  found: dict[str, dict[str, list[float]]] = {}
  for (score,), s in zip(scores(grades, 1), samples):
    for label, value in s.example.meta.get('labels', {}).items():
      found.setdefault(label, {}).setdefault(value, []).append(score)
  def told(values):
    low, high = significance.interval(values)
    return {'n': len(values), 'accuracy': float(np.mean(values)), 'low': low,
            'high': high}
  return {label: {value: told(values[value]) for value in sorted(values)}
          for label, values in found.items()}


def first_label(groups: dict[str, dict[str, dict[str, float]]],
                ) -> dict[str, float]:
  """Metrics of the first label's values, if there are few of them: 'Text
  Dominant' is eval/text_dominant/accuracy."""
  metrics, first = {}, next(iter(groups.values()), {})
  for value, one in (first if len(first) <= _MOST else {}).items():
    name = re.sub(r'[^a-z0-9]+', '_', value.lower()).strip('_')
    metrics |= {f'eval/{name}/accuracy': one['accuracy'],
                f'eval/{name}/n': one['n']}
  return metrics
