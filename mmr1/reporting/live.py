"""The report of a run that goes on, made by another process.

A run asks for it whenever it has written its files. It never waits: the page is
made by a process of its own with the lowest priority, one at a time, seldom
enough to take at most a fiftieth of the time; what fails there is told once,
and stops nothing.
"""

from collections.abc import Callable
import contextlib
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any

from mmr1.reporting import page

_SOONEST_S = 60.0
_SHARE = 50  # of the time
_PATIENCE_S = 30.0  # for what is being made when the run ends
_LOOKS_S = 1.0  # after which the other process sees that the run is gone


class Live:
  """Keeps <workdir>/report.html fresh."""

  def __init__(self, workdir: Any, warn: Callable[[str], None]):
    """`warn` takes a sentence for a person."""
    self._workdir, self._warn = str(workdir), warn
    self._process: subprocess.Popen | None = None
    self._watcher: threading.Thread | None = None
    self._due = time.monotonic() + _SOONEST_S
    self._failed = False  # has been told

  def refresh(self) -> None:
    """Starts to make the page if it is time for it."""
    if self._busy() or time.monotonic() < self._due:
      return
    began = time.monotonic()
    self._due = began + _SOONEST_S
    with self._told(once=True):
      self._process = subprocess.Popen(
          [sys.executable, '-m', 'mmr1.reporting.live', self._workdir],
          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
          stderr=subprocess.DEVNULL, env=_environment(),
          start_new_session=True)  # a terminal's Ctrl-C is for the run alone
      self._watcher = threading.Thread(
          target=self._watch, args=(self._process, began), daemon=True)
      self._watcher.start()

  def _watch(self, process: subprocess.Popen, began: float) -> None:
    """Waits for a page: the run may look at it only long afterwards."""
    process.wait()
    # As long as it took, so long times _SHARE it is not made again.
    took = time.monotonic() - began
    self._due = began + max(_SOONEST_S, _SHARE * took)

  def _busy(self) -> bool:
    if self._process is None:
      return False
    if self._watcher.is_alive():
      return True
    if self._process.returncode:
      self._tell(
          f'the report could not be made ({self._process.returncode}); '
          f'see python -m mmr1.report --workdir={self._workdir}', once=True)
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

  def _tell(self, said: str, once: bool = False) -> None:
    if not (once and self._failed):
      self._warn(said)
    self._failed |= once

  @contextlib.contextmanager
  def _told(self, once: bool = False):
    """A page is worth a warning, never a run."""
    try:
      yield
    except Exception as error:
      self._tell(f'no report: {type(error).__name__}: {error}', once)


def _environment() -> dict[str, str]:
  """In which mmr1 is found from any folder, as it was found here."""
  root = str(pathlib.Path(__file__).parent.parent.parent)
  given = os.environ.get('PYTHONPATH')
  return {**os.environ, 'PYTHONPATH': os.pathsep.join(
      [root, given] if given else [root])}


def _end_with(run: int) -> None:
  """Ends this process soon after its parent, which may have been killed."""
  while os.getppid() == run:
    time.sleep(_LOOKS_S)
  os._exit(1)


def main(argv: list[str]) -> None:
  os.nice(19)
  threading.Thread(
      target=_end_with, args=(os.getppid(),), daemon=True).start()
  page.write(argv[1:])


if __name__ == '__main__':
  main(sys.argv)
