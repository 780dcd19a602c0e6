"""Intervals and comparisons, by hand and against scipy."""

import itertools
import json

import numpy as np
import pytest

from mmr1 import compare
from mmr1 import significance


def test_pass_at_k_by_hand():
  assert significance.pass_at_k(4, 1, 2) == 0.5  # 1 - C(3,2) / C(4,2) = 1 - 3/6
  assert significance.pass_at_k(4, 0, 4) == 0.0
  assert significance.pass_at_k(4, 3, 2) == 1.0  # C(1, 2) = 0
  assert significance.pass_at_k(5, 2, 1) == pytest.approx(0.4)
  with pytest.raises(ValueError, match='k=5'):
    significance.pass_at_k(4, 1, 5)


def test_pass_at_k_is_unbiased():
  rng, p = np.random.default_rng(0), 0.3
  found = [significance.pass_at_k(8, int(c), 3)
           for c in rng.binomial(8, p, 20000)]
  assert np.mean(found) == pytest.approx(1 - 0.7 ** 3, abs=0.01)


def test_majority():
  assert significance.majority(['7', '8', '8', None, None, None]) == 1
  assert significance.majority(['7', '8']) == 0
  assert significance.majority([None]) is None


def test_at_k_by_hand_and_by_all_subsets():
  scores = [[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]]
  said = [['a', 'b', 'a', 'b'], [None] * 4, ['c', None, 'd', 'c']]
  found = significance.at_k(scores, said, 3)
  subsets = [[any(draw) for draw in itertools.combinations(one, 3)]
             for one in scores]
  assert found.passed == [np.mean(one) for one in subsets] == [1, 0, 1]
  # Of three samples: 'a' twice, wrong; no vote; 'c' and 'd', the first wins.
  assert found.majority == [0, 0, 1]
  assert found.mean == pytest.approx([1 / 3, 0, 2 / 3])
  assert significance.at_k(scores, said, 4).majority == [0, 0, 1]  # a tie: 'a'


def test_intervals_of_equal_scores_have_width():
  stats = pytest.importorskip('scipy.stats')
  for score, right in ((0.0, 0), (1.0, 10)):
    theirs = stats.binomtest(right, 10).proportion_ci(method='wilson')
    assert significance.interval([score] * 10) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-6)
  assert significance.interval([0.5] * 10) == significance.wilson(5, 10)
  mixed = [0.0] * 9 + [1.0]
  assert significance.interval(mixed) == significance.bootstrap(mixed, seed=0)


def test_bootstrap_is_seeded_and_agrees_with_scipy():
  stats = pytest.importorskip('scipy.stats')
  scores = np.random.default_rng(1).random(80)
  ours = significance.bootstrap(scores, seed=3)
  assert ours == significance.bootstrap(scores, seed=3)
  theirs = stats.bootstrap(
      (scores,), np.mean, method='percentile', n_resamples=2000,
      random_state=np.random.default_rng(9)).confidence_interval
  np.testing.assert_allclose(ours, theirs, atol=0.01)
  assert significance.bootstrap([1.0, 1.0], seed=0) == (1.0, 1.0)


def test_mcnemar_by_hand_and_against_scipy():
  # b = 1, c = 5: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
  first = [True] * 2 + [True] + [False] * 5 + [False]
  second = [True] * 2 + [False] + [True] * 5 + [False]
  assert significance.mcnemar(first, second) == (2, 1, 5, 1, 0.21875)
  assert significance.mcnemar([True], [True]).p == 1.0
  stats = pytest.importorskip('scipy.stats')
  for b in range(6):
    for c in range(1, 6):
      found = significance.mcnemar([True] * b + [False] * c,
                                   [False] * b + [True] * c)
      assert found.p == pytest.approx(stats.binomtest(b, b + c).pvalue)


def test_two_files_are_compared(tmp_path):
  def write(name, marks):
    path = tmp_path / name
    path.write_text('\n'.join(json.dumps(dict(
        uid=uid, decoding='greedy', correct=mark)) for uid, mark in marks))
    return str(path)
  first = write('a', [(1, True), (2, True), (3, False)])
  second = write('b', [(3, True), (1, False), (2, False)])
  told = compare.compare(first, second)
  # 2 against 1: 2 (1 + 3) / 8 = 1.
  assert 'only the first 2, only the second 1' in told and 'p = 1' in told
  assert 'second  0.3333, -0.3333 (-1.0000 to +1.0000)' in told
  with pytest.raises(ValueError, match='1 and 0 problems'):
    compare.compare(first, write('c', [(1, True), (2, True)]))
  with pytest.raises(ValueError, match='no such file'):
    compare.compare(first, str(tmp_path / 'none'))
  # Of several samples the means, .5 and 1; the test is of the first.
  one, two = write('e', [(1, True), (1, False)]), write('f', [(1, True)] * 2)
  told = compare.compare(one, two)
  assert 'first   0.5000' in told and '1.0000, +0.5000 (+0.5000' in told
  assert '1 problems: both right 1' in told
  (tmp_path / 'd').write_text('{half')
  with pytest.raises(ValueError, match='d:1'):
    compare.compare(first, str(tmp_path / 'd'))
