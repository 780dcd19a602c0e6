"""Weights on tokens: worked covariances, quotas, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import types
from mmr1.losses import kl
from mmr1.losses import reduce
from mmr1.losses import surrogate
from mmr1.losses import terms
from mmr1.losses import weights
from tests.losses import blocks
from tests.losses.blocks import block as make

A = jnp.array([[[1.0, 1.0, -1.0, -1.0]]])
LOGP = jnp.log(jnp.array([[[0.9, 0.1, 0.5, 0.2]]]))
ROW = jnp.ones((1, 1, 4), bool)
KEY = jax.random.key(0)
ALL = [weights.high_entropy, weights.clip_cov, weights.top_cov,
       weights.importance]


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
      [1.072272, -1.124952, -0.484485, 0.431805], atol=1e-6)


def test_clip_cov_takes_the_only_candidate():
  scores, block = worked()
  got = weights.clip_cov(scores, block, KEY)
  assert got[0, 0].tolist() == [0, 1, 1, 1]
  # Clipped already (ratio e > 1.2 under A > 0): no candidate is left.
  block = block.replace(old=LOGP - 1)
  got = weights.clip_cov(scores, block, KEY)
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
  assert weights.top_cov(scores, block, KEY)[0, 0].tolist() == [1, 0, 0, 0]
  got = weights.top_cov(scores, block, KEY, fraction=0.5)
  assert got[0, 0].tolist() == [1, 0, 0, 1]


def test_high_entropy_keeps_the_quantile_of_kept_tokens():
  # Entropies 4, 1, 3, 2: the median is 2.5.
  scores, block = worked()
  got = weights.high_entropy(scores, block, KEY, fraction=0.5)
  assert got[0, 0].tolist() == [1, 0, 1, 0]
  # Without the first, the quantile is that of 1, 3, 2: 2.
  block = block.replace(mask=ROW.at[0, 0, 0].set(False))
  got = weights.high_entropy(scores, block, KEY, fraction=0.5)
  assert got[0, 0].tolist() == [0, 0, 1, 1]


# The last token is masked; the product of the others is 4.275.
RATIOS = [1.5, 0.5, 3.0, 1.9]


def sampled(ratios=RATIOS, **fields):
  """A row whose trainer is `ratios` times as sure as its sampler."""
  old = jnp.log(jnp.array([[[*ratios, jnp.nan]]])) - 1
  return types.Block(**{**dict(
      prompts=None, completions=blocks.UNPACKED, advantage=A, old=old,
      mask=jnp.arange(len(ratios) + 1)[None, None] < len(ratios),
      extra={'sampler_logp': jnp.full(old.shape, -1.0)}), **fields})


@pytest.mark.parametrize('kw, want', [
    (dict(), [1.5, 0.5, 2, 1.9]),
    (dict(mode='mask'), [1.5, 0.5, 0, 1.9]),
    (dict(cap=3.5), RATIOS),
    (dict(cap=3.5, mode='mask'), RATIOS),
    (dict(cap=1.0), [1, 0.5, 1, 1]),
    # 1.5 * .5 * 3 * 1.9 = 4.275 on every token.
    (dict(level='sequence', cap=5.0), [4.275] * 4),
    (dict(level='sequence', cap=5.0, mode='mask'), [4.275] * 4),
    (dict(level='sequence'), [2] * 4),
    (dict(level='sequence', mode='mask'), [0] * 4),
])
def test_importance_worked_numbers(kw, want):
  got = weights.importance(None, sampled(), KEY, **kw)
  np.testing.assert_allclose(got[0, 0], [*want, 0], rtol=1e-6)


def test_importance_keeps_the_cap_itself():
  # Equal log-probs: w is exactly 1, and so is the cap.
  for mode in weights.MODES:
    got = weights.importance(
        None, sampled([1.0] * 4), KEY, cap=1.0, mode=mode)
    assert got[0, 0].tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize('level', weights.LEVELS)
@pytest.mark.parametrize('mode', weights.MODES)
def test_importance_of_extremes_has_no_gradient_and_stays_finite(level, mode):
  # m8: |log w| up to 1e4 a token.
  block = sampled()
  old = jnp.array([[[1e4, -1e4, 89, -89, jnp.inf]]])
  def total(old):
    return weights.importance(
        None, block.replace(old=old), KEY, level=level, mode=mode).sum()
  value, gradient = jax.value_and_grad(total)(old)
  assert np.isfinite(value) and not np.any(gradient)


def test_importance_says_what_it_lacks():
  packed = blocks.UNPACKED.replace(segment=jnp.ones((1, 1, 5), jnp.int32))
  for block, kw, message in [
      (sampled(old=None), {}, "set old='recompute'"),
      (sampled(extra={}), {}, r"extra\['sampler_logp'\]"),
      (sampled(completions=packed), dict(level='sequence'), 'Do not pack'),
      (sampled(), dict(level='row'), "'row' is not one of"),
      (sampled(), dict(mode='clip'), "'clip' is not one of"),
      (sampled(), dict(cap=0.0), 'must be above 0, got 0.0'),
  ]:
    with pytest.raises(ValueError, match=message):
      weights.importance(None, block, KEY, **kw)


def test_kl_cov_by_hand():
  # log pi = log .9, log .1, log .5, log .2; ratios 2, .5, 1, 1, A 1, 1, -1,
  # -1: -A r = -2, -.5, 1, 1. The largest covariance is that of token 0:
  # + .1 |log 2| = .069315. (-.5 + .069315) / 4 = -.107671.
  scores, block = worked()
  block = block.replace(
      completions=blocks.UNPACKED,
      old=LOGP - jnp.log(jnp.array([[[2.0, 0.5, 1.0, 1.0]]])))
  block = block.replace(
      extra={'weight/top': weights.top_cov(scores, block, KEY)})
  policy = reduce.finish(*terms.policy(
      scores, block, {}, surrogate=surrogate.linear))
  penalty = reduce.finish(*terms.kl(
      scores, block, {}, estimator=kl.absolute, target='old', weight='top'))
  np.testing.assert_allclose(policy + 0.1 * penalty, -0.107671, atol=1e-6)


def test_clip_cov_loss_by_hand():
  # Old = self: -A = -1, -1, 1, 1, without the candidate, token 0: 1 / 4.
  scores, block = worked()
  block = block.replace(completions=blocks.UNPACKED)
  block = block.replace(weight=weights.clip_cov(scores, block, KEY))
  got = reduce.finish(*terms.policy(scores, block, {}))
  np.testing.assert_allclose(got, 0.25, atol=1e-6)


def test_weights_say_whether_they_read_scores():
  assert {fn.__name__: fn.reads_scores for fn in ALL} == {
      'high_entropy': True, 'clip_cov': True, 'top_cov': True,
      'importance': False}


@pytest.mark.parametrize('fn', ALL, ids=lambda f: f.__name__)
def test_m9_garbage_under_the_mask_changes_nothing(fn):
  scores, block = make(shape=(2, 4, 6), wide=True)
  block = block.replace(extra={'sampler_logp': block.ref})
  kw = {} if fn is weights.importance else dict(fraction=0.3)
  if fn is weights.clip_cov:
    kw['low'] = 0.05
  want = fn(scores, block, KEY, **kw)
  assert 0 < np.sum(want == 0) < want.size
  assert not np.any(want[~block.mask])
  spoil = lambda x: x if x.dtype == bool else jnp.where(
      block.mask, x, jnp.nan)
  got = fn(*jax.tree.map(spoil, (scores, block)), KEY, **kw)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('fn', ALL, ids=lambda f: f.__name__)
def test_m9_all_masked_is_zero(fn):
  scores, block = make(shape=(2, 4, 6))
  block = block.replace(mask=jnp.zeros_like(block.mask),
                        extra={'sampler_logp': block.ref})
  assert not np.any(fn(scores, block, KEY))
