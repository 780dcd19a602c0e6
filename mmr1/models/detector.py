"""A small detector whose classes are said by instances of them.

Letters: B pictures, P patches, Q queries, C classes, M boxes of a picture, D
width. DINO's scheme (arXiv:2203.03605) with prompts in place of class weights
(Grounding DINO, arXiv:2303.05499): the patches that agree most with a prompt
become queries, decoder layers refine their boxes, and a class logit is the
product of query and prompt. Attention is plain, not deformable.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmr1.models import layers

Array = jax.Array
_PRIOR = -4.6  # of class logits: sigmoid(-4.6) = .01, as for focal losses
_SIDE = 0.3  # of a box before anything is learnt


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes.

  Fields:
    size, patch: sides of a picture and a patch, in pixels.
    width, heads: of the transformer.
    encoder, decoder: layers.
    queries: Q, at most the patches.
    classes: C.
  """
  size: int
  patch: int
  width: int
  heads: int
  encoder: int
  decoder: int
  queries: int
  classes: int
  dtype: str = 'float32'
  precision: str = 'default'


class Found(NamedTuple):
  """What the detector says; entry 0 of L + 1 is the encoder's.

  Fields:
    boxes: f32[L + 1, B, Q, 4], centre x, y, width and height in 0 .. 1.
    logits: f32[L + 1, B, Q, C]; -inf for classes without a prompt.
    scores: f32[B, P], every patch's largest agreement with a prompt, a logit.
    index: i32[B, Q], patches of the queries, best first.
  """
  boxes: Array
  logits: Array
  scores: Array
  index: Array


def centres(config: Config) -> np.ndarray:
  """f32[P, 2], x and y of every patch's middle, row by row."""
  side = config.size // config.patch
  at = (np.arange(side, dtype=np.float32) + 0.5) / side
  return np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)


def waves(x: Array, width: int) -> Array:
  """f32[..., n] in 0 .. 1 -> f32[..., width], sines of every number."""
  each = width // (2 * x.shape[-1])
  rates = 2.0**jnp.linspace(0, 6, each)
  angle = jnp.pi * x[..., None] * rates
  made = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
  made = made.reshape(*x.shape[:-1], -1)
  return jnp.pad(made, [(0, 0)] * (made.ndim - 1)
                 + [(0, width - made.shape[-1])])


class Attention(nn.Module):
  """Multi-head attention of [B, Q, D] to [B, K, D]."""
  config: Config

  @nn.compact
  def __call__(self, q: Array, k: Array, v: Array,
               mask: Array | None = None) -> Array:
    """`mask`: bool, broadcast to [B, Q, K]; a row without any sees nothing."""
    c = self.config
    kw = dict(bias=True, dtype=c.dtype, precision=c.precision)
    heads = lambda x, name: layers.dense(c.width, name, **kw)(x).reshape(
        *x.shape[:-1], c.heads, -1)
    q, k, v = heads(q, 'q'), heads(k, 'k'), heads(v, 'v')
    a = jnp.einsum('bqhd,bkhd->bhqk', q, k, precision=c.precision)
    a = a.astype(jnp.float32) * q.shape[-1]**-0.5
    if mask is not None:
      a = jnp.where(mask[:, None], a, -1e9)
    p = jax.nn.softmax(a, -1)
    if mask is not None:
      p = jnp.where(mask[:, None].any(-1, keepdims=True), p, 0.0)
    y = jnp.einsum('bhqk,bkhd->bqhd', p.astype(v.dtype), v,
                   precision=c.precision)
    return layers.dense(c.width, 'o', **kw)(y.reshape(*y.shape[:2], -1))


class Block(nn.Module):
  """Attention to each of some memories in turn, then an MLP; pre-norm."""
  config: Config

  @nn.compact
  def __call__(self, x: Array, place: Array, memories: list[Any]) -> Array:
    """[B, Q, D].

    Args:
      x: [B, Q, D].
      place: [B, Q, D], added where x asks.
      memories: (name, keys, values, mask) each; keys None: x itself.
    """
    c = self.config
    kw = dict(bias=True, dtype=c.dtype, precision=c.precision)
    norm = lambda name: layers.LayerNorm(1e-5, c.dtype, name=name)
    for name, k, v, mask in memories:
      y = norm(f'{name}_norm')(x)
      k, v = (y + place, y) if k is None else (k, v)
      x = x + Attention(c, name=name)(y + place, k, v, mask)
    y = layers.dense(4 * c.width, 'up', **kw)(norm('mlp_norm')(x))
    return x + layers.dense(c.width, 'down', **kw)(jax.nn.gelu(y))


