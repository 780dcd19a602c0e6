"""Positions, windows and sizes against worked numbers and transformers."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers import vision_utils
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl

from mmr1 import positions

TEXT, IMAGE, VIDEO = 5, 1, 2
IDS = dict(image_id=IMAGE, video_id=VIDEO, merge=2)
GRIDS = [(1, 12, 10), (1, 8, 8), (2, 4, 12), (1, 2, 2), (3, 6, 4), (1, 10, 22)]


def prompt(*parts):
  """Tokens and grids of text lengths (int) and spans (t, h, w, seconds)."""
  tokens, grids = [], []
  for part in parts:
    if isinstance(part, int):
      tokens += [TEXT] * part
    else:
      grids.append(part)
      count = positions.vision_tokens(part[:3], 2)
      tokens += [IMAGE if part[3] is None else VIDEO] * count
  return tokens, grids


@pytest.fixture(scope='module')
def oracle():
  """`get_rope_index` of transformers for a given tokens_per_second."""
  def rope_index(tokens, grids, tokens_per_second):
    with torch.device('meta'):
      config = Qwen2_5_VLConfig(
          text_config=dict(
              vocab_size=8, hidden_size=8, intermediate_size=8,
              num_hidden_layers=1, num_attention_heads=1,
              num_key_value_heads=1,
              rope_parameters=dict(rope_type='default', rope_theta=1e6,
                                   mrope_section=[1, 1, 2])),
          vision_config=dict(depth=1, hidden_size=8, num_heads=1,
                             intermediate_size=8, out_hidden_size=8,
                             tokens_per_second=tokens_per_second))
      model = modeling_qwen2_5_vl.Qwen2_5_VLModel(config)
    kinds = {TEXT: 0, IMAGE: 1, VIDEO: 2}
    images = [g[:3] for g in grids if g[3] is None]
    videos = [g[:3] for g in grids if g[3] is not None]
    seconds = [g[3] for g in grids if g[3] is not None]
    ids, delta = model.get_rope_index(
        torch.tensor([tokens]),
        torch.tensor([[kinds[token] for token in tokens]]),
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
        torch.tensor(seconds) if seconds else None)
    return ids[:, 0].T.numpy(), int(delta[0, 0]) + len(tokens)
  return rope_index


def test_m4_image_by_hand():
  tokens, grids = prompt(3, (1, 4, 6, None), 2)
  # 2 x 3 cells start at 3; the widest row ends at 5, so text goes on at 6.
  for rule in positions.RULES:
    got, following = positions.rope_index(
        tokens, grids, tokens_per_second=2, rule=rule, **IDS)
    assert got.T.tolist() == [
        [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7],
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7],
        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]]
    assert following == 8
    assert got.dtype == np.int32


# Three frames of 2 x 2 cells, 2 positions apart: 2, 4, 6. The largest is 6, so
# the old rule goes on at 7 and the new one at 2 + max(4, 4) / 2 = 4; the first
# completion token comes after the largest of all, 9 and 7.
@pytest.mark.parametrize('rule, text, following', [
    ('legacy', [7, 8], 9), ('v5', [4, 5], 7)])
def test_m4_video_by_hand(rule, text, following):
  tokens, grids = prompt(2, (3, 4, 4, 1.0), 2)
  got = positions.rope_index(
      tokens, grids, tokens_per_second=2, rule=rule, **IDS)
  assert got[0][:, 0].tolist() == [0, 1] + [2] * 4 + [4] * 4 + [6] * 4 + text
  assert got[0][2:6, 1].tolist() == [2, 2, 3, 3]
  assert got[0][2:6, 2].tolist() == [2, 3, 2, 3]
  assert got[1] == following


def test_text_only_and_empty():
  got, following = positions.rope_index([TEXT] * 4, [], tokens_per_second=2,
                                        **IDS)
  assert got.tolist() == [[i] * 3 for i in range(4)] and following == 4
  got, following = positions.rope_index([], [], tokens_per_second=2, **IDS)
  assert got.shape == (0, 3) and following == 0


def test_adjacent_images_stay_two_spans():
  tokens, grids = prompt((1, 4, 4, None), (1, 2, 2, None))
  got, following = positions.rope_index(tokens, grids, tokens_per_second=2,
                                        **IDS)
  # The first covers 0..1 on every row, so the second sits at 2.
  assert got[4].tolist() == [2, 2, 2] and following == 3


@pytest.mark.parametrize('tokens_per_second', [2, 4, 25])
@pytest.mark.parametrize('parts', [
    (7,), (3, (1, 4, 6, None), 2), ((1, 2, 8, None), 1, (1, 6, 2, None), 4),
    (1, (4, 4, 4, 1.0), 1, (5, 2, 6, 0.4166667), 2, (1, 4, 4, None), 3),
    (2, (7, 4, 2, 1 / 3), 1)])
def test_m4_equals_transformers(oracle, parts, tokens_per_second):
  tokens, grids = prompt(*parts)
  got, following = positions.rope_index(
      tokens, grids, tokens_per_second=tokens_per_second, rule='v5', **IDS)
  expected, expected_following = oracle(tokens, grids, tokens_per_second)
  np.testing.assert_array_equal(got, expected)
  assert following == expected_following


def test_m5_truncated_or_unmatched_spans_are_errors():
  tokens, grids = prompt(2, (1, 4, 4, None), 1)
  kw = dict(tokens_per_second=2, **IDS)
  with pytest.raises(ValueError, match='grid 0 .* needs 4 consecutive'):
    positions.rope_index(tokens[:4], grids, **kw)
  with pytest.raises(ValueError, match='2 placeholder tokens after'):
    positions.rope_index(tokens + [IMAGE] * 2, grids, **kw)
  with pytest.raises(ValueError, match='order of appearance'):
    positions.rope_index(tokens, [(1, 4, 4, 1.0)], **kw)
  with pytest.raises(ValueError, match='legacy'):
    positions.rope_index(tokens, grids, rule='old', **kw)


@pytest.mark.parametrize('grid', GRIDS)
def test_m4_patch_positions_equal_transformers(grid):
  expected = vision_utils.get_vision_position_ids(torch.tensor([grid]), 2)
  got = positions.patch_positions(grid, 2)
  np.testing.assert_array_equal(got, expected.numpy())


def test_m4_window_layout_by_hand():
  # 6 x 5 cells in windows of 4 x 4: four windows, in the last one 2 x 1 cells.
  layout = positions.window_layout((1, 12, 10), merge=2, window_cells=4)
  assert layout.shape == (4 * 64,)
  cells = layout.reshape(4, 16, 4)[:, :, 0] // 4
  assert [[c for c in w if c >= 0] for w in cells.tolist()] == [
      [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18],
      [4, 9, 14, 19], [20, 21, 22, 23, 25, 26, 27, 28], [24, 29]]


@pytest.mark.parametrize('window_cells', [1, 2, 3, 4])
@pytest.mark.parametrize('grid', GRIDS)
def test_m4_windows_equal_transformers(grid, window_cells):
  index, bounds = vision_utils.get_vision_window_index(
      torch.tensor([grid]), spatial_merge_size=2, patch_size=14,
      window_size=window_cells * 28)
  layout = positions.window_layout(grid, merge=2, window_cells=window_cells)
  windows = layout.reshape(-1, (2 * window_cells)**2)
  real = layout[layout >= 0]
  np.testing.assert_array_equal(real[::4] // 4, index.numpy())
  np.testing.assert_array_equal(np.cumsum((windows >= 0).sum(1)), bounds[1:])
  # Every patch once, the four of a cell contiguous and in order.
  assert sorted(real) == list(range(np.prod(grid)))
  np.testing.assert_array_equal(real.reshape(-1, 4) % 4,
                                np.tile(np.arange(4), (len(real) // 4, 1)))
  slots = positions.cell_slots(grid, merge=2, window_cells=window_cells)
  np.testing.assert_array_equal(layout[4 * slots] // 4, np.arange(len(slots)))


# Worked: 480 / 28 = 17.14 -> 17, 640 / 28 = 22.86 -> 23: 476 x 644.
# 100 x 100 -> 3.57 -> 4 x 28 = 112. 70 / 28 = 2.5 -> 2 (to even), 98 / 28 =
# 3.5 -> 4 (to even): 56 x 112.
@pytest.mark.parametrize('size, kw, expected', [
    ((480, 640), {}, (476, 644)), ((100, 100), {}, (112, 112)),
    ((70, 98), {}, (56, 112)), ((3000, 4000), {}, (2996, 4004)),
    ((3000, 4000), {'max_pixels': 1003520}, (840, 1148)),
    ((480, 640), {'factor': 32, 'min_pixels': 65536}, (480, 640)),
    ((50, 50), {'factor': 32, 'min_pixels': 65536}, (256, 256))])
def test_m4_smart_resize_by_hand(size, kw, expected):
  kw = {'factor': 28, 'min_pixels': 3136, 'max_pixels': 12845056, **kw}
  assert positions.smart_resize(*size, **kw) == expected


def test_m4_smart_resize_equals_transformers():
  rng = np.random.default_rng(0)
  for _ in range(500):
    size = tuple(int(x) for x in np.exp(rng.uniform(0.5, 8, 2)))
    if max(size) > 200 * min(size):
      continue
    kw = dict(factor=int(rng.choice([16, 28, 32])), min_pixels=3136,
              max_pixels=int(rng.choice([50000, 1003520])))
    assert positions.smart_resize(*size, **kw) == (
        image_processing_pil_qwen2_vl.smart_resize(*size, **kw))


def test_smart_resize_errors():
  kw = dict(factor=28, min_pixels=3136, max_pixels=10**6)
  with pytest.raises(ValueError, match='aspect ratio'):
    positions.smart_resize(2, 401, **kw)
  with pytest.raises(ValueError, match='empty'):
    positions.smart_resize(0, 10, **kw)
  with pytest.raises(ValueError, match='min_pixels'):
    positions.smart_resize(9, 9, factor=28, min_pixels=9, max_pixels=8)


def test_vision_tokens():
  assert positions.vision_tokens((1, 34, 46), 2) == 391  # 17 x 23
  with pytest.raises(ValueError, match='multiples'):
    positions.vision_tokens((1, 3, 4), 2)


def test_no_jax_in_data_workers():
  code = 'import sys, mmr1.positions; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
