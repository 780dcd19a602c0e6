"""Rules of the procedural puzzles: does an answer solve this instance?

An answer is played or checked from the initial state and never compared with
the solver's, so every right solution passes (MM-HELIX, arXiv 2510.08540). The
worlds that draw puzzles and the rewards that judge answers share this module;
no text makes it raise, and its work is bounded by the length limits below.

A puzzle is a mapping (tuples may be lists, as JSON has them):
  kind='sliding'      board: rows of numbers, all different, 0 is the gap. Moves
                      of the gap; goal: ascending row by row, the gap last.
  kind='maze'         open: for every cell, in rows, the letters of UDLR that no
                      wall stops; start, goal: (row, column) from 0. Moves.
  kind='sudoku'       givens: rows of digits 1..n, 0 is blank; n is a square.
  kind='ordering'     nodes: upper-case letters; edges: pairs (before, after).
  kind='twenty_four'  numbers: each to be used once, to make 24.
  kind='container'    heights: of bars, one apart; the most water between two.
More keys, such as places in a picture, are ignored.
"""

import ast
import fractions
import itertools
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmr1 import text

DIRECTIONS: Mapping[str, tuple[int, int]] = {
    'U': (-1, 0), 'D': (1, 0), 'L': (0, -1), 'R': (0, 1)}
TARGET = 24
MAX_CHARACTERS = 1000
MAX_EXPRESSION = 100  # characters; also bounds how deep it nests

Board = tuple[tuple[int, ...], ...]

_BREAKS = re.compile(r'(?:\s|,|;|->)+')
_WORDS = {'UP': 'U', 'DOWN': 'D', 'LEFT': 'L', 'RIGHT': 'R'}
_GRID_MARKS = re.compile(r'[\s,;/|\[\]()]+')
_EXPRESSION = re.compile(r'[0-9+\-*/() ]+')
_SIGNS = (('\\times', '*'), ('\\cdot', '*'), ('\\div', '/'), ('\u00d7', '*'),
          ('\u00b7', '*'), ('\u00f7', '/'), ('\u2192', '->'))
_OPERATIONS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv}


def passes(puzzle: Mapping[str, Any], answer: str) -> bool:
  """Whether `answer`, any text, solves the puzzle.

  Raises:
    ValueError: the puzzle, not the answer, is malformed.
  """
  kind = puzzle.get('kind') if isinstance(puzzle, Mapping) else None
  if kind not in KINDS:
    raise ValueError(
        f'puzzle {puzzle!r:.200} must be a mapping whose kind is one of '
        f'{", ".join(KINDS)}; got kind={kind!r}.')
  if len(answer) > MAX_CHARACTERS:
    return False
  plain = text.unwrap(text.fold(answer))
  for sign, ours in _SIGNS:
    plain = plain.replace(sign, ours)
  try:
    return plain.isascii() and _RULES[kind](puzzle, plain)
  except (KeyError, IndexError, TypeError, StopIteration) as error:
    raise ValueError(
        f'puzzle {dict(puzzle)!r:.200} is no state of kind {kind!r}: '
        f'{error!r}; mmr1/puzzle_rules.py says what each kind has.'
        ) from error


def pieces(answer: str) -> list[str]:
  """Upper-case parts of a list that commas, spaces or arrows take apart."""
  inside = answer.strip()
  if inside[:1] + inside[-1:] in ('[]', '()'):
    inside = inside[1:-1]
  return [part for part in _BREAKS.split(inside.upper()) if part]


def moves(answer: str) -> str | None:
  """'ULD' of 'U,L,D', 'ULD' or 'up -> left -> down'; None: no such list."""
  joined = ''.join(_WORDS.get(part, part) for part in pieces(answer))
  return joined if joined and set(joined) <= set(DIRECTIONS) else None


def slide(board: Sequence[Sequence[int]], move: str) -> Board | None:
  """The board after its gap went one cell; None: there is no such cell."""
  rows = [list(row) for row in board]
  r, c = next((r, row.index(0)) for r, row in enumerate(rows) if 0 in row)
  down, right = DIRECTIONS[move]
  to_r, to_c = r + down, c + right
  if not (0 <= to_r < len(rows) and 0 <= to_c < len(rows[0])):
    return None
  rows[r][c], rows[to_r][to_c] = rows[to_r][to_c], 0
  return tuple(map(tuple, rows))


