"""The sizes of a Qwen2.5-VL, read from its Hugging Face config.json."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from mmr1.models import decoder_config
from mmr1.models import qwen_vl_config

# What transformers assumes where config.json is silent.
_TEXT_DEFAULTS = {
    'vocab_size': 152064, 'hidden_size': 8192, 'intermediate_size': 29568,
    'num_hidden_layers': 80, 'num_attention_heads': 64,
    'num_key_value_heads': 8, 'rms_norm_eps': 1e-5, 'hidden_act': 'silu',
    'max_position_embeddings': 32768, 'use_sliding_window': False,
    'rope_theta': 1e6}
_VISION_DEFAULTS = {
    'depth': 32, 'hidden_size': 3584, 'intermediate_size': 3420,
    'num_heads': 16, 'in_channels': 3, 'patch_size': 14,
    'spatial_merge_size': 2, 'temporal_patch_size': 2, 'window_size': 112,
    'out_hidden_size': 3584, 'fullatt_block_indexes': (7, 15, 23, 31),
    'hidden_act': 'silu'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(qwen_vl_config.Config):
  """A model of the family, from its config.json."""

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any], **run: Any) -> 'Config':
    """Reads a config.json: text fields at the top level or in `text_config`,
    rotary in `rope_scaling` or `rope_parameters`.

    Args:
      hf: the parsed config.json.
      **run: run-time choices, see `decoder_config.Config`.

    Raises:
      ValueError: a field is inconsistent or asks for what is not supported.
    """
    rope = decoder_config.rope_of(hf)
    result = cls(
        **decoder_config.fields(
            hf, _TEXT_DEFAULTS, rotary=('default', 'mrope')),
        sections=tuple(rope.get('mrope_section', (16, 24, 24))),
        qkv_bias=True, qk_norm=False,
        vision=_vision_config(hf.get('vision_config')),
        hf=json.dumps(hf, sort_keys=True), **run)
    if result.vision.out_width != result.width:
      raise ValueError(
          f'config.json: vision_config.out_hidden_size '
          f'{result.vision.out_width} must equal hidden_size {result.width}.')
    return result


def _vision_config(
    hf: Mapping[str, Any] | None) -> qwen_vl_config.VisionConfig:
  if hf is None:
    raise ValueError('config.json: `vision_config` is missing.')
  vision = {**_VISION_DEFAULTS, **hf}
  if vision['hidden_act'] != 'silu' or vision['hidden_size'] % (
      4 * vision['num_heads']):
    raise ValueError(
        f"config.json: vision hidden_act {vision['hidden_act']!r} must be "
        f"'silu' and hidden_size {vision['hidden_size']} a multiple of 4 x "
        f"num_heads ({vision['num_heads']}).")
  cells = (vision['window_size'] // vision['spatial_merge_size']
           // vision['patch_size'])
  if cells < 1:
    raise ValueError(
        f"config.json: window_size {vision['window_size']} holds no merged "
        f"cell of {vision['spatial_merge_size']} x {vision['patch_size']}.")
  return qwen_vl_config.VisionConfig(
      depth=vision['depth'], width=vision['hidden_size'],
      mlp_width=vision['intermediate_size'], heads=vision['num_heads'],
      channels=vision['in_channels'], patch=vision['patch_size'],
      temporal_patch=vision['temporal_patch_size'],
      merge=vision['spatial_merge_size'], window_cells=cells,
      full_layers=tuple(vision['fullatt_block_indexes']),
      out_width=vision['out_hidden_size'], gated=True)
