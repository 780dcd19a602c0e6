"""Maze of 4 x 4 cells with thin walls, from S to G.

A random spanning tree with up to two more openings, so that some mazes have
several ways. A step is the move to a neighbouring cell.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageDraw

from mmr1 import puzzle_rules
from mmr1.data.tasks import draw
from mmr1.data.tasks import items

SIDE = 4
LEVELS = ((2, 3), (4, 5), (6, 7), (8, 9), (10, 12))  # fewest steps
QUESTIONS = (
    'Find the way from S to G.', 'Which moves lead from S to G?')
CAPTION = 'a maze of 4 rows and 4 columns'
FORMAT = 'letters of U, D, L, R with commas'
WALL, START, GOAL = (30, 30, 30), (20, 120, 50), (200, 40, 40)

_CELLS = tuple((r, c) for r in range(SIDE) for c in range(SIDE))


def _next(cell: tuple[int, int], move: str) -> tuple[int, int]:
  down, right = puzzle_rules.DIRECTIONS[move]
  return cell[0] + down, cell[1] + right


def _pairs() -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
  """All pairs of neighbouring cells."""
  return tuple((cell, _next(cell, move)) for cell in _CELLS for move in 'DR'
               if _next(cell, move) in _CELLS)


def ways(
    open_: tuple[tuple[str, ...], ...], start: tuple[int, int],
) -> dict[tuple[int, int], str]:
  """A shortest way from `start` to every cell that can be reached."""
  found, edge = {start: ''}, [start]
  while edge:
    reached = []
    for cell in edge:
      for move in open_[cell[0]][cell[1]]:
        other = _next(cell, move)
        if other not in found:
          found[other] = found[cell] + move
          reached.append(other)
    edge = reached
  return found


def _walls(rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
  """`open` of a random tree (Kruskal's) with up to two openings more."""
  pairs, group, joined, rest = _pairs(), {c: c for c in _CELLS}, set(), []
  for k in rng.permutation(len(pairs)):
    a, b = (group[cell] for cell in pairs[k])
    if a == b:
      rest.append(pairs[k])
      continue
    joined.add(pairs[k])
    group = {cell: a if own == b else own for cell, own in group.items()}
  joined |= set(rest[:int(rng.integers(3))])
  return tuple(
      tuple(''.join(
          move for move in puzzle_rules.DIRECTIONS
          if {((r, c), _next((r, c), move)), (_next((r, c), move), (r, c))}
          & joined) for c in range(SIDE)) for r in range(SIDE))


def state(rng: np.random.Generator, level: int) -> dict[str, Any]:
  """A maze whose shortest way has as many steps as the level asks."""
  few, most = LEVELS[level - 1]
  while True:
    open_ = _walls(rng)
    ends = [(start, goal) for start in _CELLS
            for goal, way in ways(open_, start).items()
            if few <= len(way) <= most]
    if ends:
      start, goal = items.pick(rng, ends)
      return {'open': open_, 'start': start, 'goal': goal}


def content(puzzle: Mapping[str, Any]) -> str:
  """What the splits divide: walls, start and goal."""
  return f'{puzzle["open"]},{puzzle["start"]},{puzzle["goal"]}'


def named(cell: tuple[int, int]) -> str:
  """'r1c2', counted from 1."""
  return f'r{cell[0] + 1}c{cell[1] + 1}'


def solve(
    puzzle: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
  """(a shortest answer, facts, steps): the cell after every step."""
  cell = puzzle['start']
  way = ways(puzzle['open'], cell)[puzzle['goal']]
  steps = []
  for move in way:
    cell = _next(cell, move)
    steps.append(f'{move}={named(cell)}')
  answer = ','.join(way)
  facts = (f'S {named(puzzle["start"])}', f'G {named(puzzle["goal"])}',
           f'open {"/".join(" ".join(row) for row in puzzle["open"])}')
  return answer, facts, (*steps, f'moves={answer}')


def render(rng: np.random.Generator, puzzle: Mapping[str, Any]) -> Image.Image:
  """64 x 64 pixels: walls two pixels thick, half in each cell."""
  image = draw.canvas(rng, SIDE, SIDE)
  for name, cell, ink in (
      ('S', puzzle['start'], START), ('G', puzzle['goal'], GOAL)):
    draw.glyph(image, name, *cell, (0, 0), draw.tint(rng, ink, 15))
  pen = ImageDraw.Draw(image)
  wall = draw.tint(rng, WALL, 10)
  end = draw.CELL - 1
  for r, c in _CELLS:
    x, y = c * draw.CELL, r * draw.CELL
    lines = {'U': (x, y, x + end, y), 'D': (x, y + end, x + end, y + end),
             'L': (x, y, x, y + end), 'R': (x + end, y, x + end, y + end)}
    for move, line in lines.items():
      if move not in puzzle['open'][r][c]:
        pen.line(line, wall)
  return image
