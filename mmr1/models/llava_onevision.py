"""LLaVA-OneVision (https://arxiv.org/abs/2408.03326), hf layout.

SigLIP reads views of one size, a projector brings every patch to the decoder's
width, and the prompt reads sums of a few of them: `types.Media.taps`. A learned
token stands at the end of rows, images and videos.

  visual/    encoder, projector_fc1, projector_fc2, newline [D]
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmr1 import types
from mmr1.models import decoder_config
from mmr1.models import decoder_weights
from mmr1.models import layers
from mmr1.models import siglip
from mmr1.models import text_decoder
from mmr1.models import vision_language
from mmr1.models import weights

Array = jax.Array
TOWER = vision_language.TOWER

# What must be so, where config.json says it.
_FIXED = {'projector_hidden_act': 'gelu', 'vision_feature_layer': -1,
          'vision_feature_select_strategy': 'full'}
_END = -2  # `types.Media.slot` of the learned token
_PROJECTOR = 'multi_modal_projector'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(decoder_config.Config):
  """A decoder of one of the text families and SigLIP.

  Fields:
    vision: the encoder. A view's pixels that make no whole patch are not in
      its `image`.
    projector_bias: whether the two layers of the projector have biases.
  """
  vision: siglip.VisionConfig
  projector_bias: bool

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any], **run: Any) -> 'Config':
    """Reads a config.json.

    Args:
      hf: the parsed config.json.
      **run: run-time choices, see `decoder_config.Config`.

    Raises:
      ValueError: a field is inconsistent or asks for what is not supported.
    """
    for key, wanted in _FIXED.items():
      if hf.get(key, wanted) != wanted:
        raise ValueError(f'config.json: {key} {hf[key]!r} is not supported, '
                         f'only {wanted!r}.')
    tied = any(section.get('tie_word_embeddings', False)
               for section in (hf, hf.get('text_config') or {}))
    return cls(
        **text_decoder.section(hf, tied=tied, **run),
        vision=siglip.VisionConfig.from_hf(_whole(hf.get('vision_config'))),
        projector_bias=hf.get('multimodal_projector_bias', True))


def _whole(vision: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
  """Without the pixels that make no whole patch: 384 are 27 x 14 and 6."""
  if not vision or not {'image_size', 'patch_size'} <= set(vision):
    return vision
  rest = vision['image_size'] % vision['patch_size']
  return {**vision, 'image_size': vision['image_size'] - rest}


class VisionTower(nn.Module):
  """Every patch of every view, projected; and the learned token."""
  config: Config

  def setup(self):
    c = self.config
    kw = dict(bias=c.projector_bias, dtype=c.compute_dtype,
              precision=c.precision)
    self.encoder = siglip.Encoder(c, c.vision, normed=False)
    self.projector_fc1 = layers.dense(c.width, 'projector_fc1', **kw)
    self.projector_fc2 = layers.dense(c.width, 'projector_fc2', **kw)
    self.newline = self.param(
        'newline', nn.initializers.normal(c.width**-0.5), (c.width,))

  def __call__(self, media: types.Media) -> Array:
    """Returns cells [N, S, D] in the media's order."""
    x = self.projector_fc1(self.encoder(media))
    return self.projector_fc2(nn.gelu(x, approximate=False))


class Model(vision_language.Model):
  """A decoder that reads sums of the tower's cells."""
  config: Config

  def tower(self) -> nn.Module:
    return VisionTower(self.config)

  def seen(self, x: Array, media: Any) -> tuple[Array, Array | None]:
    """As for every tower, and the learned token where it stands."""
    x, add = super().seen(x, media)
    if TOWER not in media:
      return x, add
    ends = media[TOWER].slot == _END
    return jnp.where(
        ends[..., None], self.visual.newline.astype(x.dtype), x), add


def table(config: Config) -> tuple[weights.Weight, ...]:
  """One row per parameter leaf, for loading and saving alike."""
  rows = siglip.table(
      config.vision, 'visual/encoder', 'vision_tower.vision_model')
  rows.append(weights.Weight('visual/newline', 'image_newline'))
  for ours, theirs in (('projector_fc1', 'linear_1'),
                       ('projector_fc2', 'linear_2')):
    rows += decoder_weights.linear(
        f'visual/{ours}', f'{_PROJECTOR}.{theirs}', bias=config.projector_bias)
  return (*rows, *decoder_weights.nested_table(config))


canonical, in_memory = siglip.canonical, siglip.in_memory
tied = decoder_weights.nested_tied


def init_params(config: Config, rng: jax.Array) -> Any:
  """Random parameters, float32; see `decoder.init_params`."""
  return vision_language.init_params(build(config), rng)


def build(config: Config) -> Model:
  """The family's module."""
  return Model(config)
