"""Reductions: worked numbers, additivity, padding, empty masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.losses import reduce

# Rows [1, 2], [3, 3, 3, 3] and an empty one; nan under the mask.
VALUES = jnp.array([[[1.0, 2, jnp.nan, jnp.inf], [3, 3, 3, 3], [jnp.nan] * 4]])
MASK = jnp.array([[[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]], bool)

CASES = {
    # (1 + 2 + 12) / 6.
    'token_mean': (dict(mode='token_mean'), 2.5),
    # (1.5 + 3) / 2 rows that have tokens; / 3 rows (TRL grpo).
    'seq_mean': (dict(mode='seq_mean'), 2.25),
    'seq_mean_all': (dict(mode='seq_mean', rows='all'), 1.5),
    # (3 + 12) / 2.
    'seq_sum': (dict(mode='seq_sum'), 7.5),
    'seq_sum_all': (dict(mode='seq_sum', rows='all'), 5.0),
    # 15 / 4 (verl in January 2026); 15 / (2 * 4) later; TRL 15 / (3 * 8).
    'constant_none': (dict(mode='constant', length=4, rows='none'), 3.75),
    'constant': (dict(mode='constant', length=4), 1.875),
    'constant_all': (dict(mode='constant', length=8, rows='all'), 0.625),
}
KW = [kw for kw, _ in CASES.values()]


def mean(values, mask, **kw):
  return reduce.finish(*reduce.reduce(values, mask, **kw))


@pytest.mark.parametrize('kw, want', CASES.values(), ids=CASES)
def test_worked_numbers(kw, want):
  assert mean(VALUES, MASK, **kw) == want


@pytest.mark.parametrize('kw', KW, ids=CASES)
def test_m3_chunks_add_up_to_the_whole(kw):
  rng = np.random.default_rng(0)
  values = jnp.asarray(rng.normal(size=(4, 6, 7)), jnp.float32)
  mask = jnp.asarray(np.arange(7) < rng.integers(0, 8, (4, 6, 1)))
  whole = reduce.reduce(values, mask, **kw)
  for axis in (0, 1):
    pieces = [
        reduce.reduce(v, m, **kw)
        for v, m in zip(jnp.split(values, 2, axis), jnp.split(mask, 2, axis))]
    total, count = map(sum, zip(*pieces))
    np.testing.assert_allclose(total, whole[0], rtol=1e-5, atol=1e-6)
    assert count == whole[1]


@pytest.mark.parametrize('kw', KW, ids=CASES)
def test_m9_padding_and_scores_do_not_change_the_count(kw):
  pad = ((0, 0), (0, 0), (0, 5))
  padded = mean(jnp.pad(VALUES, pad, constant_values=jnp.nan),
                jnp.pad(MASK, pad), **kw)
  assert padded == mean(VALUES, MASK, **kw)
  _, count = reduce.reduce(VALUES, MASK, **kw)
  _, other = reduce.reduce(VALUES * 0 - 1e30, MASK, **kw)
  assert count == other


@pytest.mark.parametrize('kw', KW, ids=CASES)
def test_m9_all_masked_is_exactly_zero(kw):
  value, gradient = jax.value_and_grad(
      lambda v: mean(v, jnp.zeros_like(MASK), **kw))(VALUES)
  assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize('kw', KW, ids=CASES)
def test_one_value_a_row_is_that_value_on_every_token(kw):
  rows = jnp.array([[[2.0], [5.0], [jnp.nan]]])
  assert mean(rows, MASK, **kw) == mean(
      jnp.broadcast_to(rows, MASK.shape), MASK, **kw)


def test_token_and_sequence_mean_differ_only_with_lengths():
  slope = lambda mask, mode: jax.grad(
      lambda v: mean(v, mask, mode=mode))(jnp.ones(mask.shape))
  # 1 / 6 each against 1 / (2 * 2) and 1 / (2 * 4).
  np.testing.assert_allclose(slope(MASK, 'token_mean')[0, :2, 0], [1 / 6] * 2)
  np.testing.assert_allclose(
      slope(MASK, 'seq_mean')[0, :2, 0], [1 / 4, 1 / 8])
  even = jnp.ones((2, 3, 4), bool)
  np.testing.assert_allclose(
      slope(even, 'token_mean'), slope(even, 'seq_mean'))


def test_shapes_that_would_broadcast_wrongly_are_errors():
  for values in (VALUES[0], VALUES[..., 0], VALUES[:, :1]):
    with pytest.raises(ValueError, match=r'allowed for this mask are'):
      reduce.reduce(values, MASK)


@pytest.mark.parametrize('kw, message', [
    (dict(mode='mean'), "'mean' is not one of"),
    (dict(rows='some'), "'some' is not one of"),
    (dict(mode='seq_mean', rows='none'), "belongs to mode='constant'"),
    (dict(mode='token_mean', rows='all'), 'does not count rows'),
    (dict(mode='constant'), "'length' is the divisor"),
    (dict(mode='seq_sum', length=4), "'length' is the divisor"),
])
def test_m22_contradictions_are_errors(kw, message):
  with pytest.raises(ValueError, match=message):
    reduce.reduce(VALUES, MASK, **kw)


@pytest.mark.parametrize('kw', KW, ids=CASES)
def test_rows_that_are_there_several_times(kw):
  """As if they were repeated; 0 times, as if they were not there."""
  rng = np.random.default_rng(1)
  values = rng.normal(size=(2, 4, 5)).astype(np.float32)
  mask = np.arange(5) < rng.integers(0, 6, (2, 4, 1))
  times = np.asarray([[3, 0, 1, 2], [1, 1, 4, 0]])
  mask &= (times > 0)[..., None]  # as the stage does
  values[~mask] = np.nan
  got = reduce.reduce(jnp.asarray(values), jnp.asarray(mask),
                      times=jnp.asarray(times[..., None], jnp.float32), **kw)
  flat = [x.reshape(8, 5).repeat(times.ravel(), 0)[None]
          for x in (values, mask)]
  want = reduce.reduce(*map(jnp.asarray, flat), **kw)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  once = reduce.reduce(jnp.asarray(values), jnp.asarray(mask), **kw)
  ones = reduce.reduce(jnp.asarray(values), jnp.asarray(mask),
                       times=jnp.ones((2, 4, 1)), **kw)
  np.testing.assert_allclose(ones, once, rtol=1e-6)
  assert abs(got[0] - once[0]) > 0.1
