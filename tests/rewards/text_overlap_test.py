"""ROUGE and word errors by hand, and against brute force."""

import itertools
import math
import random
import time

import pytest

from mmr1.rewards import score
from mmr1.rewards import text_overlap as overlap

GOLD = 'the cat sat on the mat'


def test_rouge_by_hand():
  """Said: the cat lay on a mat. Of 6 words each: the (once), cat, on, mat are
  shared, 4; of 5 pairs each `the cat` is; in order the-cat-on-mat."""
  said = 'The cat lay on a mat.'
  assert overlap.rouge_n(GOLD, said, 1) == pytest.approx(4 / 6)
  assert overlap.rouge_n(GOLD, said, 2) == pytest.approx(1 / 5)
  assert overlap.rouge_l(GOLD, said) == pytest.approx(4 / 6)
  assert overlap.rouge(GOLD, said) == pytest.approx((2 / 3 + .2 + 2 / 3) / 3)


def test_precision_and_recall_are_not_mixed_up():
  """Said: 2 words, both shared: P = 1, R = 2/6, F = 2 / (1 + 3) = .5."""
  assert overlap.rouge_n(GOLD, 'cat mat', 1) == pytest.approx(.5)
  assert overlap.rouge_l(GOLD, 'cat mat') == pytest.approx(.5)
  # In the other order only one of both is in the subsequence: P .5, R 1/6.
  assert overlap.rouge_n(GOLD, 'mat cat', 1) == pytest.approx(.5)
  assert overlap.rouge_l(GOLD, 'mat cat') == pytest.approx(.25)
  # A word counts as often as in both: `the` three times is two.
  assert overlap.rouge_n(GOLD, 'the the the', 1) == pytest.approx(4 / 9)


def test_lin_2004_s3_and_s2():
  """Section 3.1: police killed the gunman; S2 police kill the gunman, S3 the
  gunman kill police: LCS 3 and 2 of 4 words each."""
  gold = 'police killed the gunman'
  assert overlap.rouge_l(gold, 'police kill the gunman') == .75
  assert overlap.rouge_l(gold, 'the gunman kill police') == .5


@pytest.mark.parametrize('gold, said, want', [
    ('yes', 'yes', 2 / 3), ('Yes!', 'yes', 2 / 3),
    ('a red car', 'a red car', 1),
    ('red', 'blue', 0), ('red', '', 0), ('', 'red', 0), ('', '', 0),
    ('red', '...', 0), ('A-1', 'a 1', 1),
    ('caf\u00e9 noir', 'caf\u00e9 noir', 1)])
def test_edges_of_rouge(gold, said, want):
  assert overlap.rouge(gold, said) == pytest.approx(want)


@pytest.mark.parametrize('gold, said, want', [
    ('a b c d', 'a b c d', 0), ('a b c d', 'a x c d', 1 / 4),
    ('a b c d', 'a c d', 1 / 4), ('a b c d', 'a b x y c d', 2 / 4),
    ('a b c d', '', 1), ('a', 'b c d', 3), ('a  b', ' a\nb ', 0),
    ('A b.', 'a b', 2 / 2), ('', '', 0), ('', 'a', math.inf)])
def test_word_error_rate_by_hand(gold, said, want):
  assert overlap.word_error_rate(gold, said) == want


def brute_common(a, b):
  """The longest of all subsequences of a that is one of b."""
  def within(part):
    rest = iter(b)
    return all(word in rest for word in part)
  return max(len(part) for size in range(len(a) + 1)
             for part in itertools.combinations(a, size) if within(part))


def brute_edits(a, b):
  if not a or not b:
    return len(a) + len(b)
  return min(brute_edits(a[1:], b) + 1, brute_edits(a, b[1:]) + 1,
             brute_edits(a[1:], b[1:]) + (a[0] != b[0]))


def test_against_brute_force():
  rng = random.Random(0)
  for _ in range(300):
    a, b = ([rng.choice('wxyz') for _ in range(rng.randint(1, 6))]
            for _ in range(2))
    gold, said = ' '.join(a), ' '.join(b)
    lcs = brute_common(a, b)
    p, r = lcs / len(b), lcs / len(a)
    assert overlap.rouge_l(gold, said) == pytest.approx(
        2 * p * r / (p + r) if lcs else 0)
    for n in (1, 2, 3):
      ours, theirs = ([tuple(x[i:i + n]) for i in range(len(x) - n + 1)]
                      for x in (a, b))
      left, shared = list(ours), 0
      for gram in theirs:
        if gram in left:
          left.remove(gram)
          shared += 1
      want = 0
      if shared:
        p, r = shared / len(theirs), shared / len(ours)
        want = 2 * p * r / (p + r)
      assert overlap.rouge_n(gold, said, n) == pytest.approx(want)
    assert overlap.word_error_rate(gold, said) == pytest.approx(
        brute_edits(a, b) / len(a))


def test_transcripts():
  assert overlap.transcript('a b', 'a b', 'exp') == 1
  assert overlap.transcript('a b', 'a x', 'exp') == pytest.approx(
      .606531, abs=1e-6)
  assert overlap.transcript('a b', 'a x', 'negative') == -.5
  assert overlap.transcript('a', 'x y z', 'exp') == pytest.approx(
      .049787, abs=1e-6)
  assert overlap.transcript('a', 'x y z', 'negative') == -1
  assert overlap.transcript('', 'x', 'exp') == 0
  with pytest.raises(ValueError, match="form='log'.*exp.*negative"):
    overlap.transcript('a', 'a', 'log')


def test_the_rewards(make, tagged):
  sample = make(tagged('the cat lay on a mat'), gold=GOLD)
  assert overlap.free_form(sample, {}) == pytest.approx(.511111, abs=1e-6)
  # lay, a: 2 of 6 words.
  assert overlap.transcribed(sample, {}) == pytest.approx(math.exp(-1 / 3))
  assert overlap.transcribed(sample, {}, form='negative') == -1 / 3
  none = make('I do not know', gold=GOLD)
  assert overlap.free_form(none, {}) == 0
  assert overlap.transcribed(none, {}) == pytest.approx(math.exp(-1))
  open_ = make(tagged('x'), gold=None)
  assert overlap.free_form(open_, {}) is overlap.transcribed(open_, {}) is None
  score.Scorer({'a': score.Reward(overlap.free_form),
                'b': score.Reward(overlap.transcribed,
                                  kwargs=dict(form='negative'))})


def test_long_texts_take_no_time():
  gold = ' '.join(map(str, range(2000)))
  start = time.monotonic()
  for said in (gold, gold[::-1], 'a ' * 20_000, 'a' * 10**6, '0 ' * 10**6):
    assert 0 <= overlap.rouge(gold, said) <= 1
    assert 0 <= overlap.transcript(gold, said, 'exp') <= 1
  assert overlap.rouge('a', 'a ' * 10**5) == 0
  assert time.monotonic() - start < 10
