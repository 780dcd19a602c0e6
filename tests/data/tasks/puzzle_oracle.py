"""Puzzles judged without the rules' own code, for the tests of worlds.

Boards are moved by list indices, walls and arrows read from pixels, sudokus and
orders counted by trying all, expressions evaluated by Python.
"""

import fractions
import functools
import itertools
import re

import numpy as np

from mmr1.data.tasks import draw

# What a picture shows, from its pixels alone.


def crop(mask):
  ys, xs = np.nonzero(mask)
  return mask[ys.min():ys.max() + 1, xs.min():xs.max() + 1].tobytes()


GLYPHS = {crop(draw.bitmap(char)): char for char in draw.FONT}


def pixels(example):
  return np.asarray(example.images[0]).astype(int)


def glyphs(mask):
  """Rows of characters, '' where a cell has no ink."""
  rows = []
  for r in range(mask.shape[0] // 16):
    cells = [mask[16 * r:16 * r + 16, 16 * c:16 * c + 16]
             for c in range(mask.shape[1] // 16)]
    rows.append([GLYPHS[crop(cell)] if cell.any() else '' for cell in cells])
  return rows


def dark(pixels):
  return pixels.max(axis=2) < 70


def board(example):
  shown = glyphs(dark(pixels(example)))
  return tuple(tuple(int(n or 0) for n in row) for row in shown)


def maze(example):
  """({cell: moves}, start, goal); a wall is dark on both sides of an edge."""
  image = pixels(example)
  wall, ends = dark(image), {}
  for name, own, other in (('S', 1, 0), ('G', 0, 1)):
    ink = image[..., own] - image[..., other] > 60
    ends.update({cell: (r, c) for r, row in enumerate(glyphs(ink))
                 for c, cell in enumerate(row) if cell})
    assert name in ends
  moves = {}
  for r, c in itertools.product(range(4), repeat=2):
    y, x = 16 * r, 16 * c
    sides = {'U': wall[y, x + 1:x + 15], 'D': wall[y + 15, x + 1:x + 15],
             'L': wall[y + 1:y + 15, x], 'R': wall[y + 1:y + 15, x + 15]}
    assert all(side.all() or not side.any() for side in sides.values())
    moves[r, c] = {move for move, side in sides.items() if not side.any()}
  assert len(ends) == 2
  return moves, ends['S'], ends['G']


def graph(example):
  """(letters, {(before, after)}): an arrow's head is red before its letter."""
  image = pixels(example)
  red = (image[..., 0] > 150) & (image[..., 1:].max(axis=2) < 90)
  blue = (image[..., 2] > 180) & (image[..., 0] < 130)
  at = {letter: (16 * c + 8, 16 * r + 8)
        for r, row in enumerate(glyphs(dark(image)))
        for c, letter in enumerate(row) if letter}
  edges = set()
  for a, b in itertools.permutations(at, 2):
    start, end = np.array(at[a]), np.array(at[b])
    way = (end - start) / np.linalg.norm(end - start)
    near, far = end - 14 * way, start + 13 * way
    if red[round(near[1]), round(near[0])]:
      x, y = far.round().astype(int)
      assert (blue | red)[y - 1:y + 2, x - 1:x + 2].any(), 'no shaft'
      edges.add((a, b))
  return sorted(at), edges


def heights(example):
  image = pixels(example)
  bars = image[..., 2] - image[..., 0] > 100
  heights = [bars[:, 16 * c + 8].sum() for c in range(bars.shape[1] // 16)]
  assert all(h % 16 == 0 for h in heights)
  return [int(h) // 16 for h in heights]


# What is right, by other means.


def slid(board, answer):
  """The board after the moves, by indices of a flat list; None if illegal."""
  flat = [n for row in board for n in row]
  for move in answer:
    at = flat.index(0)
    if (move == 'L' and at % 3 == 0 or move == 'R' and at % 3 == 2
        or move == 'U' and at < 3 or move == 'D' and at > 2):
      return None
    to = at + {'L': -1, 'R': 1, 'U': -3, 'D': 3}[move]
    flat[at], flat[to] = flat[to], 0
  return flat


def wins(board, answer):
  flat = slid(board, answer)
  return flat is not None and flat == sorted(flat)[1:] + [0]


def walks(maze, answer):
  moves, (r, c), goal = maze
  for move in answer:
    if move not in moves[r, c]:
      return False
    r += (move == 'D') - (move == 'U')
    c += (move == 'R') - (move == 'L')
  return (r, c) == goal


def fewest(start, follow, done):
  """Breadth-first search over anything hashable."""
  seen, edge, depth = {start}, [start], 0
  while edge:
    if any(map(done, edge)):
      return depth
    edge = [n for n in dict.fromkeys(
        n for one in edge for n in follow(one)) if n not in seen]
    seen.update(edge)
    depth += 1


def fewest_slides(board):
  goal = sorted(n for row in board for n in row)[1:] + [0]
  def follow(flat):
    rows = flat[:3], flat[3:]
    return [tuple(new) for m in 'UDLR' if (new := slid(rows, m)) is not None]
  return fewest(sum(board, ()), follow, lambda flat: list(flat) == goal)


def fewest_steps(maze):
  moves, start, goal = maze
  step = {'U': (-1, 0), 'D': (1, 0), 'L': (0, -1), 'R': (0, 1)}
  follow = lambda cell: [
      (cell[0] + step[m][0], cell[1] + step[m][1]) for m in moves[cell]]
  return fewest(start, follow, lambda cell: cell == goal)


def completions(givens):
  """All full grids of a sudoku, blank after blank."""
  grid = [list(row) for row in givens]
  blank = next((k for k in range(16) if not grid[k // 4][k % 4]), None)
  if blank is None:
    return [grid]
  r, c = divmod(blank, 4)
  found = []
  for digit in range(1, 5):
    clash = any(
        digit == grid[y][x] for y, x in itertools.product(range(4), repeat=2)
        if y == r or x == c or (y // 2, x // 2) == (r // 2, c // 2))
    if not clash:
      grid[r][c] = digit
      found += completions(grid)
  return found


def orders(letters, edges):
  return [order for order in itertools.permutations(letters) if all(
      order.index(a) < order.index(b) for a, b in edges)]


def value(expression):
  exact = re.sub(r'\d+', r'F(\g<0>)', expression)
  return eval(exact, {'F': fractions.Fraction})


@functools.cache
def cheapest(numbers):
  """Least cost of 24 by taking any two numbers together, or None."""
  if len(numbers) == 1:
    return 0 if numbers[0] == 24 else None
  costs = []
  for i, j in itertools.permutations(range(len(numbers)), 2):
    x, y = map(fractions.Fraction, (numbers[i], numbers[j]))
    rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
    for price, value in ((1, x + y), (2, x - y), (3, x * y),
                         (4, x / y if y else None)):
      further = (None if value is None else
                 cheapest(tuple(sorted([*rest, value]))))
      if further is not None:
        costs.append(price + 4 * (value.denominator > 1) + further)
  return min(costs, default=None)
