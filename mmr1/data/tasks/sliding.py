"""Sliding puzzle of 2 x 3 cells: five numbered tiles and a gap.

The tiles carry five different digits of 1..9, since boards of fixed numbers
would be only 360, too few to keep the splits apart. Boards of every distance
from the goal are known from one breadth-first search.
"""

from collections.abc import Mapping
import functools
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageDraw

from mmr1 import puzzle_rules
from mmr1.data.tasks import draw
from mmr1.data.tasks import items

ROWS, COLUMNS = 2, 3
LEVELS = ((1, 2), (3, 4), (5, 7), (8, 11), (12, 16))  # fewest moves
QUESTIONS = (
    'Put the tiles in ascending order, the gap last. Moves of the gap?',
    'Move the gap until the tiles ascend row by row and it is last.')
CAPTION = 'a sliding puzzle'
FORMAT = 'letters of U, D, L, R with commas'
TILE, EDGE, GAP, INK = (
    (250, 224, 150), (150, 110, 40), (90, 90, 100), (30, 30, 30))

_GOAL = ((1, 2, 3), (4, 5, 0))


@functools.cache
def distances() -> Mapping[puzzle_rules.Board, int]:
  """Fewest moves to the goal, of the 360 boards of the tiles 1..5."""
  found, edge = {_GOAL: 0}, [_GOAL]
  while edge:
    reached = []
    for board in edge:
      for move in puzzle_rules.DIRECTIONS:
        other = puzzle_rules.slide(board, move)
        if other is not None and other not in found:
          found[other] = found[board] + 1
          reached.append(other)
    edge = reached
  return found


@functools.cache
def _boards(level: int) -> tuple[puzzle_rules.Board, ...]:
  few, most = LEVELS[level - 1]
  return tuple(b for b, d in distances().items() if few <= d <= most)


def state(rng: np.random.Generator, level: int) -> dict[str, Any]:
  """A board whose shortest solution has as many moves as the level asks."""
  ranks = items.pick(rng, _boards(level))
  labels = (0, *sorted((rng.permutation(9)[:5] + 1).tolist()))
  return {'board': tuple(tuple(labels[n] for n in row) for row in ranks)}


def content(puzzle: Mapping[str, Any]) -> str:
  """What the splits divide: the board."""
  return shown(puzzle['board'])


def shown(board: puzzle_rules.Board) -> str:
  """'41_/253'."""
  return '/'.join(''.join(str(n or '_') for n in row) for row in board)


def solve(
    puzzle: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
  """(a shortest answer, facts, steps): the board after every move."""
  board = puzzle['board']
  labels = sorted(n for row in board for n in row)
  ranks = tuple(tuple(labels.index(n) for n in row) for row in board)
  way, steps = [], []
  while distances()[ranks]:
    for move in puzzle_rules.DIRECTIONS:
      other = puzzle_rules.slide(ranks, move)
      if other and distances()[other] < distances()[ranks]:
        break
    ranks, board = other, puzzle_rules.slide(board, move)
    way.append(move)
    steps.append(f'{move}={shown(board)}')
  answer = ','.join(way)
  return (answer, (f'board {shown(puzzle["board"])}',),
          (*steps, f'moves={answer}'))


def render(rng: np.random.Generator, puzzle: Mapping[str, Any]) -> Image.Image:
  """32 x 48 pixels: tiles with dark digits, the gap dark."""
  image = draw.canvas(rng, ROWS, COLUMNS)
  pen = ImageDraw.Draw(image)
  tile = draw.tint(rng, TILE, 8)
  for r, row in enumerate(puzzle['board']):
    for c, number in enumerate(row):
      x, y = c * draw.CELL, r * draw.CELL
      box = (x, y, x + draw.CELL - 1, y + draw.CELL - 1)
      pen.rectangle(box, tile if number else GAP, EDGE)
      if number:
        shift = (int(rng.integers(-1, 2)), 0)
        draw.glyph(image, str(number), r, c, shift, INK)
  return image
