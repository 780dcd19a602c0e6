"""ARES's cold start by hand: lengths by pass rate, and what fits them."""

import functools
import types

import numpy as np
import pytest

from mmr1 import text
from mmr1.data import encode
from mmr1.data.tasks import digits
from mmr1.papers.ares import lengths as ares_lengths
from mmr1.rewards import answer


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


# The engine, on the worlds.

EXAMPLES = [digits.digits(0, 'train', i, max_digits=3) for i in range(400)]


@functools.cache
def collected(**kwargs):
  """(records, counts, {steps of the problem: mean tokens of its trace}), with a
  token for every two characters."""
  ids = lambda text, **_: list(range(len(text) // 2))
  def encoded(text, processor):
    return processor(text)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(encode, 'encode_completion', encoded)
    made, counts = ares_lengths.adaptive(
        EXAMPLES, types.SimpleNamespace(processor=ids), 'base', **kwargs)
  found = {}
  for one in made:
    found.setdefault(one.meta['difficulty'], []).append(
        len(one.completions[0]) // 2)
  return made, counts, {key: np.mean(x) for key, x in found.items()}


def test_the_engine_keeps_right_responses_and_hard_ones_are_longer():
  made, counts, mean = collected()
  assert len(made) + counts['unsolved'] == len(EXAMPLES)
  assert 0 < counts['unsolved'] < 40  # of 3 steps: .75^8 = .1
  for one in made:
    trace, = one.completions
    assert answer.match(text.parse_think_answer(trace).answer, one)
  assert counts['l0'] > counts['l1'] + 10
  assert mean[1] < mean[2] - 5 and mean[2] < mean[3] - 5
  again, _, _ = collected(responses=8)
  assert [x.completions for x in again] == [x.completions for x in made]


def test_of_problems_alike_those_failed_more_often_get_longer_traces():
  """Of three steps, by the pass rate: a stub that takes the first right one
  does not know it."""
  gaps = []
  for fitting in (True, False):
    made, _, _ = collected(fitting_lengths=fitting)
    found = {True: [], False: []}
    for one in made:
      if one.meta['difficulty'] == 3:
        right = sum(answer.match(text.parse_think_answer(x).answer, one)
                    for x in ares_lengths._responses(one, 8, .5, 1))
        found[right <= 2].append(len(one.completions[0]) // 2)
    gaps.append(np.mean(found[True]) - np.mean(found[False]))
  assert gaps[0] > 2 and gaps[0] > gaps[1] + 2


def test_ends_may_be_given():
  _, counts, short = collected(ends=(20, 20))
  _, _, long = collected(ends=(200, 200))
  assert (counts['l0'], counts['l1']) == (20, 20)
  assert short[1] == long[1] and short[3] < long[3] - 8
  with pytest.raises(ValueError, match='0 responses.*always failed'):
    collected(slip=0.0)


@pytest.mark.parametrize('call, words', [
    (lambda: ares_lengths.length_target(1.2, 1, 2), 'pass_rate=1.2'),
    (lambda: ares_lengths.anchors([[5]], [[1]]), '0 responses.*1 to those'),
    (lambda: ares_lengths.nearest([1], [1], 1, 0), 'keep=0'),
    (lambda: ares_lengths.nearest([1], [1, 0], 1), '1 lengths of 2'),
])
def test_what_is_wrong_is_said(call, words):
  with pytest.raises(ValueError, match=words):
    call()
