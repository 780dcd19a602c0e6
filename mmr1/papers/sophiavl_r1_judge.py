"""SophiaVL-R1 (arXiv 2505.17018): what its judge of reasoning learns from.

The paper has 470K responses of a policy scored by a model of 72B, and keeps 5K
to 15K of each score. Here the worlds' solver writes responses with mistakes in
them, and `steps.true_steps` scores them [ours].
"""

import collections
from collections.abc import Sequence
import dataclasses
from typing import Any
import zlib

import numpy as np

from mmr1 import records
from mmr1.data import traces
from mmr1.rewards import steps as steps_lib


def graded(
    examples: Sequence[records.Example],
    ctx: Any,
    init: str,
    *,
    suffix: str,
    most: int,
    off: int = 1,
    again: float = 0.3,
    cut: float = 0.1,
    wrong: float = 0.3,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: responses to be read, scores to be written.

  Of procedural worlds, whose meta has `facts` and `steps`. A response is given
  (`Example.given`), with the suffix after it; the completion is its score in
  tenths, '0.7'.

  Args:
    examples: problems.
    ctx, init: unused.
    suffix: that of the judge, `judges.<name>.suffix`.
    most: of each score at most so many are kept; the paper has 15,000.
    off, again, cut, wrong: see `response`.

  Returns:
    Examples, and counts: 'score/<tenths>' of each that is kept, 'surplus' of
    those that were too many.

  Raises:
    ValueError: most or off below 1.
  """
  del ctx, init
  if most < 1 or off < 1:
    raise ValueError(
        f'graded: got most={most}, off={off}; allowed: both at least 1.')
  made = []
  for example in examples:
    said = response(example, off=off, again=again, cut=cut, wrong=wrong)
    made.append(dataclasses.replace(
        example, given=(said, suffix),
        completions=(f'{score(said, example):.1f}',)))
  kept = balanced(made, most)
  counts = {f'score/{text}': sum(e.completions[0] == text for e in kept)
            for text in sorted({e.completions[0] for e in kept})}
  return kept, {**counts, 'surplus': len(made) - len(kept)}


def response(
    example: records.Example, *, off: int = 1, again: float = 0.3,
    cut: float = 0.1, wrong: float = 0.3,
) -> str:
  """A response to a problem with as many mistakes as chance will have.

  Of n equations 0 to n are wrong, every number of them as often.

  Args:
    example: the problem; its uid is the seed.
    off: a wrong result is so much too large or small, up to twice as much.
    again: how often the chain is there a second time, after a doubt.
    cut: how often the text ends somewhere on its way.
    wrong: how often the answer is another one.
  """
  rng = np.random.default_rng([zlib.crc32(b'graded'), example.uid])
  facts, chain = example.meta['facts'], list(example.meta['steps'])
  rounds = 1 + (rng.random() < again)
  said = chain * rounds
  for i in rng.permutation(len(said))[:rng.integers(len(said) + 1)]:
    said[i] = _wrong(said[i], rng, off)
  parts = [traces.concise(facts, said[:len(chain)])]
  if rounds > 1:
    parts += [str(rng.choice(np.asarray(traces.DOUBTS))),
              traces.chain(facts, said[len(chain):])]
  answer = example.answer
  if rng.random() < wrong:
    answer = _wrong(f'={answer}', rng, off)[1:]
  text = f'<think>{" ".join(parts)}</think> <answer>{answer}</answer>'
  if rng.random() < cut:
    text = text[:int(rng.integers(len('<think>'), len(text)))].rstrip()
  return text


def _wrong(step: str, rng: np.random.Generator, off: int) -> str:
  """'3+4=7' as '3+4=8'; unchanged if it has no integer result."""
  left, _, result = step.rpartition('=')
  if not result.lstrip('-').isdigit():
    return step
  far = int(rng.integers(off, 2 * off + 1))
  return f'{left}={int(result) + (far if rng.random() < .5 else -far)}'


def score(said: str, example: records.Example) -> float:
  """The share of true equations of a response, in tenths: 0, .1, ... 1."""
  return round(steps_lib.true_steps(records.Sample(
      text=said, tokens=(), kinds=(), length=0, truncated=False,
      example=example, uid=example.uid, group=0, slot=0), {}), 1)


def balanced(
    made: Sequence[records.Example], most: int) -> list[records.Example]:
  """The first `most` of each completion."""
  kept, seen = [], collections.Counter()
  for example in made:
    seen[example.completions[0]] += 1
    if seen[example.completions[0]] <= most:
      kept.append(example)
  return kept
