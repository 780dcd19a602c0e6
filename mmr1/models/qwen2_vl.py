"""Qwen2-VL (https://arxiv.org/abs/2409.12191): the tower is plain transformer
layers that attend inside a whole frame."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

import jax

from mmr1.models import decoder
from mmr1.models import decoder_config
from mmr1.models import qwen_vl
from mmr1.models import qwen_vl_config
from mmr1.models import vision_language

# What transformers assumes where config.json is silent.
_TEXT_DEFAULTS = {
    'vocab_size': 152064, 'hidden_size': 8192, 'intermediate_size': 29568,
    'num_hidden_layers': 80, 'num_attention_heads': 64,
    'num_key_value_heads': 8, 'rms_norm_eps': 1e-5, 'hidden_act': 'silu',
    'max_position_embeddings': 32768, 'rope_theta': 1e6}
_VISION_DEFAULTS = {
    'depth': 32, 'embed_dim': 1280, 'hidden_size': 3584, 'mlp_ratio': 4,
    'num_heads': 16, 'in_channels': 3, 'patch_size': 14,
    'spatial_merge_size': 2, 'temporal_patch_size': 2,
    'hidden_act': 'quick_gelu'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(qwen_vl_config.Config):
  """A model of the family, from its config.json."""

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any], **run: Any) -> 'Config':
    """Reads a config.json, see `decoder_config.fields`.

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
          f'config.json: vision_config.hidden_size {result.vision.out_width}, '
          f'what the tower gives, must equal hidden_size {result.width}; its '
          'own width is vision_config.embed_dim.')
    return result


def _vision_config(
    hf: Mapping[str, Any] | None) -> qwen_vl_config.VisionConfig:
  if hf is None:
    raise ValueError('config.json: `vision_config` is missing.')
  vision = {**_VISION_DEFAULTS, **hf}
  if vision['hidden_act'] != 'quick_gelu' or vision['embed_dim'] % (
      4 * vision['num_heads']):
    raise ValueError(
        f"config.json: vision hidden_act {vision['hidden_act']!r} must be "
        f"'quick_gelu' and embed_dim {vision['embed_dim']} a multiple of 4 x "
        f"num_heads ({vision['num_heads']}).")
  return qwen_vl_config.VisionConfig(
      depth=vision['depth'], width=vision['embed_dim'],
      mlp_width=int(vision['embed_dim'] * vision['mlp_ratio']),
      heads=vision['num_heads'], channels=vision['in_channels'],
      patch=vision['patch_size'], temporal_patch=vision['temporal_patch_size'],
      merge=vision['spatial_merge_size'], window_cells=1,
      full_layers=tuple(range(vision['depth'])),
      out_width=vision['hidden_size'], gated=False)


init_cache = decoder.init_cache


def init_params(config: Config, rng: jax.Array) -> Any:
  """Random parameters, float32; see `decoder.init_params`."""
  return vision_language.init_params(build(config), rng)


def build(config: Config) -> qwen_vl.Model:
  """The family's module."""
  return qwen_vl.Model(config)
