"""SigLIP's image encoder (https://arxiv.org/abs/2303.15343), without its head.

  encoder/   patch_embed, position [positions, W], blocks, norm

Every image has the same size and fills one attention window: `(image /
patch)^2` patches, row by row, or cell by cell where a family pools cells.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmr1 import types
from mmr1.models import attention
from mmr1.models import decoder_config
from mmr1.models import decoder_weights
from mmr1.models import layers
from mmr1.models import partition
from mmr1.models import sight
from mmr1.models import weights

Array = jax.Array

# What transformers assumes of a `siglip_vision_model`.
_DEFAULTS = {
    'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12,
    'num_attention_heads': 12, 'num_channels': 3, 'image_size': 224,
    'patch_size': 16, 'hidden_act': 'gelu_pytorch_tanh',
    'layer_norm_eps': 1e-6}
_BLOCK = {  # parameter path -> tensor name
    'norm1/weight': 'layer_norm1.weight',
    'norm1/bias': 'layer_norm1.bias',
    'norm2/weight': 'layer_norm2.weight',
    'norm2/bias': 'layer_norm2.bias',
    'q': 'self_attn.q_proj',
    'k': 'self_attn.k_proj',
    'v': 'self_attn.v_proj',
    'proj': 'self_attn.out_proj',
    'fc1': 'mlp.fc1',
    'fc2': 'mlp.fc2',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
  """The encoder. Sizes in patches or pixels as transformers has them.

  `image` and `patch` are pixels per side; the patches of a cell, `cell` of
  them a side, lie together and become one token of the prompt.
  """
  depth: int
  width: int
  mlp_width: int
  heads: int
  channels: int
  image: int
  patch: int
  eps: float
  cell: int = 1

  @property
  def side(self) -> int:
    """Patches per side of an image."""
    return self.image // self.patch

  @property
  def patch_values(self) -> int:
    """C, values per patch: channels x pixels, as the processor has them."""
    return self.channels * self.patch**2

  @property
  def window_patches(self) -> int:
    """Patch slots of one image; S of `Media` is a multiple of it."""
    return self.side**2

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any] | None) -> 'VisionConfig':
    """Reads the `vision_config` of a config.json; `cell` is the family's.

    Args:
      hf: the section.

    Raises:
      ValueError: a field is inconsistent or asks for what is not supported.
    """
    if hf is None:
      raise ValueError('config.json: `vision_config` is missing.')
    vision = {**_DEFAULTS, **{k: x for k, x in hf.items() if x is not None}}
    _check(vision)
    return cls(
        depth=vision['num_hidden_layers'], width=vision['hidden_size'],
        mlp_width=vision['intermediate_size'],
        heads=vision['num_attention_heads'], channels=vision['num_channels'],
        image=vision['image_size'], patch=vision['patch_size'],
        eps=vision['layer_norm_eps'])


def _check(vision: Mapping[str, Any]) -> None:
  kind = vision.get('model_type', 'siglip_vision_model')
  if kind != 'siglip_vision_model':
    raise ValueError(
        f'config.json: vision_config.model_type {kind!r}: only '
        "'siglip_vision_model' is supported for this family.")
  if vision['hidden_act'] != 'gelu_pytorch_tanh' or vision.get(
      'vision_use_head', False):
    raise ValueError(
        f"config.json: vision hidden_act {vision['hidden_act']!r} must be "
        "'gelu_pytorch_tanh', and vision_use_head "
        f"{vision.get('vision_use_head')} false: the pooling head is no part "
        'of these models.')
  for a, b in (('image_size', 'patch_size'),
               ('hidden_size', 'num_attention_heads')):
    if vision[a] % vision[b]:
      raise ValueError(
          f'config.json: vision_config.{a} {vision[a]} must be a multiple of '
          f'{b} {vision[b]}.')


class Block(nn.Module):
  """One layer: every patch of an image sees every other."""
  config: decoder_config.Config
  vision: VisionConfig

  @nn.compact
  def __call__(self, x: Array, real: Array) -> Array:
    """x [N, I, U, W] of I images; real bool[N, I, U] -> [N, I, U, W]."""
    c, v = self.config, self.vision
    kw = dict(bias=True, dtype=c.compute_dtype, precision=c.precision)
    heads = (*x.shape[:3], v.heads, v.width // v.heads)
    hidden = layers.LayerNorm(v.eps, c.compute_dtype, name='norm1')(x)
    q, k, value = (layers.dense(v.width, name, **kw)(hidden).reshape(heads)
                   for name in ('q', 'k', 'v'))
    hidden = attention.attend(
        q, [attention.Source(
             jnp.swapaxes(k, 2, 3), jnp.swapaxes(value, 2, 3),
             sight.Sight(keys=real))], **c.attending_images)
    x = x + layers.dense(v.width, 'proj', **kw)(hidden.reshape(x.shape))
    hidden = layers.LayerNorm(v.eps, c.compute_dtype, name='norm2')(x)
    hidden = nn.gelu(layers.dense(v.mlp_width, 'fc1', **kw)(hidden))
    return x + layers.dense(v.width, 'fc2', **kw)(hidden)


class Encoder(nn.Module):
  """Patches to features.

  Fields:
    config: of the model, for the way it is run.
    vision: sizes.
    normed: whether the features go through the last norm; it is a parameter
      in any case, as it is in the files.
  """
  config: decoder_config.Config
  vision: VisionConfig
  normed: bool = True

  def setup(self):
    c, v = self.config, self.vision
    self.patch_embed = layers.dense(
        v.width, 'patch_embed', bias=True, dtype=c.compute_dtype,
        precision=c.precision)
    self.position = self.param(
        'position', nn.initializers.normal(0.02), (v.side**2, v.width))
    self.norm = layers.LayerNorm(v.eps, c.compute_dtype)
    self.blocks = layers.stacked(
        self, 'blocks', Block(c, v, parent=None), v.depth,
        jnp.zeros((1, 1, 1, v.width)), jnp.ones((1, 1, 1), bool))

  def __call__(self, media: types.Media) -> Array:
    """Returns features [N, S, W] in the media's order.

    Raises:
      ValueError: S is not whole images.
    """
    c, v = self.config, self.vision
    n, s, _ = media.patches.shape
    if s % v.window_patches:
      raise ValueError(
          f'{s} patch slots per row: must be a multiple of the '
          f'{v.window_patches} of one image.')
    x = self.patch_embed(media.patches.astype(c.compute_dtype))
    place = media.position[..., 0] * v.side + media.position[..., 1]
    x = x + jnp.asarray(self.position)[place].astype(c.compute_dtype)
    images = (n, s // v.window_patches, v.window_patches)
    real = (media.segment > 0).reshape(images)
    block = Block(c, v, parent=None)

    def step(params, x, _, flag):
      del flag
      params = partition.gathered(
          c.partition, params, 'visual/blocks', c.compute_dtype)
      return block.apply({'params': params}, x, real), None

    x, _ = layers.fold(
        step, self.blocks, x.reshape(*images, v.width),
        [None] * v.depth if c.layers == 'unrolled' else None,
        [False] * v.depth, scan=c.layers == 'scan', remat=c.remat)
    x = x.reshape(n, s, v.width)
    normed = self.norm(x)  # always: it makes the parameter
    return normed if self.normed else x


def canonical(name: str) -> str | None:
  """The hub's name of any tensor of a model with this encoder.

  transformers 5 saves the encoder without `vision_model`; for the rest see
  `decoder_weights.nested_canonical`. None: not a parameter.
  """
  name = decoder_weights.nested_canonical(name)
  return None if name is None else re.sub(
      r'^vision_tower\.(?!vision_model\.)', 'vision_tower.vision_model.', name)


def in_memory(name: str) -> str:
  """The name in a model of transformers 5; the inverse of `canonical`."""
  return decoder_weights.nested_in_memory(
      name.replace('vision_tower.vision_model.', 'vision_tower.', 1))


def table(v: VisionConfig, path: str, name: str) -> list[weights.Weight]:
  """One row per parameter leaf of an `Encoder`.

  Args:
    v: its sizes.
    path: where it is among the parameters, such as 'visual/encoder'.
    name: its tensors' prefix, such as 'vision_tower.vision_model'.
  """
  embed = f'{name}.embeddings.patch_embedding'
  rows = [
      weights.Weight(
          f'{path}/patch_embed/kernel', f'{embed}.weight',
          file_shape=(v.width, v.channels, v.patch, v.patch)),
      weights.Weight(f'{path}/patch_embed/bias', f'{embed}.bias'),
      weights.Weight(f'{path}/position',
                     f'{name}.embeddings.position_embedding.weight'),
      weights.Weight(f'{path}/norm/weight', f'{name}.post_layernorm.weight'),
      weights.Weight(f'{path}/norm/bias', f'{name}.post_layernorm.bias')]
  for ours, theirs in _BLOCK.items():
    rows += decoder_weights.linear(
        f'{path}/blocks/{ours}', f'{name}.encoder.layers.{{}}.{theirs}',
        bias=True, layers=v.depth)
  return rows
