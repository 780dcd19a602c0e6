"""The `view` socket: what the images of prompts look like to another pass.

`(media, keys, *, pixels, ...) -> media`: `media` as the tower reads it, `keys`
one per prompt row, `pixels` from the codec. Only `patches` changes. What a row
becomes depends on its key and its own media, not on the batch, the order of
its patches or how much it is padded: random numbers are folded from the place
of a patch in its frame. Rows of one key and one image get one view.

A frame is what has a `segment` of its own: an image, two frames of a Qwen
video, a frame of another family's, or a tile of an image that a family cuts.
Which frames make one medium is not written in `types.Media`, so every frame is
changed about its own centre: tiles stay where they are.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmr1 import pixels as pixels_lib
from mmr1 import types

Array = jax.Array
Number = float | jax.Array

# Grey of red, green, blue: ITU-R 601, as PIL and torchvision have it.
_GREY = (0.299, 0.587, 0.114)


def same(
    media: types.Media, keys: Array, *, pixels: pixels_lib.Pixels
) -> types.Media:
  """Nothing is changed.

  Args:
    media: of N rows.
    keys: [N], not read.
    pixels: of the media's patches, not read.
  """
  del keys, pixels
  return media


def mask(
    media: types.Media,
    keys: Array,
    *,
    pixels: pixels_lib.Pixels,
    black: Number = 0.6,
    size: int | None = None,
) -> types.Media:
  """Square blocks of every frame become black, each by a coin of its own.

  PAPO (arXiv:2507.06448) and VPPO (arXiv:2510.09285): blocks of 14 pixels,
  which is a patch of Qwen2.5-VL, with probability 0.6. Blocks count from the
  upper left corner of the frame; those at its other edges may be cut. The
  frames of one patch, copies of a still image among them, share their coins.

  Args:
    media: of N rows.
    keys: [N], typed or u32[N, 2].
    pixels: of the media's patches.
    black: probability, in [0, 1]; 0 changes no bit.
    size: pixels of a block's side, 1 or more; None: of a patch.

  Returns:
    `media` with f32[N, S, C] patches, those that are padding as they were.

  Raises:
    ValueError: `size` is below 1, or C is not that of `pixels`.
  """
  size = pixels.patch if size is None else size
  if size < 1:
    raise ValueError(f'size={size}: a block has 1 pixel a side or more.')

  def row(key, position, segment):
    coins = _coins(key, position, segment, pixels.patch, size)
    return (coins < black) & (segment > 0)[:, None, None]

  # Only rearranged, not normalised anew: what is kept keeps its bits.
  values = pixels.split(jnp.asarray(media.patches))
  chosen = jax.vmap(row)(keys, media.position, media.segment)
  values = jnp.where(
      chosen[:, :, None, :, :, None], pixels.black, values)
  return media.replace(patches=pixels.join(values))


def perturb(
    media: types.Media,
    keys: Array,
    *,
    pixels: pixels_lib.Pixels,
    flip_h: Number = 0.5,
    flip_v: Number = 0.5,
    degrees: Number = 10.0,
    brightness: Number = 0.15,
    contrast: Number = 0.15,
    noise: Number = 0.4,
) -> types.Media:
  """Flips, a rotation, brightness, contrast and noise, in this order.

  VOGUE (arXiv:2510.01444). A row has one draw of the first five, so that a
  video moves as a whole; each frame is turned about its own centre. Bilinear,
  black outside of the frame, as torchvision does it with tensors. Contrast is
  about the mean grey of each frame, what became black by the rotation
  included. Noise is independent for every pixel, channel and `segment`; the
  frames of one patch share it, so that copies of a still image stay equal.
  Pixels are clipped to [0, 1] after brightness, contrast and noise. With all
  numbers 0 a patch is what it was within rounding, about 1e-6.

  Args:
    media: of N rows.
    keys: [N], typed or u32[N, 2].
    pixels: of the media's patches; of three channels, red, green, blue.
    flip_h, flip_v: probability that left and right, up and down are swapped,
      in [0, 1].
    degrees: the angle is uniform in [-degrees, degrees]; 0 or more.
    brightness, contrast: the factor is uniform in 1 -+ this, but not below 0;
      0 or more.
    noise: standard deviation of what is added to pixels in [0, 1]; 0 or more.

  Returns:
    `media` with f32[N, S, C] patches, those that are padding as they were.

  Raises:
    ValueError: `pixels` has not three channels, or C is not its.
  """
  if pixels.channels != len(_GREY):
    raise ValueError(f'pixels have {pixels.channels} channels, needed are red, '
                     'green and blue.')

  def row(key, patches, position, segment):
    one, many = jax.random.split(key)
    draw = jax.random.uniform(one, (5,))
    spread = 2 * draw[2:] - 1  # in [-1, 1)
    signs = jnp.where(draw[:2] < jnp.array([flip_v, flip_h]), -1.0, 1.0)
    values = _moved(
        pixels.to_pixels(patches), _layout(position, segment), position,
        segment, signs=signs, angle=jnp.deg2rad(degrees * spread[0]))
    values = jnp.clip(
        values * jnp.maximum(1 + brightness * spread[1], 0), 0, 1)
    factor = jnp.maximum(1 + contrast * spread[2], 0)
    values = jnp.clip(
        factor * values + (1 - factor) * _grey(values, segment), 0, 1)
    speckles = _drawn(
        lambda key: jax.random.normal(key, (1, *values.shape[2:])), many,
        segment, position[:, 0], position[:, 1])
    values = jnp.clip(values + noise * speckles, 0, 1)
    return jnp.where(
        (segment > 0)[:, None], pixels.to_patches(values), patches)

  patches = jax.vmap(row)(
      keys, media.patches, media.position, media.segment)
  return media.replace(patches=patches)


def _drawn(sample: Callable[[Array], Array], key: Array, *parts: Array
           ) -> Array:
  """`sample` of a key of its own for every entry of i32[...] `parts`."""
  def one(*parts):
    folded = key
    for part in parts:
      folded = jax.random.fold_in(folded, part)
    return sample(folded)
  parts = jnp.broadcast_arrays(*parts)
  for _ in range(parts[0].ndim):
    one = jax.vmap(one)
  return one(*parts)


def _coins(
    key: Array, position: Array, segment: Array, patch: int, size: int
) -> Array:
  """Uniform numbers in [0, 1), one per block, of a row's pixels.

  Args:
    key: of the row.
    position, segment: i32[S, 2], i32[S].
    patch, size: pixels of a patch's and a block's side.

  Returns:
    f32[S, patch, patch]; pixels of one block of one frame have one number.
  """
  # Most blocks that a patch touches along a side. The corner of a patch lies
  # at a multiple of the common divisor inside its block.
  touched = (size - math.gcd(patch, size) + patch - 1) // size + 1
  pixel = position[..., None] * patch + jnp.arange(patch)  # [S, 2, patch]
  block = pixel // size
  first = block[..., :1]
  near = first + jnp.arange(touched)  # [S, 2, touched]
  coins = _drawn(
      jax.random.uniform, key, segment[:, None, None], near[:, 0, :, None],
      near[:, 1, None, :])  # [S, touched, touched]
  if touched == 1:  # the usual case, without a lookup
    return jnp.broadcast_to(coins, (len(segment), patch, patch))
  which = block - first
  coins = jnp.take_along_axis(coins, which[:, 0, :, None], 1)
  return jnp.take_along_axis(coins, which[:, 1, None, :], 2)


class _Layout(NamedTuple):
  """Where the patches of a row's frames are.

  Fields:
    sides: i32[S, 2], rows and columns of the patch's frame.
    first: i32[S], number of the first patch of the patch's frame where the
      patches of a row are counted frame by frame, row by row.
    place: i32[S], place in the row of the patch with this number; S: none.
  """
  sides: Array
  first: Array
  place: Array


def _layout(position: Array, segment: Array) -> _Layout:
  """Of a row. Every frame is a whole rectangle, so S numbers are enough."""
  count = len(segment)
  sides = jax.ops.segment_max(position + 1, segment, count + 1)
  sides = jnp.maximum(sides, 0).at[0].set(0)  # padding; empty segments
  size = jnp.prod(sides, axis=-1)
  sides, first = sides[segment], (jnp.cumsum(size) - size)[segment]
  number = first + position[:, 0] * sides[:, 1] + position[:, 1]
  place = jnp.full(count, count, jnp.int32).at[
      jnp.where(segment > 0, number, count)].set(
          jnp.arange(count, dtype=jnp.int32), mode='drop')
  return _Layout(sides, first, place)


def _moved(
    values: Array, layout: _Layout, position: Array, segment: Array, *,
    signs: Array, angle: Array,
) -> Array:
  """The frames of a row flipped, then turned about their centres.

  Args:
    values: f32[S, frames, patch, patch, channels], pixels.
    layout: of the row.
    position, segment: i32[S, 2], i32[S].
    signs: f32[2], -1 where up and down, left and right are swapped, else 1.
    angle: radians, counterclockwise as one looks at the picture.

  Returns:
    f32 of the same shape; where padded: anything.
  """
  count, frames, patch, _, channels = values.shape
  # One line per pixel of a patch, its frames beside each other.
  table = values.transpose(0, 2, 3, 1, 4).reshape(-1, frames * channels)
  limit = layout.sides * patch
  centre = (limit - 1).astype(jnp.float32)[:, :, None] / 2
  pixel = position[:, :, None] * patch + jnp.arange(patch)  # [S, 2, patch]
  offset = pixel - centre
  y, x = offset[:, 0, :, None], offset[:, 1, None, :]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  # Where an output pixel comes from. Without a rotation this is exact: centres
  # are halves, so that a flip hits pixels and no neighbour has any weight.
  y, x = signs[0] * (cos * y + sin * x), signs[1] * (cos * x - sin * y)
  y, x = y + centre[:, :1], x + centre[:, 1:]
  top, left = jnp.floor(y), jnp.floor(x)

  def tap(row, column, weight):
    inside = ((row >= 0) & (row < limit[:, :1, None]) & (column >= 0)
              & (column < limit[:, 1:, None]) & (segment > 0)[:, None, None])
    number = (layout.first[:, None, None] + column // patch
              + row // patch * layout.sides[:, 1:, None])
    place = layout.place.at[number].get(mode='clip')
    line = (place * patch + row % patch) * patch + column % patch
    # A patch that a frame lacks has place S: past the end, so black.
    line = jnp.where(inside, line, count * patch**2)
    return weight[..., None] * table.at[line].get(
        mode='fill', fill_value=0)

  down, across = y - top, x - left
  top, left = top.astype(jnp.int32), left.astype(jnp.int32)
  result = (tap(top, left, (1 - down) * (1 - across))
            + tap(top, left + 1, (1 - down) * across)
            + tap(top + 1, left, down * (1 - across))
            + tap(top + 1, left + 1, down * across))
  return result.reshape(count, patch, patch, frames, channels).transpose(
      0, 3, 1, 2, 4)


def _grey(values: Array, segment: Array) -> Array:
  """Mean grey of the frame that a pixel of a row belongs to.

  Args:
    values: f32[S, frames, patch, patch, 3], pixels.
    segment: i32[S].

  Returns:
    f32[S, frames, 1, 1, 1].
  """
  count = len(segment)
  # Sums of products instead of `@`, which is less than f32 on TPUs.
  grey = jnp.mean(jnp.sum(values * jnp.asarray(_GREY), -1), (-1, -2))
  total = jax.ops.segment_sum(grey, segment, count + 1)
  size = jax.ops.segment_sum(jnp.ones(count), segment, count + 1)
  mean = total / jnp.maximum(size, 1)[:, None]
  return mean[segment][:, :, None, None, None]
