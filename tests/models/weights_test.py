"""Parameters on several devices: read leaf by leaf, written from shards."""

import concurrent.futures
import multiprocessing

import numpy as np

from tests import small


def on_two_devices(folder):
  """In a process of its own; what must be true there."""
  import jax
  from mmr1 import sharding
  from mmr1.models import checkpoints
  sharding.cpu_devices(2)
  assert len(jax.devices()) == 2
  module, params = checkpoints.load(folder)
  seen = []

  def place(leaf):
    seen.append(type(leaf))
    return sharding.place(leaf)
  _, placed = checkpoints.load(folder, place=place)
  assert seen == [np.ndarray] * len(jax.tree.leaves(params))
  mesh = jax.make_mesh((2,), ('x',))

  def cut(leaf):
    """Halves along the first axis that has them."""
    even = [i for i, n in enumerate(leaf.shape) if n % 2 == 0]
    axes = [None] * leaf.ndim
    axes[even[0]] = 'x'
    return jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(*axes)))
  for name, tree in (('placed', placed),
                     ('cut', jax.tree.map(cut, params))):
    leaves = jax.tree.leaves(tree)
    assert all(len(x.addressable_shards) == 2 for x in leaves)
    assert all(x.is_fully_replicated == (name == 'placed') for x in leaves)
    checkpoints.save(f'{folder}/{name}', module, tree)
    again = checkpoints.load(f'{folder}/{name}')[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params)), name


def test_leaves_on_two_devices(tmp_path):
  from mmr1.models import checkpoints
  checkpoints.save(tmp_path, small.policy().module, small.params())
  with concurrent.futures.ProcessPoolExecutor(
      1, mp_context=multiprocessing.get_context('spawn')) as pool:
    pool.submit(on_two_devices, str(tmp_path)).result()
