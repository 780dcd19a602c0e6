"""Symbolic equality by math-verify. Runs in a worker of `rewards.pool` only.

Source: https://github.com/huggingface/Math-Verify. Its verdict is narrowed:
rounding to six decimals must not make 10^-9 equal 0.
"""

import functools
import logging
import re
import resource
import sys

import math_verify
import sympy

_MEMORY_BYTES = 4 * 2**30  # where a power tower stops if not by time
_SYMBOLS = (
    ('π', '\\pi '), ('θ', '\\theta '), ('∞', '\\infty '), ('×', '\\times '),
    ('·', '\\cdot '), ('÷', '/'), ('≤', '\\le '), ('≥', '\\ge '),
    ('≠', '\\ne '), ('$', ' '))
_WORDS = re.compile(r'(?<![\\A-Za-z])(pi|theta|infinity)(?![A-Za-z])')
_ROOT = re.compile(r'√\s*(?:([0-9]+|[a-z])|\(([^()]*)\))')


@functools.cache
def _bound_process() -> None:
  """Caps the memory and quietens math-verify, once per process."""
  logging.getLogger('math_verify').setLevel(logging.CRITICAL)
  if sys.platform == 'linux':  # macOS refuses RLIMIT_AS
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = _MEMORY_BYTES if hard < 0 else min(_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@functools.lru_cache(maxsize=4096)
def _parse(expression: str):
  for symbol, command in _SYMBOLS:
    expression = expression.replace(symbol, command)
  expression = _WORDS.sub(r'\\\1 ', expression)
  expression = expression.replace('\\infinity', '\\infty')
  expression = _ROOT.sub(
      lambda m: '\\sqrt{' + (m[1] or m[2]) + '}', expression)
  # In a box the whole text is one expression: no search for what fits.
  return math_verify.parse(
      '\\boxed{' + expression + '}',
      extraction_config=[
          math_verify.LatexExtractionConfig(boxed_match_priority=0)],
      fallback_mode='no_fallback', parsing_timeout=None)


def equal(gold: str, answer: str) -> bool:
  """True when both are the same mathematical object.

  Decimals may stand for irrational numbers where both agree to six decimals and
  the relative error is at most 1e-6. False when one of the two cannot be read.
  """
  _bound_process()
  ours, theirs = _parse(gold), _parse(answer)
  if not ours or not theirs:
    return False
  if not math_verify.verify(ours, theirs, timeout_seconds=None):
    return False
  return all(_near(x, y) for x in ours for y in theirs)


def _near(gold, answer) -> bool:
  """False for two numbers whose relative difference is above 1e-6."""
  for value in (gold, answer):
    if not isinstance(value, sympy.Expr) or value.free_symbols:
      return True
  if gold.is_infinite or answer.is_infinite:
    return gold == answer  # infinity minus itself is not a number
  difference = abs(sympy.N(gold - answer, 30))
  scale = abs(sympy.N(gold, 30))
  return bool(difference <= scale * sympy.Rational(1, 10**6))


def rounded_equal(gold: str, answer: str, digits: int = 2) -> bool:
  r"""True when both are numbers that are equal once rounded, as MathVision
  compares them: '\frac{1}{3}' and '0.333', but not 'x' and 'x'."""
  _bound_process()
  values = [_value(one) for one in (gold, answer)]
  return None not in values and (
      round(values[0], digits) == round(values[1], digits))


def _value(expression: str) -> float | None:
  for found in _parse(expression):
    if isinstance(found, sympy.Expr) and found.is_real:
      return float(sympy.N(found))
  return None
