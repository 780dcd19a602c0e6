"""Group advantages: worked numbers, missing values, no variance, symmetries."""

import statistics

import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import columns

R = np.array([1.0, 0, 0, 1, 1, 0, 0, 0]).reshape(1, 8, 1)
LENGTHS = np.array([[2, 4, 4, 2, 4, 4, 4, 4]])
TOKENS = columns.Tokens(lengths=LENGTHS)
ESTIMATORS = {
    'grpo': advantages.grpo,
    'grpo_batch': lambda r, t: advantages.grpo(r, std='batch'),
    'vectorized': lambda r, t: advantages.grpo(r, var_floor=1e-6),
    'dr_grpo': advantages.dr_grpo,
    'rloo': advantages.rloo,
    'gdpo': advantages.normalize_then_sum,
    'opo': lambda r, t: advantages.opo(
        r, t if t else columns.Tokens(lengths=np.full(r.shape[:2], 3))),
    'pass_at_k': advantages.pass_at_k,
    'gpg': advantages.gpg,
}


def two_values(advantage, rewards=R):
  """The advantage of the ones and of the zeros; each must be one number."""
  a = advantage[..., 0][rewards[..., 0] == 1]
  b = advantage[..., 0][rewards[..., 0] == 0]
  assert np.ptp(a) == 0 and np.ptp(b) == 0
  return a[0], b[0]


@pytest.mark.parametrize('kw, one, zero', [
    # mean 3/8; sample variance 8 (3/8)(5/8) / 7 = .267857, sigma .517549.
    # .625 / .517550 and -.375 / .517550.
    (dict(eps=1e-6), 1.207612, -0.724567),
    # TRL: .625 / .517649 and -.375 / .517649.
    (dict(eps=1e-4), 1.207381, -0.724429),
    # Population variance (3/8)(5/8) = .234375, sigma .484123.
    (dict(ddof=0, eps=0.0), 1.290994, -0.774597),
    (dict(ddof=0, eps=1e-6), 1.290992, -0.774595),
    # One group: the batch is the group.
    (dict(std='batch', eps=1e-6), 1.207612, -0.724567),
    (dict(std='none'), 0.625, -0.375),
    # verl's vectorized form: the floor of 1e-6 does not bind here.
    (dict(eps=1e-6, var_floor=1e-6), 1.207612, -0.724567),
    # sigma = sqrt(max(.267857, 1)) = 1.
    (dict(var_floor=1.0, eps=0.0), 0.625, -0.375),
])
def test_grpo_conventions(kw, one, zero):
  got = two_values(advantages.grpo(R, **kw))
  np.testing.assert_allclose(got, (one, zero), atol=6e-7)


def test_vectorized_variance_floor():
  # (.001, 0): variance 5e-7, below the floor of 1e-6; .0005 / (.001 + 1e-6).
  r = np.array([1e-3, 0.0]).reshape(1, 2, 1)
  np.testing.assert_allclose(
      advantages.grpo(r, eps=1e-6, var_floor=1e-6)[0, :, 0],
      [0.499500, -0.499500], atol=1e-6)


def test_worked_numbers_of_the_others():
  # R - mean.
  np.testing.assert_allclose(two_values(advantages.dr_grpo(R)),
                             (0.625, -0.375))
  # 1 - 2/7 and 0 - 3/7: the mean of the seven others.
  np.testing.assert_allclose(two_values(advantages.rloo(R)), (5 / 7, -3 / 7))
  # alpha = 8 / 3: .625 * 8 / 3 and -.375 * 8 / 3.
  np.testing.assert_allclose(two_values(advantages.gpg(R)), (5 / 3, -1))
  # One value of four: alpha = 4, .75 * 4 and -.25 * 4.
  lone = np.array([1.0, 0, 0, 0]).reshape(1, 4, 1)
  np.testing.assert_allclose(two_values(advantages.gpg(lone), lone), (3, -1))
  # baseline (2 + 2 + 4) / 28 = 2 / 7.
  np.testing.assert_allclose(two_values(advantages.opo(R, TOKENS)),
                             (5 / 7, -2 / 7))
  # Three tied best.
  assert not np.any(advantages.pass_at_k(R))


