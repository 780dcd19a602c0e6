"""Images and videos of LLaVA-OneVision (hf layout).

One image of a prompt is read as a whole and in square views of one size that
are laid over it; several are read as a whole only, and so is a frame of a
video. The features of the views are put together to one map, without what was
padded; a map that is too large, and every frame's, is shrunk, so that a token
is the weighted sum of up to four cells. A learned token ends each row of the
map, each image of several, and each video.

A view is a frame of `types.Media`, and a cell is one patch.
"""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import numpy as np

from mmr1 import positions
from mmr1.data import checks
from mmr1.data import clips
from mmr1.data import video
from mmr1.data.codecs import base

# What transformers assumes where config.json is silent.
_DEFAULTS = {'image_size': 224, 'patch_size': 16}
_ASPECT = 'anyres_max_9'
IMAGE, VIDEO = '<image>', '<video>'
END = -2  # the learned token, see `types.Media.slot`
TAPS = 4  # cells that a token is the sum of, at most
_SLACK = 1.1  # a map is shrunk if its sides are more than this too long

Map = tuple[np.ndarray, np.ndarray]  # taps, weights: i32, f32[rows, columns, 4]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Codec(base.Codec):
  """See `base.Codec`.

  Fields:
    image_processor: a `transformers` PIL image processor.
    clips: how clips are sampled.
    size, patch: pixels of a view's and a patch's side.
    pinpoints: (height, width) that views can cover together, in pixels.
    most_views: the features of so many views, at most, is a map's size.
  """
  image_processor: Any = dataclasses.field(repr=False)
  clips: clips.Clips
  size: int
  patch: int
  pinpoints: tuple[tuple[int, int], ...]
  most_views: int

  @property
  def side(self) -> int:
    """Patches of a view's side."""
    return self.size // self.patch

  @property
  def pixels_of_patch(self):
    return base.pixels_of_patch(self.image_processor, self.patch, self.clips)

  def image_spans(self, sizes):
    if len(sizes) != 1:
      return [base.Span(IMAGE, (self.side**2 + 1,))] * len(sizes)
    rows, columns = self.map_shape(*sizes[0])
    return [base.Span(IMAGE, (self.side**2 + rows * (columns + 1),))]

  def video_span(self, clip):
    pooled = math.ceil(self.side / 2)
    count = len(clips.sampled(clip, self.clips))
    return base.Span(VIDEO, (count * pooled**2 + 1,))

  def image_pixels(self, images):
    pixels = self.image_processor(
        images=[[video.rgb(image) for image in images]], return_tensors='np',
        image_grid_pinpoints=[list(x) for x in self.pinpoints])['pixel_values']
    if len(images) > 1:
      return [self.layout(x[:1], self.whole(), END) for x in pixels]
    height, width = video.frame_size(images[0])
    rows, columns = views(height, width, self.pinpoints, self.size)
    if len(pixels[0]) != 1 + rows * columns:
      raise ValueError(
          f'the image processor made {len(pixels[0])} views, expected '
          f'{1 + rows * columns}: preprocessor_config.json cuts otherwise.')
    tokens = [self.whole()]
    for taps, weights in zip(*self.image_map(height, width)):
      tokens += [(taps, weights), END]
    return [self.layout(pixels[0], *tokens)]

  def video_pixels(self, clip):
    frames = clips.read(clip, self.clips)
    taps, weights = shrink(
        np.arange(self.side**2).reshape(self.side, self.side),
        *[math.ceil(self.side / 2)] * 2)
    tokens = [(taps + i * self.side**2, weights) for i in range(len(frames))]
    return self.layout(frames, *tokens, END)

  def nothing(self):
    return super().nothing()._replace(
        taps=np.zeros((0, TAPS), np.int32),
        weights=np.zeros((0, TAPS), np.float32))

  def map_shape(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the map of an image of this size."""
    kept, shape = self._kept(height, width)
    return shape or (len(kept[0]), len(kept[1]))

  def image_map(self, height: int, width: int) -> Map:
    """The map of an image of this size, cell 0 the first of all its views."""
    rows, columns = views(height, width, self.pinpoints, self.size)
    side = self.side
    cells = side**2 + np.arange(rows * columns * side**2).reshape(
        rows, columns, side, side)
    cells = cells.swapaxes(1, 2).reshape(rows * side, columns * side)
    (down, across), shape = self._kept(height, width)
    cells = cells[down.start:down.stop, across.start:across.stop]
    return shrink(cells, *shape) if shape else whole(cells)

  def _kept(self, height, width):
    """What padding leaves of the map, and what that is shrunk to, or None."""
    shape = [x * self.side for x in views(
        height, width, self.pinpoints, self.size)]
    kept = unpadded(height, width, *shape)
    rows, columns = map(len, kept)
    ratio = math.sqrt(rows * columns / (self.most_views * self.side**2))
    return kept, (
        (int(rows // ratio), int(columns // ratio)) if ratio > _SLACK else None)

  def whole(self) -> Map:
    """The first view as it is."""
    return whole(np.arange(self.side**2).reshape(self.side, self.side))

  def layout(self, pixels: np.ndarray, *tokens: Map | int) -> base.Pixels:
    """Views [count, 3, size, size] as patches, and the tokens in order."""
    count, side, p = len(pixels), self.side, self.patch
    # What makes no whole patch is left out, as the tower's convolution does.
    x = pixels[:, :, :side * p, :side * p]
    x = x.reshape(count, 3, side, p, side, p).transpose(0, 2, 4, 1, 3, 5)
    nothing = self.nothing()
    taps, weights, slot = [nothing.taps], [nothing.weights], [nothing.slot]
    for part in tokens:
      if isinstance(part, int):
        part = np.zeros((1, TAPS), np.int32), np.zeros((1, TAPS), np.float32)
        slot.append(np.full(1, END, np.int32))
      else:
        slot.append(part[0][..., 0].ravel())
      taps.append(part[0].reshape(-1, TAPS))
      weights.append(part[1].reshape(-1, TAPS))
    return base.Pixels(
        patches=x.reshape(count * side**2, -1).astype(np.float32),
        position=positions.patch_positions((count, side, side), 1),
        segment=np.repeat(np.arange(1, count + 1, dtype=np.int32), side**2),
        slot=np.concatenate(slot), taps=np.concatenate(taps),
        weights=np.concatenate(weights))


def views(height: int, width: int, pinpoints: Sequence[tuple[int, int]],
          size: int) -> tuple[int, int]:
  """(rows, columns) of the views of an image.

  Of the pinpoints the one that keeps most pixels of the image; of those the
  one that wastes least, then the first.

  Raises:
    ValueError: the image is empty.
  """
  if min(height, width) < 1:
    raise ValueError(f'image of {height} x {width} pixels: it is empty.')

  def rank(pinpoint):
    rows, columns = pinpoint
    scale = min(columns / width, rows / height)
    used = min(int(width * scale) * int(height * scale), width * height)
    return -used, rows * columns - used

  rows, columns = min(pinpoints, key=rank)
  return rows // size, columns // size


def unpadded(
    height: int, width: int, rows: int, columns: int) -> tuple[range, range]:
  """Rows and columns of a map that are not padding.

  Args:
    height, width: of the image, which lies in the middle of the map.
    rows, columns: of the map.
  """
  if width / height > columns / rows:
    margin = (rows - int(round(height * (columns / width), 7))) // 2
    return range(margin, rows - margin), range(columns)
  margin = (columns - int(round(width * (rows / height), 7))) // 2
  return range(rows), range(margin, columns - margin)


def whole(cells: np.ndarray) -> Map:
  """Every one of cells i[rows, columns] as it is."""
  taps = np.repeat(cells[..., None], TAPS, -1)
  weights = np.zeros(taps.shape, np.float32)
  weights[..., 0] = 1
  return taps.astype(np.int32), weights


def shrink(cells: np.ndarray, rows: int, columns: int) -> Map:
  """Bilinear, without antialiasing; the middles of both maps' edges agree.

  Args:
    cells: i[rows, columns] of the larger map.
    rows, columns: of the smaller.
  """
  (top, below), down = _line(cells.shape[0], rows)
  (left, right), across = _line(cells.shape[1], columns)
  taps = [cells[np.ix_(y, x)] for y in (top, below) for x in (left, right)]
  weights = [y[:, None] * x[None] for y in down for x in across]
  return (np.stack(taps, -1).astype(np.int32),
          np.stack(weights, -1).astype(np.float32))


def _line(old: int, new: int):
  """Two neighbours of each of `new` points among `old`, and their weights."""
  scale = np.float64(np.float32(old) / np.float32(new))
  # Rounded to float32 where torch does it: after product and difference.
  place = (scale * (np.arange(new) + 0.5) - 0.5).astype(np.float32)
  place = np.maximum(place, np.float32(0))
  first = place.astype(np.int64)
  share = place - first.astype(np.float32)
  return (first, np.minimum(first + 1, old - 1)), (1 - share, share)


def open_codec(
    folder: str, path: str, config: Any, tokenizer: Any,
    options: base.Options) -> Codec:
  """Reads the family's part of a checkpoint folder.

  Args:
    folder: local, of the checkpoint.
    path: what the user called it, for messages.
    config: its parsed config.json.
    tokenizer: its tokenizer.
    options: what replaces the checkpoint's settings; `min_pixels` and
      `max_pixels` choose among its resolutions (`image_grid_pinpoints`).

  Raises:
    ValueError: something is missing, contradictory or not supported.
  """
  vision = {**_DEFAULTS, **config.get('vision_config', {})}
  size, patch = vision['image_size'], vision['patch_size']
  aspect = config.get('vision_aspect_ratio', _ASPECT)
  most = re.fullmatch(r'anyres_max_(\d+)', aspect)
  if not most:
    raise ValueError(f'{path}/config.json: vision_aspect_ratio={aspect!r}: '
                     'only anyres_max_<number of views> is supported.')
  image_processor = _image_processor(folder, path, size)
  last = 'index' if 'image_token_index' in config else 'id'
  ids = checks.tokens(tokenizer, config, path, {
      'image_id': (IMAGE, f'image_token_{last}'),
      'video_id': (VIDEO, f'video_token_{last}')})
  pinpoints = _pinpoints(image_processor, path, config, size, options)
  areas = [math.prod(x) for x in pinpoints]
  return Codec(
      image_mark=IMAGE, video_mark=VIDEO, **ids,
      banned=tuple(sorted(ids.values())), channels=3 * patch**2, unit=1,
      window_patches=(size // patch)**2, min_pixels=min(areas),
      max_pixels=max(areas), image_processor=image_processor,
      clips=clips.from_folder(
          folder, path, image_processor, size, fps=options.video_fps,
          max_frames=options.video_max_frames, shift=None),
      size=size, patch=patch, pinpoints=pinpoints, most_views=int(most[1]))


def _image_processor(folder, path, size):
  import transformers  # costs a second: only when a folder is opened
  result = transformers.AutoImageProcessor.from_pretrained(
      folder, backend='pil')
  clips.check_size(result.size, size, f'{path}/preprocessor_config.json')
  return result


def _pinpoints(image_processor, path, config, size, options):
  given = [tuple(x) for x in image_processor.image_grid_pinpoints]
  other = config.get('image_grid_pinpoints')
  if other and [tuple(x) for x in other] != given:
    raise ValueError(
        f'{path}: image_grid_pinpoints are not the same in config.json and in '
        'preprocessor_config.json; they belong to different models.')
  if any(a % size or b % size for a, b in given):
    raise ValueError(
        f'{path}/preprocessor_config.json: image_grid_pinpoints {given} must '
        f'be multiples of the {size} pixels of a view.')
  least, most = (x or y for x, y in (
      (options.min_pixels, 0), (options.max_pixels, math.inf)))
  chosen = tuple(x for x in given if least <= math.prod(x) <= most)
  if not chosen:
    raise ValueError(
        f'{path}: min_pixels={options.min_pixels}, max_pixels='
        f'{options.max_pixels}: image_grid_pinpoints has none of such an '
        f'area, only {sorted({math.prod(x) for x in given})}.')
  return chosen
