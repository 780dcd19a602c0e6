"""Sizes of the sampler's caches."""

import numpy as np
import pytest

from mmr1.sampling import schedule
from mmr1.sampling import sizes


def test_a_full_cache_is_doubled_up_to_the_cap():
  assert sizes.caches(100, 16, waits=False, spare=0, grows=True) == [
      16, 32, 64, 100]
  assert sizes.caches(100, 16, waits=False, spare=0, grows=False) == [100]
  # Rows that wait begin at different tokens.
  assert sizes.caches(100, 16, waits=True, spare=0, grows=True) == [
      16, 32, 64, 116]


def test_what_is_read_at_once_is_a_part_of_what_is_doubled():
  # Caches of 64, 128 and 129 + 17 + 21 = 167 tokens.
  assert sizes.caches(129, 64, waits=False, spare=21, grows=True) == [
      64 - 21, 128 - 21, 129 + 17]
  # No more than a chunk is added: 1024 / 8 would be 128.
  assert sizes.caches(1024, 64, waits=False, spare=1, grows=False) == [1088]
  # The first holds two observations, of 97 each.
  assert sizes.caches(400, 64, waits=False, spare=97, grows=True) == [
      194 - 97, 388 - 97, 450]
  assert sizes.caches(400, 64, waits=True, spare=97, grows=False) == [464]


@pytest.mark.parametrize('length', [1, 7, 33, 200])
@pytest.mark.parametrize('chunk', [1, 16, 500])
@pytest.mark.parametrize('waits', [False, True])
@pytest.mark.parametrize('spare', [0, 1, 40])
def test_sizes_grow_and_hold_the_longest_row(length, chunk, waits, spare):
  found = sizes.caches(length, chunk, waits=waits, spare=spare, grows=True)
  assert found == sorted(set(found)) and found[0] >= 1
  assert found[-1] >= length


@pytest.mark.parametrize('seed', range(6))
def test_rows_that_stop_and_go_on_come_to_their_end(seed):
  """Episodes of turns of any length, closed up where some have stopped: every
  token finds its place, however little room there is."""
  rng = np.random.default_rng(seed)
  length, spare, rows = 40, 6, 8
  plan = schedule.Schedule(
      np.ones((1, 2), bool), 4, length, schedule.Decoding(
          cache_chunk=int(rng.integers(2, 30))), spare=spare)
  layout, held, live = plan.layout, np.zeros(rows, int), np.zeros(rows, bool)
  start, t, looks = np.zeros(rows, int), 0, 0
  left = np.zeros(rows, int)  # tokens of the turn
  while layout is not None:
    looks += 1
    assert looks < 200
    t, start = t - layout.shift, layout.start[0].copy()
    live |= layout.fresh[0]
    left[layout.fresh[0]] = rng.integers(1, 20, layout.fresh.sum())
    here = layout.task[0] < plan.idle
    while t < layout.size and (live & here).sum() > layout.refill[0]:
      t += 1
      left -= live
      held = np.where(here, t - start, 0)
      live &= (left > 0) & (held < length - 1)
    assert t <= layout.size
    stopped = here & ~live
    goes_on = stopped & (held < length - spare - 2) & (rng.random(rows) < .7)
    if goes_on.any():  # what is said is read into the spare part
      held = held + np.where(goes_on, rng.integers(1, spare, rows), 0)
      left[goes_on] = rng.integers(1, 20, goes_on.sum())
      kept = np.where(live | goes_on, held, 0)
      t = int(kept.max())
      assert t <= layout.size + spare
      start, live = t - kept, live | goes_on
    layout = plan.after(t, live[None], start[None].astype(np.int32))
    if layout is not None:
      held = np.where(layout.task[0] < plan.idle, held, 0)
  assert not live.any()
