"""ARES by hand: difficulties, the table, and what moves between steps."""

import json
import math

import numpy as np
import pytest

from mmr1.papers.ares import shaping

EASY, MEDIUM, HARD = range(3)
NAN = np.nan


def accuracies(*right, of=8):
  return np.arange(of) < np.asarray(right)[:, None]


def test_difficulties():
  eighths = accuracies(*range(9))
  assert shaping.difficulty(eighths).tolist() == [2] * 3 + [1] * 3 + [0] * 3
  assert shaping.difficulty(eighths, 'paper').tolist() == (
      [2] * 3 + [1] * 3 + [0] * 3)
  # 2/3 and 1/3 themselves are easy and medium; of 6 the paper's differ.
  sixths = accuracies(*range(7), of=6)
  assert shaping.difficulty(sixths).tolist() == [2, 2, 1, 1, 0, 0, 0]
  assert shaping.difficulty(sixths, 'paper').tolist() == [2, 2, 2, 1, 1, 0, 0]
  assert shaping.difficulty(np.array([[NAN, 1], [NAN, NAN]])).tolist() == [0, -1]


CASES = [
    # Over-thinking: m = 1.5, x = 4.5, pen 3.5 of 3.5.
    (EASY, 1, 16, 10, -.5), (EASY, 1, 9, 10, 0), (EASY, 1, 0, 10, 0),
    (EASY, 1, 11.5, 10, 0), (EASY, 1, 12.5, 10, -.5 * .25 / 3.5),
    (EASY, 0, 16, 10, .271395), (EASY, 0, 3, 10, .15),
    # m = 2.5, x = 3.5, pen 2 of 5.5.
    (MEDIUM, 1, 4, 10, -.181818), (MEDIUM, 1, 16, 10, -.181818),
    (MEDIUM, 1, 12, 10, 0), (MEDIUM, 1, 99, 10, -.5),
    (MEDIUM, 0, 16, 10, .4 / (1 + math.exp(-1.4))), (MEDIUM, 0, 4, 10, .2),
    # m = 7; 5 is 8 below the band: pen 6, half of it, of 11.
    (HARD, 1, 20, 20, .546960), (HARD, 1, 5, 20, -.163636),
    (HARD, 1, 13, 20, .3), (HARD, 0, 20, 20, .3), (HARD, 0, 30, 20, .438635),
    # The band is 1 at least, of a target below 1 too.
    (EASY, 1, 1, 0, 0), (EASY, 1, 3, 0, -.5 * 1 / 3),
]


@pytest.mark.parametrize('level, right, n, target, want', CASES)
def test_the_table_by_hand(level, right, n, target, want):
  got = shaping.entropy_score(right, n, target, level, .5)
  assert got == pytest.approx(want, abs=1e-6)


def test_half_right_is_wrong():
  for level in range(3):
    assert shaping.entropy_score(.5, 9, 5, level, .5) == shaping.entropy_score(
        0, 9, 5, level, .5)


def test_the_table_at_once():
  level, right, n, target, want = np.transpose(CASES)
  np.testing.assert_allclose(shaping.entropy_score(
      right, n, target, level.astype(int), .5), want, atol=1e-6)


def test_alike_counts_are_paid_by_difficulty():
  """Stub: one sign for all. The same N is too much and just right."""
  score = lambda level: shaping.entropy_score(1, 20, 10, level, .5)
  assert score(EASY) < 0 < score(HARD) and score(MEDIUM) < 0
  # And with little the other way round.
  assert shaping.entropy_score(1, 1, 10, EASY, .5) == 0
  assert shaping.entropy_score(1, 1, 10, HARD, .5) < 0


def test_the_table_is_bounded_and_scales_with_alpha():
  n = np.arange(0, 200)
  for level in range(3):
    for right in (0, 1):
      for target in (0, 3, 60):
        got = shaping.entropy_score(right, n, target, level, .5)
        assert (abs(got) <= .5 * (1, 1, 1.2)[level] + 1e-12).all()
        np.testing.assert_allclose(
            shaping.entropy_score(right, n, target, level, 2.0), 4 * got)
        # More thinking never costs a wrong answer, nor one on a hard problem.
        if level == HARD or not right:
          assert (np.diff(got) >= -1e-12).all()
        elif level == EASY:
          assert (np.diff(got) <= 1e-12).all()
        if not right:
          assert (got > 0).all()
  assert shaping.entropy_score(0, 5, 5, HARD, 0.0) == 0


