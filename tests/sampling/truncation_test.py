"""Top-k and top-p against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.sampling import truncation

truncate = jax.jit(truncation.truncate)
KS, PS = (0, 1, 2, 5, 16, 17, 1000), (1.0, 0.97, 0.5, 0.2, 1e-6)


def kept(logits, top_k, top_p):
  """bool[V] of one row, by sorting; equal values stay together."""
  order = np.sort(logits)[::-1]
  keep = np.ones(len(logits), bool)
  if 0 < top_k < len(logits):
    keep = logits >= order[top_k - 1]
  if top_p < 1:
    p = np.where(keep, np.exp(logits.astype(np.float64) - order[0]), 0)
    p /= p.sum()
    falling = np.sort(p)[::-1]
    last = np.searchsorted(np.cumsum(falling), top_p)
    keep &= p >= falling[min(last, len(p) - 1)]
  return keep


def check(logits):
  logits = np.asarray(logits, np.float32)
  for top_k in KS:
    for top_p in PS:
      got = np.asarray(truncate(
          logits, jnp.int32(top_k), jnp.float32(top_p)))
      for row, out in zip(logits, got):
        keep = kept(row, top_k, np.float32(top_p))
        np.testing.assert_array_equal(
            out, np.where(keep, row, -np.inf), err_msg=f'{top_k} {top_p}')


def test_equals_sorting():
  rng = np.random.default_rng(0)
  check(rng.normal(size=(20, 16)) * rng.choice([0.1, 1, 10], (20, 1)))


def test_m2_banned_logits_stay_banned():
  logits = np.random.default_rng(1).normal(size=(20, 16))
  logits[:, [0, 7, 15]] = -np.inf
  check(logits)
  logits[:10, 2:] = -np.inf
  check(logits)
  assert np.isneginf(truncate(
      jnp.asarray(logits), jnp.int32(16), jnp.float32(1))[:, 15]).all()


def test_ties_are_kept_together():
  """Halves, so that many values are equal: [1, 1, 0.5, ...]."""
  rng = np.random.default_rng(2)
  check(rng.integers(-3, 4, (20, 16)) / 2)
  check(np.zeros((2, 16)))
  out = truncate(jnp.asarray([0.0, 3.0, 2.0, 2.0, 1.0]), jnp.int32(2),
                 jnp.float32(1))
  assert out.tolist() == [-np.inf, 3, 2, 2, -np.inf]


def test_by_hand():
  """p = [.5, .3, .2]: .4 keeps one, .6 two, .9 three; after top-2 the masses
  are .625 and .375, so that .6 keeps one there and .7 two."""
  logits = jnp.log(jnp.asarray([0.2, 0.5, 0.3]))
  for top_k, top_p, expected in (
      (0, 0.4, [1]), (0, 0.6, [1, 2]), (0, 0.9, [0, 1, 2]), (2, 0.6, [1]),
      (2, 0.7, [1, 2]), (1, 1.0, [1]), (3, 1.0, [0, 1, 2])):
    out = truncate(logits, jnp.int32(top_k), jnp.float32(top_p))
    assert np.flatnonzero(np.isfinite(out)).tolist() == expected


@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_p_of_1_and_k_of_0_keep_everything(scale):
  logits = jnp.asarray(
      np.random.default_rng(3).normal(size=(5, 16)) * scale, jnp.float32)
  for top_k in (0, 16, 99):
    out = truncate(logits, jnp.int32(top_k), jnp.float32(1))
    np.testing.assert_array_equal(out, logits)


def test_m28_one_program_for_every_k_and_p():
  fn = jax.jit(lambda *args: truncation.truncate(*args))
  for top_k in (0, 3):
    for top_p in (1.0, 0.5):
      fn(jnp.zeros((2, 8)), jnp.int32(top_k), jnp.float32(top_p))
  assert fn._cache_size() == 1
