"""The sizes of a Qwen vision-language model: the decoder's and the tower's."""

import dataclasses

from mmr1.models import decoder_config


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The vision tower. Sizes in patches or pixels as transformers has them.

  Token ids and the rate of videos are the processor's. `gated` is the kind of
  a layer: root-mean-square norms and a SwiGLU (Qwen2.5-VL), or layer norms and
  two linear layers around a quick GELU (Qwen2-VL). A layer that is not in
  `full_layers` attends inside windows of `window_cells` cells a side.
  """
  depth: int
  width: int
  mlp_width: int
  heads: int
  channels: int
  patch: int
  temporal_patch: int
  merge: int
  window_cells: int
  full_layers: tuple[int, ...]
  out_width: int
  gated: bool

  @property
  def patch_values(self) -> int:
    """C, values per patch."""
    return self.channels * self.temporal_patch * self.patch**2

  @property
  def window_patches(self) -> int:
    """Patch slots of one window; S of `Media` is a multiple of it."""
    return (self.window_cells * self.merge)**2

  @property
  def windows(self) -> bool:
    """Whether any layer attends inside windows."""
    return not set(range(self.depth)) <= set(self.full_layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(decoder_config.Config):
  """A decoder and its vision tower."""
  vision: VisionConfig