def test_pass_at_k_rewards_only_the_best():
  # Best 3, second 1: gain 2. mean 1, sample variance (4+0+1+1)/3 = 2.
  r = np.array([3.0, 1, 0, 0]).reshape(1, 4, 1)
  np.testing.assert_allclose(
      advantages.pass_at_k(r, eps=0.0)[0, :, 0], [2 / 2 ** 0.5, 0, 0, 0])
  np.testing.assert_allclose(
      advantages.pass_at_k(r, std='none')[0, :, 0], [2, 0, 0, 0])


# (value, values of its group, their lengths, values of the batch) -> advantage,
# of one column; values that are missing are not there.


def naive_grpo(value, group, lengths, batch):
  del lengths, batch
  return (value - statistics.mean(group)) / (statistics.stdev(group) + 1e-6)


def naive_grpo_batch(value, group, lengths, batch):
  del lengths
  return (value - statistics.mean(group)) / (statistics.stdev(batch) + 1e-6)


def naive_vectorized(value, group, lengths, batch):
  del lengths, batch
  variance = max(statistics.variance(group), 1e-6)
  return (value - statistics.mean(group)) / (variance ** 0.5 + 1e-6)


def naive_dr_grpo(value, group, lengths, batch):
  del lengths, batch
  return value - statistics.mean(group)


def naive_rloo(value, group, lengths, batch):
  del lengths, batch
  others = list(group)
  others.remove(value)
  return value - statistics.mean(others)


def naive_opo(value, group, lengths, batch):
  del batch
  return value - sum(r * n for r, n in zip(group, lengths)) / sum(lengths)


def naive_pass_at_k(value, group, lengths, batch):
  del lengths, batch
  *_, second, best = sorted(group)
  if value < best:
    return 0.0
  return (best - second) / (statistics.stdev(group) + 1e-6)


def naive_gpg(value, group, lengths, batch):
  del lengths
  alpha = len(batch) / max(1, sum(r != 0 for r in batch))
  return alpha * (value - statistics.mean(group))


NAIVE = {'grpo': naive_grpo, 'grpo_batch': naive_grpo_batch,
         'vectorized': naive_vectorized, 'dr_grpo': naive_dr_grpo,
         'rloo': naive_rloo, 'opo': naive_opo, 'pass_at_k': naive_pass_at_k,
         'gpg': naive_gpg}


def ragged(seed):
  """Rewards with holes and zeros, one group without variance; lengths."""
  rng = np.random.default_rng(seed)
  r = rng.integers(-3, 4, (5, 6, 2)) / 3
  r[rng.random(r.shape) > 0.8] = np.nan
  r[0] = 0.9
  r[1] *= 1e3
  r[2, :, 0] = [1, np.nan, 0, 0, np.nan, 0]
  return r, columns.Tokens(lengths=rng.integers(1, 30, (5, 6)))


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('name', NAIVE)
def test_equals_a_loop_over_lists(name, seed):
  r, tokens = ragged(seed)
  want = np.zeros((*r.shape[:2], 1))
  for g, i, k in np.argwhere(~np.isnan(r)):
    here = ~np.isnan(r[g, :, k])
    group, batch = r[g, here, k].tolist(), r[..., k].ravel()
    if len(set(group)) > 1:  # else exactly 0, see the module
      want[g, i, 0] += NAIVE[name](
          float(r[g, i, k]), group, tokens.lengths[g, here].tolist(),
          batch[~np.isnan(batch)].tolist())
  got = ESTIMATORS[name](r, tokens)
  np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
  assert not np.any(got[0]) and np.any(got[1])


