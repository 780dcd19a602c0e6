"""Multiple choice with several right letters: 'A,C'."""

from collections.abc import Mapping

from mmr1 import records
from mmr1 import text
from mmr1.rewards import choice

FORMS = ('set', 'released')


def equal(
    gold: str, answer: str, choices: choice.Choices | None, *,
    form: str = 'set',
) -> bool:
  """True when both name the same choices.

  Texts are split at commas; each part counts as the letter that `choice.pick`
  reads in it, else as a text. A text that is one choice as a whole is not
  split.

  Args:
    gold: the gold answer.
    answer: any text.
    choices: of the example, or None.
    form: 'set': the same set, in any order and number. 'released': as many
      parts as the gold answer has, and each is one of them, so that 'A,A' is
      right for 'A,B' (SophiaVL-R1's `verl/utils/reward_score/math.py`).

  Raises:
    ValueError: an unknown form, or a gold answer that names nothing.
  """
  if form not in FORMS:
    raise ValueError(f'choice_set: got form={form!r}; allowed are {FORMS}.')
  ours = _named(gold, choices)
  if not any(ours):
    raise ValueError(f'gold answer {gold[:80]!r} names no choice.')
  if not answer.strip() or len(answer) > 1000 + 4 * len(gold):
    return False
  theirs = _named(answer, choices)
  if form == 'released':
    return len(ours) == len(theirs) and set(theirs) <= set(ours)
  return set(filter(None, ours)) == set(filter(None, theirs))


def check(gold: str, choices: choice.Choices | None) -> None:
  """Refuses a gold answer that does not name letters only.

  Raises:
    ValueError: one of its parts is no choice.
  """
  known = choice.labels(choices) if choice.given(choices) else None
  for part in [*filter(None, _named(gold, choices))] or ['']:
    if len(part) != 1 or known is not None and part not in known:
      raise ValueError(
          f'gold answer {gold[:80]!r}: {part!r} is no letter'
          + (f' or text of one of the choices {known}' if known else '')
          + ". Several choices are written 'A,C'.")


def _named(said: str, choices: choice.Choices | None) -> list[str]:
  """Letters, else texts in lower case, in order; '' of an empty part."""
  whole = choice.pick(said, choices)
  if whole is not None and choice.given(choices):
    return [whole]
  parts = text.unwrap(text.fold(said)).split(',')
  found = [choice.pick(part, choices) for part in parts]
  # Without known choices 'B: here, there' is B, and '(b), a' is both.
  if whole is not None and None in found:
    return [whole]
  return [letter or text.normalise_answer(part)
          for letter, part in zip(found, parts)]


def letters(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    form: str = 'set',
    strict: bool = True,
    prefilled: bool = False,
) -> float | None:
  """1 when the answer names exactly the gold choices, else 0.

  None when the example has no gold answer.

  Args:
    sample: the completion.
    knobs: unused.
    form: see `equal`.
    strict, prefilled: see `text.extract_answer`.
  """
  del knobs
  if sample.example.answer is None:
    return None
  said = text.extract_answer(sample.text, strict=strict, prefilled=prefilled)
  return float(said is not None and equal(
      sample.example.answer, said, sample.example.meta.get('choices'),
      form=form))


letters.range = (0.0, 1.0)
letters.perfect = 1.0
