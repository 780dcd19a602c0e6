"""Gemma decoders that read images through SigLIP: Gemma 3 and PaliGemma.

  visual/    encoder, and norm, projection [W, D] (Gemma 3) or projector
             (PaliGemma)

Gemma 3 (https://arxiv.org/abs/2503.19786) averages cells of patches, and the
tokens of one image see each other both ways. In PaliGemma (2407.07726; 2:
2412.03555) every patch is a token, and so does the whole prompt.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmr1 import types
from mmr1.models import decoder_config
from mmr1.models import decoder_weights
from mmr1.models import gemma
from mmr1.models import layers
from mmr1.models import siglip
from mmr1.models import vision_language
from mmr1.models import weights

Array = jax.Array
TOWER = vision_language.TOWER
FAMILIES = ('gemma3', 'paligemma')

_PROJECTOR = 'multi_modal_projector'
# Kinds of their decoders; the first where config.json is silent.
_DECODERS = {'gemma3': ('gemma3_text',), 'paligemma': ('gemma', 'gemma2')}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(decoder_config.Config):
  """A decoder and its encoder of images.

  Fields:
    vision: the encoder; one token for each of its cells.
    pooled: a cell is the mean of its patches, normalised and projected without
      bias; else its one patch, projected with bias.
    whole_prompt: every prompt token sees the whole prompt; else those of an
      image see all of it and the others what is before them.
  """
  vision: siglip.VisionConfig
  pooled: bool
  whole_prompt: bool

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any], **run: Any) -> 'Config':
    """Reads a config.json.

    Args:
      hf: the parsed config.json.
      **run: run-time choices, see `decoder_config.Config`.

    Raises:
      ValueError: a field is inconsistent or asks for what is not supported.
    """
    family = hf['model_type']
    pooled = family == 'gemma3'
    vision = siglip.VisionConfig.from_hf(hf.get('vision_config'))
    if pooled:
      vision = dataclasses.replace(vision, cell=_cell(hf, vision))
    text = _text(hf, family)
    result = cls(
        **gemma.fields(text) | dict(
            # Said for the whole model, whatever is in the section.
            tied=hf.get('tie_word_embeddings', True)),
        vision=vision, pooled=pooled, whole_prompt=not pooled,
        hf=json.dumps(hf, sort_keys=True), **run)
    if not pooled and hf.get('projection_dim', 2048) != result.width:
      raise ValueError(
          f"config.json: projection_dim {hf.get('projection_dim', 2048)} must "
          f'equal hidden_size {result.width} of text_config.')
    return result


def _text(hf: Mapping[str, Any], family: str) -> dict[str, Any]:
  """The section of the decoder."""
  if hf.get('text_config') is None:
    raise ValueError('config.json: `text_config` is missing.')
  kinds = _DECODERS[family]
  text = {'model_type': kinds[0], **hf['text_config']}
  if text['model_type'] not in kinds:
    raise ValueError(
        f"config.json: text_config.model_type {text['model_type']!r}: "
        f'{family!r} has one of {kinds}.')
  if family == 'paligemma':
    # It says of the decoder what the model does with prompts.
    text.pop('use_bidirectional_attention', None)
  return text


def _cell(hf: Mapping[str, Any], vision: siglip.VisionConfig) -> int:
  """Patches per side of a cell."""
  count = hf.get('mm_tokens_per_image', 256)
  side = math.isqrt(count)
  if side**2 != count or vision.side % side:
    raise ValueError(
        f'config.json: mm_tokens_per_image {count} must be a square whose '
        f'root divides the {vision.side} patches of a side of an image.')
  return vision.side // side


class PooledTower(nn.Module):
  """Gemma 3's: means of cells, a norm, a projection."""
  config: Config

  def setup(self):
    c, v = self.config, self.config.vision
    self.encoder = siglip.Encoder(c, v)
    self.norm = layers.RMSNorm(v.eps, c.compute_dtype, offset=True)
    self.projection = self.param(
        'projection', nn.initializers.normal(0.02), (v.width, c.width))

  def __call__(self, media: types.Media) -> Array:
    """Returns cells [N, M, D] in the media's order."""
    c, v = self.config, self.config.vision
    x = self.encoder(media)
    x = x.reshape(x.shape[0], -1, v.cell**2, v.width)
    x = jnp.mean(x, 2, dtype=jnp.float32).astype(c.compute_dtype)
    return jnp.einsum(
        'nmw,wd->nmd', self.norm(x),
        jnp.asarray(self.projection).astype(c.compute_dtype),
        precision=c.precision)


class PlainTower(nn.Module):
  """PaliGemma's: every patch, projected."""
  config: Config

  def setup(self):
    c = self.config
    self.encoder = siglip.Encoder(c, c.vision)
    self.projector = layers.dense(
        c.width, 'projector', bias=True, dtype=c.compute_dtype,
        precision=c.precision)

  def __call__(self, media: types.Media) -> Array:
    """Returns cells [N, S, D] in the media's order."""
    return self.projector(self.encoder(media))


class Model(vision_language.Model):
  """A decoder of Gemma's that reads through SigLIP."""
  config: Config

  def tower(self) -> nn.Module:
    return (PooledTower if self.config.pooled else PlainTower)(self.config)

  def inserted(self, tokens: Array, media: Any) -> tuple[Array, Array | None]:
    """Text: an image's tokens would see each other both ways."""
    if media:
      raise ValueError('images inside completions: Gemma reads an image both '
                       'ways, and completions are read causally.')
    return super().inserted(tokens, media)

  def blocks(self, prompts: types.Prompts) -> tuple[Array, bool] | None:
    """One for the prompt, or one for each run of an image's tokens."""
    if self.config.whole_prompt:  # PaliGemma 2 has windows, but not inside it
      whole = prompts.mask if prompts.segment is None else prompts.segment
      return whole.astype(jnp.int32), False
    if TOWER not in prompts.media:
      return None
    inside = prompts.media[TOWER].slot >= 0
    before = jnp.pad(inside, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(inside, jnp.cumsum(inside & ~before, 1), 0), True


def table(config: Config) -> tuple[weights.Weight, ...]:
  """One row per parameter leaf, for loading and saving alike."""
  rows = siglip.table(
      config.vision, 'visual/encoder', 'vision_tower.vision_model')
  if config.pooled:
    rows += [
        weights.Weight('visual/norm/weight',
                       f'{_PROJECTOR}.mm_soft_emb_norm.weight'),
        weights.Weight('visual/projection',
                       f'{_PROJECTOR}.mm_input_projection_weight')]
  else:
    rows += decoder_weights.linear(
        'visual/projector', f'{_PROJECTOR}.linear', bias=True)
  return (*rows, *decoder_weights.nested_table(config))


canonical, in_memory = siglip.canonical, siglip.in_memory
tied = decoder_weights.nested_tied


def init_params(config: Config, rng: jax.Array) -> Any:
  """Random parameters, float32; see `decoder.init_params`."""
  return vision_language.init_params(build(config), rng)


def build(config: Config) -> Model:
  """The families' module."""
  return Model(config)
