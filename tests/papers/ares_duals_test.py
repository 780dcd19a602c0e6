"""ARES's weights per difficulty by hand: KL term, and the unused dual."""

import json
import math

import numpy as np
import pytest

from mmr1.papers.ares import duals as ares_duals

EASY, MEDIUM, HARD = range(3)
NAN = np.nan


def test_the_controller_by_hand():
  """e = 1; at call 100 the error is .03, beta exp(.05 * .03)."""
  state = ares_duals.kl_start()
  for k in range(100):
    assert state['beta'] == [1.0] * 3 and state['calls'] == k
    state = ares_duals.kl_controller(state, [.02, .01, None])
  assert state['beta'] == [pytest.approx(math.exp(.0015), abs=1e-9), 1, 1]
  assert state['beta'][0] == pytest.approx(1.001501, abs=1e-6)
  assert state['error'] == [pytest.approx(.03), 0, 0]
  assert state['kl'] == [pytest.approx(.02), pytest.approx(.01), None]
  for _ in range(900):
    state = ares_duals.kl_controller(state, [.02, .01, None])
  assert state['beta'][0] == pytest.approx(math.exp(.05 * (sum(
      min(1 - .97**k, .2) for k in range(1, 11)))))
  assert 1.07 < state['beta'][0] < 1.075


def test_the_averages_of_the_controller():
  state = ares_duals.kl_controller(ares_duals.kl_start(), [.02, .04, NAN])
  assert state['kl'] == [.02, .04, None]  # the first as it is
  again = ares_duals.kl_controller(state, [.03, None, .05])
  assert again['kl'] == [pytest.approx(.0203), .04, .05]
  assert state['kl'] == [.02, .04, None]  # not changed


@pytest.mark.parametrize('kl, moves', [
    (.0101, False), (.0099, False), (.0103, True), (.0097, True)])
def test_a_small_error_does_not_count(kl, moves):
  state = ares_duals.kl_controller(
      ares_duals.kl_start(), [kl] * 3, every=1)
  assert (state['beta'] != [1.0] * 3) == moves
  assert (state['beta'][0] > 1) == (moves and kl > .01)


def test_beta_stays_in_its_bounds_and_small_steps():
  for kl, end in ((9.0, 1.2), (0.0, .8)):
    state = ares_duals.kl_start()
    for _ in range(300):
      last = state['beta'][0]
      state = ares_duals.kl_controller(
          state, [kl] * 3, every=1, least=.8, most=1.2)
      assert abs(math.log(state['beta'][0] / last)) <= .05 * .2 + 1e-12
    assert state['beta'] == [pytest.approx(end)] * 3
  own = ares_duals.kl_controller(
      ares_duals.kl_start(), [.02] * 3, every=1, target=(.01, .02, .04))
  assert own['beta'][0] > 1 == own['beta'][1] > own['beta'][2]


def test_the_controller_goes_on_alike_after_a_checkpoint():
  rng = np.random.default_rng(0)
  kls = rng.exponential(.02, (60, 3)).tolist()
  def go(state, steps):
    for kl in steps:
      state = ares_duals.kl_controller(state, kl, every=4)
    return state
  whole = go(ares_duals.kl_start(), kls)
  part = go(ares_duals.kl_start(), kls[:30])
  assert go(json.loads(json.dumps(part)), kls[30:]) == whole


def test_second_chances():
  """Easy, wrong and costly only; at .5 nats it is."""
  got = ares_duals.kl_weight(
      [EASY, MEDIUM, HARD, -1], [[1, 0, 0, NAN]] * 4, [[9, .5, .49, 9]] * 4,
      [2.0, 3.0, 5.0])
  np.testing.assert_allclose(
      got, [[2, 1.34, 2, 2], [3] * 4, [5] * 4, [3] * 4])


def test_dual_ascent():
  """.1 + .01 (4 - 2); below 0 and above 10 it is clipped."""
  assert ares_duals.dual_ascent([.1, .005, 9.99], [4, 0, 99], [2, 2, 2]) == [
      pytest.approx(.12), 0, 10]
  assert ares_duals.dual_ascent([.1], [None], [2]) == [.1]


@pytest.mark.parametrize('call, words', [
    (lambda: ares_duals.kl_controller(ares_duals.kl_start(), [.1]),
     'needed are 3'),
    (lambda: ares_duals.kl_controller(
        ares_duals.kl_start(), [.1] * 3, every=0), 'every=0'),
])
def test_what_is_wrong_is_said(call, words):
  with pytest.raises(ValueError, match=words):
    call()
