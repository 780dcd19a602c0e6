"""Parameters on several devices: read part by part, written from shards."""

import concurrent.futures
import multiprocessing

import jax
import numpy as np

from mmr1.models import checkpoints
from mmr1.models import tensor_files
from mmr1.models import weights
from tests import small


def on_two_devices(folder):
  """In a process of its own; what must be true there."""
  from mmr1 import arrays
  from mmr1 import mesh as mesh_lib
  from mmr1 import sharding
  mesh_lib.cpu_devices(2)
  assert len(jax.devices()) == 2
  module, params = checkpoints.load(folder)
  seen = []

  def place(leaf):
    seen.append(type(leaf))
    return sharding.default().place(leaf)
  mesh = jax.make_mesh((2,), ('x',))

  def cut(leaf, last):
    """Halves along the first or last axis that has them."""
    even = [i for i, n in enumerate(leaf.shape) if n % 2 == 0]
    axes = [None] * len(leaf.shape)
    axes[even[-1 if last else 0]] = 'x'
    return arrays.read(leaf, jax.NamedSharding(mesh, jax.P(*axes)))
  for name, where in (('placed', place), ('cut', lambda x: cut(x, False)),
                      ('cut_last', lambda x: cut(x, True))):
    _, tree = checkpoints.load(folder, place=where)
    leaves = jax.tree.leaves(tree)
    assert all(len(x.addressable_shards) == 2 for x in leaves)
    assert all(x.is_fully_replicated == (name == 'placed') for x in leaves)
    assert jax.tree.all(jax.tree.map(np.array_equal, tree, params)), name
    checkpoints.save(f'{folder}/{name}', module, tree)
    again = checkpoints.load(f'{folder}/{name}')[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params)), name
  assert seen == [weights.Leaf] * len(leaves)


def test_leaves_on_two_devices(tmp_path):
  checkpoints.save(tmp_path, small.policy().module, small.params())
  with concurrent.futures.ProcessPoolExecutor(
      1, mp_context=multiprocessing.get_context('spawn')) as pool:
    pool.submit(on_two_devices, str(tmp_path)).result()


def test_a_part_is_read_without_the_rest(tmp_path, monkeypatch):
  """Equal to the slice of the whole, and of rows of the file no others."""
  checkpoints.save(tmp_path, small.policy().module, small.params())
  read, pieces = [], tensor_files.pieces

  def counting(*args):
    for begin, x in pieces(*args):
      read.append(x.nbytes)
      yield begin, x
  monkeypatch.setattr(tensor_files, 'pieces', counting)
  monkeypatch.setattr(tensor_files, 'PIECE', 300)  # several per tensor
  seen = []

  def half(leaf):
    axis = len(leaf.shape) - 1 if leaf.path.endswith('kernel') else 0
    size = leaf.shape[axis]
    read.clear()
    whole = leaf.read()
    total = sum(read)
    assert total == whole.nbytes == np.prod(leaf.shape) * 4
    for part in (slice(0, size // 2), slice(size // 2, None)):
      index = (slice(None),) * axis + (part,)
      read.clear()
      np.testing.assert_array_equal(leaf.read(index), whole[index])
      assert sum(read) == whole[index].nbytes, leaf.path
    # A cut across the rows of a file reads the rows, and gives the part.
    index = tuple(slice(n // 3, n - n // 3) for n in leaf.shape)
    np.testing.assert_array_equal(leaf.read(index), whole[index])
    seen.append(leaf.path)
    return whole
  _, params = checkpoints.load(tmp_path, place=half)
  assert len(seen) == len(jax.tree.leaves(params))
