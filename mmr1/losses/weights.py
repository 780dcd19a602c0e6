"""Weights on tokens, without gradient: the `weight` socket.

`(scores, block, *, ...) -> f32[N, G, T]`, to be put into `block.weight` or,
for `kl`, into `block.extra`. All of these compare tokens with each other, so
they see one whole minibatch as one block.
"""

import jax
import jax.numpy as jnp

from mmr1 import masked
from mmr1 import types

Array = jax.Array


def high_entropy(
    scores: types.Scores, block: types.Block, *, fraction: float = 0.2
) -> Array:
  """1 on the `fraction` of kept tokens with the highest entropy, else 0.

  "Beyond the 80/20 rule" (arXiv:2506.01939): keep tokens with entropy at or
  above the (1 - fraction) quantile over all kept tokens.
  """
  entropy = jax.lax.stop_gradient(scores.entropy)
  known = jnp.where(block.mask, entropy, jnp.nan)
  threshold = jnp.nanquantile(known, 1 - fraction)
  return _indicator(entropy >= threshold, block.mask)


def covariance(
    logp: Array, advantage: Array, mask: Array
) -> Array:
  """(A_t - mean A)(logp_t - mean logp) over kept tokens, f32[N, G, T].

  arXiv:2505.22617, eq. 10; 0 where masked.
  """
  advantage = masked.fill(jnp.broadcast_to(advantage, mask.shape), mask)
  logp = masked.fill(logp, mask)
  product = (advantage - masked.mean(advantage, mask)) * (
      logp - masked.mean(logp, mask))
  return jax.lax.stop_gradient(masked.fill(product, mask))


def clip_cov(
    scores: types.Scores, block: types.Block, key: Array, *,
    fraction: float = 2e-4, low: float = 1.0, high: float = 5.0,
    eps_low: float = 0.2, eps_high: float = 0.2,
) -> Array:
  """0 on a few random tokens of large covariance, 1 elsewhere (Clip-Cov).

  arXiv:2505.22617, eq. 11. Candidates have low < covariance < high and are
  not clipped by the surrogate already (the ratio outside its bounds on the
  side of the advantage's sign); max(1, floor(fraction * tokens)) of them,
  drawn by `key`, lose their loss and gradient.
  """
  mask = block.mask
  cov = covariance(scores.logp, block.advantage, mask)
  delta = jnp.zeros_like(cov) if block.old is None else (
      masked.fill(scores.logp, mask) - masked.fill(block.old, mask))
  clipped = jnp.where(
      block.advantage > 0, delta > jnp.log1p(eps_high),
      (block.advantage < 0) & (delta < jnp.log1p(-eps_low)))
  candidates = mask & (cov > low) & (cov < high) & ~clipped
  draw = jnp.where(candidates, jax.random.uniform(key, mask.shape), -1.0)
  chosen = candidates & (_rank(draw) < _quota(mask, fraction))
  return _indicator(~chosen, mask)


def top_cov(
    scores: types.Scores, block: types.Block, *, fraction: float = 2e-4
) -> Array:
  """1 on the max(1, floor(fraction * tokens)) largest covariances (KL-Cov).

  arXiv:2505.22617, eq. 13: there the term `kl(target='old',
  estimator=absolute)` is added to the `linear` surrogate.
  """
  cov = covariance(scores.logp, block.advantage, block.mask)
  order = _rank(jnp.where(block.mask, cov, -jnp.inf))
  return _indicator(order < _quota(block.mask, fraction), block.mask)


def _quota(mask: Array, fraction: float) -> Array:
  return jnp.maximum(1, jnp.floor(fraction * masked.count(mask)))


def _rank(x: Array) -> Array:
  """Rank of every entry of x in descending order, 0 the largest."""
  order = jnp.argsort(-x.ravel(), stable=True)
  return jnp.zeros(x.size, jnp.int32).at[order].set(
      jnp.arange(x.size)).reshape(x.shape)


def _indicator(chosen: Array, mask: Array) -> Array:
  return (chosen & mask).astype(jnp.float32)
