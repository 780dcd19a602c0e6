"""Calls end in time and nothing is swallowed (M10)."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from mmr1.rewards import math
from mmr1.rewards import pool

BOMBS = ('9^{9^{9^{9}}}', '(' * 300 + '2' + ')' * 300)  # tower, deep parse
TARGETS = '''
import os, sys, time

def pid(): return os.getpid()
def double(x): return 2 * x
def sleep(s): time.sleep(s)
def fail(x): raise KeyError('no such ' + x)
def die(): os._exit(3)
def die_while_replying():
  os.write(int(sys.argv[1]), b'\\0\\0\\1\\0half of it')
  os._exit(3)
def unpicklable(): return lambda: 0
def has_jax(): return sorted({'jax', 'mmr1.main'} & set(sys.modules))

def power(height):
  value = 9
  for _ in range(height): value = 9**value  # one long call inside C
  return value.bit_length()
'''


@pytest.fixture(scope='module')
def targets(tmp_path_factory):
  folder = tmp_path_factory.mktemp('targets')
  (folder / 'pool_targets.py').write_text(TARGETS)
  sys.path.insert(0, str(folder))
  yield 'pool_targets'
  sys.path.remove(str(folder))


@pytest.fixture(scope='module')
def calls(targets):
  workers = pool.Pool()
  yield lambda name, *args, limit_s=20.0: workers.call(
      f'{targets}:{name}', *args, limit_s=limit_s)
  workers.close()
  assert not workers.pids()


def _gone(pid, within_s):
  end = time.monotonic() + within_s
  while time.monotonic() < end:
    try:
      with open(f'/proc/{pid}/stat', encoding='utf8') as stat:
        if stat.read().rpartition(')')[2].split()[0] == 'Z':
          return True
    except FileNotFoundError:
      return True
    time.sleep(0.05)
  return False


def _timed(fn):
  start = time.monotonic()
  try:
    return fn(), time.monotonic() - start
  except pool.TimedOut as error:
    return error, time.monotonic() - start


@pytest.mark.parametrize('main_thread', [True, False])
def test_m10_bombs_end_within_limit_plus_one_second(main_thread):
  math.equal(r'\sqrt{2}', '2^{1/2}')  # a worker is up; its start is no call
  outcomes = []

  def bomb():
    for expression in BOMBS:
      outcomes.append(_timed(
          lambda e=expression: math.equal(r'\sqrt{2}', e, limit_s=0.5)))
      # The next call gets a fresh worker and the right verdict.
      assert math.equal(r'\sqrt{2}', '2^{1/2}') is True

  if main_thread:
    bomb()
  else:
    thread = threading.Thread(target=bomb)
    thread.start()
    thread.join()
  assert len(outcomes) == len(BOMBS)
  for outcome, seconds in outcomes:
    assert outcome is False or isinstance(outcome, pool.TimedOut)
    assert seconds < 1.5
  assert isinstance(outcomes[0][0], pool.TimedOut)


def test_m10_pure_python_bomb_and_replacement(calls):
  first = calls('pid')
  assert calls('pid') == first  # kept between calls
  outcome, seconds = _timed(lambda: calls('sleep', 60, limit_s=0.3))
  assert isinstance(outcome, pool.TimedOut) and seconds < 1.3
  assert calls('power', 0) == 4  # 9 = 0b1001
  outcome, seconds = _timed(lambda: calls('power', 3, limit_s=0.3))
  assert isinstance(outcome, pool.TimedOut) and seconds < 1.3
  assert calls('pid') == first  # each function has its own workers
  assert calls('double', 21) == 42


def test_m10_errors_are_not_swallowed(calls):
  with pytest.raises(pool.RemoteError, match='no such thing') as error:
    calls('fail', 'thing')
  assert 'in fail' in str(error.value)  # the traceback
  with pytest.raises(pool.RemoteError, match='pickle'):
    calls('unpicklable')
  with pytest.raises(pool.WorkerDied, match='code 3'):
    calls('die')
  with pytest.raises(pool.WorkerDied, match='code 3'):
    calls('die_while_replying')
  with pytest.raises(RuntimeError, match='no_such_module'):
    pool.shared().call('no_such_module:fn', limit_s=1.0)
  for limit in (0, -1.0, float('inf')):
    with pytest.raises(ValueError, match='limit_s'):
      calls('pid', limit_s=limit)


def test_m10_a_dead_idle_worker_is_replaced(calls):
  pid = calls('pid')
  os.kill(pid, signal.SIGKILL)
  assert _gone(pid, 5)
  assert calls('pid') != pid


def test_m10_calls_from_threads_run_beside_each_other(calls):
  for _ in range(2):  # the first round starts the workers
    seconds = []
    threads = [threading.Thread(target=lambda: seconds.append(
        _timed(lambda: calls('sleep', 2.0))[1])) for _ in range(2)]
    start = time.monotonic()
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    total = time.monotonic() - start
  assert len(seconds) == 2 and total < 3.99  # one after the other: 4


def test_close_ends_calls_under_way(targets):
  workers = pool.Pool()
  caught = []

  def call():
    try:
      workers.call(f'{targets}:sleep', 60, limit_s=50.0)
    except pool.WorkerDied as error:
      caught.append(error)

  thread = threading.Thread(target=call)
  thread.start()
  while not workers.pids():
    time.sleep(0.02)
  pid = workers.pids()[0]
  time.sleep(1.5)
  workers.close()
  thread.join(5)
  assert caught and not thread.is_alive() and _gone(pid, 1)


SCRIPT = '''
import sys, threading, time
print('main runs', flush=True)
from mmr1.rewards import pool
assert pool.shared().call('pool_targets:has_jax', limit_s=20.0) == []
def busy():
  pool.shared().call('pool_targets:sleep', 60, limit_s=2.0)
if sys.argv[1] == 'killed':
  threading.Thread(target=busy, daemon=True).start()
  while len(pool.shared().pids()) < 2: time.sleep(.02)
  time.sleep(1.0)
print(*pool.shared().pids(), flush=True)
if sys.argv[1] == 'killed': time.sleep(60)
'''


@pytest.mark.parametrize('how', ['exit', 'killed'])
def test_m10_no_worker_outlives_the_run(how, targets, tmp_path):
  del targets  # on the path
  script = tmp_path / 'script.py'
  script.write_text(textwrap.dedent(SCRIPT))  # has no __main__ guard
  process = subprocess.Popen(
      [sys.executable, str(script), how], stdout=subprocess.PIPE, text=True,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(
          p or os.getcwd() for p in sys.path)})
  assert process.stdout.readline() == 'main runs\n'
  pids = [int(pid) for pid in process.stdout.readline().split()]
  assert len(pids) == (1 if how == 'exit' else 2)
  if how == 'killed':
    process.kill()
  assert process.wait(20) == (0 if how == 'exit' else -signal.SIGKILL)
  assert process.stdout.read() == ''  # main ran once, in one process
  process.stdout.close()
  for pid in pids:
    assert _gone(pid, 5)
