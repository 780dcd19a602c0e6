"""The console line of a running stage.

On a terminal one live line; elsewhere (a file, a notebook's log) a plain line
at the first and last step and every few seconds in between.
"""

import time
from typing import Any

from rich import console as rich_console
from rich import progress as rich_progress

_PLAIN_EVERY_S = 10.0
_LIVE_EVERY_S = 0.25
# The first of these that a row has is shown, with its label.
_SHOWN = (('reward/mean', 'reward'), ('loss', 'loss'),
          ('eval/accuracy_sampled', 'accuracy'))


class Line:
  """Progress of one stage at a time."""

  def __init__(self, console: rich_console.Console):
    self._console = console
    self._bar: rich_progress.Progress | None = None
    self._stage = None
    self._total = 0

  def start(self, stage: str, total: int, step: int) -> None:
    """Opens the line of a stage of `total` steps, `step` of them done."""
    self.stop()
    self._stage, self._total = stage, total
    self._steady, self._shown_at = None, 0.0
    if self._console.is_terminal:
      self._bar = rich_progress.Progress(
          rich_progress.TextColumn('{task.description}'),
          rich_progress.BarColumn(),
          rich_progress.MofNCompleteColumn(),
          rich_progress.TextColumn('{task.fields[note]}'),
          console=self._console, auto_refresh=False)
      self._task = self._bar.add_task(
          stage, total=total, completed=step, note='compiling')
      self._bar.start()
      self._bar.refresh()

  def update(self, stage: str, step: int, numbers: dict[str, float]) -> None:
    """Shows a step; rows of other stages are not progress."""
    if stage != self._stage:
      return
    now = time.monotonic()
    edge = step >= self._total or self._shown_at == 0.0
    every = _LIVE_EVERY_S if self._bar else _PLAIN_EVERY_S
    if not edge and now - self._shown_at < every:
      return
    self._shown_at = now
    note = self._note(step, numbers, now)
    if self._bar:
      self._bar.update(self._task, completed=step, note=note)
      self._bar.refresh()
    else:
      self._console.print(
          f'{stage} {step}/{self._total} {note}', markup=False,
          highlight=False, soft_wrap=True)

  def _note(self, step: int, numbers: dict[str, float], now: float) -> str:
    parts = [f'{label} {numbers[key]:.3f}'
             for key, label in _SHOWN if key in numbers][:1]
    if self._steady is None:
      self._steady = step, now  # what came before was mostly compiling
    first, began = self._steady
    if step > first:
      left = (now - began) / (step - first) * max(0, self._total - step)
      parts.append(f'{int(left) // 60}:{int(left) % 60:02d} left')
    return ', '.join(parts)

  def print(self, what: Any) -> None:
    """Prints text or a table above the line."""
    self._console.print(what, markup=False, highlight=False,
                        soft_wrap=isinstance(what, str))

  def stop(self) -> None:
    """Leaves the line as it is and closes it."""
    if self._bar:
      self._bar.refresh()
      self._bar.stop()
    self._bar = self._stage = None
