"""Masked statistics: values, garbage under the mask, empty selections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import masked

X = jnp.array([[1.0, 4.0, jnp.nan], [jnp.inf, 7.0, -jnp.inf]])
M = jnp.array([[True, True, False], [False, True, False]])
EMPTY = jnp.zeros_like(M)


def test_values_ignore_what_is_masked():
  # Kept: 1, 4, 7. Sum 12, mean 4, squares 9 + 0 + 9 = 18.
  assert masked.sum(X, M) == 12
  assert masked.mean(X, M) == 4
  assert masked.max(X, M) == 7
  assert masked.count(M) == 3
  assert masked.var(X, M, ddof=1) == 9
  np.testing.assert_allclose(masked.std(X, M, ddof=1), 3, rtol=1e-6)
  np.testing.assert_allclose(masked.std(X, M), 6 ** 0.5, rtol=1e-6)
  np.testing.assert_allclose(masked.mean(X, M, -1), [2.5, 7])


def test_whiten_is_verl_masked_whiten():
  # Values 1, 1, 0, 0, 0: mean .4, sample variance
  # (2 * .36 + 3 * .16) / 4 = .3; .6 / sqrt(.3) = 1.095445,
  # -.4 / sqrt(.3) = -.730297.
  x = jnp.array([[1.0, 1.0, 9.0], [0.0, 0.0, 0.0]])
  mask = jnp.array([[True, True, False], [True, True, True]])
  np.testing.assert_allclose(
      masked.whiten(x, mask),
      [[1.095445, 1.095445, 0], [-0.730297] * 3], atol=1e-5)


def test_whiten_of_equal_values_is_exactly_zero():
  # The fp32 mean of these misses 0.9, and 1 / sqrt(1e-8) is 10000.
  x = jnp.full((7, 11), 0.9, jnp.float32)
  assert not np.any(masked.whiten(x, jnp.ones_like(x, bool)))


def test_mask_broadcasts():
  x = jnp.ones((2, 3, 1))
  mask = jnp.ones((2, 3, 5), bool)
  assert masked.sum(x, mask) == 30
  assert masked.mean(x, mask) == 1
  assert masked.var(x, mask) == 0


@pytest.mark.parametrize(
    'fn', [masked.sum, masked.mean, masked.var, masked.std, masked.max,
           lambda x, m: masked.whiten(x, m).sum()])
def test_m9_empty_selection_is_zero_with_zero_gradient(fn):
  value, gradient = jax.value_and_grad(fn)(X, EMPTY)
  assert value == 0
  assert not np.any(gradient)


@pytest.mark.parametrize(
    'fn', [masked.sum, masked.mean, masked.var, masked.std, masked.max,
           lambda x, m: jnp.square(masked.whiten(x, m)[0, 0])])
def test_gradients_are_finite_and_stay_out_of_the_mask(fn):
  gradient = np.asarray(jax.grad(fn)(X, M))
  assert np.all(np.isfinite(gradient))
  assert not np.any(gradient[~np.asarray(M)])
  assert np.any(gradient)


def test_std_of_equal_values_has_a_finite_gradient():
  x = jnp.full((4,), 2.0)
  assert not np.any(jax.grad(masked.std)(x, jnp.ones(4, bool)))


@pytest.mark.parametrize('fraction, want', [
    # Rows of 5, 3 and 1 kept entries: ceil(2), ceil(1.2), ceil(.4).
    (0.4, [[0, 1, 0, 1, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]),
    # ceil(1), ceil(.6), ceil(.2); ceil(3), ceil(1.8), ceil(.6).
    (0.2, [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]),
    (0.6, [[1, 1, 0, 1, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]),
    (1.0, [[1] * 5, [0, 1, 0, 1, 1], [0, 0, 1, 0, 0]]),
    (0.0, [[0] * 5] * 3)])
def test_top_fraction(fraction, want):
  # Of equals (2 and 2 of the second row) the first.
  x = jnp.array([[3.0, 9.0, -1.0, 4.0, 0.0], [jnp.nan, 2.0, jnp.inf, 2.0, 1.0],
                 [jnp.inf, jnp.inf, -5.0, 0.0, 0.0]])
  mask = jnp.array([[1] * 5, [0, 1, 0, 1, 1], [0, 0, 1, 0, 0]], bool)
  assert masked.top_fraction(x, mask, fraction).astype(int).tolist() == want
  traced = jax.jit(masked.top_fraction)(x, mask, fraction)
  assert traced.astype(int).tolist() == want


def test_top_fraction_is_ceil_in_exact_arithmetic():
  """.4 x 5 is 2.0000000298 in fp32; the last token of 2500 counts."""
  for n in (5, 10, 15, 2500):
    got = masked.top_fraction(jnp.arange(n, dtype=jnp.float32),
                              jnp.ones(n, bool), jnp.float32(0.4))
    assert got.sum() == 2 * n // 5 and got[-1] and not got[0]
  got = masked.top_fraction(jnp.zeros(2501), jnp.ones(2501, bool), 0.4)
  assert got.sum() == 1001 and got[:1001].all()  # ceil(1000.4)


def test_top_fraction_of_nothing_is_nothing():
  assert not masked.top_fraction(X, EMPTY, 0.5).any()
