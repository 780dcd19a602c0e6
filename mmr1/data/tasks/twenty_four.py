"""24 points: make 24 of four digits with + - * / and brackets.

The cheapest expression is found by putting together the values that parts of
the digits can take. A sum costs 1, a difference 2, a product 3, a quotient 4,
and a fraction or a quotient of one on the way 4 more.
"""

from collections.abc import Iterator, Mapping
import fractions
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmr1 import puzzle_rules
from mmr1.data.tasks import draw

# Cost of the cheapest expression; 27 sets of digits are sums and nothing else.
LEVELS = ((3, 4), (5, 5), (6, 6), (7, 7), (8, 99))
QUESTIONS = (
    'Make 24 of the four digits.',
    'Use each of the four digits once to make 24.')
CAPTION = 'a row of 4 digits'
FORMAT = 'an expression with + - * / and brackets'
INK = (30, 30, 30)
COSTS = {'+': 1, '-': 2, '*': 3, '/': 4}
FRACTION = 4
# Operations that need brackets as the right side of another.
_BRACKETS = {'+': '', '-': '+-', '*': '+-', '/': '+-*/'}

Digits = tuple[int, ...]


class Found(NamedTuple):
  """A way to a value: its cost, the expression and the results on the way."""
  cost: int
  text: str
  steps: tuple[str, ...]
  top: str  # the operation done last, '' for a digit


def _parts(digits: Digits) -> set[tuple[Digits, Digits]]:
  """All (left, right) that sorted digits can be split into."""
  every = range(len(digits))
  return {
      (tuple(digits[k] for k in left),
       tuple(digits[k] for k in every if k not in left))
      for n in range(1, len(digits))
      for left in itertools.combinations(every, n)}


def _results(
    x: fractions.Fraction, y: fractions.Fraction,
) -> Iterator[tuple[str, fractions.Fraction]]:
  """(operation, result) of x and y in this order, none below 0."""
  if x >= y:
    yield '+', x + y
    yield '*', x * y
    yield '-', x - y
  if y:
    yield '/', x / y


def _joined(op: str, x, y, left: Found, right: Found,
            result: fractions.Fraction) -> Found:
  """The way to `x op y` from the ways to both."""
  a, b = left.text, right.text
  if op in '*/' and left.top in ('+', '-'):
    a = f'({a})'
  if right.top and right.top in _BRACKETS[op]:
    b = f'({b})'
  show = lambda n: f'({n})' if n.denominator > 1 else str(n)
  return Found(
      left.cost + right.cost + COSTS[op] + FRACTION * (result.denominator > 1),
      f'{a}{op}{b}',
      (*left.steps, *right.steps, f'{show(x)}{op}{show(y)}={result}'), op)


@functools.cache
def reach(digits: Digits) -> Mapping[fractions.Fraction, Found]:
  """The cheapest way to every value >= 0 of sorted digits, each used once."""
  if len(digits) == 1:
    return {fractions.Fraction(digits[0]): Found(0, str(digits[0]), (), '')}
  last = len(digits) == 4
  found = {}
  for one, two in sorted(_parts(digits)):
    pairs = itertools.product(reach(one).items(), reach(two).items())
    for (x, left), (y, right) in pairs:
      for op, result in _results(x, y):
        if last and result != puzzle_rules.TARGET:
          continue
        way = _joined(op, x, y, left, right, result)
        if result not in found or way.cost < found[result].cost:
          found[result] = way
  return found


def cheapest(digits: Digits) -> Found | None:
  """The cheapest way to 24, None if there is none."""
  return reach(tuple(sorted(digits))).get(
      fractions.Fraction(puzzle_rules.TARGET))


def state(rng: np.random.Generator, level: int) -> dict[str, Any]:
  """Four digits of 1..9 whose cheapest expression is of the level's cost."""
  low, high = LEVELS[level - 1]
  while True:
    digits = tuple(rng.integers(1, 10, 4).tolist())
    way = cheapest(digits)
    if way is not None and low <= way.cost <= high:
      return {'numbers': digits}


def content(puzzle: Mapping[str, Any]) -> str:
  """What the splits divide: the digits in any order, '1238'.

  There are but 404 such sets. Written in this way every split owns at least
  three of every level; where it owned none, drawing would never end.
  """
  return ''.join(map(str, sorted(puzzle['numbers'])))


def solve(
    puzzle: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
  """(the cheapest answer, facts, steps): the results on the way.

  Raises:
    ValueError: the digits do not make 24; none that `state` draws.
  """
  way = cheapest(puzzle['numbers'])
  if way is None:
    raise ValueError(f'twenty_four: {puzzle["numbers"]} cannot make 24.')
  listed = ','.join(map(str, puzzle['numbers']))
  return (way.text, (f'digits {listed}',),
          (*way.steps, f'{puzzle_rules.TARGET}={way.text}'))


def render(rng: np.random.Generator, puzzle: Mapping[str, Any]) -> Image.Image:
  """16 x 64 pixels: the digits in a row."""
  image = draw.canvas(rng, 1, len(puzzle['numbers']))
  ink = draw.tint(rng, INK, 20)
  for c, number in enumerate(puzzle['numbers']):
    dx, dy = rng.integers((-2, -1), (3, 2)).tolist()
    draw.glyph(image, str(number), 0, c, (dx, dy), ink)
  return image
