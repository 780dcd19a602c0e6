"""Divergences of two next-token distributions, summed over the vocabulary.

`(logp, other) -> f32[...]`: logp, other f32[..., V] are log-probabilities of
the same tokens, finite; an id that neither may choose has 0 in both and adds
nothing. Made inside the head's chunk loop (`forward.token_scores`), where V
exists for some tokens at a time. In the names p is `logp`, q is `other`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Divergence = Callable[[Array, Array], Array]


def kl(logp: Array, other: Array) -> Array:
  """KL(p || q) = sum_v p (log p - log q)."""
  return jnp.sum(jnp.exp(logp) * (logp - other), -1)


def reverse_kl(logp: Array, other: Array) -> Array:
  """KL(q || p)."""
  return kl(other, logp)


def symmetric_kl(logp: Array, other: Array) -> Array:
  """(KL(p || q) + KL(q || p)) / 2, VOGUE (arXiv:2510.01444, eq. 1)."""
  return 0.5 * jnp.sum(
      (jnp.exp(logp) - jnp.exp(other)) * (logp - other), -1)
