"""Where a run prints: a terminal, a file, or a pipe that somebody reads."""

import contextlib
import os
import sys
from typing import Any

from rich import console as rich_console

_WIDTH = 100  # where there is no terminal


class Printer(rich_console.Console):
  """A console of rich whose reader may go, as in `| head` or `| tee` that has
  been stopped: it falls silent then, where rich ends the process."""

  def on_broken_pipe(self) -> None:
    """Called by rich when nobody reads any longer."""
    self.quiet = True
    with contextlib.suppress(AttributeError, OSError, ValueError):
      _to_nowhere(self.file.fileno())  # not every stream has a number


def _to_nowhere(number: int) -> None:
  """What is written to this descriptor from here on is thrown away, and so is
  what goes the same way, as stderr does after 2>&1: what Python could not flush
  would change its exit code."""
  gone = os.fstat(number)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for each in {number, 1, 2}:
    with contextlib.suppress(OSError):  # closed: nothing is written there
      if os.path.samestat(os.fstat(each), gone):
        os.dup2(nowhere, each)
  os.close(nowhere)


def open_out(stream: Any = None) -> rich_console.Console:
  """Where to print: stdout, or the stream. Escape codes only on terminals, and
  no colours there if NO_COLOR is set; text as it is: `a:b:c` is no picture."""
  stream = stream or sys.stdout
  terminal = stream.isatty()
  return Printer(
      file=stream, force_terminal=terminal, force_jupyter=False,
      highlight=False, emoji=False, width=None if terminal else _WIDTH)
