"""Signals become a flag (M16)."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest

from mmr1 import guard


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_m16_a_signal_sets_the_flag(number):
  before = signal.getsignal(number)
  with guard.Interrupt() as stop:
    assert not stop.requested and stop.signal is None and not stop.agreed()
    os.kill(os.getpid(), number)
    assert stop.requested and stop.signal == number.name and stop.agreed()
  assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once():
  with guard.Interrupt() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_handlers_come_back_after_an_error():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(RuntimeError):
    with guard.Interrupt():
      raise RuntimeError
  assert signal.getsignal(signal.SIGTERM) is before


def test_off_the_main_thread_it_warns_and_works():
  out = []
  def work():
    with warnings.catch_warnings(record=True) as seen:
      warnings.simplefilter('always')
      with guard.Interrupt() as stop:
        out.extend([stop.requested, [str(w.message) for w in seen]])
  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert out[0] is False and 'main thread' in out[1][0]
  assert signal.getsignal(signal.SIGTERM) is before


def test_m16_the_loop_leaves_with_exit_code_0(tmp_path):
  """A process that finishes its step, writes it down and exits with 0."""
  (tmp_path / 'loop.py').write_text(textwrap.dedent('''
      import time
      from mmr1 import guard
      with guard.Interrupt() as stop:
        print('ready', flush=True)
        step = 0
        while not stop.requested:
          time.sleep(0.05)
          step += 1
      print('saved', step)
      '''))
  root = pathlib.Path(__file__).parent.parent
  process = subprocess.Popen(
      [sys.executable, 'loop.py'], cwd=tmp_path, stdout=subprocess.PIPE,
      text=True, env={**os.environ, 'PYTHONPATH': str(root)})
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=30)
  assert process.returncode == 0 and out.startswith('saved')
