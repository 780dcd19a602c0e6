"""The page of a run that goes on: how often, by whom, and what is said."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from mmr1.reporting import live


class Clock:
  """`time.monotonic`, and pages that take as long as they are told."""

  def __init__(self):
    self.now, self.took, self.code = 0.0, 0.0, 0
    self.begun, self._ends = [], []

  def popen(self, *args, **kwargs):
    self.begun.append(self.now)
    process = Process(self.code)
    self._ends.append((self.now + self.took, process))
    return process

  def go(self, seconds):
    """Lets time pass; what ends meanwhile is seen to end when it does."""
    until = self.now + seconds
    for end, process in [x for x in self._ends if x[0] <= until]:
      self.now = end
      process.end()
    self._ends = [x for x in self._ends if x[0] > until]
    self.now = until


class Process:
  """Of `subprocess.Popen` what is used."""

  def __init__(self, code):
    self.returncode, self._code, self._over = None, code, threading.Event()

  def poll(self):
    return self.returncode

  def wait(self, timeout=None):
    self._over.wait(timeout)
    return self.returncode

  def end(self):
    self.returncode = self._code
    self._over.set()
    for thread in threading.enumerate():  # who waits for it looks at the clock
      if '_watch' in thread.name:
        thread.join(10)

  def kill(self):
    self.end()


@pytest.fixture
def clock(monkeypatch):
  made = Clock()
  monkeypatch.setattr(live.time, 'monotonic', lambda: made.now)
  monkeypatch.setattr(live.subprocess, 'Popen', made.popen)
  return made


def hours(one, clock, count, every):
  """Files are written every so many seconds."""
  while clock.now < 3600 * count:
    clock.go(every)
    one.refresh()


@pytest.mark.parametrize('took, every', [
    (50, 61), (50, 7), (3, 61), (0.5, 7), (70, 61), (300, 61)])
def test_pages_take_at_most_a_fiftieth_of_the_time(clock, took, every):
  """Also where none of the run's writing falls into the making of a page."""
  said, clock.took = [], took
  hours(live.Live('run', said.append), clock, 20, every)
  assert not said and len(clock.begun) > 3
  for one, other in zip(clock.begun, clock.begun[1:]):
    assert other - one >= max(60, 50 * took)
    assert other - one <= max(60, 50 * took) + every  # and not seldomer
  assert clock.begun[0] >= 60


def test_a_page_that_fails_is_told_once(clock):
  said, clock.took, clock.code = [], 0.5, 1
  one = live.Live('run', said.append)
  hours(one, clock, 1, 61)
  assert len(clock.begun) > 50
  assert len(said) == 1 and '--workdir=run' in said[0]
  one.stop()
  assert len(said) == 1


def test_a_process_that_cannot_begin_is_told_once(clock, monkeypatch):
  def none(*args, **kwargs):
    raise OSError('no memory')
  monkeypatch.setattr(live.subprocess, 'Popen', none)
  said = []
  hours(live.Live('run', said.append), clock, 1, 61)
  assert said == ['no report: OSError: no memory']


def started(monkeypatch, workdir, code=None):
  """A Live whose page is being made; `code`: in place of the making."""
  original = subprocess.Popen
  if code:
    monkeypatch.setattr(live.subprocess, 'Popen', lambda args, **kw: original(
        [sys.executable, '-c', code, *args[3:]], **kw))
  said = []
  one = live.Live(workdir, said.append)
  one._due = 0.0
  one.refresh()
  return one, said


def test_ctrl_c_of_a_terminal_does_not_reach_it(monkeypatch, tmp_path):
  """The terminal asks the whole process group of the run."""
  one, said = started(monkeypatch, tmp_path, 'import time; time.sleep(60)')
  assert os.getpgid(one._process.pid) != os.getpgid(0)
  one.stop()  # and it ends with the run
  assert one._process is None and not said


def test_it_is_found_from_any_folder(monkeypatch, tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(
      '{"stage": "grpo", "step": 1, "time": 1.0, "loss": 0.5}\n')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('PYTHONPATH', 'elsewhere')
  one, _ = started(monkeypatch, tmp_path)
  assert one._process.wait(60) == 0
  assert (tmp_path / 'report.html').exists()


def test_it_ends_soon_after_a_run_that_was_killed(tmp_path):
  """A run that is killed stops nothing itself."""
  root = str(pathlib.Path(live.__file__).parent.parent.parent)
  made = subprocess.Popen(
      [sys.executable, '-c', (
          'import subprocess, sys, time\n'
          'subprocess.Popen([sys.executable, "-c", "import os, time\\n'
          'from mmr1.reporting import live, page\\n'
          'page.write = lambda _: (print(os.getpid(), flush=True),'
          ' time.sleep(300))\\n'
          f'live.main([None, None])"], cwd={root!r}, '
          'start_new_session=True)\n'
          'time.sleep(300)\n')], stdout=subprocess.PIPE, text=True)
  pid = int(made.stdout.readline())
  made.send_signal(signal.SIGKILL)
  made.wait()
  for _ in range(600):
    if not alive(pid):
      break
    time.sleep(0.1)
  assert not alive(pid)


def alive(pid):
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')')[1].split()
  except OSError:
    return False
  return state[0] != 'Z'
