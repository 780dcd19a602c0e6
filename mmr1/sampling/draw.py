"""A token from its distribution, with two random numbers.

Not the argmax of logits and Gumbel noise: that is a random number for every
word of the vocabulary, a tenth of the time of decoding on a CPU.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def draw(logits: Array, uniform: Array) -> Array:
  """Inverts the cumulative distribution: of blocks, then of one's words.

  Two numbers, for one of float32 has 2^24 values: too few for a long tail.

  Args:
    logits: f32[..., V]; -inf is never drawn.
    uniform: f32[..., 2] in [0, 1).

  Returns:
    i32[...]; a valid id for nan.
  """
  size = logits.shape[-1]
  top = jnp.max(logits, axis=-1, keepdims=True)
  weight = jnp.exp(logits - top)
  width = math.isqrt(size - 1) + 1
  weight = jnp.pad(
      weight, [(0, 0)] * (weight.ndim - 1) + [(0, width * width - size)])
  blocks = weight.reshape(*weight.shape[:-1], width, width)
  block = _pick(jnp.sum(blocks, -1), uniform[..., 0])
  words = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
  word = _pick(words, uniform[..., 1])
  return jnp.minimum(block * width + word, size - 1)


def _pick(weight: Array, uniform: Array) -> Array:
  """i32[...], an index into weight f32[..., n] as likely as it is heavy."""
  total = jnp.cumsum(weight, -1)
  beyond = total > uniform[..., None] * total[..., -1:]
  index = jnp.arange(weight.shape[-1], dtype=jnp.int32)
  # A sum made in parts may grow by rounding where the weight is 0.
  real = weight > 0
  first = jnp.min(jnp.where(real & beyond, index, len(index)), -1)
  last = jnp.max(jnp.where(real, index, 0), -1)
  return jnp.minimum(first, last)


def entropy(logits: Array) -> Array:
  """f32[...] in nats, of softmax(logits f32[..., V]); -inf is a word that never
  comes."""
  logp = jax.nn.log_softmax(logits, axis=-1)
  return -jnp.sum(
      jnp.where(jnp.isfinite(logp), jnp.exp(logp) * logp, 0.0), -1)


def largest(x: Array) -> Array:
  """i32[...], first index of the largest of x [..., V]; a valid id for nan.

  Two plain reductions: XLA's CPU backend is slower at `jnp.argmax`, which is
  one reduction over pairs.
  """
  last = x.shape[-1] - 1
  top = jnp.max(x, axis=-1, keepdims=True)
  index = jnp.where(x == top, jnp.arange(last + 1, dtype=jnp.int32), last)
  return jnp.min(index, axis=-1)
