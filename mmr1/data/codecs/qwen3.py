"""Images and videos of Qwen3-VL.

Images are those of its predecessors with larger patches. A video is text and
pictures in turn: every pair of frames stands alone behind the second it was
taken at, so that positions need not tell the time.
"""

import dataclasses
from typing import Any

from mmr1 import positions
from mmr1.data import video
from mmr1.data.codecs import base
from mmr1.data.codecs import qwen

# What transformers assumes where `vision_config` is silent.
_VISION_DEFAULTS = {
    'patch_size': 16, 'spatial_merge_size': 2, 'temporal_patch_size': 2}
_START, _END = '<|vision_start|>', '<|vision_end|>'


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Codec(qwen.Codec):
  """See `qwen.Codec`.

  What the chat template writes for a video, `_START pads _END`, is replaced as
  a whole (transformers <= 4.57); under the rule 'v5' it is kept around the
  frames, as transformers 5 does it.
  """

  def video_span(self, clip):
    indices, _ = video.sampled(clip, self.video)
    t, h, w = video.grid(
        len(indices), *video.frame_size(clip.frames[0]), self.video)
    text = ''.join(
        f'<{time:.1f} seconds>{_START}{qwen.VIDEO}{_END}'
        for time in video.times(indices, clip.fps, self.temporal))
    if self.position_rule == 'v5':
      text = f'{_START}{text}{_END}'
    frame = 1, h, w
    return base.Span(text, (positions.vision_tokens(frame, self.merge),) * t,
                     ((*frame, 1.0),) * t)


def open_codec(
    folder: str, path: str, config: Any, tokenizer: Any,
    options: base.Options) -> Codec:
  """Reads the family's part of a checkpoint folder, see `qwen.read`."""
  vision = {**_VISION_DEFAULTS, **config.get('vision_config', {})}
  fields = qwen.read(
      folder, path, config, vision, tokenizer, options, by_clip=True)
  return Codec(**fields | dict(
      video_mark=f'{_START}{qwen.VIDEO}{_END}', sizes=True))
