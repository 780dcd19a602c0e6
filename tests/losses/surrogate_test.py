"""Surrogates and ratios: worked numbers, sides, gradients at old = self."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import masked
from mmr1.losses import ratio
from mmr1.losses import surrogate

ALL = [surrogate.clip, surrogate.cispo, surrogate.sapo, surrogate.none,
       surrogate.linear, surrogate.geo_mean]
ROW = jnp.ones((1, 1, 3), bool)
RATIOS = jnp.log(jnp.array([[[1.2, 0.9, 1.5]]]))


def one(fn, r, advantage, **kw):
  """Loss, indicators and slope in the log-ratio at a single token."""
  mask = jnp.ones((1, 1, 1), bool)
  def loss(x):
    return fn(x, jnp.full((1, 1, 1), advantage), x, mask, **kw)[0].sum()
  x = jnp.log(jnp.full((1, 1, 1), r))
  out = fn(x, jnp.full((1, 1, 1), advantage), x, mask, **kw)
  return (*[np.asarray(o).item() for o in out], jax.grad(loss)(x).item())


@pytest.mark.parametrize('r, advantage, want, low, high', [
    # eps .2 / .28, c = 3.
    (1.5, 1.0, -1.28, False, True),   # -min(1.5, 1.28)
    (1.5, -1.0, 1.5, False, False),   # max(1.5, 1.28)
    (0.5, 1.0, -0.5, False, False),   # -min(.5, .8)
    (0.5, -1.0, 0.8, True, False),    # max(.5, .8)
    (4.0, -1.0, 3.0, False, False),   # min(3, 4)
    (4.0, 1.0, -1.28, False, True),
])
def test_clip_takes_the_pessimistic_side(r, advantage, want, low, high):
  loss, got_low, got_high, _ = one(
      surrogate.clip, r, advantage, eps_low=0.2, eps_high=0.28, dual_clip=3.0)
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  assert (got_low, got_high) == (low, high)


def test_clip_without_dual_clip_and_with_delta():
  np.testing.assert_allclose(one(surrogate.clip, 4.0, -1.0)[0], 4, rtol=1e-6)
  # r capped at 2 in the unclipped branch: max(2, 1.2).
  np.testing.assert_allclose(
      one(surrogate.clip, 4.0, -1.0, delta=2.0)[0], 2, rtol=1e-6)
  np.testing.assert_allclose(
      one(surrogate.clip, 4.0, 1.0, delta=2.0)[0], -1.2, rtol=1e-6)


@pytest.mark.parametrize('r, advantage, want', [
    (1.3, 2.01556, 2.41867),     # 1.2 * 2.01556
    (0.7, -0.46513, -0.37210),   # .8 * -.46513, smaller than .7 * -.46513
])
def test_vision_r1_min_term(r, advantage, want):
  np.testing.assert_allclose(
      -one(surrogate.clip, r, advantage)[0], want, atol=1e-5)


def test_clip_gradient_is_zero_outside_and_cispo_keeps_it():
  assert one(surrogate.clip, 1.5, 1.0)[3] == 0
  assert one(surrogate.clip, 0.5, -1.0)[3] == 0
  # Inside, or on the other side: -A r.
  np.testing.assert_allclose(one(surrogate.clip, 1.5, -1.0)[3], 1.5, rtol=1e-6)
  np.testing.assert_allclose(one(surrogate.clip, 0.5, 1.0)[3], -0.5, rtol=1e-6)
  # -sg(1.28) A.
  got = one(surrogate.cispo, 1.5, 1.0, ratio_low=0.8, ratio_high=1.28)
  np.testing.assert_allclose(got[3], -1.28, rtol=1e-6)
  assert got[2]


def test_cispo_worked_numbers():
  # -log .6 = .510826, -log .3 = 1.203973, ratios 1.2, .9, 1.5 with bounds
  # .8 / 1.28: 1.2 * .510826, .9 * 1.203973, 1.28 * 1.203973.
  logp = jnp.log(jnp.array([[[0.6, 0.3, 0.3]]]))
  adv = jnp.ones((1, 1, 1))
  loss, _, _ = surrogate.cispo(
      RATIOS, adv, logp, ROW, ratio_low=0.8, ratio_high=1.28)
  np.testing.assert_allclose(
      loss[0, 0], [0.612991, 1.083576, 1.541085], atol=1e-6)
  np.testing.assert_allclose(loss.mean(), 1.079217, atol=1e-6)
  # TRL, only capped at 5: the last is 1.5 * 1.203973 = 1.805959.
  loss, _, _ = surrogate.cispo(RATIOS, adv, logp, ROW)
  np.testing.assert_allclose(loss.mean(), 1.167509, atol=1e-6)


def test_sapo_worked_numbers():
  # 4 sigmoid(.5) = 4 * .622459; 4 / 1.05 sigmoid(.525) = 3.809524 * .628316.
  np.testing.assert_allclose(
      one(surrogate.sapo, 1.5, 1.0)[0], -2.489837, atol=1e-6)
  np.testing.assert_allclose(
      one(surrogate.sapo, 1.5, -1.0)[0], 2.393585, atol=1e-6)


def test_gspo_worked_number():
  # (1.2 * .9 * 1.5)^(1/3) = 1.62^(1/3) = 1.174460; the product is 1.62.
  zero = jnp.zeros((1, 1, 3))
  s = ratio.log_ratio(RATIOS, zero, ROW, level='sequence')
  assert s.shape == (1, 1, 1)
  np.testing.assert_allclose(jnp.exp(s).item(), 1.174460, atol=1e-6)
  s = ratio.log_ratio(
      RATIOS, zero, ROW, level='sequence', sequence='product')
  np.testing.assert_allclose(jnp.exp(s).item(), 1.62, atol=1e-6)


def test_gmpo_worked_number():
  # log 1.2 = .182322, log .9 = -.105361, log 1.5 = .405465 clipped to .4:
  # exp(.476961 / 3) = 1.172322.
  loss, low, high = surrogate.geo_mean(
      RATIOS, jnp.ones((1, 1, 1)), RATIOS, ROW)
  np.testing.assert_allclose(loss, -1.172322, atol=1e-6)
  assert high[0, 0].tolist() == [False, False, True] and not low.any()
  # A < 0: nothing above is clipped: 1.62^(1/3).
  loss, _, _ = surrogate.geo_mean(RATIOS, -jnp.ones((1, 1, 1)), RATIOS, ROW)
  np.testing.assert_allclose(loss, 1.174460, atol=1e-6)


def test_sequence_token_has_the_value_of_the_row_and_the_slope_of_the_token():
  zero = jnp.zeros((1, 1, 3))
  fn = lambda x: ratio.log_ratio(x, zero, ROW, level='sequence_token')
  np.testing.assert_allclose(jnp.exp(fn(RATIOS)), 1.174460, atol=1e-6)
  slope = jax.jacobian(lambda x: fn(x).ravel())(RATIOS).reshape(3, 3)
  np.testing.assert_allclose(slope, np.eye(3), atol=1e-6)


@pytest.mark.parametrize('level', ratio.LEVELS)
@pytest.mark.parametrize('fn', ALL, ids=lambda f: f.__name__)
def test_gradient_at_old_is_minus_advantage(fn, level):
  # Mean over the rows' tokens: every loss then has slope -A / n per token.
  rng = np.random.default_rng(0)
  logp = jnp.asarray(-rng.random((2, 3, 4)), jnp.float32)
  advantage = jnp.asarray(rng.normal(size=(2, 3, 1)), jnp.float32)
  mask = jnp.asarray(np.arange(4) < rng.integers(1, 5, (2, 3, 1)))
  def loss(x):
    x = masked.fill(x, mask)
    d = ratio.log_ratio(x, logp, mask, level=level)
    value, low, high = fn(d, advantage, x, mask)
    assert not low.any() and not high.any()
    return masked.mean(value, mask, -1).sum()
  n = mask.sum(-1, keepdims=True)
  np.testing.assert_allclose(
      jax.grad(loss)(logp), jnp.where(mask, -advantage / n, 0), atol=1e-6)


@pytest.mark.parametrize('kw, message', [
    (dict(level='row'), "'row' is not one of"),
    (dict(sequence='sum'), "'sum' is not one of"),
])
def test_unknown_names_are_errors(kw, message):
  with pytest.raises(ValueError, match=message):
    ratio.log_ratio(RATIOS, RATIOS, ROW, **kw)


def test_clamp_forms():
  x = jnp.array([[[-30.0, 3.0, 90.0]]])
  fn = lambda clamp: ratio.log_ratio(
      x, jnp.zeros_like(x), ROW, clamp=clamp)[0, 0].tolist()
  assert fn(20.0) == [-20, 3, 20]
  assert fn((-jnp.inf, 10.0)) == [-30, 3, 10]
  assert fn(None) == [-30, 3, 40]
