"""The vision tower of Qwen2-VL and Qwen2.5-VL.

  visual/    patch_embed, blocks, merger_norm, merger_fc1, merger_fc2

The families differ in its layers alone, see `VisionConfig`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmr1 import types
from mmr1.models import layers
from mmr1.models import qwen_vl_config
from mmr1.models import vision_language

Array = jax.Array
Config = qwen_vl_config.Config

_THETA = 10000.0
_EPS = 1e-6


def _norm(config: Config, **name: str) -> nn.Module:
  kind = layers.RMSNorm if config.vision.gated else layers.LayerNorm
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

    def attend(window, visible, q, k, value):
      q, k, value = (a.reshape(n, s // window, window, *a.shape[2:])
                     for a in (q, k, value))
      return layers.attend(
          q, [(jnp.swapaxes(k, 2, 3), jnp.swapaxes(value, 2, 3), visible)],
          precision=c.precision, chunk=c.query_chunk).reshape(n, s, width)

    def in_frame(*qkv):
      def visible(rows):
        return ((segment > 0)[:, None, None, :] & (
            segment[:, None, rows, None] == segment[:, None, None, :]))
      return attend(s, visible, *qkv)

    def in_window(*qkv):
      real = (segment > 0).reshape(n, -1, 1, v.window_patches)
      return attend(v.window_patches, lambda rows: real, *qkv)

    full = full if v.windows else True
    if isinstance(full, bool):
      hidden = (in_frame if full else in_window)(q, k, value)
    else:
      hidden = jax.lax.cond(full, in_frame, in_window, q, k, value)
    x = x + layers.dense(width, 'proj', **kw)(hidden)
    hidden = _norm(c, name='norm2')(x)
    mlp = layers.SwiGLU if v.gated else layers.QuickGELU
    return x + mlp(v.mlp_width, name='mlp', **kw)(hidden)


class VisionTower(nn.Module):
  """Patches to merged cells in prompt width."""
  config: Config

  def setup(self):
    c, v = self.config, self.config.vision
    kw = dict(dtype=c.compute_dtype, precision=c.precision)
    unit = v.merge**2 * v.width
    self.patch_embed = layers.dense(v.width, 'patch_embed', bias=False, **kw)
    self.merger_norm = _norm(c)
    self.merger_fc1 = layers.dense(unit, 'merger_fc1', bias=True, **kw)
    self.merger_fc2 = layers.dense(v.out_width, 'merger_fc2', bias=True, **kw)
    w = v.window_patches
    angle = jnp.zeros((1, w, v.width // v.heads))
    self.blocks = layers.stacked(
        self, 'blocks', VisionBlock(c, parent=None), v.depth,
        jnp.zeros((1, w, v.width)), angle, angle,
        jnp.ones((1, w), jnp.int32), True)

  def __call__(self, media: types.Media) -> Array:
    """Returns cells [N, M, D] in the media's window order."""
    c, v = self.config, self.config.vision
    n, s, _ = media.patches.shape
    if s % v.window_patches:
      raise ValueError(
          f'{s} patch slots per row: must be a multiple of the '
          f'{v.window_patches} of one attention window.')
    x = self.patch_embed(media.patches.astype(c.compute_dtype))
    cos, sin = layers.axial_rope(
        media.position, theta=_THETA, width=v.width // v.heads)
    block = VisionBlock(c, parent=None)

    def step(params, x, _, flag):
      x = block.apply(
          {'params': params}, x, cos, sin, media.segment, flag)
      return x, None

    x, _ = layers.fold(
        step, self.blocks, x, [None] * v.depth if c.layers == 'unrolled'
        else None, [i in v.full_layers for i in range(v.depth)],
        scan=c.layers == 'scan', remat=c.remat == 'layer')
    x = self.merger_norm(x).reshape(n, s // v.merge**2, -1)
    return self.merger_fc2(nn.gelu(self.merger_fc1(x), approximate=False))


class Model(vision_language.Model):
  """A decoder that reads through this tower."""
  config: Config

  def tower(self) -> nn.Module:
    return VisionTower(self.config)
