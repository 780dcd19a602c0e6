"""InternVL 2.5 (https://arxiv.org/abs/2412.05271) and 3 (2504.10479).

An image is a number of square tiles of one size. The tower, InternViT, reads
each tile alone with a class token of its own; blocks of its patches become the
cells ("pixel shuffle") and a projector brings them to the decoder's width.

  visual/    patch_embed, cls, positions, blocks, norm (if not mean-pooled),
             projector_norm, projector_fc1, projector_fc2

A tile is one attention window of `types.Media` and one frame. Weights:
`mmr1.models.internvl_weights`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmr1 import types
from mmr1.models import attention
from mmr1.models import decoder_config
from mmr1.models import layers
from mmr1.models import partition
from mmr1.models import sight
from mmr1.models import text_decoder
from mmr1.models import vision_language

Array = jax.Array

# What transformers assumes where `vision_config` is silent.
_VISION_DEFAULTS = {
    'hidden_size': 1024, 'num_hidden_layers': 24, 'num_attention_heads': 16,
    'intermediate_size': 4096, 'attention_bias': False, 'use_qk_norm': False,
    'norm_type': 'layer_norm', 'layer_norm_eps': 1e-6, 'hidden_act': 'gelu',
    'image_size': 448, 'patch_size': 14, 'num_channels': 3,
    'use_absolute_position_embeddings': True, 'use_mask_token': False,
    'layer_scale_init_value': 0.1, 'use_mean_pooling': True}
# What must be so, in config.json and in its `vision_config`.
_FIXED = {'projector_hidden_act': 'gelu', 'vision_feature_layer': -1,
          'vision_feature_select_strategy': 'default'}
_VISION_FIXED = {'hidden_act': 'gelu', 'use_mask_token': False}
_QK_EPS = 1e-6
_PROJECTOR_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The tower and the projector.

  Fields:
    depth, width, mlp_width, heads: sizes.
    channels, patch: colours, and pixels of a patch's side.
    grid: patches of a tile's side.
    merge: patches of a cell's side.
    qkv_bias: whether the q, k and v projections have a bias.
    qk_norm: whether q and k are normalised, over all heads together.
    rms: root-mean-square norms instead of layer norms.
    eps: of the norms.
    places: whether positions are added to the patches.
    final_norm: whether the last layer is followed by a layer norm.
    layer_scale: what the factors of the residual branches start at.
  """
  depth: int
  width: int
  mlp_width: int
  heads: int
  channels: int
  patch: int
  grid: int
  merge: int
  qkv_bias: bool
  qk_norm: bool
  rms: bool
  eps: float
  places: bool
  final_norm: bool
  layer_scale: float

  @property
  def patch_values(self) -> int:
    """C, values per patch."""
    return self.channels * self.patch**2

  @property
  def window_patches(self) -> int:
    """Patches of a tile; S of `Media` is a multiple of it."""
    return self.grid**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(decoder_config.Config):
  """A decoder of one of the text families and its tower."""
  vision: VisionConfig

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any], **run: Any) -> 'Config':
    """Reads a config.json.

    Args:
      hf: the parsed config.json. Where it does not say whether the head is
        the embedding, it is, as transformers has it; see `checkpoints`.
      **run: run-time choices, see `decoder_config.Config`.

    Raises:
      ValueError: a field is inconsistent or asks for what is not supported.
    """
    for key, wanted in _FIXED.items():
      if hf.get(key, wanted) != wanted:
        raise ValueError(f'config.json: {key} {hf[key]!r} is not supported, '
                         f'only {wanted!r}.')
    language = text_decoder.section(
        hf, tied=hf.get('tie_word_embeddings', True), **run)
    return cls(**language, vision=_vision_config(hf))


