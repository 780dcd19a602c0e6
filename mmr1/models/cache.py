"""Own keys and values of completions while they are decoded.

Letters: L layers, N prompts, G completions per prompt, K key/value heads, U
tokens, d head width.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array
_KEYS, _VALUES = -1, -2  # the tokens' axis


@flax.struct.dataclass
class Cache:
  """Of every layer: a tuple of arrays if layers are unrolled (each its own
  buffer, updated in place inside a loop), else one with L in front.

  Fields:
    keys: [N, G, K, d, U]: turned, as the product with one query reads them. A
      CPU would turn all of them for every token.
    values: [N, G, K, U, d].
  """
  keys: Any
  values: Any

  @property
  def size(self) -> int:
    """U."""
    return jax.tree.leaves(self.values)[0].shape[_VALUES]

  def map(self, fn: Callable[[Array, int], Array]) -> 'Cache':
    """fn(array, axis of its tokens) of all arrays."""
    return Cache(jax.tree.map(lambda x: fn(x, _KEYS), self.keys),
                 jax.tree.map(lambda x: fn(x, _VALUES), self.values))

  def layers(self) -> list['Cache']:
    """One for each, of unrolled layers."""
    return [Cache(*pair) for pair in zip(self.keys, self.values)]

  def written(self, keys: Array, values: Array, t: Array) -> 'Cache':
    """With keys and values [..., K, T, d] from token t on, of one layer or of
    scanned ones."""
    def put(old, new, axis):
      return jax.lax.dynamic_update_slice_in_dim(
          old, new.astype(old.dtype), t, axis=old.ndim + axis)
    return Cache(put(self.keys, jnp.swapaxes(keys, -1, -2), _KEYS),
                 put(self.values, values, _VALUES))

  def read(self) -> tuple[Array, Array]:
    """Keys and values [..., K, U, d], of one layer."""
    return jnp.swapaxes(self.keys, -1, -2), self.values


def stacked(caches: list[Cache]) -> Cache:
  """The way back from `Cache.layers`."""
  return Cache(tuple(c.keys for c in caches), tuple(c.values for c in caches))


def empty(depth: int, scanned: bool, n: int, g: int, kv_heads: int, size: int,
          width: int, dtype: Any) -> Cache:
  """A cache of `size` tokens."""
  def zeros(*shape):
    if scanned:
      return jnp.zeros((depth, *shape), dtype)
    return tuple(jnp.zeros(shape, dtype) for _ in range(depth))
  return Cache(zeros(n, g, kv_heads, width, size),
               zeros(n, g, kv_heads, size, width))
