"""Preemption: SIGTERM and SIGINT become a flag that the loop looks at."""

from collections.abc import Callable
import contextlib
import signal
import threading
import warnings

import jax
from jax.experimental import multihost_utils
import numpy as np


class Interrupt:
  """Context manager; `requested` turns True when the process is asked to stop.

  The loop finishes its step, saves its state and leaves, with exit code 130
  after SIGINT (Ctrl-C) and 0 otherwise. A second SIGINT raises
  KeyboardInterrupt at once. Signal handlers
  exist only on the main thread: elsewhere (a notebook's worker) this warns and
  never requests anything. Old handlers come back on exit.

  Attributes:
    requested: True once a signal has come.
    signal: its name, or None.
  """

  def __init__(self, tell: Callable[[str], None] = lambda text: None):
    """`tell` prints a line for a person, when the signal comes."""
    self._tell = tell
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
    first, self.requested = not self.requested, True
    self.signal = signal.Signals(number).name
    if first:
      # The signal may have come in the middle of a print: no other can begin.
      with contextlib.suppress(Exception):
        self._tell(f'{self.signal}: stopping once this step or evaluation is '
                   'done and saved' + (' (Ctrl-C again: at once).' if number ==
                                       signal.SIGINT else '.'))

  @property
  def code(self) -> int:
    """Of the exit: 130 after Ctrl-C, as shells have it; 0 for a preemption, of
    which nothing is lost."""
    return 130 if self.signal == 'SIGINT' else 0

  def agreed(self) -> bool:
    """`requested` on any host: all hosts then stop after the same step.

    A collective: every host calls it once per step. Without other hosts it is
    just `requested`.
    """
    if jax.process_count() == 1:
      return self.requested
    return bool(np.any(
        multihost_utils.process_allgather(np.array(self.requested))))
