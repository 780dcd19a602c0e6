"""Arrays on the devices of one host or of several: put there, and read again."""

from collections.abc import Sequence
import functools
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils
import numpy as np

Tree = Any


class Unread(Protocol):
  """A parameter that can be read in parts, such as `models.weights.Leaf`."""
  path: str
  shape: tuple[int, ...]

  def read(self, index: Sequence[slice] = ()) -> np.ndarray:
    """The part that a slice per axis names."""


def read(leaf: Unread, where: jax.sharding.Sharding) -> jax.Array:
  """Reads a parameter onto devices, every part by the host that owns it.

  Args:
    leaf: read once for every part that a device of this host holds.
    where: who has which part.
  """
  return jax.make_array_from_callback(leaf.shape, where, leaf.read)


def given(x: Any) -> Any:
  """What a program over several hosts takes: what only this host has as NumPy,
  the same on each."""
  return np.asarray(x) if getattr(x, 'is_fully_addressable', True) else x


def laid(x: Any, where: jax.sharding.Sharding) -> jax.Array:
  """An array, whole on every host or on the devices of all, where it belongs.
  """
  if jax.process_count() == 1:
    return jax.device_put(x, where)
  x = given(x)
  if isinstance(x, np.ndarray):
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])
  return _moved(x, where=where)


@functools.partial(jax.jit, static_argnames='where')
def _moved(x: jax.Array, where: jax.sharding.NamedSharding) -> jax.Array:
  return jax.lax.with_sharding_constraint(x, where)


def fetch(tree: Tree) -> Tree:
  """Whole arrays as NumPy, on every host. A collective."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(
      lambda x: np.asarray(x) if _whole(x) else
      multihost_utils.process_allgather(x, tiled=True), tree)


def _whole(x: Any) -> bool:
  return not isinstance(x, jax.Array) or (
      x.is_fully_addressable or x.is_fully_replicated)


def in_host(tree: Tree) -> Tree:
  """Arrays as they lie, in the memory of their hosts."""
  return _moved_to(tree, 'pinned_host')


def on_device(tree: Tree) -> Tree:
  """Arrays as they lie, in the memory of their devices."""
  return _moved_to(tree, 'device')


def _moved_to(tree: Tree, kind: str) -> Tree:
  return jax.device_put(tree, jax.tree.map(
      lambda x: x.sharding.with_memory_kind(kind), tree))
