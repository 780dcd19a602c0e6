"""Multiple choice."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from mmr1 import records
from mmr1 import text
from mmr1.rewards import quantity

Choices = Sequence[str] | Mapping[str, str]

_BARE = re.compile(
    r'(?:\((?P<round>[a-z])\)|\[(?P<square>[a-z])\]|(?P<plain>[a-z])\)?)[.:]?',
    re.IGNORECASE)
_LABELLED = re.compile(
    r'(?:\((?P<round>[a-z])\)\s*[.:]?|(?P<plain>[a-z])\s*[.:)])\s*(?P<rest>.+)',
    re.IGNORECASE | re.DOTALL)
_EXPECTED = 'expected 1 to 26 texts, or {letter: text}'
_LONGEST = 1000  # characters, beside a choice's text, that are looked at
_WORD = re.compile(r'(?:option|choice)\s+(?=\(?[a-z]\b)', re.IGNORECASE)
_OTHER = re.compile(r'(?<![^\W_])[A-Z](?![^\W_])')


def labels(choices: Choices) -> dict[str, str]:
  """Choices as {upper-case letter: text}; a sequence is lettered from A.

  Raises:
    ValueError: none or more than 26 choices, or a label that is no letter.
  """
  if not isinstance(choices, Mapping):
    if isinstance(choices, str) or not 1 <= _count(choices) <= 26:
      raise ValueError(f'choices {choices!r}: {_EXPECTED}')
    choices = dict(zip(string.ascii_uppercase, choices))
  # Columns of parquet structs hold None for the letters a record lacks.
  choices = {key: value for key, value in choices.items() if value is not None}
  table = {str(key).strip().upper(): str(value)
           for key, value in choices.items()}
  if not table or not all(key in string.ascii_uppercase and len(key) == 1
                          for key in table) or len(table) < len(choices):
    raise ValueError(
        f'choices with labels {list(choices)}: labels must be distinct letters')
  return table


def given(choices: Choices | None) -> bool:
  """False where a record's column of choices is empty: an open question.

  Raises:
    ValueError: what is there is no choices.
  """
  if choices is None:
    return False
  if isinstance(choices, Mapping):
    return any(value is not None for value in choices.values())
  return _count(choices) > 0


def _count(choices: Any) -> int:
  try:
    return len(choices)
  except TypeError as error:
    raise ValueError(f'choices {choices!r}: {_EXPECTED}') from error


def pick(answer: str, choices: Choices | None) -> str | None:
  """The one letter an answer stands for, or None.

  Read are 'B', 'b', '(B)', '[B]', 'B.', 'B)', 'option B', 'B: text', 'B. text',
  '(B) text' and the text of one choice. A text behind a letter must be that
  choice's text. Without known choices (None, or empty) it may be anything that
  names no other letter. None for several letters, an unknown letter, and a text
  that fits no choice or more than one.
  """
  table = labels(choices) if given(choices) else None
  longest = max(map(len, table.values())) if table else 0
  if len(answer) > _LONGEST + 4 * longest:
    return None
  plain = text.unwrap(text.fold(answer))
  plain = _WORD.sub('', plain, count=1) if _WORD.match(plain) else plain
  found = _BARE.fullmatch(plain)
  if found:
    letter = (found['round'] or found['square'] or found['plain']).upper()
    if table is None or letter in table:
      return letter
  # A choice's own text goes first: it may itself look like 'A. Smith'.
  if table is not None:
    fits = _written(table, plain) or [
        key for key, value in table.items() if _same(value, plain)]
    if fits:
      return fits[0] if len(fits) == 1 else None
  found = _LABELLED.fullmatch(plain)
  if not found:
    return None
  letter = (found['round'] or found['plain']).upper()
  if table is None:
    others = set(_OTHER.findall(found['rest'])) - {letter}
    return None if others else letter
  if letter in table and _same(table[letter], found['rest']):
    return letter
  return None


def _written(table: Mapping[str, str], answer: str) -> list[str]:
  """Letters of the choices that read like the answer: 7 is not '7 cm' too."""
  said = text.normalise_answer(answer)
  return [key for key, value in table.items()
          if text.normalise_answer(value) == said]


def _same(choice: str, answer: str) -> bool:
  """Equal as text, or as numbers with their units."""
  if text.normalise_answer(choice) == text.normalise_answer(answer):
    return True
  ours, theirs = quantity.parse(choice), quantity.parse(answer)
  return (ours is not None and theirs is not None
          and quantity.equal(ours, theirs))


def equal(gold: str, answer: str, choices: Choices | None) -> bool:
  """True when both stand for the same letter.

  Raises:
    ValueError: the gold answer is none of the choices.
  """
  expected = pick(gold, choices)
  if expected is None:
    raise ValueError(
        f'gold answer {gold[:80]!r} is no letter'
        + (f' or text of one of the choices {labels(choices)}'
           if given(choices) else " and the example's meta has no 'choices'"))
  return pick(answer, choices) == expected


def letter(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    strict: bool = True,
    prefilled: bool = False,
) -> float | None:
  """1 when the answer is the gold choice (`example.meta['choices']`), else 0.

  None when the example has no gold answer.

  Args:
    sample: the completion.
    knobs: unused.
    strict, prefilled: see `text.extract_answer`.
  """
  del knobs
  if sample.example.answer is None:
    return None
  answer = text.extract_answer(
      sample.text, strict=strict, prefilled=prefilled)
  return float(answer is not None and equal(
      sample.example.answer, answer, sample.example.meta.get('choices')))


letter.range = (0.0, 1.0)
letter.perfect = 1.0
