"""Images and videos of Qwen2-VL and Qwen2.5-VL.

An image keeps its aspect ratio and is resized to whole cells within a budget
of pixels; two frames of a video make one patch; rotary positions have three
axes (`mmr1.positions`).
"""

import dataclasses
from typing import Any

import numpy as np

from mmr1 import boxes
from mmr1 import positions
from mmr1.data import checks
from mmr1.data import video
from mmr1.data.codecs import base

# What transformers assumes where `vision_config` is silent.
_VISION_DEFAULTS = {
    'patch_size': 14,
    'spatial_merge_size': 2,
    'temporal_patch_size': 2,
    'window_size': 112,
    'tokens_per_second': 4,
}
IMAGE, VIDEO = '<|image_pad|>', '<|video_pad|>'


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Codec(base.Codec):
  """See `base.Codec`.

  Fields:
    image_processor: a `transformers` PIL image processor.
    video: how clips are sampled, resized and normalised.
    patch, merge, temporal: pixels per patch side, patches per cell side,
      frames per patch.
    window_cells: cells per attention window side; 1 where the family has no
      windows (then no window is ever padded).
    tokens_per_second: temporal positions per second of video; None where
      frames count 1 whatever their rate (Qwen2-VL).
    position_rule: 'legacy' or 'v5', see `positions.rope_index`.
    sizes: the tower wants the size of every patch's frame (`Pixels.extent`).
  """
  image_processor: Any = dataclasses.field(repr=False)
  video: video.VideoConfig
  patch: int
  merge: int
  temporal: int
  window_cells: int
  tokens_per_second: float | None
  position_rule: str
  sizes: bool = False

  @property
  def pixels_of_patch(self):
    return base.pixels_of_patch(
        self.image_processor, self.patch, self.video, frames=self.temporal)

  def image_grid(self, height: int, width: int) -> positions.Grid:
    """Grid (1, h, w) of an image of this size, without its pixels."""
    rows, columns = positions.smart_resize(
        height, width, factor=self.patch * self.merge,
        min_pixels=self.min_pixels, max_pixels=self.max_pixels)
    return 1, rows // self.patch, columns // self.patch

  def seen(self, height, width):
    _, rows, columns = self.image_grid(height, width)
    return boxes.Size(rows * self.patch, columns * self.patch)

  def video_grid(self, clip) -> positions.Span:
    """Grid of a clip and the seconds that one of its patches spans."""
    indices, rate = video.sampled(clip, self.video)
    height, width = video.frame_size(clip.frames[0])
    grid = video.grid(len(indices), height, width, self.video)
    return *grid, self.temporal / rate

  def image_span(self, height, width):
    grid = self.image_grid(height, width)
    return base.Span(IMAGE, (positions.vision_tokens(grid, self.merge),),
                     ((*grid, None),))

  def video_span(self, clip):
    *grid, seconds = self.video_grid(clip)
    if self.tokens_per_second is None:
      seconds = 1.0
    return base.Span(VIDEO, (positions.vision_tokens(grid, self.merge),),
                     ((*grid, seconds),))

  def image_pixels(self, images):
    grids = [self.image_grid(*video.frame_size(image)) for image in images]
    out = self.image_processor(images=list(images), return_tensors='np')
    made = [tuple(int(x) for x in g) for g in out['image_grid_thw']]
    if made != grids:
      raise ValueError(
          f'the image processor made grids {made}, expected {grids}: '
          'preprocessor_config.json resizes in another way.')
    ends = np.cumsum([t * h * w for t, h, w in grids])[:-1]
    patches = np.split(np.asarray(out['pixel_values'], np.float32), ends)
    return [self.layout(p, grid) for p, grid in zip(patches, grids)]

  def video_pixels(self, clip):
    indices, _ = video.sampled(clip, self.video)
    return self.layout(*video.preprocess(
        [clip.frames[i] for i in indices], self.video))

  def layout(self, patches: np.ndarray, grid: positions.Grid) -> base.Pixels:
    """Patches in file order -> window order, with the slot of every cell."""
    kw = dict(merge=self.merge, window_cells=self.window_cells)
    order = positions.window_layout(grid, **kw)
    real = order >= 0
    place = positions.patch_positions(grid, self.merge)[order]
    frame = order // (grid[1] * grid[2])
    return base.Pixels(
        patches=np.where(real[:, None], patches[order], np.float32(0)),
        position=np.where(real[:, None], place, 0),
        segment=np.where(real, frame + 1, 0).astype(np.int32),
        slot=positions.cell_slots(grid, **kw),
        extent=np.where(real[:, None], np.int32(grid[1:]), 0)
        if self.sizes else None)

  def nothing(self):
    return super().nothing()._replace(
        extent=np.zeros((0, 2), np.int32) if self.sizes else None)

  def positions(self, tokens, spans):
    rate = self.tokens_per_second
    return positions.rope_index(
        tokens, [grid for span in spans for grid in span.grids],
        image_id=self.image_id, video_id=self.video_id, merge=self.merge,
        rule=self.position_rule, tokens_per_second=1.0 if rate is None
        else rate)


