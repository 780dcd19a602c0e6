"""Credit by turn and bi-level, with the worked numbers of their sources."""

import numpy as np
import pytest

from mmr1 import columns
from mmr1 import credit


def tokens(turn, turn_rewards, values=None, mask=None):
  turn = np.asarray(turn)[None, None]
  return columns.Tokens(
      mask=turn >= 0 if mask is None else np.asarray(mask)[None, None],
      turn=turn, turn_rewards=np.asarray(turn_rewards, float)[None, None],
      values=None if values is None else np.asarray(values)[None, None])


def outcome(value):
  return np.full((1, 1, 1), float(value))


def test_rewards_to_go():
  # .5: [0, 1] -> [0 + .5 * 1, 1]; [0, 0, 1] -> [.25, .5, 1]; nothing of nothing.
  reward = np.array([[[0, 1, 0], [0, 0, 1], [0, 0, 0]]], float)
  there = np.array([[[1, 1, 0], [1, 1, 1], [1, 1, 1]]], bool)
  np.testing.assert_allclose(credit.to_go(reward, there, .5), [
      [[.5, 1, 0], [.25, .5, 1], [0, 0, 0]]])


def test_bi_level_of_two_rewarded_turns():
  # Turns end at tokens 4 and 9 with reward 1 each, V = .1 .. 1, gammas 1 inside
  # and .95 between. Turn 1: 1 - 1.0 = 0. Turn 0: 1 + .95 * 1.0 - .5 = 1.45.
  # Targets .5 + 1.45 = 1.95 and 1.0; inside, lambda 1: target - V_t.
  values = np.arange(1, 11) / 10
  given = tokens([0] * 5 + [1] * 5, [1, 0], values)
  raw, extra = credit.bi_level(outcome(1), given, whiten=False)
  np.testing.assert_allclose(extra['returns'][0, 0], [1.95] * 5 + [1] * 5,
                             atol=1e-6)
  np.testing.assert_allclose(raw[0, 0], [
      1.85, 1.75, 1.65, 1.55, 1.45, .4, .3, .2, .1, 0], atol=1e-6)
  white, _ = credit.bi_level(outcome(1), given)
  np.testing.assert_allclose(white[0, 0], [
      1.188, 1.0596, .9311, .8027, .6743, -.6743, -.8027, -.9311, -1.0596,
      -1.188], atol=1e-4)


def test_a_turn_without_reward_keeps_its_end():
  # Observations at 2 and 5. gamma_turn .9: turn 2: 1 - .6 = .4; turn 1:
  # 0 + .9 * .6 - .5 + .9 * .4 = .40; turn 0: .9 * .5 - .3 + .9 * .4 = .51.
  # Targets 1, .9, .81; inside: target - V_t.
  given = tokens([0, 0, -1, 1, 1, -1, 2, -1], [0, 0, 0],
                 [.2, .3, 0, .4, .5, 0, .6, 0])
  raw, _ = credit.bi_level(outcome(1), given, gamma_turn=.9, whiten=False)
  np.testing.assert_allclose(
      raw[0, 0], [.61, .51, 0, .5, .4, 0, .4, 0], atol=1e-6)


def test_credit_by_turn_is_on_the_tokens_of_the_turn():
  # Two episodes of a group: rewards to go [1, 1] (a turn reward of 0, outcome
  # 1) and [2, 0] (2 at once, outcome 0): mean 1, sigma sqrt(2/3).
  turn = np.array([[[0, 0, -1, 1], [0, -1, 1, -1]]])
  given = columns.Tokens(
      mask=turn >= 0, turn=turn,
      turn_rewards=np.array([[[0., 0], [2, 0]]]))
  made = credit.by_turn(np.array([[[1.], [0.]]]), given, eps=0)
  high = 1 / np.sqrt(2 / 3)
  np.testing.assert_allclose(
      made[0], [[0, 0, 0, 0], [high, 0, -high, 0]], atol=1e-6)
  # By number: first turns 1 and 2, second ones 1 and 0; sigma sqrt(.5).
  made = credit.by_turn(np.array([[[1.], [0.]]]), given, norm='turn', eps=0)
  half = .5 / np.sqrt(.5)
  np.testing.assert_allclose(
      made[0], [[-half, -half, 0, half], [half, 0, -half, 0]], atol=1e-6)
  with pytest.raises(ValueError, match='norm'):
    credit.by_turn(np.zeros((1, 2, 1)), given, norm='token')


def test_m7_episodes_alike_have_no_advantage():
  turn = np.zeros((1, 2, 3), int)
  given = columns.Tokens(mask=turn >= 0, turn=turn,
                         turn_rewards=np.full((1, 2, 1), .9),
                         values=np.zeros((1, 2, 3)))
  assert not credit.by_turn(np.full((1, 2, 1), .1), given).any()
  assert not credit.bi_level(np.full((1, 2, 1), .1), given)[0].any()
