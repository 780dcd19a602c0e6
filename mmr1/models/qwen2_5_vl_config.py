"""The sizes of a Qwen2.5-VL, read from its Hugging Face config.json."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The vision tower. Sizes in patches or pixels as transformers has them.

  Token ids and the rate of videos are the processor's.
  """
  depth: int
  width: int
  mlp_width: int
  heads: int
  channels: int
  patch: int
  temporal_patch: int
  merge: int
  window_cells: int
  full_layers: tuple[int, ...]
  out_width: int

  @property
  def patch_values(self) -> int:
    """C, values per patch."""
    return self.channels * self.temporal_patch * self.patch**2

  @property
  def window_patches(self) -> int:
    """Patch slots of one window; S of `Media` is a multiple of it."""
    return (self.window_cells * self.merge)**2


@dataclasses.dataclass(frozen=True)
class Config:
  """A model of the family, from its config.json, and how to run it.

  `hf` is the config.json it came from, as a JSON string (hashable). Run-time
  choices: `compute_dtype` of activations; `layers` 'unrolled' or 'scan';
  `remat` 'none' or 'layer'; `precision` of matrix products, jax's 'default',
  'high' or 'highest'; `query_chunk`, queries of one attention block.
  """
  vocab: int
  width: int
  mlp_width: int
  depth: int
  heads: int
  kv_heads: int
  eps: float
  theta: float
  sections: tuple[int, ...]
  tied: bool
  max_positions: int
  vision: VisionConfig
  hf: str
  compute_dtype: str = 'float32'
  layers: str = 'unrolled'
  remat: str = 'none'
  precision: str = 'default'
  query_chunk: int = 1024

  def __post_init__(self):
    for name, allowed in (
        ('layers', ('unrolled', 'scan')), ('remat', ('none', 'layer')),
        ('precision', ('default', 'high', 'highest')),
        ('compute_dtype', ('float32', 'bfloat16', 'float16'))):
      if getattr(self, name) not in allowed:
        raise ValueError(
            f'{name}={getattr(self, name)!r}: allowed are {allowed}.')
    if self.query_chunk < 1:
      raise ValueError(f'query_chunk={self.query_chunk}: must be positive.')

  @property
  def head_width(self) -> int:
    return self.width // self.heads

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any], **run: Any) -> 'Config':
    """Reads a config.json: text fields at the top level or in `text_config`,
    rotary in `rope_scaling` or `rope_parameters`.

    Args:
      hf: the parsed config.json.
      **run: run-time choices, see the class.

    Raises:
      ValueError: a field is inconsistent or asks for what is not supported.
    """
    text = dict(hf.get('text_config') or hf)
    tied = bool(hf.get('tie_word_embeddings', False)
                or text.get('tie_word_embeddings', False))
    rope = text.get('rope_parameters') or text.get('rope_scaling') or {}
    text = {**_TEXT_DEFAULTS, **text}
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind not in ('default', 'mrope'):
      raise ValueError(f"config.json: rotary type {kind!r} is not supported, "
                       "only 'mrope' ('default').")
    _check_text(text)
    result = cls(
        vocab=text['vocab_size'], width=text['hidden_size'],
        mlp_width=text['intermediate_size'], depth=text['num_hidden_layers'],
        heads=text['num_attention_heads'],
        kv_heads=text['num_key_value_heads'], eps=text['rms_norm_eps'],
        theta=float(rope.get('rope_theta', text['rope_theta'])),
        sections=tuple(rope.get('mrope_section', (16, 24, 24))), tied=tied,
        max_positions=text['max_position_embeddings'],
        vision=_vision_config(hf.get('vision_config')),
        hf=json.dumps(hf, sort_keys=True), **run)
    if 2 * sum(result.sections) != result.head_width:
      raise ValueError(
          f'config.json: mrope_section {result.sections} must sum to half the '
          f'head width {result.head_width}.')
    if result.vision.out_width != result.width:
      raise ValueError(
          f'config.json: vision_config.out_hidden_size '
          f'{result.vision.out_width} must equal hidden_size {result.width}.')
    return result


def _check_text(text: Mapping[str, Any]) -> None:
  heads, kv_heads = text['num_attention_heads'], text['num_key_value_heads']
  if text['hidden_size'] % heads or heads % kv_heads:
    raise ValueError(
        f"config.json: hidden_size {text['hidden_size']} must be a multiple "
        f'of num_attention_heads {heads}, and that of num_key_value_heads '
        f'{kv_heads}.')
  if text['hidden_act'] != 'silu' or text['use_sliding_window']:
    raise ValueError(
        f"config.json: hidden_act {text['hidden_act']!r}, use_sliding_window "
        f"{text['use_sliding_window']}: only 'silu' without sliding window "
        'is supported.')


def _vision_config(hf: Mapping[str, Any] | None) -> VisionConfig:
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
  return VisionConfig(
      depth=vision['depth'], width=vision['hidden_size'],
      mlp_width=vision['intermediate_size'], heads=vision['num_heads'],
      channels=vision['in_channels'], patch=vision['patch_size'],
      temporal_patch=vision['temporal_patch_size'],
      merge=vision['spatial_merge_size'], window_cells=cells,
      full_layers=tuple(vision['fullatt_block_indexes']),
      out_width=vision['out_hidden_size'])
