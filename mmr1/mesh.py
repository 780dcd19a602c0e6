"""The devices as a mesh: sizes of its axes, and who is next to whom.

On a CPU every core is made a device, since XLA runs the element-wise work of
one device on one core.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
import numpy as np

AXES = ('slice', 'data', 'fsdp', 'tensor')


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


def sizes(section: Mapping[str, int | None], devices: int) -> dict[str, int]:
  """{axis: size} of a mesh of all devices.

  Args:
    section: a size for each of `AXES`; for one of them None: what the others
      leave.
    devices: how many there are.

  Raises:
    ValueError: sizes that do not make the devices.
  """
  found = {'slice': section['slice'], 'data': section['data'],
           'fsdp': section['fsdp'], 'tensor': section['tensor']}
  said = ' x '.join(f'{axis}={size}' for axis, size in found.items())
  for axis, size in found.items():
    if size is not None and size < 1:
      raise ValueError(f'mesh.{axis}: got {size}; allowed: at least 1, or None '
                       'for what the other axes leave.')
  free = [axis for axis, size in found.items() if size is None]
  if len(free) > 1:
    raise ValueError(f'mesh: {" and ".join(free)} are both None; at most one '
                     'axis can be what the others leave.')
  given = math.prod(size for size in found.values() if size is not None)
  if devices % given or not free and given != devices:
    fitting = [n for n in range(1, devices + 1) if devices % n == 0]
    raise ValueError(
        f'mesh: {said} does not make {devices} devices. The sizes must '
        f'multiply to {devices}, so each is one of {fitting}; one may be None '
        'for what the others leave.')
  for axis in free:
    found[axis] = devices // given
  return found


def over(devices: Sequence[Any], *, slice: int = 1, data: int = 1,
         fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
  """A mesh of these sizes, whose product is the number of devices."""
  shape = (slice, data, fsdp, tensor)
  if devices[0].platform != 'tpu':
    grid = np.asarray(devices).reshape(shape)
  elif slice > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
        (1, *shape[1:]), (slice, 1, 1, 1), devices)
  else:
    grid = mesh_utils.create_device_mesh(
        shape, devices, allow_split_physical_axes=True)
  return jax.sharding.Mesh(grid, AXES)
