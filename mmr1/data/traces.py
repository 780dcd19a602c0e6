"""Reasoning traces written from an example's symbolic solution.

A task's meta carries `facts` (what must be seen) and `steps` (what follows).
These functions turn them into text: a short chain, or a long one that doubts
itself and checks again. They serve the pre-training script and the symbolic
reasoner of Vision-R1's data engine.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from mmr1 import records

DOUBTS = (
    'Wait, let me check.',
    'Hmm, check again.',
    'Wait, is that right?',
    'Let me check that again.',
    'Hmm, wait.',
)
_ENDING = ' <answer>{}</answer>'  # of a trace, with the answer in it


def read(facts: Sequence[str]) -> str:
  """The sentence that states what is seen."""
  return f'I see {"; ".join(facts)}.'


def chain(facts: Sequence[str], steps: Sequence[str]) -> str:
  """The steps in one line, `3+7=10,10+5=15.`; facts are not said again.

  Empty where the facts alone are the answer.
  """
  new = [step for step in steps if step not in facts]
  return ','.join(new) + '.' if new else ''


def concise(facts: Sequence[str], steps: Sequence[str]) -> str:
  """What is seen, then the chain, once."""
  return f'{read(facts)} {chain(facts, steps)}'.rstrip()


def verbose(
    facts: Sequence[str],
    steps: Sequence[str],
    rng: np.random.Generator,
    *,
    rounds: int,
    slip_rate: float = 0.0,
) -> str:
  """The concise chain, then `rounds` doubts, each with the chain again.

  With probability `slip_rate` a repetition starts with a wrong last step that
  the text takes back at once.
  """
  parts = [concise(facts, steps)]
  again = chain(facts, steps) or read(facts)
  for _ in range(rounds):
    parts.append(str(rng.choice(np.asarray(DOUBTS))))
    if rng.random() < slip_rate:
      parts.append(f'{slip(steps[-1], rng)}. No, mistake.')
    parts.append(again)
  return ' '.join(parts)


def slip(step: str, rng: np.random.Generator) -> str:
  """The step with a wrong result; unchanged if it has no integer result."""
  left, equals, result = step.rpartition('=')
  if not equals or not result.lstrip('-').isdigit():
    return step
  return f'{left}={int(result) + int(rng.choice([-2, -1, 1, 2]))}'


def solved(
    examples: Sequence[records.Example], ctx: Any, init: str, *,
    ending: str = _ENDING,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: the solver's concise trace of each example.

  Of procedural worlds, whose meta has `facts` and `steps`; in the tags of
  `template.think_answer`. `ending`: what follows the reasoning, with {} for the
  answer.
  """
  del ctx, init
  return [dataclasses.replace(example, completions=(
      f'<think>{concise(example.meta["facts"], example.meta["steps"])}</think>'
      + ending.format(example.answer),)) for example in examples], {}


def told(
    examples: Sequence[records.Example], ctx: Any, init: str, *,
    ending: str = _ENDING,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine: the same problems as text alone, with the traces of `solved`.

  What there is to be seen is said at the start of the question ('Digits 3,7.
  What is the sum of the digits?'), and the pictures are left out. `ending`: of
  `solved`.
  """
  made, counts = solved(examples, ctx, init, ending=ending)
  return [dataclasses.replace(
      example, images=(), question=(
          f'{"; ".join(example.meta["facts"]).capitalize()}. '
          + example.question.replace('<image>', ''))) for example in made], counts


def seen(
    examples: Sequence[records.Example], ctx: Any, init: str,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine: the same pictures, and only what there is to be seen in them."""
  del ctx, init
  return [dataclasses.replace(example, completions=(
      read(example.meta['facts']),)) for example in examples], {}
