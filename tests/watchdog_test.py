"""What stands still is named: host, phase, step and prompts."""

import threading
import time

import pytest

from mmr1 import watchdog


@pytest.fixture
def dog(tmp_path):
  """(a watchdog that waits .2 s, what it said)."""
  said = []
  one = watchdog.Watchdog(.2, tmp_path, said.append)
  yield one, said
  one.close()


def wait_for(condition):
  end = time.monotonic() + 20
  while not condition() and time.monotonic() < end:
    time.sleep(.01)


def hang_in_a_reward(one, file):
  one.begin('think_short: score')
  wait_for(file.exists)


def test_a_stalled_phase_is_named_once_with_its_threads(dog, tmp_path):
  one, said = dog
  one.step, one.prompts = 7, [11, 12]
  hang_in_a_reward(one, tmp_path / 'stalls' / 'host_0.txt')
  time.sleep(.3)
  text, = said
  assert text.startswith('host 0 stands still: think_short: score, step 7 has')
  assert 'prompts [11, 12]' in text
  left = (tmp_path / 'stalls' / 'host_0.txt').read_text()
  assert left.startswith(text.partition('. Where')[0])
  assert 'hang_in_a_reward' in left


def test_the_main_thread_is_told_first_among_more_than_a_hundred(dog, tmp_path):
  one, _ = dog
  end = threading.Event()
  waiting = [threading.Thread(target=end.wait, name=f'other {i}', daemon=True)
             for i in range(150)]
  for each in waiting:
    each.start()
  try:
    hang_in_a_reward(one, tmp_path / 'stalls' / 'host_0.txt')
  finally:
    end.set()
  threads = (tmp_path / 'stalls' / 'host_0.txt').read_text().split('\nThread ')
  assert threads[1].startswith('MainThread, ')
  assert 'in hang_in_a_reward\n' in threads[1]
  assert {f'other {i}' for i in range(150)} <= {
      each.partition(',')[0] for each in threads}


@pytest.mark.parametrize('hangs', [True, False])
def test_a_workdir_that_does_not_take_the_file_silences_nothing(
    monkeypatch, tmp_path, hangs):
  end, tried = threading.Event(), []
  def write(path, text):
    tried.append(path)
    if hangs:
      end.wait(20)
    raise RuntimeError('no route to the bucket')
  monkeypatch.setattr(watchdog.workdir_lib, 'write_whole', write)
  said = []
  one = watchdog.Watchdog(.2, tmp_path, said.append)
  try:
    for phase in ('rl: checkpoint', 'rl: data')[:1 if hangs else 2]:
      before = len(tried)
      one.begin(phase)
      wait_for(lambda: len(tried) > before)
      assert len(tried) > before and phase in said[-1]
  finally:
    end.set()
    one.close()


def test_what_goes_on_is_not(tmp_path):
  said = []
  # A busy machine may keep this thread from its turn for a good part of a second.
  one = watchdog.Watchdog(1.5, tmp_path, said.append)
  for _ in range(40):
    one.begin('think_short: sample')
    time.sleep(.05)
  one.begin('')
  time.sleep(2.0)
  one.close()
  assert not said


def test_a_limit_below_0_is_refused(tmp_path):
  with pytest.raises(ValueError, match='stall_s: got -1; allowed: seconds'):
    watchdog.Watchdog(-1, tmp_path, print)