@pytest.mark.parametrize('group, ones, one, zero', [
    # G = 16, 3 ones: mean .1875, variance 16 * .1875 * .8125 / 15 = .1625.
    (16, 3, 2.01556, -0.46513),
    (8, 3, 1.20761, -0.72457),
    # G = 4, 2 ones: variance 4 * .25 / 3, .5 / .57735.
    (4, 2, 0.86602, -0.86602),
])
def test_vision_r1_numbers(group, ones, one, zero):
  r = (np.arange(group) < ones).astype(float).reshape(1, group, 1)
  np.testing.assert_allclose(
      two_values(advantages.grpo(r), r), (one, zero), atol=1e-5)


def test_duplicating_every_response_changes_sigma_through_ddof_only():
  twice = np.concatenate([R, R], axis=1)
  population = lambda r: two_values(advantages.grpo(r, ddof=0, eps=0.0), r)
  np.testing.assert_allclose(population(twice), population(R), rtol=1e-12)
  # Sample variances: 8 v / 7 before, 16 v / 15 after.
  sample = lambda r: two_values(advantages.grpo(r, eps=0.0), r)[0]
  np.testing.assert_allclose(
      sample(twice) / sample(R), ((8 / 7) / (16 / 15)) ** 0.5, rtol=1e-12)


def test_normalize_then_sum():
  # Columns (0, 1) and (0, 100), std .5 sqrt(2) and 50 sqrt(2): both z are
  # -+ .707107 (eps 0). With weights 2 and 1: -+ 2.121320; the batch divides
  # by its std, 2.121320 sqrt(2) = 3: again -+ .707107. The second group has
  # no variance: z = 0, but it takes part in the std:
  # sqrt((4.5 + 4.5) / 3) = 1.732051: -+ 1.224745.
  r = np.array([[[0.0, 0], [1, 100]], [[5, 5], [5, 5]]])
  one = advantages.normalize_then_sum(r[:1], weights=(2.0, 1.0), eps=0.0)
  np.testing.assert_allclose(one[0, :, 0], [-0.707107, 0.707107], atol=1e-6)
  both = advantages.normalize_then_sum(r, weights=(2.0, 1.0), eps=1e-12)
  np.testing.assert_allclose(both[0, :, 0], [-1.224745, 1.224745], atol=1e-6)
  assert not np.any(both[1])
  with pytest.raises(ValueError, match='3 weights for 2 reward columns'):
    advantages.normalize_then_sum(r, weights=(1.0, 1.0, 1.0))


@pytest.mark.parametrize('name', ESTIMATORS)
@pytest.mark.parametrize('library', ['numpy32', 'numpy64', 'jax'])
@pytest.mark.parametrize('value', [0.9, 0.1, 1 / 3, -1e6 / 7])
def test_m7_group_without_variance_is_exactly_zero(name, library, value):
  r = np.full((3, 8, 1), value, np.float64)
  r[1, :4] += 1.0  # its neighbours vary, so batch statistics do not vanish
  if library == 'numpy32':
    r = r.astype(np.float32)
  elif library == 'jax':
    r = jnp.asarray(r, jnp.float32)
  got = np.asarray(ESTIMATORS[name](r, None))
  assert not np.any(got[0]) and not np.any(got[2])
  assert np.all(np.isfinite(got))
  if name != 'pass_at_k':  # four tie for the best
    assert np.all(got[1] != 0)


def test_m7_rounding_is_not_variance():
  # .1 + .2 and .3 differ by one unit in the last place.
  r = np.array([0.1 + 0.2, 0.3]).reshape(1, 2, 1)
  assert r[0, 0, 0] != r[0, 1, 0]
  assert not np.any(advantages.grpo(r, eps=0.0))


@pytest.mark.parametrize('name', ESTIMATORS)
def test_m7_group_of_one_is_zero(name):
  r = np.array([0.7, 0.2]).reshape(2, 1, 1)
  tokens = columns.Tokens(lengths=np.array([[3], [5]]))
  assert not np.any(ESTIMATORS[name](r, tokens))


