"""Kernels over several devices, traced: this process has one."""

import jax
import jax.numpy as jnp

from mmr1 import sharding
from mmr1.models import partition


def _told(**sizes):
  axes = dict(slice=1, data=1, fsdp=1, tensor=1) | sizes
  mesh = jax.sharding.AbstractMesh(
      tuple(axes.values()), tuple(axes), (jax.sharding.AxisType.Auto,) * 4)
  return partition.Partition(mesh, sharding.TABLE, sharding.RULES)


def test_rows_and_heads_are_divided_where_they_divide():
  """8 rows and the 24 that belong to them over 4 devices, 6 heads over 2; 6
  rows divide over data=2 alone, and 5 not at all."""
  seen = []

  def kernel(a, tree):
    seen.append((a.shape, tree['b'].shape))
    return a
  names = (jax.P('rows', 'heads'), {'b': jax.P('rows')})
  for rows, told in ((8, _told(data=2, fsdp=2)), (6, _told(data=2, fsdp=2)),
                     (5, _told(data=4)), (8, None),
                     (8, _told(fsdp=2, tensor=2))):
    out = jax.eval_shape(
        partition.kernel(kernel, told, names, names[0]),
        jnp.ones((rows, 6)), {'b': jnp.ones((3 * rows, 5))})
    assert out.shape == (rows, 6)
  assert seen == [((2, 6), (6, 5)), ((3, 6), (9, 5)), ((5, 6), (15, 5)),
                  ((8, 6), (24, 5)), ((4, 3), (12, 5))]


def test_a_tower_has_its_images_on_the_devices_that_share_a_prompt():
  told = _told(fsdp=2, tensor=2)
  assert told.fit('rows', 8) == ('slice', 'data', 'fsdp')
  assert told.towers.fit('rows', 8) == ('slice', 'data', 'fsdp', 'tensor')
  assert told.towers.axes('heads') == ()
