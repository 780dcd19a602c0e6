"""Sudoku of 4 x 4 cells with one solution, found without guessing.

Every blank follows from naked or hidden singles: all other digits are seen
from the cell, or no other cell of a row, column or box can take the digit.
"""

from collections.abc import Mapping
import functools
import itertools
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageDraw

from mmr1 import puzzle_rules
from mmr1.data.tasks import draw
from mmr1.data.tasks import items

SIDE = 4
LEVELS = ((2, 3), (4, 5), (6, 7), (8, 9), (10, 11))  # blanks
QUESTIONS = ('Solve the sudoku.', 'Fill the blanks of the sudoku.')
CAPTION = 'a sudoku of 4 rows and 4 columns'
FORMAT = 'the four rows with / between'
INK, THIN, THICK = (30, 30, 30), (180, 180, 190), (60, 70, 140)

_UNITS = tuple(puzzle_rules.units(SIDE))
_CELLS = tuple(itertools.product(range(SIDE), repeat=2))


@functools.cache
def grids() -> np.ndarray:
  """u8[288, 4, 4]: all solutions there are."""
  found = [()]
  for r in range(SIDE):
    found = [
        (*rows, row) for rows in found
        for row in itertools.permutations(range(1, SIDE + 1))
        if all(row[c] != above[c] for above in rows for c in range(SIDE))
        and (r % 2 == 0 or not (
            set(row[:2]) & set(rows[-1][:2]) or set(row[2:]) & set(rows[-1][2:])
        ))]
  return np.array(found, np.uint8)


def solutions(givens: np.ndarray) -> int:
  """How many grids agree with the givens, i64[4, 4] with 0 for blank."""
  return int(((grids() == givens) | (givens == 0)).all((1, 2)).sum())


def _step(grid: np.ndarray) -> tuple[tuple[int, int], int, str] | None:
  """(cell, digit, why) of one blank that follows at once, or None."""
  can = {}
  for cell in _CELLS:
    if not grid[cell]:
      seen = {int(grid[c]) for _, cells in _UNITS if cell in cells
              for c in cells}
      can[cell] = set(range(1, SIDE + 1)) - seen
      if len(can[cell]) == 1:
        return cell, min(can[cell]), 'sees ' + ''.join(
            str(d) for d in sorted(seen - {0}))
  for name, cells in _UNITS:
    for digit in range(1, SIDE + 1):
      fits = [c for c in cells if digit in can.get(c, ())]
      if len(fits) == 1:
        return fits[0], digit, f'alone in {name}'
  return None


def _fill(givens: tuple[tuple[int, ...], ...]):
  """(the full grid or None where singles do not suffice, steps)."""
  grid, steps = np.array(givens), []
  while (grid == 0).any():
    found = _step(grid)
    if found is None:
      return None, ()
    (r, c), digit, why = found
    grid[r, c] = digit
    steps.append(f'r{r + 1}c{c + 1} {why}={digit}')
  return grid, tuple(steps)


def state(rng: np.random.Generator, level: int) -> dict[str, Any]:
  """Givens with one solution and as many blanks as the level asks."""
  few, most = LEVELS[level - 1]
  while True:
    givens = items.pick(rng, grids()).astype(int)
    wanted = int(rng.integers(few, most + 1))
    for cell in map(_CELLS.__getitem__, rng.permutation(len(_CELLS))):
      if (givens == 0).sum() == wanted:
        break
      digit, givens[cell] = int(givens[cell]), 0
      if solutions(givens) > 1:
        givens[cell] = digit
    rows = tuple(map(tuple, givens.tolist()))
    if (givens == 0).sum() == wanted and _fill(rows)[0] is not None:
      return {'givens': rows}


def content(puzzle: Mapping[str, Any]) -> str:
  """What the splits divide: solutions, so that no answer recurs either."""
  return shown(_fill(puzzle['givens'])[0])


def shown(grid) -> str:
  """'1_34/...' of rows of digits, 0 for blank."""
  return '/'.join(''.join(str(n or '_') for n in row) for row in grid)


def solve(
    puzzle: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
  """(the answer, facts, steps): every blank in the order it follows.

  Raises:
    ValueError: singles do not suffice; none that `state` draws.
  """
  grid, steps = _fill(puzzle['givens'])
  if grid is None:
    raise ValueError(
        f'sudoku {shown(puzzle["givens"])} needs guessing; allowed are those '
        'that naked and hidden singles solve.')
  answer = shown(grid)
  return (answer, (f'grid {shown(puzzle["givens"])}',),
          (*steps, f'rows={answer}'))


def render(rng: np.random.Generator, puzzle: Mapping[str, Any]) -> Image.Image:
  """64 x 64 pixels: thin lines between cells, thick ones between boxes."""
  image = draw.canvas(rng, SIDE, SIDE)
  pen = ImageDraw.Draw(image)
  full = SIDE * draw.CELL - 1
  for k in (1, 3, 2):  # the thick one last
    at = k * draw.CELL
    for line in ((at, 0, at, full), (0, at, full, at)):
      pen.line(line, THICK if k == 2 else THIN)
      if k == 2:
        pen.line([n - (n == at) for n in line], THICK)
  pen.rectangle((0, 0, full, full), None, THICK)
  ink = draw.tint(rng, INK, 20)
  for (r, c) in _CELLS:
    if puzzle['givens'][r][c]:
      shift = (int(rng.integers(-1, 2)), 0)
      draw.glyph(image, str(puzzle['givens'][r][c]), r, c, shift, ink)
  return image
