"""Kernels over several devices, traced: this process has one."""

import jax
import jax.numpy as jnp

from mmr1.models import partition


def test_rows_are_divided_where_they_divide():
  """8 rows and the 24 that belong to them over 4 devices; 6 do not divide."""
  mesh = jax.sharding.AbstractMesh(
      (4,), ('data',), (jax.sharding.AxisType.Auto,))
  seen = []

  def kernel(a, tree):
    seen.append((a.shape, tree['b'].shape))
    return a

  for rows, where in ((8, mesh), (6, mesh), (8, None)):
    out = jax.eval_shape(partition.rows(kernel, where), jnp.ones((rows, 2)),
                         {'b': jnp.ones((3 * rows, 5))})
    assert out.shape == (rows, 2)
  assert seen == [((2, 2), (6, 5)), ((6, 2), (18, 5)), ((8, 2), (24, 5))]
