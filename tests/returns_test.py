"""Advantages per token: worked numbers, holes in the mask, missing values."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import columns
from mmr1 import returns

# Two completions of one group, lengths 2 and 3, rewards 1 and 0.
MASK = np.array([[[1, 1, 0], [1, 1, 1]]], bool)
R = np.array([1.0, 0.0]).reshape(1, 2, 1)
TOKENS = columns.Tokens(mask=MASK)


def test_reinforce_pp():
  # Returns [1, 1], [0, 0, 0]; mean .4, sample variance .3:
  # .6 / .547723 = 1.095445, -.4 / .547723 = -.730297.
  np.testing.assert_allclose(
      returns.reinforce_pp(R, TOKENS)[0],
      [[1.095445, 1.095445, 0], [-0.730297] * 3], atol=1e-5)


def test_reinforce_pp_baseline():
  # Centred: .5 and -.5; mean over tokens (1 - 1.5) / 5 = -.1, so .6 and -.4
  # again, with the same variance.
  np.testing.assert_allclose(
      returns.reinforce_pp_baseline(R, TOKENS)[0],
      [[1.095445, 1.095445, 0], [-0.730297] * 3], atol=1e-5)


def test_discount():
  # Reward 1 at the end of three tokens, gamma .5: .25, .5, 1.
  mask = jnp.ones((1, 1, 3), bool)
  reward = jnp.array([[[0.0, 0.0, 1.0]]])
  got = returns.discounted(reward, mask, gamma=0.5, carry=True)
  np.testing.assert_allclose(got[0, 0], [0.25, 0.5, 1])


def test_holes_carry_or_reset():
  # Reward 1 on the last token, an observation in the middle.
  mask = jnp.array([[[True, False, True, False]]])
  reward = jnp.array([[[0.0, 9.0, 1.0, jnp.nan]]])
  carried = returns.discounted(reward, mask, gamma=1.0, carry=True)
  np.testing.assert_allclose(carried[0, 0], [1, 0, 1, 0])
  reset = returns.discounted(reward, mask, gamma=1.0, carry=False)
  np.testing.assert_allclose(reset[0, 0], [0, 0, 1, 0])


def test_remax():
  # Returns minus .5 on kept tokens.
  got = returns.remax(R, TOKENS._replace(baseline=np.array([0.5])))
  np.testing.assert_allclose(got[0], [[0.5, 0.5, 0], [-0.5] * 3])


def test_dense_rewards_add_to_the_outcome():
  # Row 0: .1, .2 + 1; returns 1.3, 1.2. Row 1: zeros.
  dense = np.array([[[0.1, 0.2, 5.0], [0.0, 0.0, 0.0]]])
  got = returns.remax(
      R, TOKENS._replace(baseline=np.array([0.0]), rewards=dense))
  np.testing.assert_allclose(got[0, 0], [1.3, 1.2, 0], atol=1e-6)


def test_gae():
  # r 0, 0, 1; V .2, .5, .8; gamma 1, lambda .95. delta = .3, .3, .2;
  # A_2 = .2, A_1 = .3 + .95 * .2 = .49, A_0 = .3 + .95 * .49 = .7655.
  tokens = columns.Tokens(
      mask=np.ones((1, 1, 3), bool), values=np.array([[[0.2, 0.5, 0.8]]]))
  raw, ret = returns.gae_returns(np.ones((1, 1, 1)), tokens, lam=0.95)
  np.testing.assert_allclose(raw[0, 0], [0.7655, 0.49, 0.2], atol=1e-6)
  np.testing.assert_allclose(ret[0, 0], [0.9655, 0.99, 1], atol=1e-6)
  white = returns.gae(np.ones((1, 1, 1)), tokens, lam=0.95)
  # mean .485167; squares .078587 + .000023 + .081320 = .159930; / 2 =
  # .079965, sigma .282781: .280333 / .282781 = .991343.
  np.testing.assert_allclose(white[0, 0, 0], 0.991343, atol=1e-5)


def test_m18_gae_steps_over_observations():
  plain = columns.Tokens(
      mask=np.ones((1, 1, 3), bool), values=np.array([[[0.2, 0.5, 0.8]]]))
  holed = columns.Tokens(
      mask=np.array([[[1, 0, 1, 0, 1, 0]]], bool),
      values=np.array([[[0.2, 7, 0.5, np.nan, 0.8, np.inf]]]))
  r = np.ones((1, 1, 1))
  want, _ = returns.gae_returns(r, plain, gamma=0.9, lam=0.95)
  got, ret = returns.gae_returns(r, holed, gamma=0.9, lam=0.95)
  np.testing.assert_allclose(got[0, 0, ::2], want[0, 0], atol=1e-6)
  assert not np.any(got[0, 0, 1::2]) and not np.any(ret[0, 0, 1::2])


def all_estimators(r, mask):
  shape = mask.shape
  tokens = columns.Tokens(
      mask=mask, values=np.zeros(shape), baseline=np.zeros(shape[0]))
  return [returns.reinforce_pp(r, tokens),
          returns.reinforce_pp_baseline(r, tokens),
          returns.remax(r, tokens), returns.gae(r, tokens)]


def test_padding_changes_nothing():
  padded = np.pad(MASK, ((0, 0), (0, 0), (0, 4)))
  for short, long in zip(all_estimators(R, MASK), all_estimators(R, padded)):
    np.testing.assert_allclose(long[..., :3], short, atol=1e-6)
    assert not np.any(long[..., 3:])


def test_m13_missing_rows_equal_absent_rows():
  r = np.array([1.0, np.nan, 0.0]).reshape(1, 3, 1)
  mask = np.insert(MASK, 1, True, axis=1)
  for short, long in zip(all_estimators(R, MASK), all_estimators(r, mask)):
    np.testing.assert_allclose(long[:, [0, 2]], short, atol=1e-6)
    assert not np.any(long[:, 1])


def test_m7_group_without_variance_is_exactly_zero():
  r = np.array([[0.9] * 3, [1.0, 0.0, 0.0]])[..., None]
  lengths = np.array([[1, 2, 3], [5, 1, 2]])
  mask = np.arange(5) < lengths[..., None]
  got = returns.reinforce_pp_baseline(r, columns.Tokens(mask=mask))
  assert not np.any(got[0])
  assert np.all(np.asarray(got[1])[mask[1]] != 0)
  # Without groups, the batch decides.
  same = np.full((2, 3, 1), 0.9)
  assert not np.any(returns.reinforce_pp(same, columns.Tokens(mask=mask)))


def test_m9_all_masked_is_zero():
  for got in all_estimators(R, np.zeros_like(MASK)):
    assert got.shape == MASK.shape and not np.any(got)


def test_rejects_missing_inputs():
  with pytest.raises(ValueError, match='needs tokens.baseline'):
    returns.remax(R, TOKENS)
  with pytest.raises(ValueError, match='needs tokens.values'):
    returns.gae(R, TOKENS)
  with pytest.raises(ValueError, match="'keep' is not one of"):
    returns.reinforce_pp(R, TOKENS, holes='keep')
