"""One token from two random numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.sampling import draw


def drawn(logits, uniform):
  return np.asarray(draw.draw(
      jnp.asarray(logits, jnp.float32), jnp.asarray(uniform, jnp.float32)))


@pytest.mark.parametrize('uniform, expected', [
    ((0.0, 0.0), 0), ((0.69, 0.28), 0), ((0.1, 0.29), 1), ((0.1, 0.85), 1),
    ((0.1, 0.86), 2), ((0.71, 0.66), 3), ((0.71, 0.67), 4),
    ((1 - 2**-24, 1 - 2**-24), 4)])
def test_worked_by_hand(uniform, expected):
  """Words .2 .4 .1 | .2 .1 in two blocks of .7 and .3: the first number finds
  the block (up to .7, up to 1), the second the word, up to 2/7, 6/7, 1 of the
  one and 2/3, 1 of the other."""
  assert drawn(np.log([0.2, 0.4, 0.1, 0.2, 0.1]), uniform) == expected


def test_tokens_follow_the_softmax():
  """Chi-square of 200,000 draws of 30 words, the rarest 2e-4: 29 degrees of
  freedom, 58.3 is exceeded with probability 0.001."""
  logits = np.linspace(0, -6, 30)
  p = np.exp(logits) / np.exp(logits).sum()
  uniform = np.random.default_rng(0).random((200_000, 2), np.float32)
  counts = np.bincount(drawn(
      np.broadcast_to(logits, (len(uniform), 30)), uniform), minlength=30)
  assert ((counts - p * counts.sum())**2 / (p * counts.sum())).sum() < 58.3


def test_a_long_tail_is_reached():
  """1e5 words of 1e-9 each beside one of nearly 1: one float32 number between
  1 - 1e-4 and 1 has 1,700 values, and most words of the tail would have none."""
  logits = np.log(np.r_[np.full(100_000, 1e-9), 1.0])
  tail = np.r_[np.full(100_000, 0.0), -np.inf]
  uniform = np.random.default_rng(0).random((64, 2), np.float32)
  found = drawn(np.broadcast_to(tail, (64, 100_001)), uniform)
  assert len(np.unique(found)) == 64
  assert (drawn(np.broadcast_to(logits, (64, 100_001)), uniform) ==
          100_000).all()


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 63, 64, 65])
def test_a_word_of_weight_0_is_never_drawn(size):
  """At the ends of the interval and in between; any number of words."""
  rng = np.random.default_rng(size)
  ends = [0.0, 1 - 2**-24]
  uniform = np.array([(a, b) for a in (*ends, 0.5) for b in (*ends, 0.5)])
  for _ in range(20):
    logits = 20 * rng.normal(size=size)
    allowed = rng.random(size) < 0.3
    allowed[rng.integers(size)] = True
    logits[~allowed] = -np.inf
    found = drawn(np.broadcast_to(logits, (9, size)), uniform)
    assert allowed[found].all()


def test_m8_nan_and_extreme_logits_give_a_valid_id():
  assert 0 <= drawn([np.nan] * 5, (0.3, 0.3)) < 5
  assert drawn([-1e30, 3e38, 0.0], (0.99, 0.99)) == 1