def _vision_config(hf: Mapping[str, Any]) -> VisionConfig:
  if hf.get('vision_config') is None:
    raise ValueError('config.json: `vision_config` is missing.')
  vision = {**_VISION_DEFAULTS, **hf['vision_config']}
  for key, wanted in _VISION_FIXED.items():
    if vision[key] != wanted:
      raise ValueError(f'config.json: vision {key} {vision[key]!r} is not '
                       f'supported, only {wanted!r}.')
  if vision['norm_type'] not in ('layer_norm', 'rms_norm'):
    raise ValueError(
        f"config.json: vision norm_type {vision['norm_type']!r}: allowed are "
        "'layer_norm' and 'rms_norm'.")
  if vision['hidden_size'] % vision['num_attention_heads']:
    raise ValueError(
        f"config.json: vision hidden_size {vision['hidden_size']} must be a "
        f"multiple of num_attention_heads {vision['num_attention_heads']}.")
  patch, grid, merge = tiling(hf)
  return VisionConfig(
      depth=vision['num_hidden_layers'], width=vision['hidden_size'],
      mlp_width=vision['intermediate_size'],
      heads=vision['num_attention_heads'], channels=vision['num_channels'],
      patch=patch, grid=grid, merge=merge, qkv_bias=vision['attention_bias'],
      qk_norm=vision['use_qk_norm'], rms=vision['norm_type'] == 'rms_norm',
      eps=vision['layer_norm_eps'],
      places=vision['use_absolute_position_embeddings'],
      final_norm=not vision['use_mean_pooling'],
      layer_scale=vision['layer_scale_init_value'])


def tiling(hf: Mapping[str, Any]) -> tuple[int, int, int]:
  """(pixels of a patch's side, patches of a tile's, patches of a cell's).

  Raises:
    ValueError: tiles or patches that are not square, or do not fit.
  """
  vision = {**_VISION_DEFAULTS, **hf.get('vision_config', {})}
  sides = {}
  for key in ('image_size', 'patch_size'):
    value = vision[key]
    sides[key] = set(value if isinstance(value, (list, tuple)) else [value])
  ratio = hf.get('downsample_ratio', 0.5)
  size, patch = (max(sides[key]) for key in ('image_size', 'patch_size'))
  merge = round(1 / ratio)
  if (any(len(x) > 1 for x in sides.values()) or merge * ratio != 1
      or size % (patch * merge)):
    raise ValueError(
        f"config.json: vision image_size {vision['image_size']}, patch_size "
        f"{vision['patch_size']}, downsample_ratio {ratio}: tiles and patches "
        'must be squares, the ratio one over a whole number, and a tile whole '
        'cells of 1 / ratio patches a side.')
  return patch, size // patch, merge


def _norm(config: Config, **name: str) -> nn.Module:
  kind = layers.RMSNorm if config.vision.rms else layers.LayerNorm
  return kind(config.vision.eps, config.compute_dtype, **name)


