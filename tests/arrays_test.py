"""Arrays in the memory of devices and of hosts."""

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import arrays
from mmr1 import sharding


def test_to_the_host_and_back():
  layout = sharding.default()
  tree = layout.spread({'a': np.arange(8.0), 'b': np.ones((4, 3), np.int8)})
  held = arrays.in_host(tree)
  back = arrays.on_device(held)
  for name, x in tree.items():
    assert held[name].sharding.memory_kind == 'pinned_host'
    assert back[name].sharding.memory_kind == 'device'
    assert back[name].sharding.spec == x.sharding.spec
    np.testing.assert_array_equal(np.asarray(back[name]), np.asarray(x))
  # Copies: what trains may be given up.
  jax.tree.map(lambda x: x.delete(), tree)
  np.testing.assert_array_equal(np.asarray(held['a']), np.arange(8.0))


def test_arrays_that_only_this_host_has_are_numpy():
  assert isinstance(arrays.given(jnp.ones(2)), np.ndarray)
  assert arrays.fetch({'a': jnp.arange(3)})['a'].tolist() == [0, 1, 2]


def test_parts_are_read_by_whom_they_belong_to():
  class Leaf:
    path, shape = 'w', (4, 2)
    asked = []

    def read(self, index=()):
      self.asked.append(index)
      return np.arange(8.0).reshape(4, 2)[index]
  leaf = Leaf()
  made = arrays.read(leaf, sharding.default().named())
  np.testing.assert_array_equal(made, np.arange(8.0).reshape(4, 2))
  assert leaf.asked
