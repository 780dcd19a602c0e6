"""Says where a run stands still: the host, the phase and the prompts.

It stops nothing: what is slow may come to its end, and what hangs is for a
person to see.
"""

from collections.abc import Callable, Sequence
import contextlib
import sys
import threading
import time
import traceback
from typing import Any

import jax

from mmr1 import workdir as workdir_lib


class Watchdog:
  """A thread that is told what begins, and speaks if nothing else does.

  Attributes:
    step: that is being made, for the message; None: none.
    prompts: uids of the prompts in it.
  """

  def __init__(self, limit_s: float = 0.0, path: Any = None,
               say: Callable[[str], None] = print,
               heard: Callable[[str], None] = lambda what: None):
    """Starts to watch.

    Args:
      limit_s: seconds that one phase may take; 0: nothing is watched.
      path: the workdir; where threads stand goes to stalls/ there.
      say: prints a warning.
      heard: told each phase that begins, as `begin` is.

    Raises:
      ValueError: a limit below 0.
    """
    if not 0 <= limit_s < float('inf'):
      raise ValueError(f'stall_s: got {limit_s}; allowed: seconds above 0, or 0 '
                       'to watch nothing.')
    self.step: int | None = None
    self.prompts: Sequence[int] = ()
    self._limit, self._path, self._say, self._heard = limit_s, path, say, heard
    self._what = ''
    self._began, self._told = time.monotonic(), False
    self._end = threading.Event()
    if limit_s:
      threading.Thread(target=self._watch, name='watchdog', daemon=True).start()

  def begin(self, what: str) -> None:
    """A phase begins, which ends the one before.

    Args:
      what: 'think_short: score'; '' for nothing that can stall.
    """
    self._what = what
    self._began, self._told = time.monotonic(), False
    if what:
      self._heard(what)

  def close(self) -> None:
    """Watches no longer."""
    self._end.set()

  def _watch(self) -> None:
    while not self._end.wait(min(self._limit / 4, 5.0)):
      seconds = time.monotonic() - self._began
      if self._what and not self._told and seconds > self._limit:
        self._told = True
        self._tell(seconds)

  def _tell(self, seconds: float) -> None:
    host = jax.process_index()
    step = '' if self.step is None else f', step {self.step}'
    prompts = f', prompts {list(self.prompts[:16])}' if self.prompts else ''
    file = self._path / 'stalls' / f'host_{host}.txt'
    text = (f'host {host} stands still: {self._what}{step} has taken '
            f'{seconds:.0f} s{prompts}')
    # First what a person sees: a workdir that hangs or fails may be why.
    self._say(f'{text}. Where its threads are: {file}')
    with contextlib.suppress(Exception):  # whatever a bucket raises
      workdir_lib.write_whole(file, f'{text}\n{_threads()}')


def _threads() -> str:
  """Where every Python thread of this process is, the main one first.

  Not faulthandler: it leaves out what is beyond the hundredth thread, and the
  main thread, the oldest, comes last there.
  """
  frames = sys._current_frames()  # the one way to look into other threads
  main = threading.main_thread()
  threads = sorted(threading.enumerate(), key=lambda each: each is not main)
  return '\n'.join(
      f'Thread {each.name}, the innermost call last:\n'
      + ''.join(traceback.format_stack(frames[each.ident]))
      for each in threads if each.ident in frames)
