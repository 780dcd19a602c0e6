"""Lanes: who reads which rows changes nothing."""

import json

import numpy as np
import pytest

from mmr1 import records
from mmr1.data import lanes
from mmr1.data import pipeline
from mmr1.data import sources
from mmr1.data import template

BAD = {2, 5, 6, 11}


class Flawed:
  """Twelve items, some of them Broken."""

  def __len__(self):
    return 12

  def __getitem__(self, i):
    if i in BAD:
      return records.Broken(where=f'file:{i}', reason=f'corrupt image: {i}')
    return records.Example(
        uid=i, question='q', answer='1', source=f'file:{i}')


def made(proc, count=4, own=None, frac=.5, source=None, **kwargs):
  return lanes.Lanes(
      sources.Mixture([source or Flawed()], seed=3), pipeline.Shape(
          processor=proc, template=template.think_answer, prompt_length=160,
          patches=32), count, own, max_broken_frac=frac, **kwargs)


def uids(taken):
  return [example.uid for example, _ in taken.pairs]


def step(one):
  taken = one.take()
  one.note(taken.broken)
  return uids(taken)


def test_each_row_goes_on_in_its_own_lane(proc):
  """Row r reads positions r, r + 4, ...; what is broken moves it alone."""
  one = made(proc)
  order = [one.mixture[k] for k in range(400)]
  expected = [[x.uid for x in order[r::4] if isinstance(x, records.Example)]
              for r in range(4)]
  for turn in range(20):
    assert step(one) == [lane[turn] for lane in expected]
  assert {b.where for b in one.breakage.broken} == {f'file:{i}' for i in BAD}
  # Lanes that met broken records are ahead of the others.
  assert len(set(one.turns().values())) > 1


@pytest.mark.parametrize('parts', [([0, 1], [2, 3]), ([0, 2, 3], [1]),
                                   ([0], [1], [2], [3])])
def test_m3_hosts_change_nothing(proc, parts):
  """What each takes, and what all know of broken records."""
  whole = made(proc)
  hosts = [made(proc, own=own) for own in parts]
  for _ in range(12):
    expected, row = step(whole), {}
    broken = []
    for host in hosts:
      taken = host.take()
      row |= dict(zip(host.own, uids(taken)))
      broken += taken.broken
    for host in hosts:
      host.note(broken)
    assert [row[i] for i in range(4)] == expected
  turns = {lane: t for host in hosts for lane, t in host.turns().items()}
  for host in hosts:
    assert host.state(turns) == whole.state()


@pytest.mark.parametrize('cut', [1, 3, 7])
def test_m15_resume_is_exact_on_any_number_of_hosts(proc, cut):
  whole = made(proc)
  expected = [step(whole) for _ in range(10)]
  first = made(proc)
  for _ in range(cut):
    step(first)
  state = json.loads(json.dumps(first.state()))
  second, part = made(proc), made(proc, own=[1, 3])
  for one in (second, part):
    one.restore(state)
  for k in range(cut, 10):
    assert step(second) == expected[k]
    assert uids(part.take()) == [expected[k][1], expected[k][3]]
  assert second.state() == whole.state()


@pytest.mark.slow  # as pipeline_test, whose streams these are
def test_workers_change_nothing(proc):
  one, two = made(proc), made(proc, worker_count=2, worker_buffer=3)
  try:
    for _ in range(8):
      assert step(two) == step(one)
    assert two.state() == one.state()
  finally:
    two.close()


def test_m26_too_many_broken_records_are_refused(proc):
  one = made(proc, frac=.2)
  with pytest.raises(ValueError, match=r'(?s)cannot be used; max_broken_frac='
                                       r'0\.2.*corrupt image'):
    for _ in range(12):
      step(one)


def test_m26_a_lane_with_nothing_else_ends(proc):
  class Hopeless(Flawed):
    def __getitem__(self, i):
      return records.Broken(where=f'file:{i}', reason='corrupt image')
  with pytest.raises(ValueError, match='one after the other cannot be used'):
    made(proc, source=Hopeless()).take()


def test_shapes_are_arrays_of_all_rows(proc):
  """The longest prompt of all hosts decides, not that of this one."""
  one = made(proc)
  shape = pipeline.Shape(
      processor=proc, template=template.think_answer, prompt_length=160,
      patches=32, prompt_buckets=(128,), patch_buckets=(0,))
  encoded = [e for _, e in one.take().pairs]
  assert np.shape(shape.collate(encoded).tokens) == (4, 128)
  assert np.shape(shape.collate(encoded, needs=(150, 0)).tokens) == (4, 160)


