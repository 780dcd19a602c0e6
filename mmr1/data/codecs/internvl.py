"""Images and videos of InternVL 2.5 and 3 (hf layout).

An image becomes square tiles of one size, as many and so arranged as come
closest to its aspect ratio, and one more that shows all of it; a frame of a
video is one tile. A tile is a frame of `types.Media` and has always the same
number of cells.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from mmr1 import positions
from mmr1.data import checks
from mmr1.data import clips
from mmr1.data import video
from mmr1.data.codecs import base

# What transformers assumes where config.json is silent.
_DEFAULTS = {'image_size': 448, 'patch_size': 14}
IMAGE, VIDEO = '<IMG_CONTEXT>', '<video>'
START, END = '<img>', '</img>'
FRAME = f'{START}{IMAGE}{END}'


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Codec(base.Codec):
  """See `base.Codec`.

  Fields:
    image_processor: a `transformers` PIL image processor.
    clips: how clips are sampled.
    tile, patch: pixels of a tile's and a patch's side.
    merge: patches of a cell's side.
    min_tiles, max_tiles: of an image, without the one that shows all of it.
  """
  image_processor: Any = dataclasses.field(repr=False)
  clips: clips.Clips
  tile: int
  patch: int
  merge: int
  min_tiles: int
  max_tiles: int

  @property
  def tile_cells(self) -> int:
    """Cells, and so tokens, of a tile."""
    return (self.tile // self.patch // self.merge)**2

  @property
  def pixels_of_patch(self):
    return base.pixels_of_patch(self.image_processor, self.patch, self.clips)

  def tiles(self, height: int, width: int) -> int:
    """Tiles of an image of this size, the one that shows all of it too."""
    if min(height, width) < 1:
      raise ValueError(f'image of {height} x {width} pixels: it is empty.')
    count = math.prod(arrangement(
        height, width, tile=self.tile, least=self.min_tiles,
        most=self.max_tiles))
    return count + (count > 1)

  def image_span(self, height, width):
    return base.Span(FRAME, (self.tiles(height, width) * self.tile_cells,))

  def video_span(self, clip):
    count = len(clips.sampled(clip, self.clips))
    return base.Span(
        '\n'.join(f'Frame{i + 1}: {FRAME}' for i in range(count)),
        (self.tile_cells,) * count)

  def image_pixels(self, images):
    counts = [self.tiles(*video.frame_size(image)) for image in images]
    out = self.image_processor(
        images=[video.rgb(image) for image in images], crop_to_patches=True,
        return_tensors='np')
    made = [int(x) for x in out['num_patches']]
    if made != counts:
      raise ValueError(
          f'the image processor made {made} tiles, expected {counts}: '
          'preprocessor_config.json cuts in another way.')
    tiles = np.split(out['pixel_values'], np.cumsum(counts)[:-1])
    return [self.layout(x) for x in tiles]

  def video_pixels(self, clip):
    return self.layout(clips.read(clip, self.clips))

  def layout(self, tiles: np.ndarray) -> base.Pixels:
    """Tiles [count, 3, tile, tile] as patches, cell by cell."""
    count, side = len(tiles), self.tile // self.patch
    m, p = self.merge, self.patch
    x = tiles.reshape(count, 3, side // m, m, p, side // m, m, p)
    # (tile, row, column of cell, row, column in cell, colour, y, x)
    x = x.transpose(0, 2, 5, 3, 6, 1, 4, 7).reshape(count * side**2, -1)
    return base.Pixels(
        patches=x.astype(np.float32),
        position=positions.patch_positions((count, side, side), m),
        segment=np.repeat(np.arange(1, count + 1, dtype=np.int32), side**2),
        slot=np.arange(count * self.tile_cells, dtype=np.int32))


def arrangement(
    height: int, width: int, *, tile: int, least: int, most: int,
) -> tuple[int, int]:
  """(columns, rows) of the tiles that an image is resized to and cut into.

  Of all that have `least` to `most` tiles, the one with the aspect ratio that
  is nearest to the image's. Of equally near ones the largest whose area is
  below twice the image's, else the smallest.

  Args:
    height, width: of the image.
    tile: pixels of a tile's side.
    least, most: tiles.
  """
  sides = range(1, most + 1)
  allowed = sorted(
      ((columns, rows) for columns in sides for rows in sides
       if least <= columns * rows <= most), key=math.prod)

  def distance(shape):
    return abs(width / height - shape[0] / shape[1])

  nearest = min(map(distance, allowed))
  equal = [shape for shape in allowed if distance(shape) == nearest]
  below = [shape for shape in equal[1:]
           if 0.5 * tile * tile * math.prod(shape) < height * width]
  return below[-1] if below else equal[0]


def open_codec(
    folder: str, path: str, config: Any, tokenizer: Any,
    options: base.Options) -> Codec:
  """Reads the family's part of a checkpoint folder.

  Args:
    folder: local, of the checkpoint.
    path: what the user called it, for messages.
    config: its parsed config.json.
    tokenizer: its tokenizer.
    options: what replaces the checkpoint's settings; areas are rounded to
      whole tiles, so `max_pixels` bounds their number.

  Raises:
    ValueError: something is missing, contradictory or not supported.
  """
  vision = {**_DEFAULTS, **config.get('vision_config', {})}
  tile, patch = _side(vision['image_size']), _side(vision['patch_size'])
  merge = round(1 / config.get('downsample_ratio', 0.5))
  cells = (tile // patch // merge)**2
  if config.get('image_seq_length', cells) != cells:
    raise ValueError(
        f"{path}/config.json: image_seq_length={config['image_seq_length']} "
        f'but a tile of {tile} pixels has {cells} cells of {merge} patches of '
        f'{patch} pixels a side.')
  image_processor, least, most = _image_processor(folder, path, tile, options)
  ids = checks.tokens(tokenizer, config, path, {
      'image_id': (IMAGE, 'image_token_id'),
      'image_start_id': (START, 'image_start_token_id'),
      'image_end_id': (END, 'image_end_token_id')})
  banned = set(ids.values())
  if VIDEO in tokenizer.get_vocab():
    banned.add(tokenizer.get_vocab()[VIDEO])
  return Codec(
      image_mark=IMAGE, video_mark=VIDEO, image_id=ids['image_id'],
      video_id=-1, banned=tuple(sorted(banned)), channels=3 * patch**2,
      unit=merge**2, window_patches=(tile // patch)**2,
      min_pixels=least * tile**2, max_pixels=most * tile**2,
      box_frame='thousand',
      image_processor=image_processor,
      clips=clips.from_folder(
          folder, path, image_processor, tile, fps=options.video_fps,
          max_frames=options.video_max_frames, shift=True),
      tile=tile, patch=patch, merge=merge, min_tiles=least, max_tiles=most)


def _side(value: Any) -> int:
  return max(value) if isinstance(value, (list, tuple)) else value


def _image_processor(folder, path, tile, options):
  import transformers  # costs a second: only when a folder is opened
  given = {}
  if options.min_pixels is not None:
    given['min_patches'] = max(1, math.ceil(options.min_pixels / tile**2))
  if options.max_pixels is not None:
    given['max_patches'] = options.max_pixels // tile**2
  result = transformers.AutoImageProcessor.from_pretrained(
      folder, backend='pil', **given)
  least, most = result.min_patches, result.max_patches
  if not 1 <= least <= most:
    raise ValueError(
        f'{path}: an image would become {least} to {most} tiles '
        f'(min_pixels={options.min_pixels}, max_pixels={options.max_pixels}, '
        f'{tile**2} pixels each): needed is 1 <= min <= max.')
  clips.check_size(result.size, tile, f'{path}/preprocessor_config.json')
  return result, least, most
