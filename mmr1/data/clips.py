"""Clips of families that read a frame as they read an image of one size."""

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image

from mmr1 import records
from mmr1.data import checks
from mmr1.data import resize
from mmr1.data import video


@dataclasses.dataclass(frozen=True)
class Clips:
  """How the frames of a clip are chosen and read.

  Fields:
    frames: their number; None: by `fps`.
    fps: frames per second; None as well: all of them.
    most: bound of their number; None: none.
    shift: True: frames lie in the middle of equal parts of the clip; a number:
      this many are skipped first; None: each is the first of its part.
    size: pixels of a frame's side.
    mean, std: of the pixels in 0..1, per colour.
    resample: PIL's number of the filter.
  """
  frames: int | None
  fps: float | None
  most: int | None
  shift: bool | float | None
  size: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  resample: int


def from_folder(
    folder: str,
    path: str,
    images: Any,
    size: int,
    *,
    fps: float | None,
    max_frames: int | None,
    shift: bool | None,
) -> Clips:
  """Settings of their own file, where silent those of images.

  Args:
    folder: local, of the checkpoint.
    path: what the user called it, for messages.
    images: its `transformers` image processor.
    size: pixels of a side that the tower reads.
    fps: replaces how the checkpoint samples clips; or None.
    max_frames: bounds the number of frames; or None.
    shift: where the file does not say `initial_shift`, see `Clips`.

  Raises:
    ValueError: frames of another size, or none would be sampled.
  """
  given = checks.settings(folder, 'video_processor')
  # transformers writes null for what it leaves open.
  given = {key: x for key, x in given.items() if x is not None}
  if 'size' in given:
    check_size(given['size'], size, f'{path}/video_preprocessor_config.json')
  frames = rate = None
  if given.get('do_sample_frames'):
    frames, rate = given.get('num_frames'), given.get('fps')
  if fps is not None:
    frames, rate = None, fps
  for name, value in (('video_fps', rate), ('num_frames', frames),
                      ('video_max_frames', max_frames)):
    if value is not None and not value > 0:
      raise ValueError(f'{path}: {name}={value}: needed is more than 0.')
  return Clips(
      frames=frames, fps=rate, most=max_frames,
      shift=given.get('initial_shift', shift), size=size,
      mean=tuple(given.get('image_mean', images.image_mean)),
      std=tuple(given.get('image_std', images.image_std)),
      resample=given.get('resample', images.resample))


def check_size(given: Any, size: int, where: str) -> None:
  """Refuses pixels of another size than the tower's."""
  if (given.get('height'), given.get('width')) != (size, size):
    raise ValueError(
        f'{where}: size {dict(given)}, but the tower reads {size} x {size} '
        'pixels (vision_config.image_size of config.json).')


def sampled(clip: records.Video, clips: Clips) -> np.ndarray:
  """i64[n], the frames to use; never more than there are, at least one.

  As InternVL's video processor does it, or, without `shift`, transformers' in
  general.

  Raises:
    ValueError: no frames, or a rate that is not positive.
  """
  total = len(clip.frames)
  if total < 1 or not clip.fps > 0:
    raise ValueError(f'a video of {total} frames at {clip.fps} fps: both must '
                     'be positive.')
  count = total
  if clips.frames is not None:
    count = clips.frames
  elif clips.fps is not None:
    count = int(total / clip.fps * clips.fps)
  count = max(1, min(count, total, clips.most or total))
  if clips.shift is None:
    return np.arange(count) * total // count
  step = total / count
  shift = step / 2 if clips.shift is True else float(clips.shift)
  taken = shift + np.arange(math.ceil((total - shift) / step)) * step
  return taken.astype(np.float32).astype(np.int64)


def read(clip: records.Video, clips: Clips) -> np.ndarray:
  """The frames to use, f32[n, 3, size, size], resized and normalised."""
  def resized(frame):
    frame, size = video.rgb(frame), (clips.size, clips.size)
    if clips.resample == Image.Resampling.BICUBIC:  # what the releases have
      return resize.bicubic(np.asarray(frame), *size)
    return np.asarray(frame.resize(size, clips.resample))

  pixels = np.stack([resized(clip.frames[i])
                     for i in sampled(clip, clips)]).astype(np.float32)
  pixels = (pixels / 255 - np.float32(clips.mean)) / np.float32(clips.std)
  return pixels.transpose(0, 3, 1, 2).astype(np.float32)
