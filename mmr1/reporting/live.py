"""The report of a run that goes on, made by another process.

A run asks for it whenever it has written its files. It never waits: the page is
made by a process of its own with the lowest priority, one at a time, seldom
enough to take at most a fiftieth of the time; what fails there is told once at
the end, and stops nothing.
"""

from collections.abc import Callable
import contextlib
import os
import subprocess
import sys
import time
from typing import Any

from mmr1.reporting import page

_SOONEST_S = 60.0
_SHARE = 50  # of the time
_PATIENCE_S = 30.0  # for what is being made when the run ends


class Live:
  """Keeps <workdir>/report.html fresh."""

  def __init__(self, workdir: Any, warn: Callable[[str], None]):
    """`warn` takes a sentence for a person."""
    self._workdir, self._warn = str(workdir), warn
    self._process: subprocess.Popen | None = None
    self._began = self._due = time.monotonic() + _SOONEST_S

  def refresh(self) -> None:
    """Starts to make the page if it is time for it."""
    now = time.monotonic()
    if self._busy() or now < self._due:
      return
    self._began, self._due = now, now + _SOONEST_S
    with self._told():
      self._process = subprocess.Popen(
          [sys.executable, '-m', 'mmr1.reporting.live', self._workdir],
          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
          stderr=subprocess.DEVNULL)

  def _busy(self) -> bool:
    if self._process is None:
      return False
    if self._process.poll() is None:
      # As long as it takes, so long times _SHARE it is not made again.
      took = time.monotonic() - self._began
      self._due = self._began + max(_SOONEST_S, _SHARE * took)
      return True
    if self._process.returncode:
      self._warn(f'the report could not be made ({self._process.returncode}); '
                 f'see python -m mmr1.report --workdir={self._workdir}')
    self._process = None
    return False

  def finish(self) -> None:
    """Makes the last page, here, and waits for it."""
    self.stop()
    with self._told():
      page.write([self._workdir])

  def stop(self) -> None:
    """Ends the other process; the page it was making is not needed."""
    if self._process is None:
      return
    with self._told():
      self._process.kill()
      self._process.wait(_PATIENCE_S)
    self._process = None

  @contextlib.contextmanager
  def _told(self):
    """A page is worth a warning, never a run."""
    try:
      yield
    except Exception as error:
      self._warn(f'no report: {type(error).__name__}: {error}')


def main(argv: list[str]) -> None:
  os.nice(19)
  page.write(argv[1:])


if __name__ == '__main__':
  main(sys.argv)
