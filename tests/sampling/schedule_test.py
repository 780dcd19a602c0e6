"""Who sits where: no sample is lost, nobody waits longer than needed."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from mmr1.sampling import schedule


def simulate(lengths, real, length, decoding, *, shifts=False):
  """Runs a schedule against samples of known lengths [D, A, G].

  Returns what happened: tokens of every sample, (row count, cache size,
  prompts[, shift]) of every layout, decode steps, and row-steps (rows x steps).
  """
  shards, _, group = lengths.shape
  flat = lengths.reshape(shards, -1)
  made = np.zeros_like(flat)
  plan = schedule.Schedule(real, group, length, decoding)
  layout, t = plan.layout, 0
  live = np.zeros(layout.task.shape, bool)
  shapes, steps, work = [], 0, 0
  idle = flat.shape[1]
  while layout is not None:
    shapes.append((layout.task.shape[1], layout.size, layout.prompts.shape[1],
                   *[layout.shift] * shifts))
    live = np.take_along_axis(live, layout.source, 1)
    t -= layout.shift
    check_layout(layout, live, t, group, idle, real)
    for d, r in np.argwhere(layout.fresh):
      made[d, layout.task[d, r]] += 1  # the first token needs no step
    live = live | layout.fresh

    def ended():
      task = np.minimum(layout.task, idle - 1)
      return np.take_along_axis(made, task, 1) >= np.take_along_axis(
          flat, task, 1)
    live &= ~ended()
    while (t < layout.size and (live.sum(1) > layout.refill).all()
           and (live.sum(1) > layout.shrink).any()):
      t, steps, work = t + 1, steps + 1, work + live.size
      for d, r in np.argwhere(live):
        assert t - layout.start[d, r] <= length
        made[d, layout.task[d, r]] += 1
      live &= ~ended()
    layout = plan.after(t, live)
    assert len(shapes) < 10_000
  return made, shapes, steps, work


def check_layout(layout, live, t, group, idle, real):
  """What the device relies on."""
  row, seat = layout.seats(group)
  for d in range(len(layout.task)):
    task = layout.task[d]
    seated = task < idle
    assert (live[d] | layout.fresh[d] == seated).all()
    assert not (live[d] & layout.fresh[d]).any()
    assert len(set(task[seated])) == seated.sum()  # one row a sample
    assert (layout.start[d][layout.fresh[d]] == t).all()
    assert (layout.start[d][seated] >= 0).all() and t <= layout.size
    prompts = layout.prompts[d]
    assert len(set(prompts)) == len(prompts)
    for r in np.flatnonzero(seated):
      assert real[d, task[r] // group]
      a, g = divmod(int(seat[d, r]), group)
      assert prompts[a] == task[r] // group and g == task[r] % group
      assert row[d, seat[d, r]] == r


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(st.data())
def test_every_sample_gets_exactly_its_tokens(data):
  shards, prompts, group = (
      data.draw(st.integers(1, most)) for most in (2, 5, 4))
  length = data.draw(st.integers(1, 40))
  seed = data.draw(st.integers(0, 2**16))
  decoding = schedule.Decoding(
      rows=data.draw(st.none() | st.integers(1, 30)),
      cache_chunk=data.draw(st.none() | st.integers(1, 50)),
      shrink=data.draw(st.booleans()))
  rng = np.random.default_rng(seed)
  real = rng.random((shards, prompts)) < 0.8
  lengths = rng.integers(1, length + 1, (shards, prompts, group))
  made, shapes, *_ = simulate(lengths, real, length, decoding)
  np.testing.assert_array_equal(
      made.reshape(lengths.shape), lengths * real[..., None])
  if decoding.rows is None and not decoding.shrink:
    assert {shape[0] for shape in shapes} == {prompts * group}


def geometric(rng, shape, cap):
  """Lengths with a mean of about a third of the cap."""
  return np.minimum(rng.geometric(3 / cap, shape), cap)


def test_ragged_rows_are_refilled():
  """32 prompts x 8 of mean 40, cap 128, in 32 rows: of the row-steps at least
  three quarters make a token, where whole groups would waste half of them."""
  rng = np.random.default_rng(0)
  lengths = geometric(rng, (1, 32, 8), 128)
  real = np.ones((1, 32), bool)
  _, _, steps, work = simulate(lengths, real, 128, schedule.Decoding(
      rows=32, cache_chunk=64, shrink=True))
  useful = lengths.sum() - lengths.size  # the first token needs no step
  assert useful / work > 0.75
  # Whole groups in the same 32 rows: the longest of every 32 samples.
  whole = lengths.reshape(-1, 32).max(1) - 1
  assert steps < 0.6 * whole.sum()


def test_the_host_is_asked_rarely():
  """Not per token: about eight times in the mean length of a sample."""
  rng = np.random.default_rng(1)
  lengths = geometric(rng, (1, 16, 8), 256)
  real = np.ones((1, 16), bool)
  _, shapes, steps, _ = simulate(lengths, real, 256, schedule.Decoding(
      rows=32, cache_chunk=128))
  assert len(shapes) < steps / 8


def test_the_cache_follows_the_length_reached():
  real = np.ones((1, 2), bool)
  decoding = schedule.Decoding(cache_chunk=128)

  def sizes(longest):
    lengths = np.full((1, 2, 4), longest)
    return [size for _, size, _ in simulate(lengths, real, 1024, decoding)[1]]
  assert sizes(100) == sizes(128) == [128]
  assert sizes(200) == [128, 256]
  assert sizes(1000) == [128, 256, 512, 1024]
  # Without a chunk there is one size, the cap.
  lengths = np.full((1, 2, 4), 1000)
  assert [s[1] for s in simulate(
      lengths, real, 1024, schedule.Decoding())[1]] == [1024]


def test_shapes_are_few_whatever_the_lengths():
  """Law 7: programs are bounded by counts of rows x sizes of the cache."""
  rng = np.random.default_rng(2)
  decoding = schedule.Decoding(rows=16, cache_chunk=32, shrink=True)
  seen = set()
  for _ in range(40):
    lengths = geometric(rng, (1, 8, 8), int(rng.integers(10, 128)))
    seen |= set(simulate(lengths, np.ones((1, 8), bool), 128, decoding)[1])
  assert {rows for rows, _, _ in seen} == {16, 8, 4}
  assert {size for _, size, _ in seen} <= {32, 64, 128, 160}
  assert len({(rows, prompts) for rows, _, prompts in seen}) == 3


def shapes_of(rows, chunk, shrink, prompts=8, length=128):
  return schedule.Schedule(
      np.ones((2, prompts), bool), 8, length,
      schedule.Decoding(rows=rows, cache_chunk=chunk, shrink=shrink)).shapes


def test_all_shapes_are_known_beforehand():
  """(rows, prompts they may read, cache) of each of two shards of 64 samples:
  half of `rows`; 3 prompts for every 8 rows and one more."""
  assert shapes_of(None, None, False) == ((64, 8, 128),)
  assert shapes_of(None, 48, False) == (
      (64, 8, 48), (64, 8, 96), (64, 8, 128))
  # Rows that begin while others go on need room for a chunk more,
  # or for a quarter of the cap.
  assert shapes_of(32, 64, False) == (
      (16, 7, 64), (16, 7, 128), (16, 7, 192))
  assert shapes_of(30, None, True) == (
      (15, 7, 160), (8, 4, 160), (4, 4, 160))
  # There are no two halves of one row.
  assert shapes_of(2, None, True, length=7) == ((1, 4, 9),)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(st.data())
def test_m28_layouts_go_only_where_moves_lead(data):
  """What the first call compiles is all that any lengths can come to."""
  group, prompts, length = (
      4, data.draw(st.integers(1, 6)), data.draw(st.integers(3, 40)))
  decoding = schedule.Decoding(
      rows=data.draw(st.none() | st.integers(1, 30)),
      cache_chunk=data.draw(st.none() | st.integers(1, 50)),
      shrink=data.draw(st.booleans()))
  rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
  real = np.ones((1, prompts), bool)
  lengths = geometric(rng, (1, prompts, group), length)
  plan = schedule.Schedule(real, group, length, decoding)
  allowed = {shape: plan.moves(shape) for shape in plan.shapes}
  assert len(allowed) == len(plan.shapes)

  before = None
  for rows, size, read, shift in simulate(
      lengths, real, length, decoding, shifts=True)[1]:
    here = schedule.Shape(rows, read, size)
    assert here in allowed
    if before is not None:  # rows first, then the cache
      between = before
      if rows != before.rows:
        between = here._replace(size=before.size)
        assert between in allowed[before]
      if shift or here != between:
        assert here in allowed[between]
    before = here


def test_nobody_sits_in_a_layout_of_nobody():
  plan = schedule.Schedule(
      np.ones((2, 3), bool), 4, 16, schedule.Decoding(rows=8, shrink=True))
  for shape in plan.shapes:
    layout = plan.nobody(shape, shift=1)
    check_layout(layout, np.zeros(layout.task.shape, bool), 0, 4, 12,
                 np.ones((2, 3), bool))
    assert not layout.fresh.any() and layout.shift == 1
    assert (layout.task.shape[1], layout.prompts.shape[1],
            layout.size) == shape


def test_whole_groups_keep_their_rows():
  plan = schedule.Schedule(
      np.ones((2, 3), bool), 4, 16, schedule.Decoding(rows=24))
  assert plan.whole
  np.testing.assert_array_equal(plan.layout.task, [np.arange(12)] * 2)
  for fewer in (dict(rows=22), dict(rows=24, shrink=True)):
    assert not schedule.Schedule(
        np.ones((2, 3), bool), 4, 16, schedule.Decoding(**fewer)).whole


@pytest.mark.parametrize('bad', [dict(rows=0), dict(cache_chunk=0)])
def test_m22_zero_is_not_unlimited(bad):
  with pytest.raises(ValueError, match=r'sampler\.\w+: got 0; allowed'):
    schedule.Decoding(**bad)