def in_order(board: Sequence[Sequence[int]]) -> bool:
  """Whether the numbers ascend row by row and the gap is last."""
  *numbers, last = itertools.chain(*board)
  return last == 0 and numbers == sorted(numbers)


def _sliding(puzzle: Mapping[str, Any], answer: str) -> bool:
  board, way = puzzle['board'], moves(answer)
  for move in way or '':
    board = slide(board, move)
    if board is None:
      return False
  return way is not None and in_order(board)


def _maze(puzzle: Mapping[str, Any], answer: str) -> bool:
  way = moves(answer)
  r, c = puzzle['start']
  for move in way or '':
    if move not in puzzle['open'][r][c]:
      return False
    r, c = r + DIRECTIONS[move][0], c + DIRECTIONS[move][1]
  return way is not None and (r, c) == tuple(puzzle['goal'])


def units(side: int) -> Iterator[tuple[str, list[tuple[int, int]]]]:
  """(name, cells) of the rows, columns and boxes of a sudoku."""
  box = math.isqrt(side)
  for k in range(side):
    yield 'row', [(k, j) for j in range(side)]
    yield 'column', [(j, k) for j in range(side)]
    top, left = k // box * box, k % box * box
    yield 'box', [(top + j // box, left + j % box) for j in range(side)]


def _sudoku(puzzle: Mapping[str, Any], answer: str) -> bool:
  givens = puzzle['givens']
  side = len(givens)
  digits = _GRID_MARKS.sub('', answer)
  if len(digits) != side * side or not digits.isdigit():
    return False
  grid = [[int(d) for d in digits[k:k + side]]
          for k in range(0, side * side, side)]
  kept = all(given in (0, own) for row, owns in zip(givens, grid)
             for given, own in zip(row, owns))
  return kept and all(
      {grid[r][c] for r, c in cells} == set(range(1, side + 1))
      for _, cells in units(side))


def _ordering(puzzle: Mapping[str, Any], answer: str) -> bool:
  order = ''.join(pieces(answer))
  if sorted(order) != sorted(puzzle['nodes']):
    return False
  return all(order.index(a) < order.index(b) for a, b in puzzle['edges'])


def _twenty_four(puzzle: Mapping[str, Any], answer: str) -> bool:
  expression = re.sub(rf'\s*=\s*{TARGET}$', '', answer.strip())
  if (len(expression) > MAX_EXPRESSION
      or not _EXPRESSION.fullmatch(expression)):
    return False
  try:
    tree = ast.parse(expression, mode='eval').body
    used = [node.value for node in ast.walk(tree)
            if isinstance(node, ast.Constant)]
    return (sorted(used) == sorted(puzzle['numbers'])
            and value(tree) == TARGET)
  except (SyntaxError, ArithmeticError, MemoryError, RecursionError):
    return False  # no expression, a division by zero, or nested too deep


def value(tree: ast.AST) -> fractions.Fraction:
  """Exact value of + - * / and a minus sign over whole numbers.

  Raises:
    SyntaxError: there is something else in it, such as a power.
    ZeroDivisionError: a division by zero.
  """
  if isinstance(tree, ast.Constant):
    return fractions.Fraction(tree.value)
  if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
    return -value(tree.operand)
  if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATIONS:
    return _OPERATIONS[type(tree.op)](value(tree.left), value(tree.right))
  raise SyntaxError(f'{type(tree).__name__} is not among + - * / and numbers')


def _container(puzzle: Mapping[str, Any], answer: str) -> bool:
  return text.parse_number(answer) == most_water(puzzle['heights'])


def most_water(heights: Sequence[int]) -> int:
  """The most that two bars hold: the lower height times their distance."""
  return max(min(heights[i], heights[j]) * (j - i)
             for i, j in itertools.combinations(range(len(heights)), 2))


_RULES = {
    'sliding': _sliding, 'maze': _maze, 'sudoku': _sudoku,
    'ordering': _ordering, 'twenty_four': _twenty_four,
    'container': _container}
KINDS: Sequence[str] = tuple(_RULES)
