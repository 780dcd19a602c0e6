"""Layers that the model families share.

Letters: N prompts, G completions per prompt, T tokens, H query heads, d head
width, D width. Attention is in `mmr1.models.attention`.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
# What the backward pass finds of a layer: everything; what came in, the rest is
# computed again; that and the results of products with weights.
REMAT = ('none', 'layer', 'dots')

# Leaves of an adapter beside a kernel [inputs, outputs]: a [inputs, r],
# b [r, outputs], scale [].
ADAPTER = ('lora_a', 'lora_b', 'lora_scale')

GATED = ('gate', 'up')  # layers of one input in `_Gated`
_JOINT = '+'  # between the names of layers that are one


class RMSNorm(nn.Module):
  """`weight * x / rms(x)`: statistics in float32, cast back, then scaled.

  With `offset` it is `(1 + weight) * x / rms(x)`, cast at the end (Gemma).
  """
  eps: float
  dtype: Any
  offset: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    initial = nn.initializers.zeros if self.offset else nn.initializers.ones
    weight = self.param('weight', initial, (x.shape[-1],))
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
    if self.offset:
      return (wide * scale * (1 + weight.astype(jnp.float32))).astype(
          self.dtype)
    return weight.astype(self.dtype) * (wide * scale).astype(self.dtype)


class LayerNorm(nn.Module):
  """`weight * (x - mean(x)) / std(x) + bias`, all in float32, cast back."""
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    weight = self.param('weight', nn.initializers.ones, (x.shape[-1],))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, -1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
    return (wide * scale * weight + bias).astype(self.dtype)


class Dense(nn.Module):
  """A linear layer, kernel [inputs, outputs], initialised N(0, 0.02).

  Where `ADAPTER` leaves stand beside the kernel (`mmr1.models.lora`), it adds
  `(x a) scale b`: the low-rank product, never a second kernel.
  """
  features: int
  bias: bool
  dtype: Any
  precision: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., inputs] -> [..., outputs] in `dtype`."""
    kernel = self.param('kernel', nn.initializers.normal(0.02),
                        (x.shape[-1], self.features))
    x = jnp.asarray(x, self.dtype)
    y = self._times(x, kernel)
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y = y + jnp.asarray(bias, self.dtype)
    if self.has_variable('params', ADAPTER[0]):
      a, b, scale = (self.get_variable('params', name) for name in ADAPTER)
      low = (self._times(x, a) * scale).astype(self.dtype)
      y = y + self._times(low, b)
    return y

  def _times(self, x: Array, matrix: Array) -> Array:
    return _product(x, jnp.asarray(matrix, self.dtype), self.precision)


def dense(features: int, name: str, *, bias: bool, dtype: Any,
          precision: str) -> Dense:
  """The `Dense` that every family makes its linear layers with."""
  return Dense(features, bias, dtype, precision, name=name)


def together(owner: nn.Module, x: Array, features: dict[str, int],
             **kw: Any) -> list[Array]:
  """Several linear layers of one input: `dense` of each name and width.

  One product where `side_by_side` has put the owner's kernels together.
  """
  name = _JOINT.join(features)
  if owner.has_variable('params', name):
    every = dense(sum(features.values()), name, **kw)(x)
    return jnp.split(every, np.cumsum([*features.values()])[:-1], axis=-1)
  return [dense(width, name, **kw)(x) for name, width in features.items()]


def side_by_side(params: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
  """A module's parameters with linear layers of one input as one, for
  `together`; as they are where one has an adapter."""
  parts = [params[name] for name in names]
  if any(ADAPTER[0] in part for part in parts):
    return params
  return {_JOINT.join(names): jax.tree.map(
      lambda *leaves: jnp.concatenate(leaves, -1), *parts),
          **{k: v for k, v in params.items() if k not in names}}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, kernel: Array, precision: Any) -> Array:
  return _plain(x, kernel, precision)


def _plain(x, kernel, precision):
  return jnp.einsum('...i,io->...o', x, kernel, precision=precision)


def _product_forward(x, kernel, precision):
  # The product itself: `remat='dots'` looks for it, not for `_product`.
  return _plain(x, kernel, precision), (x, kernel)


def _product_backward(precision, kept, slope):
  """The gradient of the kernel transposes the narrower of its two factors.

  It sums over all rows, so one factor is copied transposed; jax always takes
  `slope`, which for a widening layer is several times larger than `x`.
  """
  x, kernel = kept
  dx = jnp.einsum('...o,io->...i', slope, kernel, precision=precision)
  rows, slopes = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
  rows_first = (((0,), (0,)), ((), ()))
  if x.shape[-1] < slope.shape[-1]:
    dk = jax.lax.dot_general(rows, slopes, rows_first, precision=precision)
  else:
    dk = jax.lax.dot_general(slopes, rows, rows_first, precision=precision).T
  return dx, dk