class VisionBlock(nn.Module):
  """One layer of the tower, inside every tile."""
  config: Config

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [N, tiles, 1 + patches, W] -> the same; the class token is first."""
    c, v = self.config, self.config.vision
    kw = dict(dtype=c.compute_dtype, precision=c.precision)
    n, tiles, t, width = x.shape
    scale1, scale2 = (
        self.param(name, nn.initializers.constant(v.layer_scale), (width,))
        .astype(c.compute_dtype) for name in ('scale1', 'scale2'))
    hidden = _norm(c, name='norm1')(x)
    q, k, value = (layers.dense(width, name, bias=v.qkv_bias, **kw)(hidden)
                   for name in ('q', 'k', 'v'))
    if v.qk_norm:
      q, k = (layers.RMSNorm(_QK_EPS, c.compute_dtype, name=name)(a)
              for name, a in (('q_norm', q), ('k_norm', k)))
    q, k, value = (a.reshape(n, tiles, t, v.heads, width // v.heads)
                   for a in (q, k, value))
    # A padded tile is padded whole, and nothing reads its cells.
    hidden = attention.attend(
        q, [attention.Source(
             jnp.swapaxes(k, 2, 3), jnp.swapaxes(value, 2, 3),
             sight.Sight())], **c.attending_images).reshape(x.shape)
    x = x + scale1 * layers.dense(width, 'proj', bias=True, **kw)(hidden)
    hidden = _norm(c, name='norm2')(x)
    hidden = layers.dense(v.mlp_width, 'fc1', bias=True, **kw)(hidden)
    hidden = nn.gelu(hidden, approximate=False)
    return x + scale2 * layers.dense(width, 'fc2', bias=True, **kw)(hidden)


class VisionTower(nn.Module):
  """Patches of tiles to merged cells in prompt width."""
  config: Config

  def setup(self):
    c, v = self.config, self.config.vision
    kw = dict(bias=True, dtype=c.compute_dtype, precision=c.precision)
    self.patch_embed = layers.dense(v.width, 'patch_embed', **kw)
    zeros = nn.initializers.zeros
    self.cls = self.param('cls', zeros, (1, 1, v.width))
    if v.places:
      self.positions = self.param(
          'positions', zeros, (1, 1 + v.window_patches, v.width))
    if v.final_norm:
      self.norm = layers.LayerNorm(v.eps, c.compute_dtype)
    self.projector_norm = layers.LayerNorm(_PROJECTOR_EPS, c.compute_dtype)
    self.projector_fc1 = layers.dense(c.width, 'projector_fc1', **kw)
    self.projector_fc2 = layers.dense(c.width, 'projector_fc2', **kw)
    self.blocks = layers.stacked(
        self, 'blocks', VisionBlock(c, parent=None), v.depth,
        jnp.zeros((1, 1, 1, v.width)))

  def __call__(self, media: types.Media) -> Array:
    """Returns cells [N, M, D], tile by tile, row by row."""
    c, v = self.config, self.config.vision
    n, s, _ = media.patches.shape
    if s % v.window_patches:
      raise ValueError(
          f'{s} patch slots per row: must be a multiple of the '
          f'{v.window_patches} of one tile.')
    tiles = s // v.window_patches
    x = self.patch_embed(media.patches.astype(c.compute_dtype))
    x = x.reshape(n, tiles, v.window_patches, v.width)
    cls = jnp.broadcast_to(
        self.cls.astype(x.dtype), (n, tiles, 1, v.width))
    x = jnp.concatenate([cls, x], 2)
    if v.places:
      x = x + self._places().astype(x.dtype)
    block = VisionBlock(c, parent=None)

    def step(params, x, _, flag):
      del flag
      params = partition.gathered(
          c.partition, params, 'visual/blocks', c.compute_dtype)
      return block.apply({'params': params}, x), None

    x, _ = layers.fold(
        step, self.blocks, x, [None] * v.depth if c.layers == 'unrolled'
        else None, [False] * v.depth, scan=c.layers == 'scan',
        remat=c.remat)
    x = self.norm(x) if v.final_norm else x
    # The patches of a cell are neighbours, row by row: the pixel shuffle.
    x = x[:, :, 1:].reshape(n, s // v.merge**2, -1)
    x = self.projector_fc1(self.projector_norm(x))
    return self.projector_fc2(nn.gelu(x, approximate=False))

  def _places(self) -> Array:
    """[1 + w, W], the table's rows in the order of `Media`: cell by cell."""
    v = self.config.vision
    first, rest = self.positions[0, :1], self.positions[0, 1:]
    side = v.grid // v.merge
    rest = rest.reshape(side, v.merge, side, v.merge, v.width)
    rest = rest.swapaxes(1, 2).reshape(v.window_patches, v.width)
    return jnp.concatenate([first, rest])


class Model(vision_language.Model):
  """A decoder that reads through this tower."""
  config: Config

  def tower(self) -> nn.Module:
    return VisionTower(self.config)


def init_params(config: Config, rng: jax.Array) -> Any:
  """Random parameters, float32; see `decoder.init_params`."""
  return vision_language.init_params(build(config), rng)


def build(config: Config) -> Model:
  """The family's module."""
  return Model(config)
