"""ARES's KL term by difficulty, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import columns
from mmr1 import types
from mmr1.papers.ares import duals
from mmr1.papers.ares import penalty

KNOBS = ('b/easy', 'b/medium', 'b/hard')
NAMES = ('easy', 'medium', 'hard')


def given(right, cost, name='soft_cost'):
  return columns.Tokens(columns={
      'result': np.asarray(right, float), name: np.asarray(cost, float)})


RIGHT = [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [np.nan] * 4]
REWARDS = np.array([[1, .5, 1, 0], [1] * 4, [0, .3, .3, 1], [0, 0, 0, 1]])


def test_the_advantage_hands_over_weights_and_difficulties():
  """Easy, wrong and unsure: .67 of 2. Unknown difficulty: that of medium."""
  cost = np.full((4, 4), .5)
  made, extra = penalty.graded(
      REWARDS[..., None], given(RIGHT, cost), easy=2.0, medium=3.0, hard=5.0)
  np.testing.assert_allclose(extra['kl_weight'][..., 0], [
      [2, 2, 2, 1.34], [3] * 4, [5] * 4, [3] * 4])
  for d, name in enumerate(NAMES):
    np.testing.assert_array_equal(
        extra[name][..., 0], np.repeat(np.arange(4)[:, None] == d, 4, 1))
  centred = REWARDS[2] - .4
  np.testing.assert_allclose(
      made[2, :, 0], centred / (REWARDS[2].std(ddof=1) + 1e-6))
  assert not made[1].any()
  _, once = penalty.graded(
      REWARDS[..., None], given(RIGHT, cost), relaxed=1.0)
  assert (once['kl_weight'] == 1).all()


def block(weight, difficulty, ref, mask):
  n, g, t = np.shape(mask)
  zeros = jnp.zeros((n, g, t), jnp.int32)
  return types.Block(
      prompts=None, completions=types.Completions(
          tokens=zeros, kind=jnp.ones((n, g, t), jnp.int8), positions=None),
      mask=jnp.asarray(mask), advantage=jnp.zeros((n, g, 1)),
      ref=jnp.asarray(ref, jnp.float32), extra={
          'kl_weight': jnp.asarray(weight, jnp.float32)[..., None], **{
              name: jnp.asarray(np.array(difficulty) == d, jnp.float32)[
                  ..., None] for d, name in enumerate(NAMES)}})


def test_the_term_and_what_it_measures_by_hand():
  """logp 0; refs -1, -2 | -1, and masked -9: k3(-1) = 1/e, k3(-2) = 1 + e^-2.
  Weights 2 and .5: (2 (1/e + 1 + e^-2) + .5 / e) / 3."""
  one = block([[2, .5]], [[0, 2]], [[[-1, -2], [-1, -9]]],
              [[[True, True], [True, False]]])
  scores = types.Scores(logp=jnp.zeros((1, 2, 2)), entropy=None)
  a, b = np.exp(-1), 1 + np.exp(-2)
  total, count = penalty.by_difficulty(scores, one, {})
  assert float(total) == pytest.approx(2 * (a + b) + .5 * a) and count == 3
  parts = {name: float(x / n) for name, (x, n) in penalty.measured(
      scores, one, {}).items()}
  assert parts == pytest.approx({
      'easy': (a + b) / 3, 'easy_share': 2 / 3, 'medium': 0, 'medium_share': 0,
      'hard': a / 3, 'hard_share': 1 / 3})
  for change, words in ((dict(extra={}), 'graded'), (dict(ref=None), 'target')):
    with pytest.raises(ValueError, match=words):
      penalty.by_difficulty(scores, one.replace(**change), {})


def metrics(**values):
  found = {}
  for name in NAMES:
    part, share = values.get(name, (0.0, 0.0))
    found |= {f'kl/{name}': part, f'kl/{name}_share': share}
  return found


def test_betas_follow_the_kl_of_each():
  """Easy: .01 / .5 = .02, twice the target; hard is not there, medium at it."""
  start = dict(zip(KNOBS, (1.0, 2.0, 4.0)))
  give = dict(knob=KNOBS, metric='kl', every=1)
  knobs, state = penalty.steered(start, {}, {}, {}, 0, **give)
  assert knobs == start and state['beta'] == [1, 2, 4] and state['calls'] == 0
  seen = metrics(easy=(.01, .5), medium=(.005, .5))
  knobs, new = penalty.steered(start, state, {}, seen, 1, **give)
  assert knobs['b/easy'] == pytest.approx(np.exp(.0015))
  assert (knobs['b/medium'], knobs['b/hard']) == (2, 4)
  assert new['kl'] == [pytest.approx(.02), pytest.approx(.01), None]
  # A step stands for several calls: as many steps of the controller.
  _, many = penalty.steered(start, state, {}, seen, 1, calls=7, **give)
  wanted = state
  for _ in range(7):
    wanted = duals.kl_controller(wanted, new['kl'], every=1)
  assert many == wanted and many['calls'] == 7
  # Of a skipped update nothing is known.
  skipped = {name: None for name in seen}
  assert penalty.steered(start, new, {}, skipped, 2, **give)[1] == {
      **new, 'calls': 2}


@pytest.mark.parametrize('call, words', [
    (lambda: penalty.graded(REWARDS[..., None], given(RIGHT, RIGHT, 'cost')),
     "no column 'soft_cost'"),
    (lambda: penalty.graded(REWARDS[..., None], columns.Tokens()),
     'needs tokens.columns'),
    (lambda: penalty.steered({}, {}, {}, {}, 0, knob=KNOBS[:2]), 'three knobs'),
    (lambda: penalty.steered({}, {}, {}, {}, 0, knob=KNOBS, calls=0), 'calls=0'),
    (lambda: penalty.steered(
        dict.fromkeys(KNOBS, 1.0), {}, {}, {'kl': 1.0}, 1, knob=KNOBS),
     'name the term'),
])
def test_what_is_wrong_is_said(call, words):
  with pytest.raises(ValueError, match=words):
    call()
