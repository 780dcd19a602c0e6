"""Where things are: rotary positions, patch order and windows of Qwen VLs.

Pure numpy, used by the encoder inside data workers and by tests of the model.
A grid is `(t, h, w)`: frames and patches down and across. A cell is the
`merge x merge` block of patches that becomes one prompt token. Two orders of
a grid's patches occur:

  file order    the order of the image processor: frame by frame, cells row by
                row, the patches of a cell contiguous;
  window order  attention window by window (frame, window row, window column),
                each window padded to `window_cells^2` cells, so that window
                attention is a reshape. Cells stay contiguous.
"""

import math
from collections.abc import Sequence

import numpy as np

Grid = tuple[int, int, int]
Span = tuple[int, int, int, float | None]
RULES = ('legacy', 'v5')
_MAX_ASPECT = 200


def rope_index(
    tokens: Sequence[int] | np.ndarray,
    grids: Sequence[Span],
    *,
    image_id: int,
    video_id: int,
    merge: int,
    tokens_per_second: int | float,
    rule: str = 'legacy',
) -> tuple[np.ndarray, int]:
  """Returns the three rotary positions of every prompt token.

  Text counts up, the same on all three rows. A grid that starts at `cur` gives
  its cells `cur + (floor(frame * interval), row, column)`, with `interval =
  tokens_per_second * seconds_per_grid` for a video and 1 for an image (in
  float32, as transformers computes it). Text goes on at

    'legacy': the largest position so far + 1 (transformers <= 4.57, what the
              released checkpoints were trained with);
    'v5':     `cur + max(h, w) // merge` (transformers 5).

  They differ only when a video lasts longer than it is wide or high.

  Args:
    tokens: i32[p], one unpadded prompt.
    grids: `(t, h, w, seconds_per_grid)` of every image and video, in order of
      appearance; `seconds_per_grid` is None for an image.
    image_id: placeholder token of an image's cells.
    video_id: placeholder token of a video's cells.
    merge: patches per cell along each side.
    tokens_per_second: temporal positions per second of video.
    rule: 'legacy' or 'v5'.

  Returns:
    positions i32[p, 3] (time, height, width) and the position of the first
    token after the prompt (the largest position + 1 under both rules).

  Raises:
    ValueError: the placeholders in `tokens` do not match `grids`.
  """
  if rule not in RULES:
    raise ValueError(f'rule {rule!r}: allowed are {RULES}.')
  tokens = np.asarray(tokens)
  placeholders = np.flatnonzero((tokens == image_id) | (tokens == video_id))
  positions = np.empty((len(tokens), 3), np.int64)
  done, current, highest = 0, 0, -1
  for number, (t, h, w, seconds) in enumerate(grids):
    left = placeholders[placeholders >= done]
    expected = image_id if seconds is None else video_id
    count = vision_tokens((t, h, w), merge)
    start = int(left[0]) if len(left) else len(tokens)
    span = tokens[start:start + count]
    if len(span) < count or np.any(span != expected):
      raise ValueError(
          f'grid {number} {(t, h, w)} needs {count} consecutive tokens '
          f'{expected}; at {start} the prompt of {len(tokens)} tokens has '
          f'{int(np.sum(span == expected))}. Truncated inside an image, or '
          'grids not in order of appearance?')
    current = _fill_text(positions, done, start, current)
    interval = (np.float32(1) if seconds is None else
                np.float32(tokens_per_second) * np.float32(seconds))
    cells = current + _cell_positions(t, h // merge, w // merge, interval)
    done = start + count
    positions[start:done] = cells
    highest = max(highest, current - 1, int(cells.max()))
    current = (highest + 1 if rule == 'legacy' else
               current + max(h, w) // merge)
  if np.any(placeholders >= done):
    raise ValueError(
        f'{int(np.sum(placeholders >= done))} placeholder tokens after the '
        f'last of {len(grids)} grids: one grid per image and video is needed.')
  current = _fill_text(positions, done, len(tokens), current)
  highest = max(highest, int(positions.max(initial=-1)))
  return positions.astype(np.int32), highest + 1


def counted(length: int) -> tuple[np.ndarray, int]:
  """Plain positions: i32[p, 3], three equal rows, and the next one."""
  return np.repeat(np.arange(length, dtype=np.int32)[:, None], 3, 1), length


def _cell_positions(frames, rows, columns, interval):
  times = (np.arange(frames, dtype=np.float32) * interval).astype(np.int64)
  return np.stack(np.meshgrid(
      times, np.arange(rows), np.arange(columns), indexing='ij'),
                  axis=-1).reshape(-1, 3)


def _fill_text(positions, start, stop, current):
  count = stop - start
  positions[start:stop] = (current + np.arange(count))[:, None]
  return current + count


def vision_tokens(grid: Grid, merge: int) -> int:
  """Prompt tokens of a grid: `t * h * w / merge^2`.

  Raises:
    ValueError: `h` or `w` is not a positive multiple of `merge`.
  """
  t, h, w = grid
  if min(t, h, w) < 1 or h % merge or w % merge:
    raise ValueError(
        f'grid {(t, h, w)}: height and width must be positive multiples of '
        f'merge={merge}.')
  return t * (h // merge) * (w // merge)


def patch_positions(grid: Grid, merge: int) -> np.ndarray:
  """Returns i32[t*h*w, 2], (row, column) of every patch in file order."""
  t, h, w = grid
  vision_tokens(grid, merge)
  rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing='ij')
  blocks = (h // merge, merge, w // merge, merge)
  rows, columns = (
      x.reshape(blocks).transpose(0, 2, 1, 3).ravel() for x in (rows, columns))
  return np.tile(np.stack([rows, columns], -1), (t, 1)).astype(np.int32)


def _window_cells(grid: Grid, merge: int, window_cells: int) -> np.ndarray:
  """Cells (file order) in window order, -1 where a window is padded."""
  if window_cells < 1:
    raise ValueError(
        f'window_cells={window_cells}: at least one cell per window is needed '
        '(window_size // patch_size // merge).')
  t, h, w = grid
  cells = vision_tokens(grid, merge)
  rows, columns = h // merge, w // merge
  index = np.arange(cells).reshape(t, rows, columns)
  pad_rows, pad_columns = -rows % window_cells, -columns % window_cells
  index = np.pad(index, ((0, 0), (0, pad_rows), (0, pad_columns)),
                 constant_values=-1)
  index = index.reshape(t, (rows + pad_rows) // window_cells, window_cells,
                        (columns + pad_columns) // window_cells, window_cells)
  return index.transpose(0, 1, 3, 2, 4).ravel()


def window_layout(
    grid: Grid, *, merge: int, window_cells: int) -> np.ndarray:
  """Returns the patch (file order) of every slot in window order, or -1.

  Args:
    grid: (t, h, w) in patches.
    merge: patches per cell along each side.
    window_cells: cells per window along each side: `window_size // patch_size
      // merge`.

  Returns:
    i32[s], s a multiple of `(window_cells * merge)^2`; every patch once, -1
    where a window reaches over the edge.
  """
  cells = _window_cells(grid, merge, window_cells)
  unit = merge * merge
  patches = cells[:, None] * unit + np.arange(unit)
  return np.where(cells[:, None] < 0, -1, patches).ravel().astype(np.int32)


def cell_slots(grid: Grid, *, merge: int, window_cells: int) -> np.ndarray:
  """Returns i32[t*h*w / merge^2], the slot in window order of every cell.

  Entry i belongs to the grid's i-th placeholder token. Slots count cells, not
  patches; where several grids share a row, add the slots of those before.
  """
  cells = _window_cells(grid, merge, window_cells)
  slots = np.flatnonzero(cells >= 0)
  result = np.empty(len(slots), np.int32)
  result[cells[slots]] = slots
  return result


def check_image(height: int, width: int) -> None:
  """Refuses an image that is empty, or longer than 200 times its other side.

  Raises:
    ValueError: it is.
  """
  if min(height, width) < 1:
    raise ValueError(f'image of {height} x {width} pixels: it is empty.')
  if max(height, width) > _MAX_ASPECT * min(height, width):
    raise ValueError(
        f'image of {height} x {width} pixels: the aspect ratio may be at most '
        f'{_MAX_ASPECT}.')


def smart_resize(
    height: int,
    width: int,
    *,
    factor: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
  """Returns the (height, width) an image is resized to.

  Both are multiples of `factor` (patch x merge), nearest to the original
  (halves to even); their area is brought between `min_pixels` and `max_pixels`
  at about the same aspect ratio. The rule of Qwen2-VL's image processor.

  Raises:
    ValueError: a side is not positive, or the aspect ratio exceeds 200.
  """
  check_image(height, width)
  if not 1 <= min_pixels <= max_pixels:
    raise ValueError(
        f'min_pixels={min_pixels}, max_pixels={max_pixels}: needed is 1 <= '
        'min_pixels <= max_pixels.')
  rows = round(height / factor) * factor
  columns = round(width / factor) * factor
  if rows * columns > max_pixels:
    shrink = math.sqrt(height * width / max_pixels)
    rows = max(factor, math.floor(height / shrink / factor) * factor)
    columns = max(factor, math.floor(width / shrink / factor) * factor)
  elif rows * columns < min_pixels:
    grow = math.sqrt(min_pixels / (height * width))
    rows = math.ceil(height * grow / factor) * factor
    columns = math.ceil(width * grow / factor) * factor
  return rows, columns
