"""Advantages per token: worked numbers, holes in the mask, missing values."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import columns
from mmr1 import compiles
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
      [[1.095445, 1.095445, 0], [-0.730297] * 3], atol=1e-6)


def test_reinforce_pp_baseline():
  # Centred: .5 and -.5; mean over tokens (1 - 1.5) / 5 = -.1, so .6 and -.4
  # again, with the same variance.
  np.testing.assert_allclose(
      returns.reinforce_pp_baseline(R, TOKENS)[0],
      [[1.095445, 1.095445, 0], [-0.730297] * 3], atol=1e-6)


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
  # .079965, sigma .282781: .2803333 / .2827810 = .991344.
  np.testing.assert_allclose(white[0, 0, 0], 0.991344, atol=1e-6)


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


# Random batches; every estimator is compiled once for their one shape.
SHAPE = (3, 4, 8)
GAMMA, LAM = 0.9, 0.95
ESTIMATORS = {
    'reinforce_pp': functools.partial(returns.reinforce_pp, gamma=GAMMA),
    'reinforce_pp_reset': functools.partial(
        returns.reinforce_pp, gamma=GAMMA, holes='reset'),
    'reinforce_pp_undiscounted': returns.reinforce_pp,
    'reinforce_pp_baseline': returns.reinforce_pp_baseline,
    'remax': returns.remax,
    'gae': functools.partial(returns.gae, gamma=GAMMA, lam=LAM),
    'gae_undiscounted': functools.partial(returns.gae, lam=LAM),
}
every_estimator = pytest.mark.parametrize('name', ESTIMATORS)


def batch(seed, dense=True):
  """(rewards, tokens): holes in ragged rows, empty and missing ones."""
  rng = np.random.default_rng(seed)
  n, g, t = SHAPE
  mask = np.arange(t) < rng.integers(2, t - 1, (n, g, 1))
  mask &= rng.random(SHAPE) > 0.2
  mask[0, 1] = False
  r = rng.normal(size=(n, g, 2))
  r[1, 2, 0] = np.nan
  r[2, 3] = np.nan
  r[1, 1] = r[1, 1].round()
  return r, columns.Tokens(
      mask=mask, values=rng.normal(size=SHAPE), baseline=rng.normal(size=n),
      rewards=rng.normal(size=SHAPE) if dense else np.zeros(SHAPE))


@functools.cache
def compiled(name):
  return jax.jit(ESTIMATORS[name])


def estimate(name, r, tokens):
  f32 = lambda x: x if x.dtype == bool else jnp.asarray(x, jnp.float32)
  return np.asarray(compiled(name)(*jax.tree.map(f32, (r, tokens))))


def spoil(tokens, seed=0):
  """Garbage under the mask of all that is given by token."""
  garbage = np.random.default_rng(seed).choice([np.nan, np.inf, 1e30], SHAPE)
  fill = lambda x: np.where(tokens.mask, x, garbage)
  return tokens._replace(
      values=fill(tokens.values), rewards=fill(tokens.rewards))


def naive_row(name, reward, value, mask, baseline):
  """The raw advantage of every token of one row, None where masked."""
  out, running, following = [None] * len(mask), 0.0, 0.0
  gamma = GAMMA if name in ('reinforce_pp', 'reinforce_pp_reset', 'gae') else 1
  for t in reversed(range(len(mask))):
    if not mask[t]:
      running = 0.0 if name == 'reinforce_pp_reset' else running
    elif name.startswith('gae'):
      delta = reward[t] + gamma * following - value[t]
      running, following = delta + gamma * LAM * running, value[t]
      out[t] = running
    else:
      running = reward[t] + gamma * running
      out[t] = running - (baseline if name == 'remax' else 0.0)
  return out


def naive(name, r, tokens):
  """The same estimators with loops over lists."""
  raw = {}
  for i, j in np.ndindex(*SHAPE[:2]):
    kept = np.flatnonzero(tokens.mask[i, j])
    if np.isnan(r[i, j]).all() or not len(kept):
      continue
    if name == 'reinforce_pp_baseline':
      centred = sum(
          r[i, j, k] - statistics.mean(r[i, ~np.isnan(r[i, :, k]), k].tolist())
          for k in range(2) if not np.isnan(r[i, j, k]))
      raw.update({(i, j, t): centred for t in kept})
      continue
    reward = tokens.rewards[i, j].copy()
    reward[kept[-1]] += np.nansum(r[i, j])
    row = naive_row(name, reward, tokens.values[i, j], tokens.mask[i, j],
                    tokens.baseline[i])
    raw.update({(i, j, t): row[t] for t in kept})
  out = np.zeros(SHAPE)
  for place, x in raw.items():
    out[place] = x if name == 'remax' else (
        x - statistics.mean(raw.values())) / (
            statistics.variance(raw.values()) + 1e-8) ** 0.5
  return out


@every_estimator
@pytest.mark.parametrize('seed', range(3))
def test_equals_loops_over_lists(name, seed):
  r, tokens = batch(seed)
  got = estimate(name, r, spoil(tokens))
  np.testing.assert_allclose(got, naive(name, r, tokens), atol=3e-6)


@every_estimator
def test_permuting_the_group_permutes_the_result(name):
  r, tokens = batch(3)
  order = [2, 0, 3, 1]
  turned = tokens._replace(**{
      k: getattr(tokens, k)[:, order] for k in ('mask', 'values', 'rewards')})
  np.testing.assert_allclose(
      estimate(name, r[:, order], turned),
      estimate(name, r, tokens)[:, order], atol=1e-6)


@pytest.mark.parametrize('name', [
    'reinforce_pp_undiscounted', 'reinforce_pp_baseline', 'remax',
    'gae_undiscounted'])
def test_shifting_the_rewards_changes_nothing(name):
  # What stands for the expected reward (value, greedy baseline) shifts along;
  # a discount would make the shift differ by token.
  r, tokens = batch(4)
  r[1, 2, 0] = 0.0  # another constant where a column is missing
  shifted = tokens._replace(
      values=tokens.values + 2, baseline=tokens.baseline + 2)
  np.testing.assert_allclose(
      estimate(name, r + 1, shifted), estimate(name, r, tokens), atol=5e-6)


@every_estimator
def test_m9_padding_and_order_of_holes_change_nothing(name):
  # Kept tokens move to the end of the row, padding and holes to its front.
  r, tokens = batch(5)
  if name == 'reinforce_pp_reset':  # reads holes, so let there be none
    tokens.mask[:] = np.arange(SHAPE[-1]) < tokens.mask.sum(-1, keepdims=True)
  place = np.argsort(tokens.mask, axis=-1, kind='stable')
  move = lambda x: np.take_along_axis(x, place, -1)
  moved = tokens._replace(
      mask=move(tokens.mask), values=move(tokens.values),
      rewards=move(tokens.rewards))
  np.testing.assert_allclose(
      estimate(name, r, spoil(moved)), move(estimate(name, r, tokens)),
      atol=1e-6)


@every_estimator
def test_m9_masked_groups_equal_absent_groups(name):
  r, tokens = batch(6)
  tokens.mask[2] = False
  got = estimate(name, r, spoil(tokens))
  want = estimate(name, r[:2], columns.Tokens(**{
      k: v[:2] for k, v in tokens._asdict().items() if v is not None}))
  np.testing.assert_allclose(got[:2], want, atol=1e-6)
  assert not np.any(got[2]) and not np.any(got[0, 1])


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


@pytest.mark.parametrize('made', [
    returns.reinforce_pp,
    functools.partial(returns.gae, lam=.9), returns.actor_critic])
def test_m28_a_second_step_compiles_nothing(made):
  tokens = TOKENS._replace(values=np.full(MASK.shape, .5, np.float32))
  made(R, tokens)
  counter = compiles.CompileCounter()
  made(R + 1, tokens)
  assert counter.count == 0
  counter.close()
