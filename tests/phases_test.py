"""Times of phases: what waits, and what does not."""

import threading
import time

from mmr1 import phases


class Pending:
  """An array that is there when `go` is called."""

  def __init__(self):
    self._event = threading.Event()
    self.go = self._event.set

  def block_until_ready(self):
    assert self._event.wait(10)
    return self


class Worker:
  def __init__(self):
    self.clock = phases.Clock()

  @phases.phase('score')
  def host(self, seconds):
    time.sleep(seconds)
    return seconds

  @phases.phase('update', ready=lambda result: result[1])
  def update(self, pending):
    return 'state', pending

  @phases.phase('sample', ready=lambda result: result)
  def sample(self, pending):
    return pending


def test_a_phase_on_the_host_ends_when_it_returns():
  one = Worker()
  assert one.host(0.05) == 0.05 and one.host(0.05) == 0.05
  times = one.clock.take()()
  assert times.keys() == {'time/score_s'}
  assert 0.1 <= times['time/score_s'] < 1  # twice in a step: the sum
  assert one.clock.take()() == {}


def test_a_phase_on_a_device_ends_when_its_result_is_there():
  one, first, second = Worker(), Pending(), Pending()
  began = time.perf_counter()
  assert one.update(first) == ('state', first)
  assert one.sample(second) is second
  assert time.perf_counter() - began < 1  # nobody has waited
  read = one.clock.take()
  time.sleep(1)
  first.go()
  time.sleep(0.1)
  second.go()
  times = read()
  assert times['time/update_s'] >= 1
  # The second stood in the queue meanwhile: its time is what it added.
  assert 0.05 <= times['time/sample_s'] < 0.99
