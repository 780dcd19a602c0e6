"""Weights on tokens: worked covariances, quotas, masks."""

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import types
from mmr1.losses import weights
from tests.losses.blocks import block as make

A = jnp.array([[[1.0, 1.0, -1.0, -1.0]]])
LOGP = jnp.log(jnp.array([[[0.9, 0.1, 0.5, 0.2]]]))
ROW = jnp.ones((1, 1, 4), bool)


def worked():
  scores = types.Scores(logp=LOGP, entropy=jnp.array([[[4.0, 1, 3, 2]]]))
  block = types.Block(
      prompts=None, completions=None, mask=ROW, advantage=A, old=None)
  return scores, block


def test_covariance_worked_numbers():
  # mean A 0; log .9, .1, .5, .2 = -.105361, -2.302585, -.693147, -1.609438,
  # mean -1.177633.
  np.testing.assert_allclose(
      weights.covariance(LOGP, A, ROW)[0, 0],
      [1.072272, -1.124952, -0.484485, 0.431805], atol=1e-5)


def test_clip_cov_takes_the_only_candidate():
  scores, block = worked()
  got = weights.clip_cov(scores, block, jax.random.key(0))
  assert got[0, 0].tolist() == [0, 1, 1, 1]
  # Clipped already (ratio e > 1.2 under A > 0): no candidate is left.
  block = block.replace(old=LOGP - 1)
  got = weights.clip_cov(scores, block, jax.random.key(0))
  assert got[0, 0].tolist() == [1, 1, 1, 1]


def test_clip_cov_draws_a_quota_among_candidates():
  scores, block = make(shape=(4, 8, 16), old=None)
  cov = weights.covariance(scores.logp, block.advantage, block.mask)
  candidates = block.mask & (cov > 0.1) & (cov < 5)
  quota = int(0.05 * block.mask.sum())
  assert candidates.sum() > 2 * quota > 4
  drawn = [block.mask & (weights.clip_cov(
      scores, block, jax.random.key(i), fraction=0.05, low=0.1) == 0)
           for i in range(2)]
  for chosen in drawn:
    assert chosen.sum() == quota and not np.any(chosen & ~candidates)
  assert np.any(drawn[0] != drawn[1])


def test_top_cov_takes_the_largest():
  scores, block = worked()
  assert weights.top_cov(scores, block)[0, 0].tolist() == [1, 0, 0, 0]
  got = weights.top_cov(scores, block, fraction=0.5)
  assert got[0, 0].tolist() == [1, 0, 0, 1]


def test_high_entropy_keeps_the_quantile_of_kept_tokens():
  # Entropies 4, 1, 3, 2: the median is 2.5.
  scores, block = worked()
  got = weights.high_entropy(scores, block, fraction=0.5)
  assert got[0, 0].tolist() == [1, 0, 1, 0]
  # Without the first, the quantile is that of 1, 3, 2: 2.
  block = block.replace(mask=ROW.at[0, 0, 0].set(False))
  got = weights.high_entropy(scores, block, fraction=0.5)
  assert got[0, 0].tolist() == [0, 0, 1, 1]


def test_m9_all_masked_is_zero():
  scores, block = worked()
  block = block.replace(mask=~ROW)
  for got in (weights.high_entropy(scores, block),
              weights.top_cov(scores, block),
              weights.clip_cov(scores, block, jax.random.key(0))):
    assert not np.any(got)
