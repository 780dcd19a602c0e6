"""KL estimators: worked numbers, sign, slope at equality, extremes."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.losses import kl

ALL = [kl.k1, kl.k2, kl.k3, kl.k3_plus, kl.absolute,
       lambda x, y: kl.k3(x, y, difference_clamp=None, value_clamp=None)]


@pytest.mark.parametrize('fn, logp, ref, want', [
    (kl.k1, -1.0, -1.5, 0.5),
    (kl.absolute, -1.5, -1.0, 0.5),
    (kl.k2, -1.0, -1.5, 0.125),
    # exp(-.5) + .5 - 1 = .606531 - .5; exp(.5) - .5 - 1 = 1.648721 - 1.5.
    (kl.k3, -1.0, -1.5, 0.106531),
    (kl.k1, -1.5, -1.0, -0.5),
    (kl.k3, -1.5, -1.0, 0.148721),
    (kl.k3_plus, -1.5, -1.0, 0.148721),
    # exp(-.2) + .2 - 1.
    (kl.k3, -1.0, -1.2, 0.0187308),
    # exp(3) - 4 = 16.085537, clamped to 10.
    (kl.k3, -4.0, -1.0, 10.0),
])
def test_worked_numbers(fn, logp, ref, want):
  np.testing.assert_allclose(
      fn(jnp.float32(logp), jnp.float32(ref)), want, atol=1e-6)


def test_k3_without_clamps():
  got = kl.k3(jnp.float32(-4), jnp.float32(-1), difference_clamp=None,
              value_clamp=None)
  np.testing.assert_allclose(got, 16.085537, rtol=1e-6)
  # d = 5 clamped to 2: exp(2) - 3.
  got = kl.k3(jnp.float32(-6), jnp.float32(-1), difference_clamp=2.0)
  np.testing.assert_allclose(got, 4.389056, rtol=1e-6)


def test_k3_plus_has_the_slope_of_k2():
  x, y = jnp.float32(-1.5), jnp.float32(-1.0)
  # k2: x - y; k3: 1 - exp(y - x) = -.648721.
  np.testing.assert_allclose(jax.grad(kl.k3_plus)(x, y), -0.5, atol=1e-6)
  np.testing.assert_allclose(jax.grad(kl.k3)(x, y), -0.648721, atol=1e-6)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    st.floats(-50, 0, width=32), st.floats(-50, 0, width=32))
def test_k3_is_never_negative(x, y):
  assert kl.k3(jnp.float32(x), jnp.float32(y)) >= 0
  near = jnp.float32(x) + jnp.float32(y) * 1e-7
  assert kl.k3(jnp.float32(x), near) >= 0


@pytest.mark.parametrize('fn', [kl.k2, kl.k3, kl.k3_plus, kl.absolute])
def test_value_and_slope_are_zero_at_equality(fn):
  value, slope = jax.value_and_grad(fn)(jnp.float32(-1.3), jnp.float32(-1.3))
  assert value == 0 and slope == 0


@pytest.mark.parametrize('fn', ALL)
@pytest.mark.parametrize('delta', [1e4, -1e4, 1e3, -1e3, 89.0, -89.0, 41.0])
def test_m8_extremes_are_finite(fn, delta):
  value, slope = jax.value_and_grad(fn)(jnp.float32(-1 + delta),
                                        jnp.float32(-1))
  assert np.isfinite(value) and np.isfinite(slope)
