"""Tiny random Qwen VLs of transformers and the inputs of both sides."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import torch
import transformers
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl

from mmr1 import positions
from mmr1 import types
from tests.models import passes

PATCH, MERGE, CELLS = 4, 2, 3  # windows of 3 x 3 cells of 8 x 8 pixels
IMAGE, VIDEO, START, END, VOCAB = 190, 191, 192, 193, 200
TOKENS_PER_SECOND = 2


def text_config(**more):
  return dict(
      vocab_size=VOCAB, num_hidden_layers=3, rms_norm_eps=1e-6,
      max_position_embeddings=512, bos_token_id=None, eos_token_id=None, **more)


def rope(*sections):
  return dict(rope_type='default', rope_theta=1e6, mrope_section=sections)


def ids(tied):
  return dict(
      image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START,
      vision_end_token_id=END, tie_word_embeddings=tied,
      attn_implementation='eager')


@functools.cache
def qwen2_5_vl(tied):
  config = transformers.Qwen2_5_VLConfig(
      text_config=text_config(
          hidden_size=48, intermediate_size=80, num_attention_heads=4,
          num_key_value_heads=2, rope_parameters=rope(1, 2, 3)),
      vision_config=dict(
          depth=3, hidden_size=32, intermediate_size=44, num_heads=2,
          patch_size=PATCH, window_size=CELLS * PATCH * MERGE,
          fullatt_block_indexes=[1], out_hidden_size=48,
          tokens_per_second=TOKENS_PER_SECOND), **ids(tied))
  return passes.randomise(
      transformers.Qwen2_5_VLForConditionalGeneration(config), int(tied))


@functools.cache
def qwen2_vl(tied):
  """Seven query heads to one of keys; vision heads of 20 channels."""
  config = transformers.Qwen2VLConfig(
      text_config=text_config(
          hidden_size=56, intermediate_size=60, num_attention_heads=7,
          num_key_value_heads=1, rope_parameters=rope(1, 1, 2)),
      vision_config=dict(
          depth=2, embed_dim=40, hidden_size=56, mlp_ratio=2, num_heads=2,
          patch_size=PATCH), **ids(tied))
  return passes.randomise(
      transformers.Qwen2VLForConditionalGeneration(config), int(tied))


@functools.cache
def qwen3_vl(tied):
  """Seven query heads to one of keys, each wider than width / heads; a table
  of 5 x 5 positions; two maps of cells beside the last, one of them from the
  last layer."""
  config = transformers.Qwen3VLConfig(
      text_config=text_config(
          hidden_size=56, intermediate_size=60, num_attention_heads=7,
          num_key_value_heads=1, head_dim=80,
          rope_parameters=rope(16, 12, 12)),
      vision_config=dict(
          depth=3, hidden_size=40, intermediate_size=48, num_heads=2,
          patch_size=PATCH, out_hidden_size=56, num_position_embeddings=25,
          deepstack_visual_indexes=[0, 2]), **ids(tied))
  return passes.randomise(
      transformers.Qwen3VLForConditionalGeneration(config), int(tied))


@dataclasses.dataclass
class Row:
  """One prompt.

  Attributes:
    tokens: ids.
    patches, spans: of every run of cells, patches in file order.
    grids: (t, h, w, is video) of every image and video, for transformers.
  """
  tokens: list
  patches: list
  spans: list
  grids: list


class Oracle:
  """A family in transformers, and its inputs on both sides.

  Attributes:
    model: tied -> the torch model.
    cells: of a window's side; 1: no windows.
    rate: tokens per second of a video; None: its frames count 1.
    timed: every frame of a video stands alone, behind text that says when.
  """

  def __init__(self, model, cells=1, rate=None, timed=False):
    self.model, self.cells, self.rate = model, cells, rate
    self.timed = timed

  def row(self, *parts, seed=0):
    """A prompt of text lengths (int), images (h, w) in pixels and videos (t,
    h, w, seconds) in patches."""
    rng = np.random.default_rng(seed)
    processor = image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE,
        size={'shortest_edge': 64, 'longest_edge': 4096})
    result = Row([], [], [], [])
    for part in parts:
      if isinstance(part, int):
        result.tokens += rng.integers(0, 180, part).tolist()
        continue
      if len(part) == 2:
        pixels = rng.integers(0, 256, (*part, 3), dtype=np.uint8)
        out = processor(Image.fromarray(pixels), return_tensors='np')
        grid, seconds = out['image_grid_thw'][0].tolist(), None
        patches = out['pixel_values'].astype(np.float32)
      else:
        *grid, seconds = part
        patches = rng.normal(size=(
            int(np.prod(grid)), 3 * 2 * PATCH**2)).astype(np.float32)
      result.grids.append((*grid, seconds is not None))
      runs = grid[0] if self.timed and seconds is not None else 1
      for one in np.split(patches, runs):
        span = (grid[0] // runs, *grid[1:], seconds)
        if runs > 1:
          result.tokens += rng.integers(0, 180, 2).tolist()
        result.patches.append(one)
        result.spans.append(span)
        result.tokens += [
            START, *[IMAGE if seconds is None else VIDEO]
            * positions.vision_tokens(span[:3], MERGE), END]
    return result

  def row_positions(self, one, rule='legacy'):
    spans = one.spans
    if self.rate is None:
      spans = [(*span[:3], span[3] and 1.0) for span in spans]
    return positions.rope_index(
        one.tokens, spans, image_id=IMAGE, video_id=VIDEO, merge=MERGE,
        tokens_per_second=self.rate or 1.0, rule=rule)

  def prompts(self, rows, *, p=None, s=None, media=True, rule='legacy'):
    """`types.Prompts` of rows, padded to `p` tokens and `s` patch slots."""
    n = len(rows)
    p = p or max(len(one.tokens) for one in rows)
    layouts = [[positions.window_layout(span[:3], merge=MERGE,
                                        window_cells=self.cells)
                for span in one.spans] for one in rows]
    s = s or max(sum(map(len, x)) for x in layouts) or (self.cells * MERGE)**2
    tokens, mask = np.zeros((n, p), np.int32), np.zeros((n, p), bool)
    rope, following = np.zeros((n, p, 3), np.int32), np.zeros(n, np.int32)
    patches = np.zeros((n, s, 3 * 2 * PATCH**2), np.float32)
    place, segment = np.zeros((n, s, 2), np.int32), np.zeros((n, s), np.int32)
    extent = np.zeros((n, s, 2), np.int32)
    slot = np.full((n, p), -1, np.int32)
    for i, one in enumerate(rows):
      left = p - len(one.tokens)
      tokens[i, left:], mask[i, left:] = one.tokens, True
      rope[i, left:], following[i] = self.row_positions(one, rule)
      is_media = np.isin(one.tokens, (IMAGE, VIDEO))
      offset, frames, slots = 0, 0, []
      for x, span, layout in zip(one.patches, one.spans, layouts[i]):
        grid = span[:3]
        here = offset + np.flatnonzero(layout >= 0)
        source = layout[layout >= 0]
        patches[i, here] = x[source]
        place[i, here] = positions.patch_positions(grid, MERGE)[source]
        extent[i, here] = grid[1:]
        segment[i, here] = frames + 1 + source // (grid[1] * grid[2])
        slots.append(offset // MERGE**2 + positions.cell_slots(
            grid, merge=MERGE, window_cells=self.cells))
        offset, frames = offset + len(layout), frames + grid[0]
      if slots:
        slot[i, left:][is_media] = np.concatenate(slots)
    vision = types.Media(
        *map(jnp.asarray, (patches, place, segment, slot, extent)))
    return types.Prompts(
        tokens=jnp.asarray(tokens), mask=jnp.asarray(mask),
        positions=jnp.asarray(rope), next_position=jnp.asarray(following),
        media={'vision': vision} if media else {}, uid=jnp.arange(n))

  def completions(self, batch, g, t, seed=0):
    """Random tokens i32[N, G, T] of ragged lengths, positions and mask."""
    rng = np.random.default_rng(seed)
    n = batch.tokens.shape[0]
    tokens = rng.integers(0, 180, (n, g, t)).astype(np.int32)
    lengths = rng.integers(max(1, t // 2), t + 1, (n, g, 1))
    lengths[:, 0] = t
    rope = np.asarray(batch.next_position)[:, None, None] + np.arange(t)
    rope = np.repeat(np.broadcast_to(rope, (n, g, t))[..., None], 3, -1)
    mask = np.arange(t) < lengths
    return jnp.asarray(tokens), jnp.asarray(rope, jnp.int32), jnp.asarray(mask)

  def inputs(self, one, extra=()):
    """Keyword arguments of transformers for one unpadded prompt + `extra`."""
    rope, following = self.row_positions(one)
    tail = np.repeat(following + np.arange(len(extra))[:, None], 3, 1)
    tokens = np.asarray(list(one.tokens) + list(extra))
    kinds = np.where(tokens == IMAGE, 1, np.where(tokens == VIDEO, 2, 0))
    kinds[len(one.tokens):] = 0
    result = dict(
        input_ids=torch.tensor(tokens[None]),
        mm_token_type_ids=torch.tensor(kinds[None]),
        position_ids=torch.tensor(
            np.concatenate([rope, tail]).T[:, None].astype(np.int64)))
    for prefix, name, is_video in (
        ('pixel_values', 'image_grid_thw', False),
        ('pixel_values_videos', 'video_grid_thw', True)):
      grids = [grid for *grid, video in one.grids if video == is_video]
      if grids:
        result[name] = torch.tensor(grids)
        result[prefix] = torch.tensor(np.concatenate([
            x for x, span in zip(one.patches, one.spans)
            if (span[3] is not None) == is_video]))
    return result

  def logits(self, model, one, extra=()):
    """f32[1 + len(extra), V], from the prompt's last token on."""
    model.model.rope_deltas = None
    logits = model(**self.inputs(one, extra)).logits[0]
    return logits[len(one.tokens) - 1:]


ORACLES = {
    'qwen2_vl': Oracle(qwen2_vl),
    'qwen2_5_vl': Oracle(qwen2_5_vl, CELLS, TOKENS_PER_SECOND),
    'qwen3_vl': Oracle(qwen3_vl, timed=True)}


@pytest.fixture(scope='session')
def oracle():
  return ORACLES['qwen2_5_vl']


@pytest.fixture(scope='session')
def saved(tmp_path_factory):
  """(family, tied) -> the folder that transformers saves."""
  @functools.cache
  def save(family, tied):
    folder = tmp_path_factory.mktemp(family)
    ORACLES[family].model(tied).save_pretrained(folder)
    return folder
  return save


@pytest.fixture(scope='session')
def folders(saved):
  """{tied: the folder of a Qwen2.5-VL}."""
  return {tied: saved('qwen2_5_vl', tied) for tied in (True, False)}
