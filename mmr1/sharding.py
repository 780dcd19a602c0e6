"""Where arrays live: prompts over the devices, parameters on each of them.

One mesh axis, 'data': N, the number of prompts, is divided over all devices;
a group never straddles a shard. `jit` partitions prefill, decode and update by
the shardings of their arguments. On a CPU every core is made a device, since
XLA runs the element-wise work of one device on one core.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

_DATA = 'data'
Tree = Any


def cpu_devices(count: int) -> None:
  """Makes the CPU show `count` devices; 0 leaves it. Before jax starts.

  Where jax has started already (a notebook), its devices stay as they are.
  """
  if not count:
    return
  try:
    jax.config.update('jax_num_cpu_devices', count)
    # One program at a time: two that overlap can take the cores from each
    # other half-way into a collective, and then both wait for ever.
    jax.config.update('jax_cpu_enable_async_dispatch', count == 1)
  except RuntimeError:  # jax says so if a backend exists
    return


def mesh() -> jax.sharding.Mesh:
  """All devices, N over them."""
  return jax.sharding.Mesh(np.asarray(jax.devices()), (_DATA,))


def _named(*axes: str | None) -> jax.sharding.NamedSharding:
  return jax.sharding.NamedSharding(
      mesh(), jax.sharding.PartitionSpec(*axes))


def shards(rows: int) -> int:
  """Devices that so many prompts are divided over; 1: all are on each."""
  count = len(jax.devices())
  return count if rows % count == 0 else 1


def spread(tree: Tree) -> Tree:
  """Arrays [N, ...] with N over the devices; on each of them if N does not
  divide, which is right but saves nothing."""
  rows = {x.shape[0] for x in jax.tree.leaves(tree)}
  even = all(shards(n) > 1 for n in rows)
  return jax.device_put(tree, _named(_DATA) if even else _named())


def along(x: jax.Array, axis: int) -> jax.Array:
  """Inside a program: `axis` over the devices; on each where it does not
  divide."""
  even = shards(x.shape[axis]) > 1
  return jax.lax.with_sharding_constraint(
      x, _named(*[None] * axis, _DATA) if even else _named())


def everywhere(tree: Tree) -> Tree:
  """A copy of every array on every device, in buffers of its own."""
  # Through the host: device_put of an array that is already there would hand
  # back the same buffers, and what a stage donates must be its own.
  return jax.device_put(jax.tree.map(np.array, tree), _named())


class Unread(Protocol):
  """An array that can be read in parts, such as `models.weights.Leaf`."""
  shape: tuple[int, ...]

  def read(self, index: Sequence[slice] = ()) -> np.ndarray:
    """The part that a slice per axis names."""


def place(leaf: Unread, where: jax.sharding.Sharding | None = None
          ) -> jax.Array:
  """Reads an array onto the devices, every part by the host that owns it.

  Args:
    leaf: read once for every part that a device of this host holds.
    where: None: on each of the devices.
  """
  return jax.make_array_from_callback(
      leaf.shape, _named() if where is None else where, leaf.read)
