"""Frames resized to the bit as torch does it (M4)."""

import numpy as np
import pytest
import torch

from mmr1.data import resize


def theirs(pixels, height, width):
  x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
  return torch.nn.functional.interpolate(
      x, (height, width), mode='bicubic', antialias=True)[0].permute(
          1, 2, 0).numpy()


@pytest.mark.parametrize('old, new', [
    ((40, 60), (32, 64)), ((40, 60), (48, 80)), ((33, 33), (16, 16)),
    ((480, 640), (256, 352)), ((50, 70), (112, 28)), ((17, 300), (32, 192)),
    ((1, 5), (28, 28)), ((300, 2), (28, 56)), ((16, 16), (16, 16)),
    ((28, 50), (28, 28)), ((1080, 9), (28, 28))])
def test_m4_equals_torch(old, new):
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (*old, 3), np.uint8)
  edges = np.where(noise > 127, 255, 0).astype(np.uint8)  # under- and overshoot
  for pixels in (noise, edges):
    np.testing.assert_array_equal(
        resize.bicubic(pixels, *new), theirs(pixels, *new))


def test_a_flat_frame_stays_flat():
  flat = np.full((30, 44, 3), 201, np.uint8)
  for size in ((28, 28), (56, 84), (7, 100)):
    assert (resize.bicubic(flat, *size) == 201).all()
