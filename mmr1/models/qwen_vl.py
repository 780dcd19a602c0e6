"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the tower, and the decoder reading it.

  visual/    patch_embed, positions (if any), blocks, merger, deepstack_0 ...

The families differ by what `qwen_vl_config.VisionConfig` says.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmr1 import types
from mmr1.models import attention
from mmr1.models import layers
from mmr1.models import partition
from mmr1.models import qwen_vl_config
from mmr1.models import sight
from mmr1.models import vision_language

Array = jax.Array
Config = qwen_vl_config.Config
FAMILIES = qwen_vl_config.FAMILIES

_THETA = 10000.0
_EPS = 1e-6
_MLPS = {
    'swiglu': layers.SwiGLU,
    'quick_gelu': functools.partial(layers.MLP, layers.quick_gelu),
    'gelu': functools.partial(layers.MLP, nn.gelu),
}


def _norm(config: Config, **name: str) -> nn.Module:
  rms = config.vision.mlp == 'swiglu'
  kind = layers.RMSNorm if rms else layers.LayerNorm
  return kind(_EPS, config.compute_dtype, **name)


class VisionBlock(nn.Module):
  """One layer of the tower: attention in windows or in whole frames."""
  config: Config

  @nn.compact
  def __call__(self, x: Array, cos: Array, sin: Array, segment: Array,
               full: bool | Array) -> Array:
    """x [N, S, W]; cos, sin f32[N, S, d]; segment i32[N, S] -> [N, S, W]."""
    c, v = self.config, self.config.vision
    kw = dict(bias=True, dtype=c.compute_dtype, precision=c.precision)
    n, s, width = x.shape
    hidden = _norm(c, name='norm1')(x)
    qkv = layers.dense(3 * width, 'qkv', **kw)(hidden)
    q, k, value = jnp.moveaxis(
        qkv.reshape(n, s, 3, v.heads, width // v.heads), 2, 0)
    q, k = (layers.rotate(a.astype(jnp.float32), cos, sin).astype(a.dtype)
            for a in (q, k))

    def attend(window, seen, q, k, value):
      q, k, value = (a.reshape(n, s // window, window, *a.shape[2:])
                     for a in (q, k, value))
      return attention.attend(
          q, [attention.Source(
              jnp.swapaxes(k, 2, 3), jnp.swapaxes(value, 2, 3), seen)],
          **c.attending_images).reshape(n, s, width)

    def in_frame(*qkv):
      frame = segment[:, None]
      return attend(
          s, sight.Sight(keys=frame > 0, segments=(frame, frame)), *qkv)

    def in_window(*qkv):
      real = (segment > 0).reshape(n, -1, v.window_patches)
      return attend(v.window_patches, sight.Sight(keys=real), *qkv)

    full = full if v.windows else True
    if isinstance(full, bool):
      hidden = (in_frame if full else in_window)(q, k, value)
    else:
      # For who counts operations, see `mmr1.planning.costs`.
      with jax.named_scope(f'share_{len(v.full_layers)}_of_{v.depth}'):
        hidden = jax.lax.cond(full, in_frame, in_window, q, k, value)
    x = x + layers.dense(width, 'proj', **kw)(hidden)
    hidden = _norm(c, name='norm2')(x)
    return x + _MLPS[v.mlp](v.mlp_width, name='mlp', **kw)(hidden)


class Merger(nn.Module):
  """The patches of a cell to one vector of the prompt's width."""
  config: Config
  norm_first: bool  # each patch is normalised, not the whole cell

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[N, S, W] -> [N, M, D]."""
    c, v = self.config, self.config.vision
    kw = dict(bias=True, dtype=c.compute_dtype, precision=c.precision)
    norm, unit = _norm(c, name='norm'), v.merge**2
    shape = (x.shape[0], x.shape[1] // unit, unit * v.width)
    x = norm(x).reshape(shape) if self.norm_first else norm(x.reshape(shape))
    x = layers.dense(unit * v.width, 'fc1', **kw)(x)
    return layers.dense(v.out_width, 'fc2', **kw)(
        nn.gelu(x, approximate=False))


class VisionTower(nn.Module):
  """Patches to merged cells in prompt width."""
  config: Config

  def setup(self):
    c, v = self.config, self.config.vision
    self.patch_embed = layers.dense(
        v.width, 'patch_embed', bias=v.patch_bias, dtype=c.compute_dtype,
        precision=c.precision)
    if v.table:
      self.positions = self.param(
          'positions', nn.initializers.normal(0.02), (v.table**2, v.width))
    w = v.window_patches
    angle = jnp.zeros((1, w, v.width // v.heads))
    self.blocks = layers.stacked(
        self, 'blocks', VisionBlock(c, parent=None), v.depth,
        jnp.zeros((1, w, v.width)), angle, angle,
        jnp.ones((1, w), jnp.int32), True)
    self.merger = Merger(c, norm_first=True)
    self.deepstack = [Merger(c, norm_first=False) for _ in v.deepstack]

  def __call__(self, media: types.Media) -> tuple[Array, tuple[Array, ...]]:
    """Returns cells in the media's window order, and those of `deepstack`.

    Each is [N, M, D].

    Raises:
      ValueError: `media` has no whole windows, or lacks what the tower reads.
    """
    c, v = self.config, self.config.vision
    s = media.patches.shape[1]
    if s % v.window_patches:
      raise ValueError(
          f'{s} patch slots per row: must be a multiple of the '
          f'{v.window_patches} of one attention window.')
    x = self.patch_embed(media.patches.astype(c.compute_dtype))
    if v.table:
      if media.extent is None:
        raise ValueError('Media.extent is None: the tower resamples its table '
                         'of positions to the size of every frame.')
      x = x + resample(
          self.positions, media.position, media.extent).astype(x.dtype)
    cos, sin = layers.axial_rope(
        media.position, theta=_THETA, width=v.width // v.heads)
    block = VisionBlock(c, parent=None)

    def step(params, x, _, flag):
      params = partition.gathered(
          c.partition, params, 'visual/blocks', c.compute_dtype)
      x = block.apply(
          {'params': params}, x, cos, sin, media.segment, flag)
      return x, None

    # One run of layers up to each map that leaves the tower, and the rest.
    stops = (0, *(i + 1 for i in v.deepstack), v.depth)
    sizes = [stop - start for start, stop in zip(stops, stops[1:])]
    maps = []
    for start, size, params in zip(
        stops, sizes, layers.split(self.blocks, sizes)):
      x, _ = layers.fold(
          step, params, x, None if c.layers == 'scan' else [None] * size,
          [i in v.full_layers for i in range(start, start + size)],
          scan=c.layers == 'scan', remat=c.remat)
      maps.append(x)
    return self.merger(x), tuple(
        merge(x) for merge, x in zip(self.deepstack, maps))


def resample(table: Array, position: Array, extent: Array) -> Array:
  """A square table of positions, resized to frames.

  Bilinear, with the corners of the table on those of the frame.

  Args:
    table: [side * side, W].
    position, extent: i32[..., 2], row and column in the frame, and how many
      of them it has; 0 where padded.

  Returns:
    [..., W] in float32.
  """
  side = round(table.shape[0]**0.5)
  source = (position.astype(jnp.float32) * (side - 1)
            / jnp.maximum(extent - 1, 1).astype(jnp.float32))
  low = jnp.floor(source)
  far = source - low
  low = low.astype(jnp.int32)
  result = 0.0
  for down in (0, 1):
    for right in (0, 1):
      row, column = jnp.moveaxis(jnp.minimum(
          low + jnp.array([down, right]), side - 1), -1, 0)
      weight = (jnp.abs(1 - down - far[..., 0])
                * jnp.abs(1 - right - far[..., 1]))
      result += weight[..., None] * jnp.asarray(table)[row * side + column]
  return result


class Model(vision_language.Model):
  """A decoder that reads through this tower."""
  config: Config

  def tower(self) -> nn.Module:
    return VisionTower(self.config)

  def cells(self, media: types.Media) -> tuple[Array, tuple[Array, ...]]:
    return self.visual(media)


def init_params(config: Config, rng: jax.Array) -> Any:
  """Random parameters, float32; see `decoder.init_params`."""
  return vision_language.init_params(build(config), rng)


def build(config: Config) -> Model:
  """The families' module."""
  return Model(config)