class Detector(nn.Module):
  """The network; methods share its parameters."""
  config: Config

  def setup(self):
    c = self.config
    kw = dict(bias=True, dtype=c.dtype, precision=c.precision)
    dense = lambda width: layers.Dense(width, **kw)
    self.backbone = dense(c.width)
    self.place = dense(c.width)
    self.encoder = [Block(c) for _ in range(c.encoder)]
    self.instance = self.param(
        'instance', nn.initializers.normal(1.0), (c.width,))
    self.region = dense(c.width)
    self.prompter = Block(c)
    self.fusion = Block(c)
    self.proposal = dense(4)
    self.content = self.param(
        'content', nn.initializers.normal(1.0), (c.queries, c.width))
    self.anchor = dense(c.width)
    self.decoder = [Block(c) for _ in range(c.decoder)]
    self.refine = [dense(4) for _ in range(c.decoder)]
    self.norms = [layers.LayerNorm(1e-5, c.dtype)
                  for _ in range(1 + c.decoder)]
    self.bias = self.param(
        'bias', nn.initializers.constant(_PRIOR), (1 + c.decoder,))
    self.names = self.param(
        'names', nn.initializers.normal(1.0), (c.classes, c.width))
    self.temperature = self.param(
        'temperature', nn.initializers.constant(np.log(1 / 0.07)), ())

  def features(self, images: Array) -> Array:
    """[B, P, D] of f32[B, H, W, 3]."""
    c = self.config
    side = c.size // c.patch
    x = images.reshape(len(images), side, c.patch, side, c.patch, 3)
    x = jnp.swapaxes(x, 2, 3).reshape(len(images), side * side, -1)
    x = self.backbone(x) + self._places(len(images))
    for block in self.encoder:
      x = block(x, jnp.zeros_like(x), [('own', None, None, None)])
    return x

  def _places(self, n: int) -> Array:
    made = self.place(waves(jnp.asarray(centres(self.config)),
                            self.config.width))
    return jnp.broadcast_to(made, (n, *made.shape))

  def prompts(self, features: Array, boxes: Array) -> Array:
    """[B, M, D], what an instance in each box f32[B, M, 4] looks like.

    One learned query per box reads the patches whose middle is in it, or
    nearly; boxes of a picture do not see each other.
    """
    at = jnp.asarray(centres(self.config))[None, None]
    half = boxes[..., None, 2:] / 2 + 0.5 * self.config.patch / (
        self.config.size)
    inside = (jnp.abs(at - boxes[..., None, :2]) <= half).all(-1)
    place = self.region(waves(boxes, self.config.width))
    x = jnp.broadcast_to(self.instance, place.shape)
    return self.prompter(
        x, place, [('picture', features, features, inside)])

  def alike(self, prompts: Array) -> Array:
    """f32[..., C], cosines of prompts with learned class names, times the
    learned inverse temperature."""
    unit = lambda x: x / jnp.maximum(
        jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
    return jnp.matmul(
        jnp.exp(self.temperature) * unit(prompts), unit(self.names).T,
        precision=self.config.precision)

  def detect(self, features: Array, prompts: Array, known: Array) -> Found:
    """Boxes of the classes that prompts [C, D] show; `known`: bool[C]."""
    b, c = len(features), self.config
    prompts = jnp.broadcast_to(prompts, (b, *prompts.shape))
    mask = jnp.broadcast_to(known, (b, 1, len(known)))
    places = self._places(b)
    memory = self.fusion(
        features, places, [('prompts', prompts, prompts, mask)])
    every = self._logits(memory, prompts, known, 0)
    # By index: a maximum that is computed twice need not equal itself, and its
    # slope is then 0 / 0.
    scores = jnp.take_along_axis(
        every, jnp.argmax(every, -1)[..., None], -1)[..., 0]
    index = jax.lax.top_k(scores, c.queries)[1]
    take = lambda x: jnp.take_along_axis(x, index[..., None], 1)
    anchors = jnp.concatenate([
        jnp.broadcast_to(jnp.asarray(centres(c)), (*memory.shape[:2], 2)),
        jnp.full((*memory.shape[:2], 2), _SIDE)], -1)
    box = _inverse_sigmoid(take(anchors)) + take(
        self.proposal(memory)).astype(jnp.float32)
    boxes, logits = [jax.nn.sigmoid(box)], [take(every)]
    x = self.content + take(memory)
    for i, block in enumerate(self.decoder):
      # Each layer corrects boxes that it is given; no gradient from below.
      at = jax.lax.stop_gradient(box)
      place = self.anchor(waves(jax.nn.sigmoid(at), c.width))
      x = block(x, place, [
          ('own', None, None, None), ('prompts', prompts, prompts, mask),
          ('picture', memory + places, memory, None)])
      y = self.norms[1 + i](x)
      box = at + self.refine[i](y).astype(jnp.float32)
      boxes.append(jax.nn.sigmoid(box))
      logits.append(self._logits(x, prompts, known, 1 + i))
    return Found(jnp.stack(boxes), jnp.stack(logits), scores, index)

  def _logits(self, x, prompts, known, i):
    y = jnp.einsum('bqd,bcd->bqc', self.norms[i](x), prompts,
                   precision=self.config.precision)
    y = y.astype(jnp.float32) * self.config.width**-0.5 + self.bias[i]
    return jnp.where(known, y, -jnp.inf)

  def __call__(self, images, boxes):
    """Every method once, for new parameters."""
    features = self.features(images)
    prompts = self.prompts(features, boxes)
    self.alike(prompts)
    return self.detect(features, prompts[0, :self.config.classes],
                       jnp.ones(self.config.classes, bool))


def init(config: Config, key: Array) -> Any:
  """New parameters: kernels N(0, 1 / inputs), corrections of boxes 0."""
  params = Detector(config).init(
      key, jnp.zeros((1, config.size, config.size, 3)),
      jnp.full((1, config.classes, 4), 0.5))['params']

  def one(path, leaf):
    *_, parent, last = ('', *(str(p.key) for p in path))
    if parent == 'proposal' or parent.startswith('refine'):
      return jnp.zeros_like(leaf)
    return leaf / 0.02 * leaf.shape[0]**-0.5 if last == 'kernel' else leaf
  return jax.tree_util.tree_map_with_path(one, params)


def _inverse_sigmoid(x: Array) -> Array:
  x = jnp.clip(x, 1e-4, 1 - 1e-4)
  return jnp.log(x) - jnp.log1p(-x)
