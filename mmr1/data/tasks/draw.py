"""Drawing for the procedural tasks: canvas, flat shapes, pixel glyphs.

Everything keeps to a grid of 16-pixel cells, the area that one visual token of
the embedded model covers (8-pixel patches, merged 2x2).
"""

import numpy as np
from PIL import Image
from PIL import ImageDraw

CELL = 16
GLYPH_SCALE = 2  # 5x7 bitmaps become 10x14 pixels, inside one cell

# Rows of five pixels, top to bottom.
FONT = {
    '0': '01110 10001 10011 10101 11001 10001 01110',
    '1': '00100 01100 00100 00100 00100 00100 01110',
    '2': '01110 10001 00001 00110 01000 10000 11111',
    '3': '11110 00001 00001 01110 00001 00001 11110',
    '4': '00010 00110 01010 10010 11111 00010 00010',
    '5': '11111 10000 11110 00001 00001 10001 01110',
    '6': '00110 01000 10000 11110 10001 10001 01110',
    '7': '11111 00001 00010 00100 01000 01000 01000',
    '8': '01110 10001 10001 01110 10001 10001 01110',
    '9': '01110 10001 10001 01111 00001 00010 01100',
    'A': '01110 10001 10001 11111 10001 10001 10001',
    'B': '11110 10001 10001 11110 10001 10001 11110',
    'C': '01110 10001 10000 10000 10000 10001 01110',
    'D': '11110 10001 10001 10001 10001 10001 11110',
    'E': '11111 10000 10000 11110 10000 10000 11111',
    'F': '11111 10000 10000 11110 10000 10000 10000',
    'G': '01110 10001 10000 10111 10001 10001 01110',
    'H': '10001 10001 10001 11111 10001 10001 10001',
    'S': '01111 10000 10000 01110 00001 00001 11110',
    '?': '01110 10001 00001 00110 00100 00000 00100',
}


def bitmap(char: str) -> np.ndarray:
  """bool[14, 10], the pixels of a glyph that carry ink."""
  rows = np.array([[c == '1' for c in row] for row in FONT[char].split()])
  return np.kron(rows, np.ones((GLYPH_SCALE, GLYPH_SCALE), bool))


_MASKS = {
    char: Image.fromarray(bitmap(char).astype(np.uint8) * 255)
    for char in FONT}


def canvas(rng: np.random.Generator, rows: int, columns: int) -> Image.Image:
  """A light background of `rows` x `columns` cells with faint grey noise."""
  level = int(rng.integers(234, 251))
  grey = rng.integers(
      level - 3, level + 4, (rows * CELL, columns * CELL), dtype=np.uint8)
  return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


def tint(
    rng: np.random.Generator, rgb: tuple[int, int, int], spread: int
) -> tuple[int, int, int]:
  """`rgb` with each channel moved by at most `spread`."""
  moved = np.clip(rgb + rng.integers(-spread, spread + 1, 3), 0, 255)
  return tuple(moved.tolist())


def shape(
    image: Image.Image, kind: str, box: tuple[int, int, int, int],
    fill: tuple[int, int, int]) -> None:
  """Paints a flat circle, square, triangle or cross that fills `box`.

  Args:
    image: RGB, changed in place.
    kind: 'circle', 'square', 'triangle' (apex up) or 'cross' (upright).
    box: left, top, right, bottom pixel, all inside the shape.
    fill: its colour.
  """
  pen = ImageDraw.Draw(image)
  left, top, right, bottom = box
  if kind == 'circle':
    pen.ellipse(box, fill)
  elif kind == 'square':
    pen.rectangle(box, fill)
  elif kind == 'triangle':
    middle = (left + right) / 2
    pen.polygon([(middle, top), (right, bottom), (left, bottom)], fill)
  elif kind == 'cross':
    margin = round((right - left + 1) / 3)
    pen.rectangle((left + margin, top, right - margin, bottom), fill)
    pen.rectangle((left, top + margin, right, bottom - margin), fill)
  else:
    raise ValueError(
        f'shape {kind!r} cannot be drawn; allowed: circle, square, triangle, '
        'cross.')


def glyph(
    image: Image.Image, char: str, row: int, column: int,
    shift: tuple[int, int], ink: tuple[int, int, int]) -> None:
  """Writes one character into a cell.

  Args:
    image: RGB, changed in place.
    char: a key of `FONT`.
    row: of the cell, from 0 at the top.
    column: of the cell, from 0 at the left.
    shift: (x, y) from the middle of the cell; |x| <= 3 and |y| <= 1 stay
      inside it.
    ink: its colour.
  """
  mask = _MASKS[char]
  left = column * CELL + (CELL - mask.width) // 2 + shift[0]
  top = row * CELL + (CELL - mask.height) // 2 + shift[1]
  image.paste(ink, (left, top), mask)
