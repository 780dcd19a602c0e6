"""What a family makes of images and videos: the host's half of its tower.

Every family has a file here with a `Codec` and a function `open_codec(folder,
path, config, tokenizer, options)`; `mmr1.data.processor` finds it by the
`model_type` of config.json. A codec is asked for text first (`image_span`,
`video_span`: sizes alone, no pixel is decoded), then for pixels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmr1 import boxes
from mmr1 import pixels as pixels_lib
from mmr1 import positions
from mmr1 import records


class Options(NamedTuple):
  """What the config says of pixels and positions; None: the checkpoint's.

  Fields:
    min_pixels, max_pixels: area an image is resized into.
    video_fps, video_max_frames: how clips are sampled.
    position_rule: 'legacy' or 'v5', see `positions.rope_index`; a family may
      write videos by it, too.
  """
  min_pixels: int | None = None
  max_pixels: int | None = None
  video_fps: float | None = None
  video_max_frames: int | None = None
  position_rule: str = 'legacy'


class Span(NamedTuple):
  """One image or video as text, from its size alone.

  Fields:
    text: what stands for its mark in the chat. Cells come in runs of
      consecutive tokens; here each run is ONE placeholder token.
    runs: tokens of every run.
    grids: of every run, where positions depend on it: (t, h, w, seconds per
      grid or None for an image).
  """
  text: str
  runs: tuple[int, ...]
  grids: tuple[positions.Span, ...] = ()


class Pixels(NamedTuple):
  """One image or video as the tower reads it.

  Fields:
    patches: f32[s, C] in the tower's order; s is whole attention windows.
    position: i32[s, 2], (row, column) in the frame; 0 where padded.
    segment: i32[s], frame number from 1; 0 where padded.
    slot: i32[cells], merged cell of every cell token, in order; below -1: see
      `types.Media`.
    extent: i32[s, 2], rows and columns of the patch's frame, for towers whose
      positions are resampled to it; else None.
    taps, weights: i32, f32[cells, A], for families that blend A cells into one
      token; else None.
  """
  patches: np.ndarray
  position: np.ndarray
  segment: np.ndarray
  slot: np.ndarray
  extent: np.ndarray | None = None
  taps: np.ndarray | None = None
  weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Codec:
  """Pickles; never changes. A family without videos has `video_mark` ''.

  Fields:
    image_mark, video_mark: what the chat template writes for one medium.
    image_id, video_id: token of an image's and a video's cells; -1: none.
    banned: ids that stand for media; never sampled, never in a text (M2).
    channels: C, values per patch.
    unit: patches per merged cell.
    window_patches: patches per padded window; S is a multiple of it.
    min_pixels, max_pixels: area an image is resized into.
    box_frame: frame of the boxes that the family's checkpoints write, see
      `boxes.FRAMES`; None: they write none, or it is not known here.
  """
  image_mark: str
  video_mark: str
  image_id: int
  video_id: int
  banned: tuple[int, ...]
  channels: int
  unit: int
  window_patches: int
  min_pixels: int
  max_pixels: int
  box_frame: str | None = None

  @property
  def pixels_of_patch(self) -> pixels_lib.Pixels:
    """What the values of a patch are, see `pixels_of_patch` below."""
    raise NotImplementedError

  def seen(self, height: int, width: int) -> boxes.Size:
    """What an image of this size is resized to, for boxes in that frame.

    Raises:
      ValueError: the family sees an image in pieces.
    """
    raise ValueError(
        f'{type(self).__module__}: an image of {height} x {width} pixels has '
        "no one size that it is resized to; boxes in the frame 'seen' mean "
        'nothing here.')

  def image_spans(self, sizes: Sequence[tuple[int, int]]) -> list[Span]:
    """The images of one prompt, (height, width) each, as text."""
    return [self.image_span(*size) for size in sizes]

  def image_span(self, height: int, width: int) -> Span:
    """An image of this size, as text."""
    raise NotImplementedError

  def video_span(self, clip: records.Video) -> Span:
    """A clip as text; its frames are not decoded."""
    raise NotImplementedError

  def image_pixels(self, images: Sequence[Any]) -> list[Pixels]:
    """The PIL images of one prompt."""
    raise NotImplementedError

  def video_pixels(self, clip: records.Video) -> Pixels:
    """A clip's sampled frames."""
    raise NotImplementedError

  def nothing(self) -> Pixels:
    """No medium at all, with the shapes and fields of one."""
    return Pixels(
        patches=np.zeros((0, self.channels), np.float32),
        position=np.zeros((0, 2), np.int32), segment=np.zeros(0, np.int32),
        slot=np.zeros(0, np.int32))

  def positions(
      self, tokens: np.ndarray, spans: Sequence[Span],
  ) -> tuple[np.ndarray, int]:
    """Rotary positions i32[p, 3] of a prompt and that of the token after it.

    Here tokens are counted; families with other rules replace this.

    Args:
      tokens: i32[p], every run at its full length.
      spans: of its media, in order of appearance.
    """
    del spans
    return positions.counted(len(tokens))


def pixels_of_patch(
    image_processor: Any, patch: int, clips: Any = None, *, frames: int = 1,
) -> pixels_lib.Pixels:
  """What the values of a patch are that a `layout` here makes.

  All families write them by colour, frame, row, column.

  Args:
    image_processor: a `transformers` image processor.
    patch: pixels per patch side.
    clips: has `mean` and `std` of the frames of videos; None: no videos.
    frames: per patch.

  Raises:
    ValueError: pixels are not brought from 0..255 to 0..1 and normalised, or
      those of videos otherwise than those of images: a patch does not tell
      what it was cut from.
  """
  settings = {name: getattr(image_processor, name, default)
              for name, default in (('do_rescale', True),
                                    ('do_normalize', True),
                                    ('rescale_factor', 1 / 255))}
  if not all(settings.values()) or (
      abs(255 * settings['rescale_factor'] - 1) > 1e-6):
    raise ValueError(
        f'preprocessor_config.json: {settings}: needed are true, true and '
        '1/255 where the pixels of patches are to be changed.')
  mean, std = (tuple(float(x) for x in values) for values in (
      image_processor.image_mean, image_processor.image_std))
  if clips is not None and not np.allclose(
      [clips.mean, clips.std], [mean, std], rtol=0, atol=1e-6):
    raise ValueError(
        f'image_mean {mean} and image_std {std} of images but {clips.mean} and '
        f'{clips.std} of videos: they must be equal where the pixels of '
        'patches are to be changed.')
  return pixels_lib.Pixels(mean=mean, std=std, patch=patch, frames=frames)
