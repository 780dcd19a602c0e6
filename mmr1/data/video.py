"""Video frames to patches, in numpy and PIL.

The maths of Qwen's video processors without torch: frames are sampled evenly
at a rate, resized one by one into a budget of pixels, each frame's own or the
whole clip's, and cut into patches that span `temporal` frames.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmr1 import positions
from mmr1 import records
from mmr1.data import resize
from mmr1.data import checks


@dataclasses.dataclass(frozen=True)
class VideoConfig:
  """How a clip becomes patches.

  Fields:
    patch, merge, temporal: pixels per patch side, patches per cell side,
      frames per patch.
    min_pixels, max_pixels: area each frame is resized into, or with
      `whole_clip` the sum of the areas of all of them.
    fps: frames sampled per second.
    min_frames, max_frames: bounds of the number of sampled frames.
    mean, std: of the pixels in 0..1, per colour.
    to_the_end: frames are spread from the first to the last one; else the last
      step ends with the clip.
    whole_clip: see `min_pixels`.
    frame_cells: most cells of one frame, before `min_pixels`, where the whole
      clip has a budget; None: no bound.
  """
  patch: int
  merge: int
  temporal: int
  min_pixels: int
  max_pixels: int
  fps: float
  min_frames: int
  max_frames: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  to_the_end: bool = False
  whole_clip: bool = False
  frame_cells: int | None = None


def from_folder(
    folder: str,
    path: str,
    images: Any,
    fps: float | None,
    max_frames: int | None,
    *,
    by_clip: bool = False,
) -> VideoConfig:
  """Video settings: the folder's where it has some, else Qwen's budget.

  Args:
    folder: local, of the checkpoint.
    path: what the user called it, for messages.
    images: its `transformers` image processor.
    fps, max_frames: replace how the checkpoint samples clips; or None.
    by_clip: of Qwen3-VL: `to_the_end` and `whole_clip`.

  Raises:
    ValueError: no frames would be sampled.
  """
  factor = images.patch_size * images.merge_size
  given = checks.settings(folder, 'video_processor')
  # transformers writes null for what it leaves open.
  given = {key: x for key, x in given.items() if x is not None}
  size = given.get('size', {})
  low = given.get('min_pixels', size.get('shortest_edge', 128 * factor ** 2))
  high = given.get('max_pixels', size.get('longest_edge', 768 * factor ** 2))
  rate = given.get('fps', 2.0) if fps is None else fps
  most = given.get('max_frames', 768) if max_frames is None else max_frames
  if not rate > 0 or most < images.temporal_patch_size:
    raise ValueError(
        f'{path}: video_fps={rate}, video_max_frames={most}: needed is a rate '
        f'above 0 and at least the {images.temporal_patch_size} frames of one '
        'patch (temporal_patch_size).')
  return VideoConfig(
      patch=images.patch_size, merge=images.merge_size,
      temporal=images.temporal_patch_size, min_pixels=low, max_pixels=high,
      fps=rate,
      min_frames=given.get('min_frames', 4),
      max_frames=most,
      mean=tuple(given.get('image_mean', images.image_mean)),
      std=tuple(given.get('image_std', images.image_std)),
      to_the_end=by_clip, whole_clip=by_clip,
      frame_cells=(given.get('max_video_tokens', 768)
                   if by_clip and given.get('cap_pixels_per_frame') else None))


def sample_frames(
    total: int,
    source_fps: float,
    *,
    fps: float,
    min_frames: int,
    max_frames: int,
    temporal: int,
) -> np.ndarray:
  """Returns i64[n], the frames to take of a clip, evenly spaced.

  `n = total / source_fps * fps`, brought into [min_frames, max_frames] and
  [0, total], rounded down to a multiple of `temporal`. A clip shorter than
  `temporal` is taken whole (patches repeat its last frame). The indices are
  computed in float32, as the original does.

  Raises:
    ValueError: no frames, or a rate that is not positive.
  """
  _check_rates(total, source_fps, fps)
  if total < temporal:
    return np.arange(total)
  most = min(max_frames, total) // temporal * temporal
  count = min(max(total / source_fps * fps, min_frames), most, total)
  count = max(math.floor(count / temporal) * temporal, temporal)
  step = total / count
  taken = np.arange(math.ceil(total / step)) * step
  taken = taken.astype(np.float32).astype(np.int64)
  return np.minimum(taken, total - 1)


def spread_frames(
    total: int,
    source_fps: float,
    *,
    fps: float,
    min_frames: int,
    max_frames: int,
) -> np.ndarray:
  """Returns i64[n], frames from the first to the last, evenly spaced.

  `n = total / source_fps * fps`, rounded down and brought into [min_frames,
  max_frames] and [0, total]; the frames are those nearest, halves to even. `n`
  may be odd (patches repeat the last frame).

  Raises:
    ValueError: no frames, or a rate that is not positive.
  """
  _check_rates(total, source_fps, fps)
  count = min(max(int(total / source_fps * fps), min_frames), max_frames,
              total)
  return np.linspace(0, total - 1, count).round().astype(np.int64)


def _check_rates(total, source_fps, fps):
  if total < 1 or not source_fps > 0 or not fps > 0:
    raise ValueError(
        f'a video of {total} frames at {source_fps} fps, sampled at {fps} '
        'fps: all must be positive.')


def times(indices: np.ndarray, source_fps: float, temporal: int
          ) -> list[float]:
  """When each patch of `temporal` sampled frames is, in seconds of the clip:
  half way between its first and its last; the last frame repeats."""
  missing = -len(indices) % temporal
  stamps = np.append(indices, [indices[-1]] * missing).astype(int).tolist()
  stamps = [i / source_fps for i in stamps]
  return [(first + last) / 2 for first, last in zip(
      stamps[::temporal], stamps[temporal - 1::temporal])]


def sampled(clip: records.Video, config: VideoConfig) -> tuple[
    np.ndarray, float]:
  """Indices of the frames to use and the rate they then have, in Hz."""
  total = len(clip.frames)
  kw = dict(fps=config.fps, min_frames=config.min_frames,
            max_frames=config.max_frames)
  if config.to_the_end:
    indices = spread_frames(total, clip.fps, **kw)
  else:
    indices = sample_frames(total, clip.fps, temporal=config.temporal, **kw)
  return indices, len(indices) / total * clip.fps


def grid(count: int, height: int, width: int, config: VideoConfig
         ) -> positions.Grid:
  """Grid of `count` sampled frames of this size, without their pixels."""
  if config.whole_clip:
    rows, columns = _clip_resize(count, height, width, config)
  else:
    rows, columns = positions.smart_resize(
        height, width, factor=config.patch * config.merge,
        min_pixels=config.min_pixels, max_pixels=config.max_pixels)
  return (-(-count // config.temporal), rows // config.patch,
          columns // config.patch)


def _clip_resize(count, height, width, config):
  """(height, width) of every frame where the clip has a budget of pixels.

  `positions.smart_resize` of one image, with the frames as a third side. The
  area is that of the frames rounded to whole patches, the factor by which it
  is too large or small that of the frames themselves: Qwen3-VL's rule.
  """
  factor = config.patch * config.merge
  count = max(count, config.temporal)  # of one frame: it is repeated
  low, high = config.min_pixels, config.max_pixels
  if config.frame_cells is not None:
    each = min(config.frame_cells * factor**2, high // count)
    high = max(each, int(1.05 * low)) * count
  if 1 <= min(height, width) < factor:
    grow = max(factor / height, factor / width)
    height, width = int(height * grow), int(width * grow)
  positions.check_image(height, width)
  rows, columns = (round(x / factor) * factor for x in (height, width))
  area = round(count / config.temporal) * config.temporal * rows * columns
  if area > high:
    shrink = math.sqrt(count * height * width / high)
    rows, columns = (
        max(factor, math.floor(x / shrink / factor) * factor)
        for x in (height, width))
  elif area < low:
    grow = math.sqrt(low / (count * height * width))
    rows, columns = (
        math.ceil(x * grow / factor) * factor for x in (height, width))
  return rows, columns


def frame_size(frame: Any) -> tuple[int, int]:
  """(height, width) of a PIL image or an array [H, W, C]."""
  if isinstance(frame, Image.Image):
    return frame.height, frame.width
  return frame.shape[0], frame.shape[1]


def rgb(frame: Any) -> Image.Image:
  """RGB; transparency lies on white, as image processors do it."""
  if not isinstance(frame, Image.Image):
    frame = Image.fromarray(np.asarray(frame))
  if 'A' in frame.getbands() or 'transparency' in frame.info:
    frame = frame.convert('RGBA')
    white = Image.new('RGBA', frame.size, (255, 255, 255, 255))
    frame = Image.alpha_composite(white, frame)
  return frame.convert('RGB')


def preprocess(frames: Sequence[Any], config: VideoConfig) -> tuple[
    np.ndarray, positions.Grid]:
  """Patches of the given (already sampled) frames.

  Args:
    frames: PIL images or u8[H, W, C], all of one size.
    config: see VideoConfig.

  Returns:
    patches f32[t*h*w, C] in file order, C ordered (colour, frame, row, column)
    and the grid (t, h, w).

  Raises:
    ValueError: frames of different sizes, or none.
  """
  sizes = {frame_size(frame) for frame in frames}
  if len(sizes) != 1:
    raise ValueError(
        f'a video with frames of sizes {sorted(sizes)}: all must be equal.')
  (height, width), = sizes
  t, h, w = grid(len(frames), height, width, config)
  pixels = np.stack([
      resize.bicubic(np.asarray(rgb(frame)), h * config.patch, w * config.patch)
      for frame in frames]).astype(np.float32)
  pixels = (pixels / 255 - np.float32(config.mean)) / np.float32(config.std)
  missing = t * config.temporal - len(frames)
  if missing:
    pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
  p, m = config.patch, config.merge
  pixels = pixels.reshape(t, config.temporal, h // m, m, p, w // m, m, p, 3)
  # (t, row, column of cell, row, column in cell, colour, frame, y, x)
  pixels = pixels.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
  return pixels.reshape(t * h * w, -1).astype(np.float32), (t, h, w)
