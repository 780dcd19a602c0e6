"""ARES's cold start by hand: lengths by pass rate, and what fits them."""

import numpy as np
import pytest

from mmr1.papers.ares import lengths as ares_lengths


def test_lengths_by_hand():
  assert ares_lengths.length_target(.25, 3000, 800) == 2450
  assert ares_lengths.length_target(.75, 3000, 800) == 1350
  assert [ares_lengths.length_target(p, 3000, 800) for p in (0, 1)] == [
      3000, 800]


def test_traces_by_hand():
  lengths = [[2600, 3000, 9000, 3000], [700, 800, 900, 800],
             [2400, 1000, 2500, 800], [2000, 1400, 1300, 500]]
  correct = [[0] * 4, [1] * 4, [1, 0, 0, 0], [1, 1, 1, 0]]
  assert ares_lengths.anchors(lengths, correct) == (3000, 800)
  # Targets 3000, 800, 2450, 1350; what is failed has nothing to keep, and what
  # is wrong is not kept however near.
  assert ares_lengths.fitting(lengths, correct) == [[], [1], [0], [2]]
  assert ares_lengths.fitting(lengths, correct, 2) == [
      [], [1, 3], [0], [2, 1]]
  # Stub: the shortest right one, or the longest, whatever the target.
  all_right = [1] * 4
  assert [ares_lengths.nearest(lengths[3], all_right, at)[0]
          for at in (400, 1340, 9000)] == [3, 2, 0]
  assert ares_lengths.fitting(lengths[3:], correct[3:], ends=(9000, 0)) == [[0]]


def test_harder_problems_keep_longer_traces():
  rng = np.random.default_rng(0)
  lengths = rng.integers(200, 4000, (300, 8))
  right = rng.integers(1, 8, 300)
  correct = [rng.permutation(np.arange(8) < r) for r in right]
  kept = ares_lengths.fitting(
      lengths.tolist(), correct, ends=(3500.0, 500.0))
  mean = [np.mean([lengths[i, k[0]] for i, k in enumerate(kept)
                   if right[i] == r]) for r in (1, 4, 7)]
  assert all(correct[i][j] for i, k in enumerate(kept) for j in k)
  # Of one right response there is no choice.
  assert mean[1] > mean[2] + 500


@pytest.mark.parametrize('call, words', [
    (lambda: ares_lengths.length_target(1.2, 1, 2), 'pass_rate=1.2'),
    (lambda: ares_lengths.anchors([[5]], [[1]]), '0 responses.*1 to those'),
    (lambda: ares_lengths.nearest([1], [1], 1, 0), 'keep=0'),
    (lambda: ares_lengths.nearest([1], [1, 0], 1), '1 lengths of 2'),
])
def test_what_is_wrong_is_said(call, words):
  with pytest.raises(ValueError, match=words):
    call()
