"""The console of a run: what goes on, so that nobody looks at a silent screen.

On a terminal one live line, which a thread keeps moving: the stage, its bar, its
main number, the time that is left, the phase and how long it has taken; while a
program is compiled, which and for how long. Finished work stays as a line, and
warnings are printed above the live one.

Elsewhere (a pipe, a log of a cluster, a notebook) plain lines without escape
codes: the first and the last step, one every ten seconds in between, programs
that take long to compile, and a sign of life while a phase goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
import logging
import os
import sys
import threading
import time
from typing import Any

from rich import console as rich_console
from rich import file_proxy
from rich import live as rich_live
from rich import progress_bar
from rich import table as rich_table
from rich import text as rich_text

from mmr1 import printer
from mmr1 import progress

_EVERY_S = 0.25  # between two looks of a live line
_PLAIN_EVERY_S = 10.0  # between two plain lines of steps
_ALIVE_EVERY_S = 30.0  # of a phase that goes on
# Of the environment: which host this is, before jax is asked.
_HOSTS = ('MMR1_HOST', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK', 'TPU_WORKER_ID')


class Console:
  """Prints on one host.

  Attributes:
    out: the console of rich.
    active: False on hosts but the first, where nothing is printed.
    cache: folder of compiled programs, '' if there is none.
  """

  def __init__(self, *, quiet: bool = False,
               out: rich_console.Console | None = None):
    """Opens the console.

    Args:
      quiet: nothing but warnings.
      out: where to print; None: stdout.
    """
    self.out = out or printer.open_out()
    self.active = all(os.environ.get(name, '0') in ('', '0')
                      for name in _HOSTS)
    self.cache = ''
    self._quiet = quiet
    self._moves = self.out.is_terminal and not self.out.is_dumb_terminal
    self._work: progress.Work | None = None
    self._own = False  # the work was begun by its steps
    self._live: rich_live.Live | None = None
    self._program = progress.Compiling()
    self._spoke = self._stepped = 0.0  # when the last plain line came
    self._lock, self._end = threading.RLock(), threading.Event()
    self._thread: threading.Thread | None = None
    self._streams: list[tuple[Any, Any]] = []

  # Work.

  def begin(self, name: str, kind: str = '', place: str = '') -> None:
    """A piece of work begins, which ends the one before without a word.
    Arguments as of `progress.Work`; without a kind it is no stage."""
    with self._lock:
      self._close()
      self._work, self._own = progress.Work(name, kind, place), False
      self._stepped = 0.0
      if not self.active or self._quiet:
        return
      if self._moves:
        self._open_live()
      elif kind:
        self.print(f'{self._work.title}: {kind}')
      self._spoke = time.monotonic()
      if self._thread is None:
        self._thread = threading.Thread(
            target=self._watch, name='console', daemon=True)
        self._thread.start()

  def steps(self, stage: str, total: int, step: int) -> None:
    """The work of a stage has `total` steps, `step` of them done."""
    with self._lock:
      if self._work is None or self._work.name != stage:
        self.begin(stage)
        self._own = True
      self._work.steps(total, step)
      if step and not self._live:
        self._plain(f'{stage} {step}/{total} goes on')
      self._refresh()

  def row(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
    """A step's metrics; those of other stages and of evaluations are no
    progress."""
    with self._lock:
      work = self._work
      if work is None or work.name != stage or not work.total or any(
          name.startswith('eval/') for name in numbers):
        return
      work.row(step, numbers)
      self._refresh()
      if self._stepped == 0.0 or step >= work.total or (
          time.monotonic() - self._stepped >= _PLAIN_EVERY_S):
        self._stepped = time.monotonic()
        self._plain(f'{stage} {step}/{work.total} {work.said()}'.rstrip())

  def doing(self, phase: str) -> None:
    """A phase of the work begins: 'think_short: sample'."""
    with self._lock:
      if self._work is not None:
        self._work.doing(phase)

  def compiling(self, program: str | None) -> None:
    """A program is being compiled; None: it is there."""
    with self._lock:
      self._compiled()
      if program is None:
        self._program.end()
      else:
        self._program.begin(program)

  def end(self, result: str = '') -> None:
    """The work is done; `result`: what it ends with, in words."""
    with self._lock:
      work = self._work
      self._close()
      if work is not None:
        self.note(f'{work.title} {work.ending(result)}')

  def stopped(self) -> None:
    """The steps are over; work that they began is, too."""
    with self._lock:
      if self._own:
        self._close()

  def close(self) -> None:
    """Nothing goes on any longer."""
    with self._lock:
      self._close()
      self._end.set()

  # Lines.

  def note(self, text: str) -> None:
    """Prints a line for a person."""
    if self.active and not self._quiet:
      self.print(text)

  def warn(self, text: str) -> None:
    """Prints a warning, also when quiet."""
    if self.active:
      self.print(f'WARNING: {text}')

  def print(self, what: Any) -> None:
    """Prints text or a table above the live line; on a terminal words wrap, a
    line of a file is one line."""
    with self._lock:
      self._spoke = time.monotonic()
      self.out.print(what, markup=False, highlight=False,
                     soft_wrap=isinstance(what, str) and not self._moves)

  def table(self, rows: Sequence[Sequence[Any]], columns: Sequence[str],
            title: str = '') -> None:
    """Prints a table; numbers are aligned to the right."""
    if self.active and not self._quiet:
      self.print(_grid(rows, columns, title))

  # The live line.

  def line(self) -> Any:
    """What is shown now. Takes no lock: rich asks for it with one of its own."""
    work, seconds = self._work, self._program.seconds
    if work is None:
      return rich_text.Text('')
    if seconds is not None:
      return rich_text.Text.assemble(
          (work.title, 'bold'), f'{work.count}  ', (
              self._compiles(f' {seconds:.0f} s'), 'cyan'))
    phase = (f'{work.phase or "begins"} '
             f'{time.monotonic() - work.since:.0f} s')
    if not work.total:
      return rich_text.Text.assemble((work.title, 'bold'), '  ', (phase, 'dim'))
    table = rich_table.Table.grid(padding=(0, 1))
    for _ in range(4):
      table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow='ellipsis', ratio=1)
    table.add_row(
        rich_text.Text(work.title, 'bold'),
        progress_bar.ProgressBar(work.total, work.step, width=16),
        rich_text.Text(f'{work.step}/{work.total}'),
        rich_text.Text(work.said().replace(', ', '  '), 'green'),
        rich_text.Text(phase, 'dim'))
    return table

  def _compiles(self, taken: str = '') -> str:
    later = (f' (first run only; later runs take it from {self.cache})'
             if self.cache else '')
    return f'compiling {self._program.name}{taken}{later}'

  def _open_live(self) -> None:
    self._live = rich_live.Live(
        get_renderable=self.line, console=self.out, auto_refresh=False,
        transient=True, redirect_stderr=sys.stderr.isatty())
    self._live.start(refresh=True)
    # Handlers of logs hold stderr as it was: their lines would tear this one.
    for handler in _handlers():
      if handler.stream in (sys.__stderr__, sys.__stdout__) and (
          handler.stream.isatty()):
        self._streams.append((handler, handler.setStream(
            file_proxy.FileProxy(self.out, handler.stream))))

  def _refresh(self) -> None:
    if self._live:
      self._live.refresh()

  def _close(self) -> None:
    """Ends the work; the live line goes."""
    while self._streams:
      handler, stream = self._streams.pop()
      handler.setStream(stream)
    if self._live:
      self._live.stop()
    self._live = self._work = None
    self._own = False

  # Signs of life.

  def _watch(self) -> None:
    while not self._end.wait(_EVERY_S):
      with self._lock:
        self._refresh()
        if self._work is not None and not self._live:
          self._alive(time.monotonic())

  def _alive(self, now: float) -> None:
    work, program = self._work, self._program
    self._compiled()
    if program.seconds is not None:
      if not program.told:
        program.told = True
        self._plain(f'{work.name}: {self._compiles()}')
    elif work.phase and now - self._spoke >= _ALIVE_EVERY_S:
      self._plain(f'{work.name}{work.count}: {work.phase}, '
                  f'{now - work.since:.0f} s so far')

  def _compiled(self) -> None:
    took = self._program.took
    if took is not None:
      self._program.told = False
      self._plain(f'compiled {self._program.name} in {took:.0f} s')

  def _plain(self, text: str) -> None:
    """A line where there is no live one."""
    if not self._moves:
      self.note(text)


def _grid(rows: Sequence[Sequence[Any]], columns: Sequence[str],
         title: str = '') -> rich_table.Table:
  """A table of rich; numbers are aligned to the right."""
  table = rich_table.Table(title=title or None)
  for i, name in enumerate(columns):
    text = any(isinstance(row[i], str) and not row[i][:1].isdigit()
               for row in rows)
    table.add_column(name, justify='left' if text else 'right')
  for row in rows:
    table.add_row(*(f'{x:.3f}' if isinstance(x, float) else str(x)
                    for x in row))
  return table


def _handlers() -> Iterator[logging.StreamHandler]:
  """Those of the root logger that write to a stream, absl's own inside of its
  handler."""
  for handler in logging.getLogger().handlers:
    inner = vars(handler).get('_current_handler', handler)
    if isinstance(inner, logging.StreamHandler):
      yield inner