_product.defvjp(_product_forward, _product_backward)


class _Gated(nn.Module):
  """`down(activation(gate(x)) * up(x))`."""
  width: int
  bias: bool
  dtype: Any
  precision: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kw = dict(bias=self.bias, dtype=self.dtype, precision=self.precision)
    gate, up = together(self, x, dict.fromkeys(GATED, self.width), **kw)
    return dense(x.shape[-1], 'down', **kw)(self.activation(gate) * up)

  def activation(self, x: Array) -> Array:
    raise NotImplementedError


class SwiGLU(_Gated):
  """`down(silu(gate(x)) * up(x))`."""

  def activation(self, x: Array) -> Array:
    return nn.silu(x)


class GeGLU(_Gated):
  """`down(gelu(gate(x)) * up(x))`, the GELU approximated by tanh."""

  def activation(self, x: Array) -> Array:
    return nn.gelu(x, approximate=True)


def quick_gelu(x: Array) -> Array:
  """`x * sigmoid(1.702 x)`."""
  return x * jax.nn.sigmoid(1.702 * x)


class MLP(nn.Module):
  """`fc2(activation(fc1(x)))`."""
  activation: Callable[[Array], Array]
  width: int
  bias: bool
  dtype: Any
  precision: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kw = dict(bias=self.bias, dtype=self.dtype, precision=self.precision)
    hidden = self.activation(dense(self.width, 'fc1', **kw)(x))
    return dense(x.shape[-1], 'fc2', **kw)(hidden)


def inverse_frequencies(theta: float, width: int) -> np.ndarray:
  """f32[width / 2], `theta ** (-2 i / width)`."""
  exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
  return (1.0 / np.float32(theta) ** exponent).astype(np.float32)


class Llama3(NamedTuple):
  """Stretches rotary frequencies to a longer context, as Llama 3.1 does.

  A wave of fewer than `context / high` positions stays, one of more than
  `context / low` becomes `factor` times longer, between them it is blended
  (https://arxiv.org/abs/2407.21783; the formula is that of Meta's release).
  """
  factor: float
  low: float
  high: float
  context: float

  def stretch(self, frequencies: np.ndarray) -> np.ndarray:
    """f32[d / 2] -> f32[d / 2]."""
    turns = np.float32(self.context) * frequencies / np.float32(2 * np.pi)
    keep = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return (frequencies * (keep + (1 - keep) / self.factor)).astype(np.float32)


class Linear(NamedTuple):
  """Makes every rotary wave `factor` times longer (position interpolation,
  https://arxiv.org/abs/2306.15595)."""
  factor: float

  def stretch(self, frequencies: np.ndarray) -> np.ndarray:
    """f32[d / 2] -> f32[d / 2]."""
    return (frequencies / np.float32(self.factor)).astype(np.float32)


def mrope(
    positions: Array, *, theta: float, sections: Sequence[int], dtype: Any,
    scaling: Llama3 | Linear | None = None,
    order: str = 'contiguous') -> tuple[Array, Array]:
  """Cosines and sines of multimodal rotary positions (Qwen2-VL, section 2.1).

  Each frequency turns with time, height or width; for text all three are
  equal and this is ordinary rotary.

  Args:
    positions: i32[..., 3].
    theta: base of the frequencies.
    sections: three counts that sum to d / 2.
    order: see `axes`.
    dtype: of the result; angles are computed in float32.
    scaling: how the frequencies are stretched.

  Returns:
    (cos, sin), both [..., d].
  """
  axis = axes(sections, order)
  frequencies = inverse_frequencies(theta, 2 * len(axis))
  if scaling is not None:
    frequencies = scaling.stretch(frequencies)
  angles = positions[..., axis].astype(jnp.float32) * frequencies
  angles = jnp.concatenate([angles, angles], -1)
  return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def axes(sections: Sequence[int], order: str) -> np.ndarray:
  """i64[d / 2], what each frequency turns with: 0 time, 1 height, 2 width.

  'contiguous': the first `sections[0]` with time, the next `sections[1]` with
  height, the last with width. 'interleaved' (Qwen3-VL): time, height, width,
  time, ... until height and width have theirs, then time; so each has high and
  low frequencies.
  """
  if order == 'contiguous':
    return np.repeat(np.arange(3), sections)
  result = np.zeros(sum(sections), np.int64)
  for axis in (1, 2):
    result[axis:3 * sections[axis]:3] = axis
  return result


