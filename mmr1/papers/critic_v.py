r"""Critic-V (arXiv 2411.18203, CVPR 2025): what only it needs.

A critic writes what is wrong with a reasoner's answer, and the reasoner answers
again with that in front of its question (stage `refine`). The critic learns by
DPO from critiques of answers into which known errors were put:

    score = |G n C| / |G u C| + alpha x quality        G put in, C detected

with a quality of 0 to 10 and alpha = .1. Every critique with a higher score is
preferred to every one with a lower score of the same answer.

In the paper a large model puts errors in, compares sets and gives the quality.
Here answers are rows of digits, an error is a digit that is another one, sets
are compared exactly, and quality is ten times the precision [ours].
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any
import zlib

import numpy as np

from mmr1 import records
from mmr1 import text
from mmr1.sampling import several

HEAD = '#### Critique\n'
NOTHING = 'No issue.'
_WEAKNESS = re.compile(r'Digit (\d{1,4}) is (\d), not (\d)\.')
_MEDIA = re.compile(r'<(image|video)>')
Error = tuple[int, int, int]  # position from 1, digit shown, digit said


def ask(example: records.Example, answer: str) -> str:
  """What the critic is asked about an answer, of the released format."""
  said = text.extract_answer(answer, strict=False) or answer
  return (f'{"<image>" * len(example.images)}\n\n#### Question\n'
          f'{_MEDIA.sub("", example.asked).strip()}\n#### Answer\n{said}\n'
          '#### Task\nPlease provide a critique of the answer above. What are '
          'the weaknesses of the answer?')


def reflect(asked: str, critique: str) -> str:
  """What the reasoner is asked next: the critique in front, whole."""
  told = critique.removeprefix(HEAD.strip()).strip()
  return f'Reflection on former answer: {told} {asked}'


def satisfied(critique: str) -> bool:
  """Whether a critique says that there is nothing to be done [ours].

  It has no words, says `NOTHING`, or names weaknesses of which none is one
  ('Digit 2 is 6, not 6.'). Words in another form are a critique.
  """
  told = critique.removeprefix(HEAD.strip()).strip()
  return not told or told == NOTHING or (
      bool(_WEAKNESS.search(told)) and not detections(told))


# Errors.


def errors_of(answer: str, digits: Sequence[int]) -> frozenset[Error] | None:
  """What is wrong with a row of digits, '3,8' for [3, 7]; None: no such row."""
  said = (text.extract_answer(answer, strict=False) or '').split(',')
  if len(said) != len(digits) or not all(
      len(x) == 1 and '0' <= x <= '9' for x in said):
    return None
  return frozenset((i, right, int(x)) for i, (right, x) in enumerate(
      zip(digits, said), 1) if int(x) != right)


def inserted(
    digits: Sequence[int], rng: np.random.Generator, most: int = 5,
) -> tuple[str, frozenset[Error]]:
  """An answer with 1 to `most` errors, as many as there are digits at most."""
  count = int(rng.integers(1, min(most, len(digits)) + 1))
  said = list(digits)
  for i in rng.choice(len(said), count, replace=False):
    said[i] = int((said[i] + rng.integers(1, 10)) % 10)
  answer = ','.join(map(str, said))
  return answer, errors_of(answer, digits)


def written(errors: Sequence[Error]) -> str:
  """A critique, one weakness a line: 'Digit 2 is 3, not 8.'"""
  return HEAD + ('\n'.join(f'Digit {i} is {right}, not {said}.'
                           for i, right, said in sorted(errors)) or NOTHING)


def detections(critique: str) -> frozenset[Error]:
  """The weaknesses that a critique names; 'Digit 2 is 6, not 6.' is none."""
  found = (tuple(map(int, one)) for one in _WEAKNESS.findall(critique))
  return frozenset(one for one in found if one[1] != one[2])


# Scores.


def jaccard(real: frozenset, found: frozenset) -> float:
  """|G n C| / |G u C|; 0 where both are empty."""
  union = real | found
  return len(real & found) / len(union) if union else 0.0


def score(overlap: float, quality: float, alpha: float = 0.1) -> float:
  """The rule-based reward: overlap .4 and a quality of 7 are 1.1."""
  return overlap + alpha * quality


def rated(critique: str, real: frozenset[Error], alpha: float = 0.1) -> float:
  """The score of a critique of an answer with these errors."""
  found = detections(critique)
  precision = len(found & real) / len(found) if found else 0.0
  return score(jaccard(real, found), 10 * precision, alpha)


def ranked(
    critiques: Sequence[str], scores: Sequence[float],
) -> list[tuple[int, int]]:
  """(chosen, rejected) indices of every pair with a strictly higher score.

  A critique without words, or with nothing but its heading, is in none. Of
  (1.1, .6, .6): (0, 1), (0, 2). The release also drops one that declares more
  detections than it lists; here a critique is its list.
  """
  kept = [i for i, said in enumerate(critiques)
          if said.strip().removeprefix(HEAD.strip()).strip()]
  return [(k, j) for k in kept for j in kept if scores[k] > scores[j]]


def told(
    critique: str, example: records.Example, answer: str,
) -> dict[str, float] | None:
  """How well a critique finds what is wrong with an answer; None where neither
  names anything, or the answer is no row of digits."""
  real = errors_of(answer, example.meta['scene']['digits'])
  found = detections(critique)
  if real is None or not real | found:
    return None
  return {'jaccard': jaccard(real, found), 'score': rated(critique, real)}


# Data.


def _rng(name: str, example: records.Example) -> np.random.Generator:
  return np.random.default_rng([zlib.crc32(name.encode()), example.uid])


def noticed(
    real: frozenset[Error], said: Sequence[int], rng: np.random.Generator,
    recall: float, false: float) -> frozenset[Error]:
  """What a critic by rule sees: each error with chance `recall`; of the other
  digits each, with chance `false`, as another one."""
  wrong = {i: error for error in real for i in error[:1]}
  found = []
  for i, digit in enumerate(said, 1):
    draw, other = rng.random(), int((digit + rng.integers(1, 10)) % 10)
    if i in wrong and draw < recall:
      found.append(wrong[i])
    elif i not in wrong and draw < false:
      found.append((i, other, digit))
  return frozenset(found)


def _faulty(example, name, most):
  """(generator, answer, its digits, errors)."""
  rng = _rng(name, example)
  answer, real = inserted(example.meta['scene']['digits'], rng, most)
  return rng, answer, [int(x) for x in answer.split(',')], real


def starts(
    examples: Sequence[records.Example], ctx: Any, init: str, *,
    recall: float = 0.6, false: float = 0.3, clean: float = 0.2, most: int = 5,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: critiques of middling quality to imitate.

  The embedded model knows no critiques; the paper's critic starts from one
  that does. A share `clean` of answers has no errors, and is told so.
  """
  del ctx, init
  made = []
  for example in examples:
    rng, answer, said, real = _faulty(example, 'starts', most)
    if rng.random() < clean:
      said = example.meta['scene']['digits']
      answer, real, found = ','.join(map(str, said)), frozenset(), frozenset()
    else:
      found = noticed(real, said, rng, recall, false)
    made.append(_critic(example, answer, (written(found),)))
  return made, {}


