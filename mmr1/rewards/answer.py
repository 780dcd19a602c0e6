"""The one matcher of a final answer, shared by rewards and evaluation."""

import re
from collections.abc import Mapping

from mmr1 import puzzle_rules
from mmr1 import records
from mmr1 import text
from mmr1.rewards import choice
from mmr1.rewards import choice_set
from mmr1.rewards import grounding
from mmr1.rewards import math
from mmr1.rewards import number
from mmr1.rewards import pool
from mmr1.rewards import quantity

TYPES = ('number', 'choice', 'choices', 'math', 'text', 'puzzle', 'box')
_COVERS = 0.5  # IoU from which on a box is right
_LONGEST = 1000  # characters, beside those of the gold answer
_LETTER = re.compile(r'\(?[A-J]\)?\.?')
_PROSE = re.compile(
    r'(?<![\\A-Za-z])(?!sqrt|theta|infinity)[A-Za-z]{4,}')
_SYMBOLS = re.compile(r'[0-9\\=+*/^<>{}\[\]√π∞]')


def kind(example: records.Example) -> str:
  """How an example's answer is compared: one of `TYPES`.

  `meta['answer_type']` if given, the only way to 'choices' (several letters,
  'A,C') and 'puzzle'. Otherwise 'choice' when meta has 'choices'
  (an empty column is none) or the gold answer is one letter A-J; 'math' when it
  is a number (a unit may follow) or holds a digit or a mathematical symbol and
  no word of four letters; else 'text'.

  Raises:
    ValueError: an unknown answer type, or no gold answer.
  """
  declared = example.meta.get('answer_type')
  if declared is not None:
    if declared not in TYPES:
      raise ValueError(
          f"{example.source or 'example'} {example.uid}: meta answer_type="
          f'{declared!r}; allowed: {", ".join(TYPES)}')
    return declared
  if example.answer is None:
    raise ValueError(
        f"{example.source or 'example'} {example.uid} has no gold answer")
  gold = text.unwrap(text.fold(example.answer))
  if choice.given(example.meta.get('choices')) or _LETTER.fullmatch(gold):
    return 'choice'
  if quantity.parse(gold) is not None:
    return 'math'
  if _SYMBOLS.search(gold) and not _PROSE.search(gold):
    return 'math'
  return 'text'


def unusable(example: records.Example) -> str:
  """Why no answer to the example can be judged, or '' where it can."""
  try:
    type_ = kind(example)
    if example.answer is None:
      return 'no gold answer'
    if type_ == 'number':
      number.within(example.answer, '')
    elif type_ == 'choice':
      choice.equal(example.answer, '', example.meta.get('choices'))
    elif type_ == 'box':
      grounding.overlap(None, example)
    elif type_ == 'choices':
      choice_set.check(example.answer, example.meta.get('choices'))
    elif type_ == 'puzzle':
      if not puzzle_rules.passes(example.meta.get('puzzle'), example.answer):
        return f'gold answer {example.answer[:80]!r} does not solve the puzzle'
  except ValueError as error:
    return str(error)
  return ''


def match(
    answer: str | None,
    example: records.Example,
    *,
    limit_s: float = math.LIMIT_S,
) -> bool | None:
  """Whether an extracted answer is the example's gold answer.

  number: the exact value (`number.within`); choice: the same letter
  (`choice.equal`); choices: the same letters (`choice_set.equal`); math:
  `math.equal`; text: equal after `text.normalise_answer`; puzzle: whatever
  solves `meta['puzzle']` (`puzzle_rules.passes`), be it the gold answer or not;
  box: an IoU of at least .5 with `meta['box']` (`grounding.overlap`).

  Args:
    answer: from `text.extract_answer`; None (nothing was extracted) is wrong.
    example: with the gold answer; without one the result is None.
    limit_s: seconds for symbolic algebra.

  Raises:
    ValueError: the gold answer does not fit its type.
    pool.TimedOut, pool.WorkerDied: as `math.equal`; a time-out of a model's
      answer counts as wrong wherever it is scored.
  """
  gold = example.answer
  if gold is None:
    return None
  type_ = kind(example)
  if answer is None:
    return False
  if type_ == 'number':
    return number.within(gold, answer)
  if type_ == 'choice':
    return choice.equal(gold, answer, example.meta.get('choices'))
  if type_ == 'choices':
    return choice_set.equal(gold, answer, example.meta.get('choices'))
  if type_ == 'math':
    return math.equal(
        gold, answer, question=example.asked, limit_s=limit_s)
  if type_ == 'box':
    return grounding.overlap(answer, example) >= _COVERS
  if type_ == 'puzzle':
    return puzzle_rules.passes(example.meta.get('puzzle'), answer)
  if not answer.strip() or len(answer) > _LONGEST + 4 * len(gold):
    return False
  return text.normalise_answer(gold) == text.normalise_answer(answer)


def right(answer: str | None, example: records.Example) -> bool:
  """`match`, where an answer that cannot be checked is wrong."""
  try:
    return bool(match(answer, example))
  except (pool.TimedOut, pool.WorkerDied, pool.RemoteError):
    return False


def canonical(answer: str, example: records.Example) -> str:
  """One form of answers that are surely equal, for votes: the letter of a
  choice, the value of a number, else the normalised text."""
  type_ = kind(example)
  if type_ == 'choice':
    letter = choice.pick(answer, example.meta.get('choices'))
    if letter is not None:
      return letter
  elif type_ in ('number', 'math'):
    value = text.parse_number(answer)
    if value is not None:
      return str(value)
  return text.normalise_answer(answer)


def correct(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    strict: bool = True,
    boxed: bool = False,
    prefilled: bool = False,
    limit_s: float = math.LIMIT_S,
) -> float | None:
  r"""1 when the completion's answer matches, else 0; None without a gold one.

  Args:
    sample: the completion.
    knobs: unused.
    strict, prefilled: see `text.extract_answer`.
    boxed: the answer is in the last `\boxed{}` of the whole text, thinking
      included, and nowhere else; strict and prefilled are then not read.
    limit_s: seconds for symbolic algebra.
  """
  del knobs
  said = text.last_boxed(sample.text) if boxed else text.extract_answer(
      sample.text, strict=strict, prefilled=prefilled)
  matched = match(said, sample.example, limit_s=limit_s)
  return None if matched is None else float(matched)


correct.range = (0.0, 1.0)
correct.perfect = 1.0
