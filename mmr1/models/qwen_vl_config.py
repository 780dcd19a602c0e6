"""The sizes of a Qwen vision-language model, from its config.json.

Qwen2-VL (https://arxiv.org/abs/2409.12191), Qwen2.5-VL (2502.13923) and
Qwen3-VL (2511.21631), dense.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Any, NamedTuple

from mmr1.models import decoder_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
  """The vision tower. Sizes in patches or pixels as transformers has them.

  Token ids and the rate of videos are the processor's.

  Fields:
    depth, width, heads, mlp_width: of its layers.
    mlp: 'swiglu', with root-mean-square norms everywhere; or 'quick_gelu' or
      'gelu' (its tanh approximation) between two linear layers, with layer
      norms.
    channels, patch, temporal_patch: of a patch: colours, side, frames.
    patch_bias: whether the embedding of patches has a bias.
    table: side of the square table of learned positions, which is resampled
      to every frame; 0: there is none.
    merge: patches along the side of a cell.
    window_cells: cells along the side of an attention window.
    full_layers: layers that attend to their whole frame, not to a window.
    deepstack: layers after which a map of cells leaves the tower too; the k-th
      is added to the prompt after decoder layer k
      (https://arxiv.org/abs/2406.04334).
    out_width: of the cells.
  """
  depth: int
  width: int
  heads: int
  mlp_width: int
  mlp: str
  channels: int
  patch: int
  temporal_patch: int
  patch_bias: bool
  table: int
  merge: int
  window_cells: int
  full_layers: tuple[int, ...]
  deepstack: tuple[int, ...]
  out_width: int

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


class _Family(NamedTuple):
  """What sets a family apart.

  Fields:
    text, vision: what transformers assumes where config.json is silent.
    act: `hidden_act` of the tower, the only one there is.
    mlp: its name in `VisionConfig`.
    width, out_width: keys of the tower's width and of the cells'.
    sections, order: see `decoder_config.Config`.
    qk_norm: the decoder normalises q and k and has no biases, or the opposite.
  """
  text: Mapping[str, Any]
  vision: Mapping[str, Any]
  act: str
  mlp: str
  width: str
  out_width: str
  sections: tuple[int, ...]
  order: str
  qk_norm: bool


_QWEN2_TEXT = {
    'vocab_size': 152064, 'hidden_size': 8192, 'intermediate_size': 29568,
    'num_hidden_layers': 80, 'num_attention_heads': 64,
    'num_key_value_heads': 8, 'rms_norm_eps': 1e-5, 'hidden_act': 'silu',
    'max_position_embeddings': 32768, 'rope_theta': 1e6}
_PATCHES = {'in_channels': 3, 'spatial_merge_size': 2,
            'temporal_patch_size': 2, 'num_heads': 16}
_FAMILIES = {
    'qwen2_vl': _Family(
        text=_QWEN2_TEXT, vision={
            **_PATCHES, 'depth': 32, 'embed_dim': 1280, 'hidden_size': 3584,
            'mlp_ratio': 4, 'patch_size': 14, 'hidden_act': 'quick_gelu'},
        act='quick_gelu', mlp='quick_gelu', width='embed_dim',
        out_width='hidden_size', sections=(16, 24, 24), order='contiguous',
        qk_norm=False),
    'qwen2_5_vl': _Family(
        text=_QWEN2_TEXT, vision={
            **_PATCHES, 'depth': 32, 'hidden_size': 3584,
            'intermediate_size': 3420, 'patch_size': 14, 'window_size': 112,
            'out_hidden_size': 3584, 'fullatt_block_indexes': (7, 15, 23, 31),
            'hidden_act': 'silu'},
        act='silu', mlp='swiglu', width='hidden_size',
        out_width='out_hidden_size', sections=(16, 24, 24),
        order='contiguous', qk_norm=False),
    'qwen3_vl': _Family(
        text={
            'vocab_size': 151936, 'hidden_size': 4096,
            'intermediate_size': 22016, 'num_hidden_layers': 32,
            'num_attention_heads': 32, 'head_dim': 128, 'rms_norm_eps': 1e-6,
            'hidden_act': 'silu', 'max_position_embeddings': 128000,
            'rope_theta': 5e5},
        vision={
            **_PATCHES, 'depth': 27, 'hidden_size': 1152,
            'intermediate_size': 4304, 'patch_size': 16,
            'out_hidden_size': 3584, 'num_position_embeddings': 2304,
            'deepstack_visual_indexes': (8, 16, 24),
            'hidden_act': 'gelu_pytorch_tanh'},
        act='gelu_pytorch_tanh', mlp='gelu', width='hidden_size',
        out_width='out_hidden_size', sections=(24, 20, 20),
        order='interleaved', qk_norm=True),
}
FAMILIES = tuple(_FAMILIES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(decoder_config.Config):
  """A decoder and its vision tower."""
  vision: VisionConfig

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any], **run: Any) -> 'Config':
    """Reads a config.json, see `decoder_config.fields`.

    Args:
      hf: the parsed config.json, of one of FAMILIES.
      **run: run-time choices, see `decoder_config.Config`.

    Raises:
      ValueError: a field is inconsistent or asks for what is not supported.
    """
    family = _FAMILIES[hf['model_type']]
    rope = decoder_config.rope_of(hf)
    text = hf.get('text_config') or hf
    if family.qk_norm and (text.get('attention_bias')
                           or rope.get('mrope_interleaved') is False):
      raise ValueError(
          f"config.json: attention_bias {text.get('attention_bias')!r} and "
          f"mrope_interleaved {rope.get('mrope_interleaved')!r}: only false "
          f"and true are supported for model_type {hf['model_type']!r}.")
    result = cls(
        **decoder_config.fields(hf, family.text, rotary=('default', 'mrope')),
        sections=tuple(rope.get('mrope_section', family.sections)),
        section_order=family.order, qkv_bias=not family.qk_norm,
        qk_norm=family.qk_norm, vision=_vision(family, hf),
        hf=json.dumps(hf, sort_keys=True), **run)
    vision = result.vision
    if vision.out_width != result.width:
      raise ValueError(
          f'config.json: vision_config.{family.out_width} {vision.out_width}, '
          f'what the tower gives, must equal hidden_size {result.width}; its '
          f'own width is vision_config.{family.width}.')
    if len(vision.deepstack) > result.depth:
      raise ValueError(
          f'config.json: deepstack_visual_indexes {list(vision.deepstack)}: '
          f'more than the {result.depth} layers (num_hidden_layers) that they '
          'are added after.')
    return result


def _vision(family: _Family, hf: Mapping[str, Any]) -> VisionConfig:
  if hf.get('vision_config') is None:
    raise ValueError('config.json: `vision_config` is missing.')
  vision = {**family.vision, **hf['vision_config']}
  width, depth = vision[family.width], vision['depth']
  if vision['hidden_act'] != family.act or width % (4 * vision['num_heads']):
    raise ValueError(
        f"config.json: vision hidden_act {vision['hidden_act']!r} must be "
        f'{family.act!r} and {family.width} {width} a multiple of 4 x '
        f"num_heads ({vision['num_heads']}).")
  windows = 'window_size' in family.vision
  return VisionConfig(
      depth=depth, width=width, heads=vision['num_heads'],
      mlp_width=(vision['intermediate_size'] if 'intermediate_size' in vision
                 else int(width * vision['mlp_ratio'])), mlp=family.mlp,
      channels=vision['in_channels'], patch=vision['patch_size'],
      temporal_patch=vision['temporal_patch_size'],
      patch_bias='num_position_embeddings' in family.vision,
      table=_table(vision), merge=vision['spatial_merge_size'],
      window_cells=_window_cells(vision) if windows else 1,
      full_layers=tuple(
          vision['fullatt_block_indexes'] if windows else range(depth)),
      deepstack=_deepstack(vision), out_width=vision[family.out_width])


def _window_cells(vision: Mapping[str, Any]) -> int:
  cells = (vision['window_size'] // vision['spatial_merge_size']
           // vision['patch_size'])
  if cells < 1:
    raise ValueError(
        f"config.json: window_size {vision['window_size']} holds no merged "
        f"cell of {vision['spatial_merge_size']} x {vision['patch_size']}.")
  return cells


def _table(vision: Mapping[str, Any]) -> int:
  count = vision.get('num_position_embeddings', 0)
  side = math.isqrt(count)
  if side**2 != count:
    raise ValueError(
        f'config.json: num_position_embeddings {count} must be a square.')
  return side


def _deepstack(vision: Mapping[str, Any]) -> tuple[int, ...]:
  found = tuple(vision.get('deepstack_visual_indexes', ()))
  if sorted(set(found)) != list(found) or not all(
      0 <= i < vision['depth'] for i in found):
    raise ValueError(
        f'config.json: deepstack_visual_indexes {list(found)} must ascend and '
        f"name layers of the tower, 0 to {vision['depth'] - 1}.")
  return found
