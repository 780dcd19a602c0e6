"""Sources, splits and mixtures."""

import dataclasses
import pickle

import numpy as np
import pytest

from mmr1 import records
from mmr1.data import shuffle
from mmr1.data import sources


def task(seed, split, i, *, twice=False):
  return records.Example(
      uid=-1, question=f'{seed} {split} {i}', answer=str(i * (1 + twice)))


def _source(size, seed=0, **kwargs):
  return sources.TaskSource(task, seed=seed, split='train', size=size, **kwargs)


def test_task_source_passes_on_and_places():
  source = _source(5, seed=3, offset=100, twice=True)
  assert len(source) == 5
  assert source[4].question == '3 train 4' and source[4].answer == '8'
  assert [source[i].uid for i in range(5)] == [100, 101, 102, 103, 104]
  for i in (-1, 5):
    with pytest.raises(IndexError, match='5 records'):
      source[i]
  with pytest.raises(ValueError, match='size=0'):
    _source(0)


def test_holdout_is_a_partition_that_survives_growth():
  train, held = sources.holdout(_source(57), every=10)
  assert len(held) == 5 and len(train) == 52
  uids = sorted(s[i].uid for s in (train, held) for i in range(len(s)))
  assert uids == list(range(57))
  # One of each ten, not always at the same place.
  assert [int(i) // 10 for i in held.indices] == [0, 1, 2, 3, 4]
  assert len({int(i) % 10 for i in held.indices}) > 1
  _, grown = sources.holdout(_source(1000), every=10)
  np.testing.assert_array_equal(grown.indices[:5], held.indices)
  with pytest.raises(ValueError, match='every=10'):
    sources.holdout(_source(9), every=10)


def test_concat_and_mixture_uids_are_disjoint_and_stable():
  small, large = _source(4), _source(9)
  both = sources.Concat([small, large])
  assert len(both) == 13
  stride = sources.UID_STRIDE
  assert [both[i].uid for i in range(13)] == (
      list(range(4)) + list(range(stride, stride + 9)))
  # The second member's uids do not move when the first one grows.
  grown = sources.Concat([_source(6), large])
  assert grown[6].uid == stride
  mixture = sources.Mixture([small, large], [5, 1], seed=0)
  for k in range(50):
    place = mixture.place(k)
    assert mixture[k].uid == place.member * stride + place.index
  with pytest.raises(ValueError, match='nest'):
    _ = sources.Concat([both, both])[5]


def test_mixture_proportions_are_exact_at_every_point():
  weights = (0.5, 0.2, 0.3)
  mixture = sources.Mixture([_source(50)] * 3, weights, seed=0)
  members = [mixture.place(k).member for k in range(1000)]
  for k in range(1, 1001):
    got = np.bincount(members[:k], minlength=3)
    assert np.abs(got - k * np.asarray(weights)).max() <= 2
    assert tuple(got) == mixture.counts(k)
  # 1000 items at 5:2:3.
  assert mixture.counts(1000) == (500, 200, 300)


def test_every_epoch_has_each_item_once_in_a_new_order():
  mixture = sources.Mixture([_source(30), _source(7)], [1, 1], seed=4)
  order = {0: [], 1: []}
  for k in range(180):
    place = mixture.place(k)
    assert place.seen == len(order[place.member])
    order[place.member].append(place.index)
  # 90 of each: 3 epochs of 30; 12 epochs of 7 and 6 more.
  epochs = [order[0][i:i + 30] for i in (0, 30, 60)]
  assert all(sorted(e) == list(range(30)) for e in epochs)
  assert epochs[0] != epochs[1] != epochs[2]
  assert all(sorted(order[1][i:i + 7]) == list(range(7))
             for i in range(0, 84, 7))


def test_weights_by_size_make_one_pass_one_epoch():
  mixture = sources.Mixture([_source(30), _source(7)], seed=4)
  assert len(mixture) == 37
  places = {(p.member, p.index) for p in map(mixture.place, range(37))}
  assert len(places) == 37


def test_m27_item_depends_on_seed_and_position_only():
  def uids(seed, members=None):
    mixture = sources.Mixture(
        members or [_source(30), _source(9)], [2, 1], seed=seed)
    return [mixture[k].uid for k in range(60)]
  first = uids(1)
  assert first == uids(1) and first != uids(2)
  mixture = sources.Mixture([_source(30), _source(9)], [2, 1], seed=1)
  backwards = [mixture[k].uid for k in reversed(range(60))][::-1]
  assert backwards == first
  assert [pickle.loads(pickle.dumps(mixture))[k].uid for k in range(60)] == (
      first)
  # Two members of one size are shuffled differently.
  twins = sources.Mixture([_source(20), _source(20)], [1, 1], seed=1)
  orders = [[], []]
  for k in range(40):
    place = twins.place(k)
    orders[place.member].append(place.index)
  assert orders[0] != orders[1]


@pytest.mark.parametrize('size', [1, 2, 3, 5, 16, 17, 1000])
def test_shuffle_is_a_permutation(size):
  for epoch in range(5):
    order = [shuffle.shuffled(i, size, (0, 0, epoch)) for i in range(size)]
    assert sorted(order) == list(range(size))


def test_shuffle_is_even():
  # Where item 0 of 5 lands over 4000 epochs: 800 each, chi-square with 4
  # degrees of freedom below 18.5 (p = 0.001). The same for pairs in order.
  orders = np.asarray([
      [shuffle.shuffled(i, 5, (0, 0, epoch)) for i in range(5)]
      for epoch in range(4000)])
  for column in range(5):
    found = np.bincount(orders[:, column], minlength=5)
    assert ((found - 800) ** 2 / 800).sum() < 18.5
  assert abs((orders[:, 0] < orders[:, 1]).mean() - 0.5) < 0.03
  # Neighbours of a large source land far apart: mean distance of two uniform
  # numbers below 1000 is 333.
  large = np.asarray([shuffle.shuffled(i, 1000, (0, 0, 0))
                      for i in range(1000)])
  assert abs(np.abs(np.diff(large)).mean() - 333) < 40


def test_unshuffled_keeps_file_order():
  mixture = sources.Mixture([_source(5)], seed=0, shuffle=False)
  assert [mixture.place(k).index for k in range(7)] == [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize('weights', [
    (1,), (1, 0), (1, -1), (1, float('nan')), (1, float('inf'))])
def test_bad_weights(weights):
  with pytest.raises(ValueError, match='weights'):
    sources.Mixture([_source(3), _source(3)], weights, seed=0)


def test_broken_items_pass_through():

  @dataclasses.dataclass
  class Half:
    def __len__(self):
      return 4

    def __getitem__(self, i):
      if i % 2:
        return records.Broken(where=f'x:{i}', reason='odd')
      return records.Example(uid=i)

  both = sources.Concat([_source(2), Half()])
  assert [isinstance(both[i], records.Broken) for i in range(6)] == [
      False, False, False, True, False, True]


@pytest.mark.parametrize('block', [1, 3, 4])
def test_blocks_are_of_one_member_and_go_on_in_it(block):
  weights = (0.5, 0.2, 0.3)
  one = sources.Mixture([_source(7), _source(5), _source(50)], weights, seed=2,
                        block=block)
  plain = sources.Mixture(one.sources, weights, seed=2)
  places = [one.place(k) for k in range(90 * block)]
  for k, place in enumerate(places):
    assert place.member == plain.place(k // block).member
    # The member's own items in its own order, none left out.
    assert place.seen == sum(p.member == place.member for p in places[:k])
    assert (place.index, place.epoch) == next(
        (p.index, p.epoch) for p in map(plain.place, range(10**6))
        if (p.member, p.seen) == (place.member, place.seen))
  for k in range(len(places)):
    assert one.counts(k) == tuple(
        sum(p.member == m for p in places[:k]) for m in range(3))


def test_labels_are_on_every_example():
  member = records.Member(name='sums', imitate=True)
  one = sources.Labelled(_source(3), member)
  assert len(one) == 3 and [one[i].member for i in range(3)] == [member] * 3
  mixed = pickle.loads(pickle.dumps(sources.Mixture([one], seed=0)))
  assert mixed[0].member == member and mixed[0].uid < 3