def axial_rope(positions: Array, *, theta: float,
               width: int) -> tuple[Array, Array]:
  """Cosines and sines f32[..., d] of (row, column) positions i32[..., 2].

  A quarter of the head's `width` d carries rows, the next quarter columns, and
  the halves repeat.
  """
  angles = positions[..., None].astype(jnp.float32)
  angles = angles * inverse_frequencies(theta, width // 2)
  angles = angles.reshape(*positions.shape[:-1], width // 2)
  angles = jnp.concatenate([angles, angles], -1)
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates heads x[..., T, H, d] by cos, sin [..., T, d], half-split."""
  cos, sin = cos[..., None, :], sin[..., None, :]
  first, second = jnp.split(x, 2, axis=-1)
  return x * cos + jnp.concatenate([-second, first], -1) * sin


def stacked_init(block: nn.Module, count: int,
                 *example: Any) -> Callable[[Array], Any]:
  """An initialiser of `count` blocks' parameters, stacked: leaves [L, ...]."""
  def init(rng: Array) -> Any:
    return jax.vmap(lambda key: block.init(key, *example)['params'])(
        jax.random.split(rng, count))
  return init


def stacked(owner: nn.Module, name: str, block: nn.Module, count: int,
            *example: Any) -> Any:
  """`owner`'s parameter `name`: those of `count` blocks, leaves [L, ...].

  Given ones are taken as they are, where `owner.param` would compare them leaf
  by leaf with fresh ones: adapters are leaves that fresh ones lack. Each block
  still compares the shapes of its own.
  """
  if owner.has_variable('params', name):
    return owner.get_variable('params', name)
  return owner.param(name, stacked_init(block, count, *example))


def split(tree: Any, sizes: Sequence[int]) -> list[Any]:
  """A tree cut into parts of these `sizes` along its leaves' first axis.

  By one split per leaf, whose gradient is one concatenation; slices would each
  add a zero-padded copy of the whole stack.
  """
  leaves, structure = jax.tree.flatten(tree)
  parts = [jax.lax.split(x, sizes) for x in leaves]
  return [jax.tree.unflatten(structure, [p[i] for p in parts])
          for i in range(len(sizes))]


def unstack(tree: Any, count: int) -> list[Any]:
  """The `count` slices of a tree along its leaves' first axis."""
  return [jax.tree.map(lambda x: jnp.squeeze(x, 0), part)
          for part in split(tree, (1,) * count)]


def fold(step: Callable[..., tuple[Array, Any]], params: Any, x: Array,
         extras: Any, flags: Sequence[bool], *, scan: bool, remat: str,
         add: Array | None = None) -> tuple[Array, Any]:
  """Runs `x, out = step(layer params, x, layer extras, flag)` layer by layer.

  Args:
    step: one layer.
    params: tree of [L, ...], or L trees if not `scan`.
    x: what flows through.
    extras: tree of [L, ...], or a list of L trees if not `scan`.
    flags: one bool per layer: a Python bool inside `step` if not `scan`, else
      a traced one.
    scan: one `lax.scan` (small program, for deep models) or an unrolled loop
      (faster on CPU).
    remat: what the backward pass keeps of each layer's inside: 'none' keeps
      all, 'layer' recomputes all, 'dots' keeps the results of matrix products
      without batch dimensions (those with weights) and recomputes the rest:
      attention, norms, activations.
    add: [K, ...] | None, added to x after each of the first K layers. A scan
      holds it once, beside what it iterates over: neither zeros for the other
      layers nor a cut stack of parameters.

  Returns:
    x and the layers' `out`: stacked [L, ...] if `scan`, else a tuple.
  """
  if scan:
    run = _remat(step, remat, prevent_cse=False)

    def body(x, layer):
      *layer, i = layer
      x, out = run(layer[0], x, layer[1], layer[2])
      if add is not None:
        own = add[jnp.minimum(i, len(add) - 1)]
        x = x + jnp.where(i < len(add), own, jnp.zeros_like(own))
      return x, out
    return jax.lax.scan(body, x, (
        params, extras, np.asarray(flags), np.arange(len(flags))))
  params, extras = (
      x if isinstance(x, (list, tuple)) else unstack(x, len(flags))
      for x in (params, extras))
  outs = []
  for layer, extra, flag in zip(params, extras, flags):
    one = functools.partial(step, flag=flag)
    x, out = _remat(one, remat, prevent_cse=True)(layer, x, extra)
    if add is not None and len(outs) < len(add):
      x = x + add[len(outs)]
    outs.append(out)
  return x, tuple(outs)


def _remat(fn: Callable[..., Any], remat: str, *,
           prevent_cse: bool) -> Callable[..., Any]:
  if remat == 'none':
    return fn
  policies = jax.checkpoint_policies
  return jax.checkpoint(fn, prevent_cse=prevent_cse, policy={
      'layer': policies.nothing_saveable,
      'dots': policies.dots_with_no_batch_dims_saveable}[remat])
