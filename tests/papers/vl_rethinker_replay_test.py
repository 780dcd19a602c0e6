"""VL-Rethinker's selective sample replay by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import types
from mmr1.papers import vl_rethinker_replay as paper


def rng(seed=0):
  return np.random.default_rng(seed)


def selected(a, seed=0, fn=paper.selected):
  a = np.asarray(a, np.float32)
  count, says, more, state = fn({}, a[..., None], {}, 'state', rng(seed))
  assert count.dtype == np.int64 and count.shape == a.shape
  assert not more and state == 'state'
  assert says == {'select/effective': pytest.approx((a != 0).mean())}
  return count


def refilled(a, keep, stored, seed=0, **kw):
  a = np.asarray(a, np.float64)
  return paper.refilled(a, np.asarray(keep), np.asarray(stored, np.float64),
                        rng(seed), **{'capacity': a.size // 2,
                                      'rows': a.size // 2, **kw})


def test_probabilities_by_hand():
  outcome = np.array([[1.0] * 6 + [0.0] * 2])
  a = advantages.dr_grpo(outcome[..., None])[0, :, 0]
  np.testing.assert_allclose(a, [.25] * 6 + [-.75] * 2)
  np.testing.assert_allclose(
      paper.probabilities(a), [1 / 12] * 6 + [.25] * 2)
  np.testing.assert_allclose(
      paper.probabilities(np.array([.25, -.75, .5]), floor=1e-4),
      [.166700, .499967, .333333], atol=1e-6)
  np.testing.assert_allclose(
      paper.probabilities(np.array([1.0, 2, 0]), power=2.0), [.2, .8, 0])
  assert paper.probabilities(np.zeros(3)).tolist() == [0, 0, 0]
  with pytest.raises(ValueError, match='power=0.0'):
    paper.probabilities(np.ones(2), power=0.0)


def test_a_full_rollout_needs_no_replay():
  """Of the 70 halves 15 have both wrong ones, of .75 / 2 each, and 20 the
  first of them only, of .75 / 1.5: (15 x .375 + 20 x .5) / 70 = .2232. The six
  right ones share the rest of 1 - 2 x .2232: .0923."""
  a = [[.25] * 6 + [-.75] * 2]
  total = np.zeros(8)
  for seed in range(1000):
    keep = selected(a, seed)
    assert keep.sum() == 4
    total += keep[0]
    pushed, drawn = refilled(a, keep, np.ones(4))
    assert pushed.all() and not len(drawn)
  assert total[6] / 4000 == pytest.approx(.2232, abs=.03)
  assert total[0] / 4000 == pytest.approx(.0923, abs=.02)


def test_a_half_effective_rollout_is_drawn_by_its_advantages():
  """Two of eight: .25 and .75 of the current part, and two of the memory, which
  has these two behind what it had, at most four."""
  a = [[0, .25, 0, -.75, 0, 0, 0, 0]]
  now, old = np.zeros(8), np.zeros(4)
  for seed in range(1000):
    keep = selected(a, seed)
    pushed, drawn = refilled(a, keep, [9, .5, 1.5], seed)
    assert keep.sum() == len(drawn) == 2 and pushed.sum() == 2
    now += keep[0]
    old += np.bincount(drawn, minlength=4)
  np.testing.assert_allclose(now / 2000, [0, .25, 0, .75, 0, 0, 0, 0], atol=.04)
  # [.5, 1.5, .25, .75] of 3.
  np.testing.assert_allclose(
      old / 2000, [.1667, .5, .0833, .25], atol=.04)


@pytest.mark.parametrize('size, whole', [(1, 7), (3, 2), (4, 1), (8, 0)])
def test_whole_copies_come_first(size, whole):
  """8 are needed: of 3 kept ones two copies, then 2 by chance."""
  none = np.zeros((2, 8))
  pushed, drawn = refilled(none, none, np.full(size, .5))
  assert not pushed.any() and len(drawn) == 8
  count = np.bincount(drawn, minlength=size)
  assert (count >= whole).all() and count.sum() == 8
  assert drawn[:whole * size].tolist() == [*range(size)] * whole
  assert len(refilled(none, none, np.full(size, .5), rows=5)[1]) == 5


def test_uniform_groups_train_on_what_was_kept():
  """After steps without any advantage there are still N G / 2 items, A != 0."""
  stored = []
  for step, first in enumerate([[1, 1, 0, 0], [1] * 4, [0] * 4, [1] * 4]):
    outcome = np.array([first, [1] * 4, [0] * 4], float)
    a = advantages.dr_grpo(outcome[..., None])[..., 0]
    keep = selected(a, step)
    pushed, drawn = refilled(a, keep, stored, step)
    stored = [*stored, *a[pushed]][-6:]
    assert keep.sum() + len(drawn) == 6
    assert all(stored[i] for i in drawn) and not keep[a == 0].any()
  assert len(stored) == 4


def test_nothing_to_train_on_is_an_end():
  none = np.zeros((2, 4))
  keep = selected(none)
  assert not keep.any()
  pushed, drawn = refilled(none, keep, [])
  assert not pushed.any() and not len(drawn)


def test_the_filter_repeats_what_has_an_advantage():
  a = [[0, .5, -.5, 0, .1, 0, 0, 0]]
  counts = [selected(a, seed, paper.filtered)[0] for seed in range(20)]
  for count in counts:  # 8 = 3 + 3 + 2
    assert sorted(count[[1, 2, 4]]) == [2, 3, 3] and count.sum() == 8
  assert len({tuple(x) for x in counts}) == 3
  assert not selected(np.zeros((1, 4)), fn=paper.filtered).any()


def test_imitation_is_of_rethought_responses_that_are_better():
  """NLL 1, 2 of the first row; the others were not rethought, or are worse."""
  kind = jnp.array([[[1, 3, 0], [1, 1, 0], [1, 3, 1]]], jnp.int8)
  block = types.Block(
      prompts=None, mask=kind > 0,
      completions=types.Completions(
          tokens=jnp.zeros((1, 3, 3), jnp.int32), kind=kind, positions=None),
      advantage=jnp.array([[[.5], [.5], [-.5]]]))
  def loss(logp):
    total, count = paper.imitation(
        types.Scores(logp=logp, entropy=None), block, {})
    return total / count
  logp = -jnp.array([[[1., 2, 9], [5, 5, 9], [7, 7, 7]]])
  value, grads = jax.value_and_grad(loss)(logp)
  assert value == 1.5
  np.testing.assert_allclose(grads, [[[-.5, -.5, 0], [0] * 3, [0] * 3]])
