"""Topological order of a small graph: arrows say what comes before what.

Letters stand at the corners of a convex figure, each inside its own cell, so
that no arrow touches a letter that it does not belong to.
"""

from collections.abc import Mapping
import itertools
import math
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageDraw

from mmr1.data.tasks import draw

LETTERS = 'ABCDEFGH'
LEVELS = ((3, 2), (4, 4), (5, 5), (6, 6), (6, 9))  # nodes, arrows
QUESTIONS = (
    'Order the letters so that every arrow points to a later one.',
    'List the letters so that all arrows point forward.')
CAPTION = 'letters joined by arrows'
FORMAT = 'letters with commas'
INK, SHAFT, HEAD = (30, 30, 30), (90, 120, 200), (210, 50, 40)
CLEAR = 10  # pixels between the middle of a letter and an arrow
TIP = 7  # pixels, length and width of an arrow's head

# Cells (row, column) of the letters, and the side of the picture in cells.
_PLACES = {
    4: (4, ((0, 0), (0, 3), (3, 3), (3, 0))),
    5: (5, ((0, 2), (1, 4), (4, 4), (4, 0), (1, 0))),
    6: (6, ((0, 1), (0, 4), (2, 5), (5, 4), (5, 1), (2, 0))),
}


def state(rng: np.random.Generator, level: int) -> dict[str, Any]:
  """A graph without isolated letters, and where the letters stand."""
  count, arrows = LEVELS[level - 1]
  order = [LETTERS[k] for k in rng.permutation(len(LETTERS))[:count]]
  pairs = list(itertools.combinations(order, 2))
  while True:
    edges = [pairs[k] for k in rng.permutation(len(pairs))[:arrows]]
    if {letter for pair in edges for letter in pair} == set(order):
      break
  side, places = _PLACES[max(count, 4)]
  turn, flip = rng.integers(4), rng.integers(2)
  cells = []
  for k in rng.permutation(len(places))[:count]:
    r, c = places[k]
    for _ in range(turn):
      r, c = c, side - 1 - r
    cells.append((r, side - 1 - c) if flip else (r, c))
  return {'nodes': tuple(sorted(order)), 'edges': tuple(sorted(edges)),
          'places': dict(zip(sorted(order), cells)), 'side': side}


def content(puzzle: Mapping[str, Any]) -> str:
  """What the splits divide: the graph with its letters, wherever they are."""
  return ' '.join(map('>'.join, puzzle['edges']))


def solve(
    puzzle: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
  """(the first order by alphabet, facts, steps): what is free each time."""
  edges, left = puzzle['edges'], list(puzzle['nodes'])
  order, steps = [], []
  while left:
    free = [n for n in left if not any(
        b == n and a in left for a, b in edges)]
    steps.append(f'free {"".join(free)}={free[0]}')
    order.append(free[0])
    left.remove(free[0])
  answer = ','.join(order)
  return answer, tuple(map('>'.join, edges)), (*steps, f'order={answer}')


def render(rng: np.random.Generator, puzzle: Mapping[str, Any]) -> Image.Image:
  """64 to 96 pixels a side: letters, and arrows with red heads."""
  image = draw.canvas(rng, puzzle['side'], puzzle['side'])
  pen = ImageDraw.Draw(image)
  middle = {n: (draw.CELL * c + draw.CELL / 2, draw.CELL * r + draw.CELL / 2)
            for n, (r, c) in puzzle['places'].items()}
  shaft, tip = draw.tint(rng, SHAFT, 12), draw.tint(rng, HEAD, 12)
  heads = []
  for a, b in puzzle['edges']:
    (x, y), (to_x, to_y) = middle[a], middle[b]
    far = math.dist((x, y), (to_x, to_y))
    ux, uy = (to_x - x) / far, (to_y - y) / far
    end = to_x - CLEAR * ux, to_y - CLEAR * uy
    back = end[0] - TIP * ux, end[1] - TIP * uy
    pen.line([(x + CLEAR * ux, y + CLEAR * uy), back], shaft, width=2)
    half = TIP / 2
    heads.append([end, (back[0] - half * uy, back[1] + half * ux),
                  (back[0] + half * uy, back[1] - half * ux)])
  for head in heads:  # above all shafts
    pen.polygon(head, tip)
  ink = draw.tint(rng, INK, 20)
  for letter, (r, c) in puzzle['places'].items():
    draw.glyph(image, letter, r, c, (0, 0), ink)
  return image