# Steps of one member.


class Named(Flawed):
  """The same as a member of a mixture: uid 100 m + i."""

  def __init__(self, base, bad=()):
    self.base, self.bad = base, set(bad)

  def __getitem__(self, i):
    if i in self.bad:
      return records.Broken(where=f'file:{i}', reason=f'corrupt image: {i}')
    return records.Example(
        uid=i, question='q', answer='1', source=f'file {self.base}:{i}')


def members(taken):
  return [uid // sources.UID_STRIDE for uid in uids(taken)]


def blocks(proc, own=None, bad=BAD):
  return lanes.Lanes(
      sources.Mixture([Named(0, bad), Named(1), Named(2, {3})], (2, 1, 1),
                      seed=3, block=4),
      pipeline.Shape(processor=proc, template=template.think_answer,
                     prompt_length=160, patches=32),
      4, own, max_broken_frac=.5)


def test_all_rows_of_a_step_are_of_one_member(proc):
  """Whatever is broken: a lane that is moved on stays in its member, and the
  steps of the others have the prompts that they have without it."""
  one, whole = blocks(proc), blocks(proc, bad=())
  plan = sources.Mixture([Named(0)] * 3, (2, 1, 1), seed=3)
  # What each lane should read of each member, one good item after the other.
  lines = {}
  for k in range(2000):
    item = one.mixture[k]
    if isinstance(item, records.Example):
      lines.setdefault((k % 4, one.mixture.place(k).member), []).append(item.uid)
  for k in range(24):
    taken, other = one.take(), whole.take()
    member = plan.place(k).member
    assert members(taken) == members(other) == [member] * 4
    assert uids(taken) == [lines[lane, member].pop(0) for lane in range(4)]
    one.note(taken.broken)
    whole.note(other.broken)
    if member == 1:  # nothing of it is broken
      assert uids(taken) == uids(other)
  assert len(one.breakage.broken) == 5


@pytest.mark.parametrize('parts', [([0, 1], [2, 3]), ([0, 2, 3], [1])])
def test_m3_hosts_change_nothing_in_steps_of_one_member(proc, parts):
  whole = blocks(proc)
  hosts = [blocks(proc, own=own) for own in parts]
  for _ in range(20):
    expected, row, broken = step(whole), {}, []
    for host in hosts:
      taken = host.take()
      row |= dict(zip(host.own, uids(taken)))
      broken += taken.broken
    for host in hosts:
      host.note(broken)
    assert [row[i] for i in range(4)] == expected
  turns = {lane: t for host in hosts for lane, t in host.turns().items()}
  for host in hosts:
    assert host.state(turns) == whole.state()


@pytest.mark.parametrize('cut', [0, 1, 5, 11])
def test_m15_resume_is_exact_in_steps_of_one_member(proc, cut):
  whole = blocks(proc)
  expected = [step(whole) for _ in range(20)]
  first = blocks(proc)
  for _ in range(cut):
    step(first)
  state = json.loads(json.dumps(first.state()))
  second, part = blocks(proc), blocks(proc, own=[1, 3])
  for one in (second, part):
    one.restore(state)
  for k in range(cut, 20):
    assert step(second) == expected[k]
    assert uids(part.take()) == [expected[k][1], expected[k][3]]
  assert second.state() == whole.state()


def test_m26_a_member_with_nothing_else_ends_soon(proc):
  """A procedural world of prompts that are too long is as good as endless."""
  class Endless(Named):
    asked = 0

    def __len__(self):
      return 1 << 20

    def __getitem__(self, i):
      Endless.asked += 1
      return records.Broken(where=f'world:{i}', reason='too long: 99 tokens')
  one = lanes.Lanes(
      sources.Mixture([Named(0), Endless(1)], (1, 1), seed=0, block=4),
      pipeline.Shape(processor=proc, template=template.think_answer,
                     prompt_length=160, patches=32), 4, max_broken_frac=.5)
  with pytest.raises(ValueError, match='201 records one after .*too long: 99'):
    one.take()
  assert Endless.asked < 1000


def test_blocks_of_another_size_are_refused(proc):
  with pytest.raises(ValueError, match='4 lanes over blocks of 3'):
    lanes.Lanes(sources.Mixture([Named(0)], seed=0, block=3), None, 4,
                max_broken_frac=.5)