def test_other_constants():
  lenient = shaping.CONSTANTS._replace(margin=(1., 1., 1.))
  assert shaping.entropy_score(1, 16, 10, EASY, .5, constants=lenient) == 0
  wide = shaping.CONSTANTS._replace(margin=(2., 2., 2.))
  assert shaping.entropy_score(1, 3, 0, EASY, .5, constants=wide) == (
      pytest.approx(-.5 * .25 / 4))  # m = 2 of a target of 0
  strict = shaping.CONSTANTS._replace(wrong=(0., 0., 0.))
  assert not shaping.entropy_score(
      0, [0, 16, 99], 10, [EASY, MEDIUM, HARD], .5, constants=strict).any()


def test_the_paper_s_reward():
  """Bucket N: 4, 8 and 12, 16, mean 10, variance 20; over a target of 5."""
  count = np.array([[4.0, 8.0], [12.0, 16.0], [1.0, NAN]])
  level = np.array([EASY, EASY, HARD])
  weight = shaping.lambdas(count, level, [5.0, None, 3.0], eps=0.0001)
  assert weight == pytest.approx([5 / 20.0001, 0, 0])
  score = lambda right, n, level: float(shaping.paper_score(
      right, n, 10, level, .25))
  assert [score(0, 16, d) for d in range(3)] == [-1.5, -1.5, 0]
  assert [score(0, 6, d) for d in range(3)] == [0, -1, -1]
  assert [score(1, n, d) for n in (6, 16) for d in range(3)] == [0] * 6


# What moves between steps.


def test_targets_and_alphas():
  """Easy groups have means 3 and 4.4: 3.7, rounded 4; hard ones 2.3."""
  count = np.array([[2, 4], [4.4, 4.4], [2.3, NAN], [NAN, NAN]])
  level = np.array([EASY, EASY, HARD, MEDIUM])
  means = shaping.bucket_means(count, level)
  assert means == [pytest.approx(3.7), None, pytest.approx(2.3)]
  target = shaping.targets(means, [None, 7.0, 9.0])
  assert target == [4, 7, 2]
  # .05 (3.7 - 4) and .05 (2 - 2.3).
  assert shaping.alphas([.5] * 3, means, target) == pytest.approx(
      [.485, .5, .485])
  assert shaping.alphas([.001, 1.0, 2.0], [0.0, None, 1.0], [9.0, 3.0, 9.0]) == [
      0, 1, 2]
  assert shaping.alphas([2.0], [9.0], [1.0]) == [2]
  assert shaping.targets([2.5, 3.5, .2], [None] * 3) == [2, 4, 0]


NAMES = ('result', 'format', 'high_entropy')
WEIGHTS = dict(result=1.0, format=.5, high_entropy=0.0)


def step(state, acc, n, fmt=1.0, **kw):
  columns = np.stack(np.broadcast_arrays(
      np.asarray(acc, float), fmt, np.asarray(n, float)), -1)
  total, says, state = shaping.shaped(
      columns, NAMES, {}, state, weights=WEIGHTS, **kw)
  assert total.shape == (*columns.shape[:2], 1)
  return total[..., 0], says, state


def test_a_step_by_hand():
  """An easy group with N 9, 9, 9, 17, mean 11, and a hard one with 20, 20, 20,
  24, mean 21: both round to themselves, so alphas stay .5. Easy: m = 1.65, the
  last is 6 over, x = 4.35, pen 3.35 of 3.65. Hard: m = 7.35; the right one is
  1 below its target."""
  acc, n = [[1, 1, 0, 1], [1, 0, 0, 0]], [[9, 9, 9, 17], [20, 20, 20, 24]]
  total, says, state = step({}, acc, n)
  hard = .6 / (1 + math.exp(-6.35 / 3))
  want = [[1.5, 1.5, .65, 1.5 - .5 * 3.35 / 3.65],
          [1.5 + hard, .8, .8, .8]]
  np.testing.assert_allclose(total, want)
  assert state == {'alpha': [.5] * 3, 'target': [11, None, 21]}
  assert says.pop('reward/entropy_score/mean') == pytest.approx(
      np.mean(np.subtract(want, np.add(acc, .5))))
  assert says == {
      'aepo/easy/alpha': .5, 'aepo/easy/target': 11, 'aepo/easy/share': .5,
      'aepo/easy/count': 11, 'aepo/medium/alpha': .5, 'aepo/medium/share': 0,
      'aepo/hard/alpha': .5, 'aepo/hard/target': 21, 'aepo/hard/share': .5,
      'aepo/hard/count': 21}


