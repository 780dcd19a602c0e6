"""Tests of what the procedural tasks share."""

import collections

import numpy as np
import pytest

from mmr1.data.tasks import items


def test_every_content_belongs_to_exactly_one_split():
  counts = collections.Counter()
  for n in range(4000):
    owners = [s for s in items.SPLITS if items.owns(s, f'content {n}')]
    assert len(owners) == 1
    counts[owners[0]] += 1
  # Shares 6/8, 1/8, 1/8 of 4000 = 3000, 500, 500; 5 sigma of a binomial with
  # p = 1/8 is 5 * sqrt(4000 * 1/8 * 7/8) = 105.
  assert abs(counts['train'] - 3000) < 140
  assert abs(counts['eval'] - 500) < 105
  assert abs(counts['test'] - 500) < 105


def test_streams_differ_by_task_seed_split_and_index():
  keys = [('a', 0, 'train', 0), ('b', 0, 'train', 0), ('a', 1, 'train', 0),
          ('a', 0, 'eval', 0), ('a', 0, 'train', 1)]
  first = {key: items.generator(*key).integers(2 ** 60) for key in keys}
  again = {key: items.generator(*key).integers(2 ** 60) for key in keys}
  assert first == again
  assert len(set(first.values())) == len(keys)


@pytest.mark.parametrize('seed, split, i, word', [
    (0, 'validation', 0, 'validation'), (-1, 'train', 0, '-1'),
    (0, 'train', -3, '-3')])
def test_bad_addresses_are_named(seed, split, i, word):
  with pytest.raises(ValueError, match=word):
    items.generator('shapes', seed, split, i)


@pytest.mark.parametrize('form, word', [
    ('sum', 'tuple'), ((), 'empty'), (('sum', 'summ'), 'summ')])
def test_bad_forms_are_named(form, word):
  with pytest.raises(ValueError, match=word):
    items.forms('task', ('sum', 'total'), form)


def test_near_gives_three_other_numbers_and_no_favoured_rank():
  rng = np.random.default_rng(0)
  ranks = collections.Counter()
  for _ in range(800):
    wrong = [int(n) for n in items.near(rng, 50, step=10)]
    assert len(set(wrong)) == 3 and 50 not in wrong
    assert all(abs(n - 50) in (10, 20, 30, 40) for n in wrong)
    ranks[sum(n < 50 for n in wrong)] += 1
  # Uniform over 0..3: 200 each, sigma = sqrt(800 * 1/4 * 3/4) = 12.
  assert all(abs(ranks[r] - 200) < 60 for r in range(4))


def test_near_stays_at_or_above_zero():
  rng = np.random.default_rng(0)
  for answer in (0, 1, 2):
    for _ in range(50):
      wrong = [int(n) for n in items.near(rng, answer)]
      assert len(set(wrong)) == 3 and min(wrong) >= 0


def test_lettered_points_at_the_answer():
  rng = np.random.default_rng(1)
  letters = collections.Counter()
  for _ in range(400):
    letter, options = items.lettered(rng, '7', ('5', '6', '9'))
    assert sorted(options) == ['5', '6', '7', '9']
    assert options['ABCD'.index(letter)] == '7'
    letters[letter] += 1
  assert all(60 < letters[letter] < 140 for letter in 'ABCD')
  assert items.with_letters('Q?', ('5', '7')) == 'Q? (A) 5 (B) 7'
