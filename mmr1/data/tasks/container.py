"""Container with most water: which two bars hold the most between them?

Bars stand in neighbouring columns of 16 pixels and are whole cells high; faint
lines mark the heights. Two bars hold the lower height times their distance.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageDraw

from mmr1.data.tasks import draw

LEVELS = ((4, 3), (4, 4), (5, 4), (5, 5), (6, 6))  # bars, greatest height
QUESTIONS = (
    'Two bars hold the lower height times their distance. '
    'What is the most?',
    'Water between two bars: lower height times distance. Find the most.')
CAPTION = 'a row of bars'
FORMAT = 'a number'
BAR, LINE = (50, 100, 200), (190, 190, 190)
MARGIN = 4  # pixels between a bar and the edges of its column


def state(rng: np.random.Generator, level: int) -> dict[str, Any]:
  """Heights from 1, in cells."""
  bars, tallest = LEVELS[level - 1]
  return {'heights': tuple(rng.integers(1, tallest + 1, bars).tolist()),
          'rows': tallest}


def content(puzzle: Mapping[str, Any]) -> str:
  """What the splits divide: the heights."""
  return str(puzzle['heights'])


def solve(
    puzzle: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
  """(the most water, facts, steps): from the outer bars inwards.

  With the lower of two bars nothing narrower holds more, so it is left behind.
  """
  heights = puzzle['heights']
  i, j, most, steps = 0, len(heights) - 1, 0, []
  while i < j:
    low = min(heights[i], heights[j])
    water = low * (j - i)
    most = max(most, water)
    steps.append(f'{i + 1}-{j + 1} {low}*{j - i}={water}')
    if heights[i] <= heights[j]:
      i += 1
    else:
      j -= 1
  return (str(most), (f'heights {",".join(map(str, heights))}',),
          (*steps, f'most={most}'))


def render(rng: np.random.Generator, puzzle: Mapping[str, Any]) -> Image.Image:
  """48 to 96 pixels high, 64 to 96 wide."""
  rows, heights = puzzle['rows'], puzzle['heights']
  image = draw.canvas(rng, rows, len(heights))
  pen = ImageDraw.Draw(image)
  for k in range(rows):
    pen.line((0, k * draw.CELL, image.width, k * draw.CELL), LINE)
  fill = draw.tint(rng, BAR, 12)
  for c, height in enumerate(heights):
    left = c * draw.CELL + MARGIN
    pen.rectangle(
        (left, image.height - height * draw.CELL,
         left + draw.CELL - 2 * MARGIN - 1, image.height), fill)
  return image
