"""Weights on tokens, without gradient: the `weight` socket.

`(scores, block, key, *, ...) -> f32[N, G, T]`, 0 where masked, to be put into
`block.weight` or, for `kl`, into `block.extra`. All of these see one whole
minibatch as one block: most compare its tokens with each other.

`key` is a JAX PRNG key, for random choices. `fn.reads_scores` says whether a
weight reads `scores`, those of the current policy; where it is False, None
will do.
"""

import jax
import jax.numpy as jnp

from mmr1 import masked
from mmr1 import types
from mmr1.losses import ratio

Array = jax.Array

LEVELS = ('token', 'sequence')
MODES = ('truncate', 'mask')


def high_entropy(
    scores: types.Scores, block: types.Block, key: Array, *,
    fraction: float = 0.2,
) -> Array:
  """1 on the `fraction` of kept tokens with the highest entropy, else 0.

  "Beyond the 80/20 rule" (arXiv:2506.01939): keep tokens with entropy at or
  above the (1 - fraction) quantile over all kept tokens.
  """
  del key
  entropy = jax.lax.stop_gradient(scores.entropy)
  known = jnp.where(block.mask, entropy, jnp.nan)
  threshold = jnp.nanquantile(known, 1 - fraction)
  return _indicator(entropy >= threshold, block.mask)


high_entropy.reads_scores = True


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


clip_cov.reads_scores = True


def top_cov(
    scores: types.Scores, block: types.Block, key: Array, *,
    fraction: float = 2e-4,
) -> Array:
  """1 on the max(1, floor(fraction * tokens)) largest covariances (KL-Cov).

  arXiv:2505.22617, eq. 13: there the term `kl(target='old',
  estimator=absolute)` is added to the `linear` surrogate.
  """
  del key
  cov = covariance(scores.logp, block.advantage, block.mask)
  order = _rank(jnp.where(block.mask, cov, -jnp.inf))
  return _indicator(order < _quota(block.mask, fraction), block.mask)


top_cov.reads_scores = True


def importance(
    scores: types.Scores | None, block: types.Block, key: Array, *,
    level: str = 'token', cap: float = 2.0, mode: str = 'truncate',
) -> Array:
  """w = pi_old / pi_sampler: the correction of rollouts for their sampler.

  Trainer and sampler give the same parameters other probabilities (precision,
  kernels). TIS: min(w, cap); MIS: w up to cap, 0 above it. TRL
  `vllm_importance_sampling_mode` '{level}_{mode}', there with a cap of 3. The
  cap belongs to w itself, also to that of a sequence, which is a product.

  Args:
    scores: not read.
    block: reads mask, old, recomputed by the trainer (the sampler's own would
      make every w 1), and extra['sampler_logp'] f32[N, G, T].
    key: not read.
    level: 'token': w_t; 'sequence': the product of the kept w_t of the row,
      on each of its tokens.
    cap: the largest w, > 0.
    mode: 'truncate' or 'mask'.

  Returns:
    f32[N, G, T], 0 where masked. A kept nan stays nan (TRL makes it 1).

  Raises:
    ValueError: for an unknown level or mode, a cap of at most 0, missing
      log-probs, or a 'sequence' of packed rows.
  """
  del scores, key
  _check(block, level, cap, mode)
  mask = block.mask
  delta = (masked.fill(block.old, mask)
           - masked.fill(block.extra['sampler_logp'], mask))
  if level == 'sequence':
    delta = masked.sum(delta, mask, -1, keepdims=True)
  w = jnp.exp(ratio.bound(delta, None))
  w = jnp.minimum(w, cap) if mode == 'truncate' else jnp.where(w > cap, 0, w)
  w = masked.fill(jnp.broadcast_to(w, mask.shape), mask)
  return jax.lax.stop_gradient(w)


importance.reads_scores = False
importance.reads_old = True


def _check(block: types.Block, level: str, cap: float, mode: str):
  if level not in LEVELS:
    raise ValueError(f'importance level {level!r} is not one of {LEVELS}.')
  if mode not in MODES:
    raise ValueError(f'importance mode {mode!r} is not one of {MODES}.')
  if not isinstance(cap, jax.Array) and not cap > 0:
    raise ValueError(f'importance cap must be above 0, got {cap}.')
  if block.old is None:
    raise ValueError(
        'importance needs block.old, the log-probs that the trainer computes '
        "of the rollout, which is None: set old='recompute'.")
  if 'sampler_logp' not in block.extra:
    raise ValueError(
        "importance needs block.extra['sampler_logp'], the block has "
        f'{sorted(block.extra)}.')
  if level == 'sequence' and block.completions.segment is not None:
    raise ValueError(
        "importance level 'sequence' is one of a whole row, and the rows of "
        "this block hold several sequences. Do not pack them, or take "
        "'token'.")


def _quota(mask: Array, fraction: float) -> Array:
  return jnp.maximum(1, jnp.floor(fraction * masked.count(mask)))


def _rank(x: Array) -> Array:
  """Rank of every entry of x in descending order, 0 the largest."""
  order = jnp.argsort(-x.ravel(), stable=True)
  return jnp.zeros(x.size, jnp.int32).at[order].set(
      jnp.arange(x.size)).reshape(x.shape)


def _indicator(chosen: Array, mask: Array) -> Array:
  return (chosen & mask).astype(jnp.float32)
