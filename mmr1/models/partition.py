"""Kernels over several devices: the partitioner cannot look into them."""

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array


def rows(kernel: Callable[..., Array],
         mesh: jax.sharding.Mesh | None) -> Callable[..., Array]:
  """The kernel with its arrays' first axis over all devices of the mesh.

  Where that axis does not divide, every device computes all of it, as it holds
  all of it.

  Args:
    kernel: of trees of arrays [B, ...], to [B, ...].
    mesh: None: one device.
  """
  def run(*arrays: Any) -> Array:
    if mesh is None or mesh.size == 1:
      return kernel(*arrays)
    even = jax.tree.leaves(arrays)[0].shape[0] % mesh.size == 0
    spec = jax.P(*([mesh.axis_names] if even else []))
    return jax.shard_map(kernel, mesh=mesh, in_specs=spec, out_specs=spec,
                         check_vma=False)(*arrays)
  return run
