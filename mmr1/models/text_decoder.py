"""Text-only families: Qwen2 and 2.5, Qwen3, Llama, all one decoder.

They read prompts without media, for text-only stages and text reasoners. The
papers: Qwen2.5 (https://arxiv.org/abs/2412.15115), Qwen3 (2505.09388), Llama 3
(2407.21783). Weights: `mmr1.models.decoder_weights`.
"""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

import jax

from mmr1.models import decoder
from mmr1.models import decoder_config

_QWEN = {
    'vocab_size': 151936, 'hidden_size': 4096, 'intermediate_size': 22016,
    'num_hidden_layers': 32, 'num_attention_heads': 32, 'rms_norm_eps': 1e-6,
    'hidden_act': 'silu', 'max_position_embeddings': 32768,
    'rope_theta': 10000.0}
# What transformers assumes where config.json is silent, by model_type.
_DEFAULTS = {
    'qwen2': _QWEN,
    'qwen3': {**_QWEN, 'head_dim': 128},
    'llama': {
        'vocab_size': 32000, 'hidden_size': 4096, 'intermediate_size': 11008,
        'num_hidden_layers': 32, 'num_attention_heads': 32,
        'rms_norm_eps': 1e-6, 'hidden_act': 'silu',
        'max_position_embeddings': 2048, 'rope_theta': 10000.0},
}
FAMILIES = tuple(_DEFAULTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(decoder_config.Config):
  """A model of one of the families, from its config.json."""

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any], **run: Any) -> 'Config':
    """Reads a config.json.

    Args:
      hf: the parsed config.json.
      **run: run-time choices, see `decoder_config.Config`.

    Raises:
      ValueError: a field is inconsistent or asks for what is not supported.
    """
    family = hf.get('model_type')
    for key in ('attention_bias', 'mlp_bias'):
      if hf.get(key):
        raise ValueError(
            f'config.json: {key} {hf[key]!r} is not supported for model_type '
            f'{family!r}, only false.')
    # 'dynamic' differs beyond `max_positions` alone, where no run goes.
    given = decoder_config.fields(
        hf, _DEFAULTS[family], rotary=('default', 'dynamic', 'llama3'))
    return cls(
        **given, sections=(given['head_width'] // 2, 0, 0),
        qkv_bias=family == 'qwen2', qk_norm=family == 'qwen3',
        hf=json.dumps(hf, sort_keys=True), **run)


def section(hf: Mapping[str, Any], *, tied: bool, **run: Any) -> dict[str, Any]:
  """Fields of a larger model's config from its `text_config`.

  Args:
    hf: the parsed config.json of the whole model.
    tied: whether the head is the embedding.
    **run: run-time choices, see `decoder_config.Config`.

  Raises:
    ValueError: of another family, or as `Config.from_hf`.
  """
  text = {'model_type': 'qwen2', **(hf.get('text_config') or {})}
  if text['model_type'] not in FAMILIES:
    raise ValueError(
        f"config.json: text_config.model_type {text['model_type']!r} is not "
        f'supported, only {FAMILIES}.')
  language = Config.from_hf({**text, 'tie_word_embeddings': tied}, **run)
  return {**vars(language), 'hf': json.dumps(hf, sort_keys=True)}


def init_params(config: Config, rng: jax.Array) -> Any:
  """Random parameters, float32; see `decoder.init_params`."""
  return decoder.init_params(build(config), rng)


def build(config: Config) -> decoder.LanguageModel:
  """The families' module."""
  return decoder.LanguageModel(config)