def pairs(
    examples: Sequence[records.Example], ctx: Any, init: str, *,
    recalls: Sequence[float] = (0.9, 0.6, 0.3),
    falses: Sequence[float] = (0.05, 0.2, 0.4),
    temperatures: Sequence[float] = (), max_new_tokens: int = 64,
    most: int = 5, alpha: float = 0.1,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: pairs of critiques by their scores.

  Args:
    examples: of the world `reading`.
    ctx, init: read with `temperatures`.
    recalls, falses: of the critics by rule, see `noticed`.
    temperatures: instead of them the model `init` writes a critique at each.
    max_new_tokens: of those.
    most: errors in an answer at most.
    alpha: weight of the quality.

  Returns:
    An example for every pair, and counts: 'answers', 'pairs', 'ties' (answers
    of which no two critiques have different scores).
  """
  faulty = [_faulty(example, 'pairs', most) for example in examples]
  if temperatures:
    asked = [_critic(e, answer, ()) for e, (_, answer, _, _) in zip(
        examples, faulty)]
    params = ctx.params(init)
    columns = [[''.join(s.text for s in group) for group in several.responses(
        ctx, params, asked, count=1, max_new_tokens=max_new_tokens,
        temperature=x, instruction='', draw=draw)]
               for draw, x in enumerate(temperatures)]
    written_ = list(zip(*columns))
  else:
    written_ = [[written(noticed(real, said, rng, recall, false))
                 for recall, false in zip(recalls, falses)]
                for rng, _, said, real in faulty]
  made, counts = [], {'answers': len(examples), 'pairs': 0, 'ties': 0}
  for example, (_, answer, _, real), critiques in zip(
      examples, faulty, written_):
    found = ranked(critiques, [rated(x, real, alpha) for x in critiques])
    counts['ties'] += not found
    counts['pairs'] += len(found)
    made += [_critic(example, answer, (critiques[k], critiques[j]))
             for k, j in found]
  return made, counts


def _critic(example, answer, completions) -> records.Example:
  return dataclasses.replace(
      example, question=ask(example, answer), completions=completions)


def lessons(
    examples: Sequence[records.Example], ctx: Any, init: str, *,
    misread: Mapping[str, int], recall: float = 0.7, false: float = 0.2,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: what the reasoner learns before it is frozen.

  It misreads some digits, whatever they look like, and believes a critique, so
  that feedback can help and a wrong one can harm [ours].

  Args:
    examples: of the world `reading`.
    ctx, init: unused.
    misread: {digit: what it takes it for}.
    recall, false: of the critiques that it learns to follow.
  """
  del ctx, init
  made = []
  for example in examples:
    rng = _rng('lessons', example)
    digits = example.meta['scene']['digits']
    said = [misread.get(str(x), x) for x in digits]
    question = example.question
    if rng.random() < 0.5:
      real = errors_of(','.join(map(str, said)), digits)
      found = noticed(real, said, rng, recall, false)
      question = reflect(question, written(found))
      for i, right, _ in found:
        said[i - 1] = right
    made.append(dataclasses.replace(
        example, question=question,
        completions=(f'<answer>{",".join(map(str, said))}</answer>',)))
  return made, {}