def test_m13_zero_is_a_value():
  # 0 in the group: mean of (1, 0, 1) = 2/3; missing: mean of (1, 1) = 1.
  zero = np.array([1.0, 0.0, 1.0]).reshape(1, 3, 1)
  none = np.array([1.0, np.nan, 1.0]).reshape(1, 3, 1)
  np.testing.assert_allclose(
      advantages.dr_grpo(zero)[0, :, 0], [1 / 3, -2 / 3, 1 / 3])
  assert not np.any(advantages.dr_grpo(none))


@pytest.mark.parametrize('name', ESTIMATORS)
def test_m13_missing_rows_equal_absent_rows(name):
  rng = np.random.default_rng(0)
  r = rng.normal(size=(1, 5, 1))
  lengths = rng.integers(1, 9, (1, 5))
  holes = np.insert(r, [1, 4], np.nan, axis=1)
  got = ESTIMATORS[name](
      holes, columns.Tokens(lengths=np.insert(lengths, [1, 4], 7, axis=1)))
  want = ESTIMATORS[name](r, columns.Tokens(lengths=lengths))
  np.testing.assert_allclose(np.delete(got, [1, 5], axis=1), want, rtol=1e-12)
  assert not np.any(got[:, [1, 5]])


@pytest.mark.parametrize('name', ESTIMATORS)
def test_m9_groups_without_values_equal_absent_groups(name):
  r, tokens = ragged(7)
  more = np.insert(r, [0, 3, 5], np.nan, axis=0)
  got = ESTIMATORS[name](more, columns.Tokens(
      lengths=np.insert(tokens.lengths, [0, 3, 5], 9, axis=0)))
  np.testing.assert_allclose(
      np.delete(got, [0, 4, 7], axis=0), ESTIMATORS[name](r, tokens),
      rtol=1e-12)
  assert not np.any(got[[0, 4, 7]])


def test_missing_column_counts_in_the_other():
  # Column 0: (1, -, 0), mean .5; column 1: (0, 3, 0), mean 1.
  r = np.array([[[1.0, 0], [np.nan, 3], [0, 0]]])
  np.testing.assert_allclose(
      advantages.dr_grpo(r)[0, :, 0], [0.5 - 1, 2, -0.5 - 1])


@pytest.mark.parametrize('name', ESTIMATORS)
@pytest.mark.parametrize('seed', range(3))
def test_symmetries(name, seed):
  rng = np.random.default_rng(seed)
  r = rng.normal(size=(3, 6, 2)).round(2) + 10
  tokens = columns.Tokens(lengths=rng.integers(1, 20, (3, 6)))
  fn = ESTIMATORS[name]
  got = fn(r, tokens)
  assert got.shape == (3, 6, 1)
  order = rng.permutation(6)
  permuted = fn(r[:, order], columns.Tokens(lengths=tokens.lengths[:, order]))
  np.testing.assert_allclose(permuted, got[:, order], atol=1e-9)
  shift = rng.normal(size=(3, 1, 2))  # another constant for each group
  # std='batch' sees between-group spread, the others no shift at all (gpg
  # only where it makes no reward 0).
  if name == 'grpo_batch':
    shift = shift[:1]
  np.testing.assert_allclose(fn(r + shift, tokens), got, atol=1e-9)
  np.testing.assert_allclose(
      np.asarray(fn(jnp.asarray(r), tokens)), got, atol=2e-3)


def test_rejects_what_it_cannot_read():
  with pytest.raises(ValueError, match='prompts, samples, columns'):
    advantages.grpo(np.ones((2, 4)))
  with pytest.raises(ValueError, match=r'column\] \(0, 1, 0\)'):
    advantages.grpo(np.array([1.0, np.inf]).reshape(1, 2, 1))
  with pytest.raises(ValueError, match="'sample' is not one of"):
    advantages.grpo(R, std='sample')
  with pytest.raises(ValueError, match='needs tokens.lengths'):
    advantages.opo(R, columns.Tokens())


def test_inputs_are_not_changed():
  r = np.array([1.0, np.nan, 0.0]).reshape(1, 3, 1)
  before = r.copy()
  advantages.grpo(r)
  np.testing.assert_array_equal(r, before)
