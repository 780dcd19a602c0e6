"""Rewards on the steps of a chain, whatever it ends with."""

from collections.abc import Mapping
import fractions
import re

from mmr1 import records

_MOST = 200_000  # characters that are read
# Every part is bounded, and what follows a number is never a digit, so that a
# failing match takes back few characters.
_SIGN = r'\s{0,2}[-+*/×÷−]\s{0,2}'
_EQUATION = re.compile(
    rf'(?<![\w.+*/×÷−-])(-?[0-9]{{1,12}}(?:{_SIGN}-?[0-9]{{1,12}}){{1,15}})'
    r'\s{0,2}=\s{0,2}(-?[0-9]{1,15})(?![\w]|\.[0-9])')
_PART = re.compile(r'([-+*/×÷−]?)\s*(-?[0-9]+)')


def equations(said: str) -> list[bool]:
  """Whether each equation `a+b=c` of a text is true, in order.

  The left side has 2 to 16 integers of at most 12 digits with + - * / × ÷ in
  the usual precedence, the right side is one integer; exact. What is no such
  equation is passed over.
  """
  return [_value(left) == int(right)
          for left, right in _EQUATION.findall(said[:_MOST])]


def _value(expression: str) -> fractions.Fraction | None:
  """None for a division by 0."""
  total, product = fractions.Fraction(0), fractions.Fraction(0)
  for sign, digits in _PART.findall(expression):
    number = int(digits)
    if sign in ('*', '×'):
      product *= number
    elif sign in ('/', '÷'):
      if not number:
        return None
      product /= number
    else:
      total += product
      product = fractions.Fraction(-number if sign in ('-', '−') else number)
  return total + product


def true_steps(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    prefilled: bool = False,
) -> float:
  """The share of the equations in the think block that are true, 0 to 1.

  A judge of reasoning by rule, for worlds whose chains are `3+4=7,7*2=14.`
  [ours]. It is blind to the answer: a true chain that leads elsewhere earns 1.
  0 without an equation or without a think block; one that was not closed is
  read to the end.

  Args:
    sample: the completion.
    knobs: unused.
    prefilled: the prompt's template already wrote `<think>`.
  """
  del knobs
  said = ('<think>' if prefilled else '') + sample.text
  _, opened, rest = said.partition('<think>')
  found = equations(rest.partition('</think>')[0]) if opened else []
  return sum(found) / len(found) if found else 0.0


true_steps.range = (0.0, 1.0)
true_steps.perfect = 1.0
