"""Frame sampling and patches, against the maths of the original."""

import dataclasses
import math
import types

import numpy as np
import pytest
import torch

from mmr1 import records
from mmr1.data import video
from tests.data import oracles

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
  kwargs = dict(
      total=4, source_fps=2.0, fps=2.0, min_frames=4, max_frames=16) | bad
  with pytest.raises(ValueError, match='positive'):
    video.sample_frames(**kwargs, temporal=2)
  with pytest.raises(ValueError, match='positive'):
    video.spread_frames(**kwargs)


def test_refuses_frames_of_two_sizes():
  with pytest.raises(ValueError, match='equal'):
    video.preprocess([np.zeros((8, 8, 3), np.uint8),
                      np.zeros((8, 16, 3), np.uint8)], CONFIG)


def test_m4_frames_spread_to_the_end_equal_the_original():
  sample, = oracles.original('qwen3_vl', 'sample_frames')
  kw = dict(fps=2.0, min_frames=4, max_frames=16)
  settings = types.SimpleNamespace(num_frames=None, **kw)
  for total in range(1, 120):
    for source_fps in (1.0, 3.0, 24.0, 29.97):
      info = types.SimpleNamespace(total_num_frames=total, fps=source_fps)
      np.testing.assert_array_equal(
          video.spread_frames(total, source_fps, **kw),
          sample(settings, info), f'{total}')


@pytest.mark.parametrize('cap', [None, 9])
def test_m4_sizes_of_a_clips_budget_equal_the_original(cap):
  """Over many sizes; patches counted by transformers, which knows the cap."""
  smart_resize, count_patches = oracles.original(
      'qwen3_vl', 'smart_resize', 'get_num_of_video_patches')
  config = dataclasses.replace(
      CONFIG, whole_clip=True, min_pixels=2048, max_pixels=16384,
      frame_cells=cap)
  settings = types.SimpleNamespace(
      patch_size=8, merge_size=2, temporal_patch_size=2, max_video_tokens=cap,
      cap_pixels_per_frame=cap is not None,
      size=dict(shortest_edge=2048, longest_edge=16384))
  rng, seen = np.random.default_rng(0), set()
  for count, height, width in np.stack([
      rng.integers(2, 12, 300), rng.integers(1, 120, 300),
      rng.integers(1, 160, 300)], -1).tolist():
    grid = video.grid(count, height, width, config)
    assert np.prod(grid) == count_patches(settings, count, height, width)
    if cap is None:
      assert (8 * grid[1], 8 * grid[2]) == smart_resize(
          count, height, width, temporal_factor=2, factor=16, min_pixels=2048,
          max_pixels=16384)
    seen.add(grid)
  assert len(seen) > 30


def test_a_clips_budget_by_hand():
  # Qwen3-VL: cells of 32 x 32, at most 786,432 pixels. Eight frames of 480 x
  # 640 have 2,457,600, too many by 3.125; 480 / 1.768 = 271.5 -> 256, 362 ->
  # 352.
  config = dataclasses.replace(
      CONFIG, patch=16, whole_clip=True, min_pixels=128 * 32**2,
      max_pixels=768 * 32**2)
  assert video.grid(8, 480, 640, config) == (4, 16, 22)
  # Eight of the cells that a frame may have at most: 3 * 4 = 12 would be more.
  few = dataclasses.replace(
      config, frame_cells=8, min_pixels=32**2)
  assert video.grid(8, 480, 640, few) == (4, 4, 6)
  # One frame counts as the two of its patch.
  assert video.grid(1, 480, 640, config) == (1, 30, 40)
  for height, width, word in ((0, 8, 'empty'), (1, 250, 'aspect')):
    with pytest.raises(ValueError, match=word):
      video.grid(4, height, width, config)


def test_times_by_hand():
  # Frames 0 and 3, 5 and 8, 9 and 9 again, of a clip with 4 a second.
  assert video.times(np.array([0, 3, 5, 8, 9]), 4.0, 2) == [
      0.375, 1.625, 2.25]
  assert video.times(np.array([6]), 2.0, 2) == [3.0]