def test_targets_follow_what_a_difficulty_does():
  """Stub: a constant target would let only one of the steps be average."""
  state, before = {}, None
  for mean in (5, 10, 40):
    total, says, after = step(state, np.ones((1, 4)), np.full((1, 4), mean))
    assert says['aepo/easy/target'] == mean and (total == 1.5).all()
    assert state == (before or {})  # not changed
    before, state = after, after
  # A bucket that is empty keeps its target and alpha.
  _, says, state = step(state, np.zeros((1, 4)), np.full((1, 4), 3.4))
  assert state['target'] == [40, None, 3]
  assert state['alpha'] == pytest.approx([.5, .5, .5 - .05 * .4])
  assert 'aepo/easy/count' not in says and says['aepo/easy/target'] == 40


def test_alpha_moves_before_it_is_used():
  total, says, _ = step({}, np.zeros((1, 4)), np.full((1, 4), 3.4))
  # N - N* = .4, inside the band: .5 of 1.2 alpha.
  np.testing.assert_allclose(total, .5 + .6 * .48)
  assert says['aepo/hard/alpha'] == pytest.approx(.48)
  # By this step's target, 3, whatever the last was.
  _, says, _ = step({'alpha': [.5] * 3, 'target': [10.0] * 3},
                    np.zeros((1, 4)), np.full((1, 4), 3.4))
  assert says['aepo/hard/alpha'] == pytest.approx(.48)


def test_without_a_value_there_is_no_score():
  total, says, state = step(
      {}, [[1, NAN, 1, 0], [NAN] * 4], [[5, 5, NAN, 5], [9] * 4])
  np.testing.assert_allclose(total, [[1.5, .5, 1.5, .65], [.5] * 4])
  assert says['aepo/easy/share'] == .5 and state['target'] == [5, None, None]
  total, says, state = step({}, [[NAN] * 4], [[NAN] * 4], fmt=NAN)
  assert np.isnan(total).all() and state['target'] == [None] * 3
  assert 'reward/entropy_score/mean' not in says


def test_the_paper_s_form_looks_at_the_step_before():
  state = {'alpha': [.5] * 3, 'target': [10.0, None, None]}
  acc = [[1, 1, 1, 0]]
  total, says, after = step(state, acc, [[12, 16, 12, 16]], form='paper')
  # Mean 14, variance 4: lambda = 4 / 4, and 16 is 6 over 10.
  np.testing.assert_allclose(total, [[1.5, 1.5, 1.5, .5 - 6]], atol=1e-4)
  assert says['aepo/easy/lambda'] == pytest.approx(1, abs=1e-6)
  assert after['target'] == [14, None, None]
  # At a difficulty's first step its own: nothing.
  total, _, _ = step({}, acc, [[12, 16, 12, 16]], form='paper')
  np.testing.assert_allclose(total, [[1.5, 1.5, 1.5, .5]])


@pytest.mark.parametrize('form', shaping.FORMS)
def test_it_goes_on_alike_after_a_checkpoint(form):
  rng = np.random.default_rng(1)
  acc = rng.random((20, 5, 4)) < rng.random((20, 5, 1))
  count = rng.integers(0, 30, (20, 5, 4))
  def go(state, steps):
    seen = []
    for k in steps:
      total, says, state = step(state, acc[k], count[k], form=form)
      seen.append((total.tolist(), says))
    return seen, state
  whole, last = go({}, range(20))
  first, state = go({}, range(9))
  second, again = go(json.loads(json.dumps(state)), range(9, 20))
  assert first + second == whole and again == last
  assert json.loads(json.dumps(last)) == last
  assert all(0 <= a <= 2 for a in last['alpha'])


@pytest.mark.parametrize('call, words', [
    (lambda: shaping.difficulty(accuracies(3), 'log'), "form='log'"),
    (lambda: step({}, [[1]], [[1]], count='n'), "no column 'n'.*'result'"),
    (lambda: step({}, [[1]], [[1]], form='log'), "form='log'"),
])
def test_what_is_wrong_is_said(call, words):
  with pytest.raises(ValueError, match=words):
    call()
