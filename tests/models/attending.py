"""What compares a kernel of attention with XLA's."""

import jax
import jax.numpy as jnp
import numpy as np

from mmr1.models import attention
from mmr1.models import products


def sources(arrays, sights):
  """Keys and values of the completions and, unless there are none, of the
  prompt, each with what is seen of them."""
  result = [attention.Source(*arrays[:2], sights[0])]
  return result + [attention.Source(*arrays[2:], sights[1])] * (
      arrays[2].size > 0)


class Plain:
  """XLA's products, differentiated by jax and not by hand, of queries that are
  scaled in their own dtype."""

  @staticmethod
  def refusal(*args, **kwargs):
    del args, kwargs

  @staticmethod
  def attend(query, sources, *, scale, cap, interpret):
    del interpret
    how = products.How('default', query.shape[2], 1.0, cap)
    return products._attend(
        query * jnp.asarray(scale, query.dtype), jnp.arange(query.shape[2]), sources, how)[0]


def both_ways(query, arrays, sights, weight, kernel=None, cap=None):
  """The result where it counts and the gradients of queries, keys, values, by
  a kernel's module, interpreted, or by XLA."""
  @jax.jit
  def run(query, arrays):
    def loss(query, arrays):
      given = sources(arrays, sights)
      if kernel is None:
        out = attention.attend(query, given, scale=0.2, cap=cap, chunk=512,
                               precision='default', backend='xla')
      else:
        assert not kernel.refusal(query, given, precision='default', cap=cap)
        out = kernel.attend(query, given, scale=0.2, cap=cap, interpret=True)
      out = out.astype(jnp.float32)
      return jnp.sum(out * weight), jnp.where(weight == 0, 0, out)
    (_, out), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        query, arrays)
    return jax.tree.leaves((out, grads))
  return run(query, arrays)


def error(a, b):
  """Largest difference, relative to the largest of b."""
  if not a.size:
    return 0.0
  a, b = (np.asarray(x, np.float32) for x in (a, b))
  return np.abs(a - b).max() / np.abs(b).max()
