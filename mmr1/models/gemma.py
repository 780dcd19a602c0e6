"""Gemma 1, 2 and 3, text only: the one decoder, with what Google's differ in.

Embeddings scaled by the root of the width, norms that multiply by 1 + weight,
a GeGLU; from Gemma 2 on norms after attention and MLP, and layers that see a
window. Gemma 2 caps scores and logits; Gemma 3 normalises q and k instead and
turns its sliding layers by another base. The papers: Gemma
(https://arxiv.org/abs/2403.08295), Gemma 2 (2408.00118), Gemma 3 (2503.19786).
Weights: `mmr1.models.decoder_weights`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any

import jax

from mmr1.models import decoder
from mmr1.models import decoder_config

# What transformers assumes where config.json is silent, by model_type.
_GEMMA2 = {
    'vocab_size': 256000, 'hidden_size': 2304, 'intermediate_size': 9216,
    'num_hidden_layers': 26, 'num_attention_heads': 8,
    'num_key_value_heads': 4, 'head_dim': 256, 'rms_norm_eps': 1e-6,
    'hidden_activation': 'gelu_pytorch_tanh', 'tie_word_embeddings': True,
    'max_position_embeddings': 8192, 'rope_theta': 10000.0,
    'query_pre_attn_scalar': 256, 'sliding_window': 4096,
    'sliding_window_pattern': 2, 'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0}
_DEFAULTS = {
    'gemma': {
        'vocab_size': 256000, 'hidden_size': 3072, 'intermediate_size': 24576,
        'num_hidden_layers': 28, 'num_attention_heads': 16,
        'num_key_value_heads': 16, 'head_dim': 256, 'rms_norm_eps': 1e-6,
        'hidden_act': 'gelu_pytorch_tanh', 'tie_word_embeddings': True,
        'max_position_embeddings': 8192, 'rope_theta': 10000.0},
    'gemma2': _GEMMA2,
    'gemma3_text': {
        **_GEMMA2, 'vocab_size': 262208, 'max_position_embeddings': 131072,
        'rope_theta': 1e6, 'rope_local_base_freq': 10000.0,
        'sliding_window_pattern': 6, 'attn_logit_softcapping': None,
        'final_logit_softcapping': None},
}
FAMILIES = tuple(_DEFAULTS)
_REFUSED = ('attention_bias', 'use_bidirectional_attention')
_FULL, _SLIDING = 'full_attention', 'sliding_attention'


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
    return cls(**fields(hf), hf=json.dumps(hf, sort_keys=True), **run)


def fields(hf: Mapping[str, Any]) -> dict[str, Any]:
  """What a config.json, or the `text_config` of one, says of a decoder.

  Args:
    hf: its fields, `model_type` among them.

  Returns:
    Keywords of `decoder_config.Config`, all but `hf` and the run-time choices.

  Raises:
    ValueError: a field is inconsistent or asks for what is not supported.
  """
  family = hf['model_type']
  defaults = _DEFAULTS[family]
  for key in _REFUSED:
    if hf.get(key):
      raise ValueError(
          f'config.json: {key} {hf[key]!r} is not supported for model_type '
          f'{family!r}, only false.')
  text = {**defaults, **{k: x for k, x in hf.items() if x is not None}}
  result = _sizes(hf, defaults, text)
  result |= dict(
      sections=(result['head_width'] // 2, 0, 0), qkv_bias=False,
      qk_norm=family == 'gemma3_text', activation='gelu', norm_offset=True,
      embed_scale=result['width']**0.5)
  if family == 'gemma':
    return result
  # Null says that there is no cap: it is not the default.
  caps = {**defaults, **hf}
  return result | dict(
      out_norms=True, query_scale=text['query_pre_attn_scalar']**-0.5,
      score_cap=caps['attn_logit_softcapping'],
      logit_cap=caps['final_logit_softcapping'], sliding=_sliding(text),
      window=_window(text), sliding_theta=_sliding_theta(text))


def _sizes(hf, defaults, text) -> dict[str, Any]:
  """`decoder_config.fields` of the full layers; windows are ours."""
  plain = {k: x for k, x in hf.items()
           if k not in ('layer_types', 'use_sliding_window')}
  rope = decoder_config.rope_of(hf)
  plain['rope_parameters'] = rope.get(_FULL, rope)
  activation = text.get('hidden_activation', text.get('hidden_act'))
  if 'hidden_act' in defaults:  # Gemma 1, whose key may be left from a draft
    activation = text['hidden_act']
    # Its first release meant the approximation and wrote 'gelu'.
    activation = {'gelu': 'gelu_pytorch_tanh'}.get(activation, activation)
  plain['hidden_act'] = activation
  return decoder_config.fields(
      plain, defaults, rotary=('default', 'linear'),
      activations=('gelu_pytorch_tanh',))


def _sliding(text: Mapping[str, Any]) -> tuple[bool, ...]:
  """Which layers see a window: said layer by layer, or every n-th is full."""
  depth, every = text['num_hidden_layers'], text['sliding_window_pattern']
  kinds: Sequence[str] = text.get('layer_types') or [
      _SLIDING if (i + 1) % every else _FULL for i in range(depth)]
  if len(kinds) != depth or not set(kinds) <= {_SLIDING, _FULL}:
    raise ValueError(
        f'config.json: layer_types has {len(kinds)} layers of kinds '
        f'{sorted(set(kinds))}; needed are num_hidden_layers {depth} of '
        f'{_FULL!r} or {_SLIDING!r}.')
  return tuple(kind == _SLIDING for kind in kinds)


def _window(text: Mapping[str, Any]) -> int:
  if text['sliding_window'] < 1:
    raise ValueError(
        f"config.json: sliding_window {text['sliding_window']}: must be a "
        'positive number of tokens.')
  return int(text['sliding_window'])


def _sliding_theta(text: Mapping[str, Any]) -> float | None:
  """Gemma 3's, beside `rope_theta` or in a section of its own."""
  own = decoder_config.rope_of(text).get(_SLIDING) or {}
  if own.get('rope_type', 'default') != 'default':
    raise ValueError(
        f"config.json: rotary type {own['rope_type']!r} of the sliding layers "
        "is not supported, only 'default'.")
  theta = own.get('rope_theta', text.get('rope_local_base_freq'))
  return None if theta is None else float(theta)


def init_params(config: Config, rng: jax.Array) -> Any:
  """Random parameters, float32; see `decoder.init_params`."""
  return decoder.init_params(build(config), rng)


def build(config: Config) -> decoder.LanguageModel:
  """The families' module."""
  return decoder.LanguageModel(config)
