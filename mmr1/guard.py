"""Preemption: SIGTERM and SIGINT become a flag that the loop looks at."""

import signal
import threading
import warnings

import jax
from jax.experimental import multihost_utils
import numpy as np


class Interrupt:
  """Context manager; `requested` turns True when the process is asked to stop.

  The loop finishes its step, saves its state and leaves with exit code 0. A
  second SIGINT (Ctrl-C) raises KeyboardInterrupt at once. Signal handlers
  exist only on the main thread: elsewhere (a notebook's worker) this warns and
  never requests anything. Old handlers come back on exit.

  Attributes:
    requested: True once a signal has come.
    signal: its name, or None.
  """

  def __init__(self):
    self.requested = False
    self.signal = None
    self._old = {}

  def __enter__(self) -> 'Interrupt':
    if threading.current_thread() is not threading.main_thread():
      warnings.warn(
          'Not on the main thread: SIGTERM and SIGINT will not save the state '
          'before the process ends.', stacklevel=2)
      return self
    for number in (signal.SIGTERM, signal.SIGINT):
      self._old[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    for number, handler in self._old.items():
      # None: the old handler was not installed from Python.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._old = {}

  def _handle(self, number, frame):
    del frame
    if self.requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.requested = True
    self.signal = signal.Signals(number).name

  def agreed(self) -> bool:
    """`requested` on any host: all hosts then stop after the same step.

    A collective: every host calls it once per step. Without other hosts it is
    just `requested`.
    """
    if jax.process_count() == 1:
      return self.requested
    return bool(np.any(
        multihost_utils.process_allgather(np.array(self.requested))))
