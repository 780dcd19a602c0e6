"""Where the lines and labels of a geometry figure go on a 4x4 grid of cells.

Every layout is drawn in one standard pose and then mirrored or transposed at
random. A layout is a dict with

  values: the numbers that are shown, in reading order: horizontal side before
    vertical side; along the figure from the left, or from the top.
  lines: polylines, each a tuple of (x, y) pixels; their cells carry no label.
  labels: (text, row, column) of each number; a further digit goes into the
    next cell to the right.
  marks: the same for letters and the question mark.
"""

from typing import Any

import numpy as np

from mmr1.data.tasks import draw
from mmr1.data.tasks import items

ROWS = 4
_SIZE = ROWS * draw.CELL
_INSET = 3  # pixels between a line and the border of its cells

Layout = dict[str, Any]
Cells = list[tuple[str, int, int]]


def _pose(
    lines: list, labels: Cells, marks: Cells, *, transpose: bool,
    flip_x: bool, flip_y: bool,
) -> tuple[tuple, tuple, tuple]:
  """Transposes, then mirrors; a label keeps its digits left to right."""
  def point(x, y):
    x, y = (y, x) if transpose else (x, y)
    return (_SIZE - 1 - x if flip_x else x, _SIZE - 1 - y if flip_y else y)

  def cell(text, row, column):
    row, column = (column, row) if transpose else (row, column)
    return (text, ROWS - 1 - row if flip_y else row,
            ROWS - len(text) - column if flip_x else column)

  return (
      tuple(tuple(point(*p) for p in line) for line in lines),
      tuple(cell(*label) for label in labels),
      tuple(cell(*mark) for mark in marks))


def _layout(rng, lines, labels, marks, *, may_transpose: bool) -> Layout:
  transpose = may_transpose and bool(rng.integers(2))
  flip_x, flip_y = (bool(flag) for flag in rng.integers(2, size=2))
  lines, labels, marks = _pose(
      lines, labels, marks, transpose=transpose, flip_x=flip_x, flip_y=flip_y)
  labels = tuple(sorted(
      labels, key=lambda label: label[1] if transpose else label[2]))
  return {
      'values': tuple(int(text) for text, _, _ in labels), 'lines': lines,
      'labels': labels, 'marks': marks}


def box(
    rng: np.random.Generator, sides: tuple[int, int], shown: tuple[bool, bool]
) -> Layout:
  """A rectangle, or a square where both sides are equal.

  Args:
    rng: source of the placement.
    sides: horizontal and vertical length.
    shown: which of the two carries its label.
  """
  across, down = sides
  wide = 3 if across > down else 2
  high = 3 if down > across else 2
  if across == down:
    wide = high = int(rng.integers(2, 4))
  low = draw.CELL + _INSET
  right = draw.CELL * (1 + wide) - _INSET - 1
  bottom = draw.CELL * (1 + high) - _INSET - 1
  outline = [(low, low), (right, low), (right, bottom), (low, bottom),
             (low, low)]
  # The label of a side of three cells is at its middle one.
  column = 2 if wide == 3 else int(rng.integers(1, 3))
  row = 2 if high == 3 else int(rng.integers(1, 3))
  labels = [(str(across), 0, column), (str(down), row, 0)]
  layout = _layout(
      rng, [outline], [label for label, s in zip(labels, shown) if s], [],
      may_transpose=False)
  layout['values'] = tuple(side for side, s in zip(sides, shown) if s)
  return layout


def triangle(rng: np.random.Generator, angles: tuple[int, int]) -> Layout:
  """A triangle with two angles beside their corners and ? at the third."""
  top, bottom = draw.CELL + _INSET, 3 * draw.CELL - _INSET - 1
  left, right = _INSET, _SIZE - 1 - _INSET
  column = int(rng.integers(2, 4))
  third = right if column == 3 else column * draw.CELL + 6
  outline = [(left, bottom), (right, top), (third, bottom), (left, bottom)]
  return _layout(
      rng, [outline], [(str(angles[0]), 3, 0), (str(angles[1]), 0, 2)],
      [('?', 3, column)], may_transpose=False)


def segment(rng: np.random.Generator, parts: tuple[int, int]) -> Layout:
  """A segment from A to B with C between, a length beside each part."""
  # Columns of C and of the two labels: one column stays free between these.
  middle, first, second = items.pick(
      rng, ((1, 0, 2), (1, 0, 3), (2, 0, 3), (2, 1, 3)))
  y = 2 * draw.CELL + 8
  ends = (6, middle * draw.CELL + 8, _SIZE - 7)
  lines = [((ends[0], y), (ends[2], y))]
  lines += [((x, y - 4), (x, y + 4)) for x in ends]
  labels = [(str(parts[0]), 1, first), (str(parts[1]), 1, second)]
  marks = [('A', 3, 0), ('C', 3, middle), ('B', 3, 3)]
  return _layout(rng, lines, labels, marks, may_transpose=True)


def path(rng: np.random.Generator, parts: tuple[int, int, int]) -> Layout:
  """Three sides of a box, open at the top, a length beside each."""
  left, right = draw.CELL + _INSET, 3 * draw.CELL - _INSET - 1
  top = _INSET + int(rng.integers(2)) * draw.CELL
  bottom = 3 * draw.CELL - _INSET - 1
  lines = [((left, top), (left, bottom), (right, bottom), (right, top))]
  labels = [
      (str(parts[0]), int(rng.integers(1, 3)), 0),
      (str(parts[1]), 3, int(rng.integers(1, 3))),
      (str(parts[2]), int(rng.integers(1, 3)), 3)]
  return _layout(rng, lines, labels, [], may_transpose=True)