def open_codec(
    folder: str, path: str, config: Any, tokenizer: Any,
    options: base.Options) -> Codec:
  """Reads the family's part of a checkpoint folder, see `read`."""
  vision = {**_VISION_DEFAULTS, **config.get('vision_config', {})}
  fields = read(folder, path, config, vision, tokenizer, options)
  if config['model_type'] == 'qwen2_5_vl':
    cells = vision['window_size'] // fields['patch'] // fields['merge']
    fields |= dict(
        window_cells=cells, window_patches=(cells * fields['merge'])**2,
        tokens_per_second=float(vision['tokens_per_second']),
        box_frame='seen')  # pixels of the resized image
  return Codec(**fields)


def read(
    folder: str, path: str, config: Any, vision: Any, tokenizer: Any,
    options: base.Options, *, by_clip: bool = False) -> dict[str, Any]:
  """The fields of a codec of a tower without windows, of a folder.

  Args:
    folder: local, of the checkpoint.
    path: what the user called it, for messages.
    config: its parsed config.json.
    vision: its `vision_config`, complete.
    tokenizer: its tokenizer.
    options: what replaces the checkpoint's settings.
    by_clip: see `video.from_folder`.

  Raises:
    ValueError: something is missing, contradictory or not supported.
  """
  patch, merge = vision['patch_size'], vision['spatial_merge_size']
  temporal = vision['temporal_patch_size']
  image_processor = _image_processor(folder, path, vision, options)
  ids = special_ids(tokenizer, config, path)
  return dict(
      image_mark=IMAGE, video_mark=VIDEO, **ids,
      channels=3 * temporal * patch**2, unit=merge**2, window_patches=merge**2,
      min_pixels=image_processor.size['shortest_edge'],
      max_pixels=image_processor.size['longest_edge'],
      image_processor=image_processor,
      video=video.from_folder(
          folder, path, image_processor, options.video_fps,
          options.video_max_frames, by_clip=by_clip),
      patch=patch, merge=merge, temporal=temporal, window_cells=1,
      tokens_per_second=None, position_rule=options.position_rule,
      box_frame='thousand')


def special_ids(tokenizer: Any, config: Any, path: str) -> dict[str, Any]:
  """The ids of Qwen's placeholders, checked against config.json.

  Raises:
    ValueError: one is missing, or the two disagree.
  """
  known = tokenizer.get_vocab()
  ids = checks.tokens(tokenizer, config, path, {
      'image_id': (IMAGE, 'image_token_id'),
      'video_id': (VIDEO, 'video_token_id'),
      'vision_start_id': ('<|vision_start|>', 'vision_start_token_id'),
      'vision_end_id': ('<|vision_end|>', 'vision_end_token_id')})
  banned = set(ids.values())
  if '<|vision_pad|>' in known:
    banned.add(known['<|vision_pad|>'])
  return dict(image_id=ids['image_id'], video_id=ids['video_id'],
              banned=tuple(sorted(banned)))


def _image_processor(folder, path, vision, options):
  import transformers  # costs a second: only when a folder is opened
  given = {key: getattr(options, key) for key in ('min_pixels', 'max_pixels')
           if getattr(options, key) is not None}
  result = transformers.AutoImageProcessor.from_pretrained(
      folder, backend='pil', **given)
  size = result.size
  if not 1 <= size['shortest_edge'] <= size['longest_edge']:
    raise ValueError(
        f'{path}: min_pixels={size["shortest_edge"]}, max_pixels='
        f'{size["longest_edge"]}: needed is 1 <= min_pixels <= max_pixels.')
  for key, name in (('patch_size', 'patch_size'),
                    ('spatial_merge_size', 'merge_size'),
                    ('temporal_patch_size', 'temporal_patch_size')):
    if vision[key] != vars(result).get(name, vision[key]):
      raise ValueError(
          f'{path}: {name}={vars(result)[name]} in preprocessor_config.json '
          f'but {key}={vision[key]} in config.json.')
  return result
