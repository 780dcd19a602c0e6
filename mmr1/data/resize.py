"""Frames resized as torch resizes bytes, to the bit.

The video processors of transformers resize bytes with torch's antialiased
bicubic filter. PIL's has the same formula, but keeps weights of 22 bits where
torch rounds them to 16: at sharp edges the two differ by several grey levels.
"""

import functools

import numpy as np
from scipy import sparse

_A = -0.5  # of the cubic convolution; PIL and torch's antialiased filter have it
_SUPPORT = 2.0
_BITS = 15  # of a weight, with its sign in a 16th
_MOST_BITS = 22  # where weights are small


def bicubic(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """u8[H, W, C] -> u8[height, width, C]; columns first, then rows."""
  for axis, size in ((1, width), (0, height)):
    if pixels.shape[axis] != size:
      pixels = _along(pixels, axis, size)
  return pixels


def _along(pixels: np.ndarray, axis: int, size: int) -> np.ndarray:
  weights, bits = _weights(pixels.shape[axis], size)
  x = np.moveaxis(pixels, axis, 0)
  # At most 255 times the weights' absolute sum: it fits into 32 bits.
  flat = np.ascontiguousarray(x.reshape(len(x), -1), np.int32)
  out = (weights @ flat + (1 << (bits - 1))) >> bits
  out = np.clip(out, 0, 255).astype(np.uint8).reshape(size, *x.shape[1:])
  return np.moveaxis(out, 0, axis)


@functools.lru_cache(maxsize=64)
def _weights(old: int, new: int) -> tuple[sparse.csr_array, int]:
  """Integer weights i32[new, old] and how many of their bits are a fraction.

  Every output pixel is a weighted mean around its centre; where the image
  shrinks the filter is stretched by as much.
  """
  scale = old / new
  stretch = max(scale, 1.0)
  reach = _SUPPORT * stretch
  rows, columns, values = [], [], []
  for i in range(new):
    centre = scale * (i + 0.5)
    near = np.arange(max(int(centre - reach + 0.5), 0),
                     min(int(centre + reach + 0.5), old))
    weight = _cubic((near - centre + 0.5) / stretch)
    rows += [i] * len(near)
    columns += near.tolist()
    values += (weight / weight.sum()).tolist()
  largest, bits = max(values), 0
  while bits < _MOST_BITS and int(
      0.5 + largest * (1 << (bits + 1))) < 1 << _BITS:
    bits += 1
  fixed = np.asarray(values) * (1 << bits)
  fixed = np.trunc(fixed + np.copysign(0.5, fixed)).astype(np.int32)
  return sparse.csr_array((fixed, (rows, columns)), (new, old)), bits


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys' cubic convolution, https://doi.org/10.1109/TASSP.1981.1163711."""
  x = np.abs(x)
  inner = ((_A + 2) * x - (_A + 3)) * x * x + 1
  outer = (((x - 5) * x + 8) * x - 4) * _A
  return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))
