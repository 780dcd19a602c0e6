"""Frame sampling and patches, against the maths of the original."""

import math

import numpy as np
import pytest
import torch

from mmr1 import records
from mmr1.data import video

CONFIG = video.VideoConfig(
    patch=8, merge=2, temporal=2, min_pixels=256, max_pixels=1024, fps=2.0,
    min_frames=4, max_frames=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def _original(total, source_fps, fps, low, high):
  """The formula of the Qwen2-VL video processor, in torch."""
  high = math.floor(min(high, total) / 2) * 2
  count = min(max(total / source_fps * fps, low), high, total)
  count = math.floor(count / 2) * 2
  return torch.arange(0, total, total / count).int().numpy()


def test_m4_sampled_frames_equal_the_original():
  for total in range(2, 120):
    for source_fps in (1.0, 3.0, 24.0, 29.97):
      ours = video.sample_frames(
          total, source_fps, fps=2.0, min_frames=4, max_frames=16, temporal=2)
      np.testing.assert_array_equal(
          ours, _original(total, source_fps, 2.0, 4, 16), f'{total}')


def test_sampling_by_hand():
  # 9 frames at 4 Hz are 2.25 s: 4.5 frames at 2 Hz, rounded down to 4; steps
  # of 2.25: 0, 2.25, 4.5, 6.75. They then come at 4/9*4 = 1.78 Hz.
  clip = records.Video(frames=(np.zeros((8, 8, 3), np.uint8),) * 9, fps=4.0)
  indices, rate = video.sampled(clip, CONFIG)
  assert indices.tolist() == [0, 2, 4, 6]
  assert rate == pytest.approx(16 / 9)
  one = records.Video(frames=clip.frames[:1], fps=4.0)
  assert video.sampled(one, CONFIG)[0].tolist() == [0]


def test_odd_clip_repeats_its_last_frame():
  frames = [np.full((16, 16, 3), 51 * i, np.uint8) for i in (1, 2, 5)]
  patches, grid = video.preprocess(frames, CONFIG)
  # 16x16 pixels: one cell of 2x2 patches; 3 frames: 2 in time.
  assert grid == (2, 2, 2)
  cut = patches.reshape(2, 4, 3, 2, 64)  # time, patch, colour, frame, pixel
  # Red (mean .5, std .2): 51/255 = .2 -> -1.5; .4 -> -0.5; 1.0 -> 2.5.
  assert cut[0, :, 0, 0] == pytest.approx(-1.5, abs=1e-6)
  assert cut[0, :, 0, 1] == pytest.approx(-0.5, abs=1e-6)
  assert cut[1, :, 0] == pytest.approx(2.5, abs=1e-6)
  # Blue (mean .3, std .4): 1.0 -> 1.75.
  assert cut[1, :, 2] == pytest.approx(1.75, abs=1e-6)


def test_patch_order_is_cell_by_cell():
  frame = np.zeros((32, 32, 3), np.uint8)
  frame[0:8, 16:24] = 255  # patch (row 0, column 2): cell 1, first patch in it
  patches, grid = video.preprocess([frame, frame], CONFIG)
  assert grid == (1, 4, 4)
  assert np.flatnonzero(patches.mean(1) > 0).tolist() == [4]


@pytest.mark.parametrize('bad', [
    dict(total=0), dict(source_fps=0.0), dict(source_fps=float('nan'))])
def test_refuses_nonsense(bad):
  kwargs = dict(total=4, source_fps=2.0) | bad
  with pytest.raises(ValueError, match='positive'):
    video.sample_frames(
        **kwargs, fps=2.0, min_frames=4, max_frames=16, temporal=2)


def test_refuses_frames_of_two_sizes():
  with pytest.raises(ValueError, match='equal'):
    video.preprocess([np.zeros((8, 8, 3), np.uint8),
                      np.zeros((8, 16, 3), np.uint8)], CONFIG)
