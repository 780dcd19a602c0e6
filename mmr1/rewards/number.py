"""Numeric answers with a tolerance, exact by default."""

import fractions
from collections.abc import Mapping

from mmr1 import records
from mmr1 import text
from mmr1.rewards import quantity


def within(
    gold: str, answer: str, *, relative: float = 0.0, absolute: float = 0.0,
) -> bool:
  """|answer - gold| <= max(relative * |gold|, absolute), in exact fractions.

  Raises:
    ValueError: the gold answer is not a number, or a tolerance is negative.
  """
  expected = quantity.parse(gold)
  if expected is None:
    raise ValueError(
        f'gold answer {gold[:80]!r} is not a number; number rewards need a '
        "number (with an optional unit). Set the example's meta "
        "answer_type='math' or 'text' for other answers")
  if not (0 <= relative < float('inf') and 0 <= absolute < float('inf')):
    raise ValueError(
        f'tolerances relative={relative}, absolute={absolute}: both must be '
        'finite and at least 0')
  got = quantity.named(answer)
  if got is None:
    return False
  # str() first: 0.1 means one tenth and not its binary neighbour.
  allowed = max(
      fractions.Fraction(str(relative)) * abs(expected.value),
      fractions.Fraction(str(absolute)))
  return any(abs(value - expected.value) <= allowed
             for value in quantity.values(expected, got))


def unit(reply: str) -> float | None:
  """A judge's reply that is one number and nothing else, clamped to [0, 1].

  Read is what `text.parse_number` reads, '70%' and '7/10' too; else None.
  """
  value = text.parse_number(reply)
  return None if value is None else float(min(max(value, 0), 1))


def close(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    relative: float = 0.0,
    absolute: float = 0.0,
    strict: bool = True,
    prefilled: bool = False,
) -> float | None:
  """1 when the answer is the gold number within the tolerance, else 0.

  None when the example has no gold answer.

  Args:
    sample: the completion.
    knobs: unused.
    relative: allowed |answer - gold| as a share of |gold|.
    absolute: allowed |answer - gold|; the larger of the two holds.
    strict, prefilled: see `text.extract_answer`.
  """
  del knobs
  if sample.example.answer is None:
    return None
  answer = text.extract_answer(
      sample.text, strict=strict, prefilled=prefilled)
  return float(answer is not None and within(
      sample.example.answer, answer, relative=relative, absolute=absolute))


close.range = (0.0, 1.0)
close.perfect = 1.0
