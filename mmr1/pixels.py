"""How a value of a patch relates to a pixel of its image.

Shared by the codecs, which make patches, and by device code that changes the
images of prompts. No jax here: what is written works for NumPy and JAX arrays.
"""

import dataclasses
import math
from typing import Any

import numpy as np

Array = Any  # a NumPy or a JAX array

AXES = ('frame', 'row', 'column', 'channel')


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Hashable, so that it may be a static argument of a compiled function.

  A pixel x in [0, 1] is the value (x - mean) / std of a patch.

  Fields:
    mean, std: per channel; std is above 0.
    patch: pixels per patch side.
    frames: frames per patch; a still image is repeated in all of them.
    order: of `AXES`, how the C values of a patch lie, slowest first.

  Raises:
    ValueError: a field is not as above.
  """
  mean: tuple[float, ...]
  std: tuple[float, ...]
  patch: int
  frames: int = 1
  order: tuple[str, ...] = ('channel', 'frame', 'row', 'column')

  def __post_init__(self):
    if not len(self.mean) == len(self.std) > 0 or not min(self.std) > 0:
      raise ValueError(
          f'mean={self.mean}, std={self.std}: needed is a number for each '
          'channel, and every std above 0.')
    if self.patch < 1 or self.frames < 1:
      raise ValueError(f'patch={self.patch}, frames={self.frames}: both must '
                       'be 1 or more.')
    if sorted(self.order) != sorted(AXES):
      raise ValueError(f'order={self.order} is no order of {AXES}.')

  @property
  def channels(self) -> int:
    """Colours of a pixel."""
    return len(self.mean)

  @property
  def values(self) -> int:
    """C, values per patch."""
    return math.prod(self._sizes.values())

  @property
  def black(self) -> np.ndarray:
    """f32[channels], the values of a pixel 0."""
    return (0 - np.float32(self.mean)) / np.float32(self.std)

  def to_pixels(self, patches: Array) -> Array:
    """Patches f32[..., C] as pixels f32[..., frames, patch, patch, channels].

    Raises:
      ValueError: C is another number.
    """
    return self.split(patches) * np.float32(self.std) + np.float32(self.mean)

  def to_patches(self, pixels: Array) -> Array:
    """The inverse of `to_pixels`, up to rounding.

    Raises:
      ValueError: the last four axes are not frames, patch, patch, channels.
    """
    return self.join((pixels - np.float32(self.mean)) / np.float32(self.std))

  def split(self, patches: Array) -> Array:
    """`to_pixels` without a change of any value."""
    if patches.shape[-1] != self.values:
      raise ValueError(
          f'patches have {patches.shape[-1]} values, expected {self.values}: '
          f'{self._sizes}.')
    lead = patches.shape[:-1]
    parts = patches.reshape(*lead, *(self._sizes[x] for x in self.order))
    return parts.transpose(
        *range(len(lead)), *(len(lead) + self.order.index(x) for x in AXES))

  def join(self, values: Array) -> Array:
    """The inverse of `split`."""
    expected = tuple(self._sizes[x] for x in AXES)
    if values.shape[-4:] != expected:
      raise ValueError(
          f'pixels end with axes {values.shape[-4:]}, expected {expected}: '
          f'{AXES}.')
    lead = values.shape[:-4]
    parts = values.transpose(
        *range(len(lead)), *(len(lead) + AXES.index(x) for x in self.order))
    return parts.reshape(*lead, self.values)

  @property
  def _sizes(self) -> dict[str, int]:
    return dict(frame=self.frames, row=self.patch, column=self.patch,
                channel=self.channels)
