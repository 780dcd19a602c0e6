"""ARES (arXiv 2510.08457): AdaCS, a cold start on traces of fitting length.

Of several responses to a problem those are kept whose length is nearest to one
that grows with how often the problem is failed, so that the model thinks for
longer about what is hard. From the paper; no code of it is released.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any
import zlib

import numpy as np

from mmr1 import records
from mmr1 import text
from mmr1.data import encode
from mmr1.data import traces
from mmr1.rewards import answer


def length_target(pass_rate: float, l0: float, l1: float) -> float:
  """L(p) = (1 - p) L(0) + p L(1).

  With L(0) = 3000 and L(1) = 800: 2450 at p = .25, 1350 at .75.

  Args:
    pass_rate: p, share of right responses.
    l0, l1: see `anchors`.

  Raises:
    ValueError: p out of 0 to 1.
  """
  if not 0 <= pass_rate <= 1:
    raise ValueError(
        f'AdaCS: got pass_rate={pass_rate}; it must be 0 to 1.')
  return (1 - pass_rate) * l0 + pass_rate * l1


def anchors(
    lengths: Sequence[Sequence[float]], correct: Sequence[Sequence[bool]],
) -> tuple[float, float]:
  """(L(0), L(1)): median lengths where nothing is right, and where all is.

  Over the responses of all problems with that pass rate.

  Args:
    lengths: tokens of each response of each problem.
    correct: whether it is right; as many.

  Raises:
    ValueError: no problem is always failed, or none never; or numbers of
      responses differ.
  """
  found = ([], [])
  for length, right in zip(lengths, correct, strict=True):
    _check(length, right)
    if len(set(map(bool, right))) == 1:
      found[bool(right[0])].extend(length)
  if not all(found):
    raise ValueError(
        f'AdaCS: got {len(found[0])} responses to problems that are always '
        f'failed and {len(found[1])} to those that never are; both are needed '
        'for a median. Take more problems, or give L(0) and L(1).')
  return float(np.median(found[0])), float(np.median(found[1]))


def nearest(
    lengths: Sequence[float], correct: Sequence[bool], target: float,
    keep: int = 1,
) -> list[int]:
  """Indices of the `keep` right responses nearest to a length, nearest first.

  Of two as near the shorter, then the first [ours]; fewer where fewer are
  right.

  Args:
    lengths: tokens of each response of one problem.
    correct: whether it is right.
    target: L(p).
    keep: 1 at least; the paper's is not known.

  Raises:
    ValueError: keep below 1, or lists of two lengths.
  """
  _check(lengths, correct)
  if keep < 1:
    raise ValueError(f'AdaCS: got keep={keep}; it must be at least 1.')
  right = [i for i, good in enumerate(correct) if good]
  return sorted(right, key=lambda i: (
      abs(lengths[i] - target), lengths[i], i))[:keep]


def fitting(
    lengths: Sequence[Sequence[float]], correct: Sequence[Sequence[bool]],
    keep: int = 1, ends: tuple[float, float] | None = None,
) -> list[list[int]]:
  """Of each problem the responses that AdaCS trains on, `nearest` to L(p).

  Args:
    lengths, correct, keep: see `anchors`, `nearest`.
    ends: (L(0), L(1)); None: those of these responses.
  """
  l0, l1 = anchors(lengths, correct) if ends is None else ends
  return [nearest(length, right, length_target(
      sum(map(bool, right)) / max(len(right), 1), l0, l1), keep)
          for length, right in zip(lengths, correct, strict=True)]


def adaptive(
    examples: Sequence[records.Example], ctx: Any, init: str, *,
    responses: int = 8, slip: float = 0.5, doubts: int = 1,
    fitting_lengths: bool = True, ends: Sequence[float] = (),
) -> tuple[list[records.Example], dict[str, float]]:
  """Engine of a `collect` stage: AdaCS on responses of a solver that slips.

  Of procedural worlds, whose meta has `facts` and `steps`: the solver stands in
  for the paper's model, and is ours. For each step after the first it doubts
  itself 0 to `doubts` times, says the last step again each time, and errs with
  the chance `slip`: the more steps a problem has, the longer are the responses
  to it and the fewer of them right.

  Args:
    examples: problems.
    ctx: the run; lengths are in its tokens.
    init: not read.
    responses: to each problem.
    slip: 0 to 1.
    doubts: 0 or more.
    fitting_lengths: False keeps the first right response to each problem, the
      cold start without AdaCS.
    ends: L(0) and L(1); (): of these responses, see `anchors`.

  Returns:
    The problems with a right response, and counts: 'unsolved' ones, 'l0', 'l1'.

  Raises:
    ValueError: as `anchors`.
  """
  del init
  made = [_responses(example, responses, slip, doubts) for example in examples]
  lengths = [[len(encode.encode_completion(one, ctx.processor)) for one in some]
             for some in made]
  right = [[answer.match(text.parse_think_answer(one).answer, example)
            for one in some] for some, example in zip(made, examples)]
  l0, l1 = ends = tuple(ends) or anchors(lengths, right)
  chosen = fitting(lengths, right, ends=ends) if fitting_lengths else [
      np.flatnonzero(good)[:1] for good in right]
  kept = [dataclasses.replace(example, completions=(some[best[0]],))
          for example, some, best in zip(examples, made, chosen) if len(best)]
  return kept, {'unsolved': len(examples) - len(kept), 'l0': l0, 'l1': l1}


def _responses(example, count: int, slip: float, doubts: int) -> list[str]:
  rng = np.random.default_rng([zlib.crc32(b'adaptive'), example.uid])
  facts, made = example.meta['facts'], []
  for _ in range(count):
    steps, said = list(example.meta['steps']), example.answer
    if rng.random() >= (1 - slip) ** (len(steps) - 1):  # somewhere it slips
      steps[-1] = traces.slip(steps[-1], rng)
      said = steps[-1].rpartition('=')[2]
    parts = [traces.concise(facts, steps)]
    for _ in range(rng.integers(doubts * (len(steps) - 1) + 1)):
      parts += [str(rng.choice(np.asarray(traces.DOUBTS))), f'{steps[-1]}.']
    made.append(f'<think>{" ".join(parts)}</think><answer>{said}</answer>')
  return made


def _check(lengths, correct):
  if len(lengths) != len(correct):
    raise ValueError(f'AdaCS: got {len(lengths)} lengths of {len(correct)} '
                     'responses.')
