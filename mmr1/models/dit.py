"""A small diffusion transformer: velocities of noisy pictures.

Letters: N prompts, G samples of each, P patches, D width, L tokens of a
condition. The condition and the source picture exist once per group.

DiT (arXiv:2212.09748) with adaLN-zero; the tokens of the condition are read by
cross-attention without modulation, as in PixArt-alpha (arXiv:2310.00426).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import trees
from mmr1.models import layers

Array = jax.Array
_MLP = 4  # width of the MLP over that of the model
_TIMES = 1000.0  # of a time in [0, 1], before its sines


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes.

  Fields:
    size: side of a picture in pixels; patch: of a patch.
    channels: of a picture.
    source: whether a source picture is read too.
    width, layers, heads: of the transformer.
    vocabulary, tokens: ids of a condition and its length L.
    dtype: of the computation; precision: of products.
    remat: layers are computed again in the backward pass.
  """
  size: int
  patch: int
  channels: int
  source: bool
  width: int
  layers: int
  heads: int
  vocabulary: int
  tokens: int
  dtype: str = 'float32'
  precision: str = 'default'
  remat: bool = False

  @property
  def shape(self) -> tuple[int, int, int]:
    """Of a picture."""
    return self.size, self.size, self.channels


def patches(x: Array, size: int) -> Array:
  """[..., H, W, C] -> [..., P, size * size * C], row by row."""
  *front, h, w, c = x.shape
  x = x.reshape(*front, h // size, size, w // size, size, c)
  x = jnp.swapaxes(x, -4, -3)
  return x.reshape(*front, (h // size) * (w // size), size * size * c)


def pictures(x: Array, size: int, shape: tuple[int, int, int]) -> Array:
  """The inverse of `patches`."""
  h, w, c = shape
  x = x.reshape(*x.shape[:-2], h // size, w // size, size, size, c)
  return jnp.swapaxes(x, -4, -3).reshape(*x.shape[:-5], h, w, c)


def waves(t: Array, width: int) -> Array:
  """f32[...] in [0, 1] -> f32[..., width], sines and cosines of 1000 t."""
  half = width // 2
  rates = jnp.exp(-np.log(10_000) * jnp.arange(half) / half)
  angle = _TIMES * t[..., None] * rates
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class Layer(nn.Module):
  """Self-attention over patches, cross-attention to the condition, an MLP."""
  config: Config

  @nn.compact
  def __call__(self, x: Array, e: Array, condition: Array) -> Array:
    """[N, G, P, D] of x [N, G, P, D], e [N, G, D], condition [N, L, D]."""
    c = self.config
    kw = dict(bias=True, dtype=c.dtype, precision=c.precision)
    heads = lambda y: y.reshape(*y.shape[:-1], c.heads, -1)
    shift, scale, gate, shift2, scale2, gate2 = jnp.split(
        layers.dense(6 * c.width, 'modulation', **kw)(e)[:, :, None], 6, -1)
    y = _norm(x) * (1 + scale) + shift
    q, k, v = (heads(layers.dense(c.width, name, **kw)(y)) for name in 'qkv')
    y = _attend(q, k, v, 'ngphd,ngshd->ngphs', 'ngphs,ngshd->ngphd',
                c.precision)
    x = x + gate * layers.dense(c.width, 'o', **kw)(y)
    q = heads(layers.dense(c.width, 'cross_q', **kw)(_norm(x)))
    k, v = (heads(layers.dense(c.width, f'cross_{name}', **kw)(condition))
            for name in 'kv')
    y = _attend(q, k, v, 'ngphd,nlhd->ngphl', 'ngphl,nlhd->ngphd',
                c.precision)
    x = x + layers.dense(c.width, 'cross_o', **kw)(y)
    y = _norm(x) * (1 + scale2) + shift2
    y = jax.nn.gelu(layers.dense(_MLP * c.width, 'up', **kw)(y))
    return x + gate2 * layers.dense(c.width, 'down', **kw)(y)


class DiT(nn.Module):
  """The network."""
  config: Config

  @nn.compact
  def __call__(self, x: Array, t: Array, condition: Array,
               source: Array | None = None) -> Array:
    """f32[N, G, H, W, C], what the picture changes by per unit of time.

    Args:
      x: f32[N, G, H, W, C], noisy pictures.
      t: f32[N, G], 0 (a picture) to 1 (noise).
      condition: i32[N, L]; 0: no token.
      source: f32[N, H, W, C], read as further channels of every patch | None.
    """
    c = self.config
    kw = dict(bias=True, dtype=c.dtype, precision=c.precision)
    h = layers.dense(c.width, 'patches', **kw)(patches(x, c.patch))
    if source is not None:  # a sum of products is the product of both
      h = h + layers.dense(c.width, 'source', **kw)(
          patches(source, c.patch))[:, None]
    h = h + self.param('place', nn.initializers.normal(0.02),
                       (h.shape[-2], c.width)).astype(c.dtype)
    told = nn.Embed(c.vocabulary, c.width, dtype=c.dtype,
                    embedding_init=nn.initializers.normal(1.0),
                    name='tokens')(condition)
    e = layers.dense(c.width, 'time', **kw)(waves(t, c.width))
    e = e + layers.dense(c.width, 'told', **kw)(told.mean(1))[:, None]
    e = jax.nn.silu(layers.dense(c.width, 'both', **kw)(jax.nn.silu(e)))
    layer = nn.remat(Layer) if c.remat else Layer
    for i in range(c.layers):
      h = layer(c, name=f'layer_{i}')(h, e, told)
    shift, scale = jnp.split(
        layers.dense(2 * c.width, 'modulation', **kw)(e)[:, :, None], 2, -1)
    h = _norm(h) * (1 + scale) + shift
    out = layers.dense(c.patch**2 * c.channels, 'out', **kw)(h)
    return pictures(out, c.patch, c.shape).astype(jnp.float32)


def init(config: Config, key: Array) -> Mapping[str, Any]:
  """New parameters: kernels N(0, 1 / inputs), gates and the output 0."""
  x = jnp.zeros((1, 1, *config.shape))
  params = DiT(config).init(
      key, x, jnp.zeros((1, 1)), jnp.zeros((1, config.tokens), jnp.int32),
      x[0] if config.source else None)['params']

  def one(name, leaf):
    *_, parent, last = ('', *name.split('/'))
    if parent in ('modulation', 'out'):
      return jnp.zeros_like(leaf)
    if last != 'kernel':
      return leaf
    return leaf / 0.02 * leaf.shape[0]**-0.5  # `layers.Dense` drew N(0, .02)
  return jax.tree.map(one, trees.names(params), params)


def _norm(x: Array) -> Array:
  """Layer norm without parameters, in float32."""
  wide = x.astype(jnp.float32)
  wide = wide - wide.mean(-1, keepdims=True)
  return (wide * jax.lax.rsqrt(
      jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def _attend(q: Array, k: Array, v: Array, scores: str, sums: str,
            precision: str) -> Array:
  """[N, G, P, D], with weights in float32."""
  a = jnp.einsum(scores, q, k, precision=precision)
  a = a.astype(jnp.float32) * q.shape[-1]**-0.5
  y = jnp.einsum(
      sums, jax.nn.softmax(a, -1).astype(v.dtype), v, precision=precision)
  return y.reshape(*y.shape[:-2], -1)
