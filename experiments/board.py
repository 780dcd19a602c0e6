"""What runs beside each other are doing: a live table, or plain lines."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any, NamedTuple

from rich import console as rich_console
from rich import live as rich_live
from rich import table as rich_table

from mmr1 import printer

_TAIL = 1 << 16  # bytes: some rows


class State(NamedTuple):
  """Of a run.

  Fields:
    name: of it.
    workdir: its own.
    steps: {stage: steps} of those that train.
    state: 'waiting', 'running', 'done', 'failed', 'stopped'.
    seconds: since it was started here.
  """
  name: str
  workdir: pathlib.Path
  steps: Mapping[str, int]
  state: str
  seconds: float


class Progress(NamedTuple):
  """How far a run has come: stage, step, the stage's last reward, and the last
  held-out accuracy; None: there is none yet, 'nan': as a row has it."""
  stage: str = ''
  step: int = 0
  reward: float | str | None = None
  accuracy: float | str | None = None


class Board:
  """Shows states; a context manager."""

  def __init__(self, console: rich_console.Console | None = None):
    self._console = console or printer.open_out()
    self._live: rich_live.Live | None = None
    self._told: dict[str, tuple[str, str]] = {}

  def __enter__(self) -> 'Board':
    if self._console.is_terminal:
      self._live = rich_live.Live(
          console=self._console, auto_refresh=False, transient=True)
      self._live.start()
    return self

  def __exit__(self, *_):
    if self._live:
      self._live.stop()

  def say(self, text: str) -> None:
    """A line for a person."""
    self._console.print(text, markup=False, soft_wrap=True)

  def show(self, states: Sequence[State]) -> None:
    """On a terminal the table; else a line for each state or stage that a run
    has come to since the last time."""
    if self._live:
      self._live.update(_table(states), refresh=True)
      return
    for one in states:
      stage = progress(one.workdir).stage if one.state == 'running' else ''
      if one.state != 'waiting' and self._told.get(one.name) != (
          one.state, stage):
        self._told[one.name] = one.state, stage
        self.say('  '.join(filter(None, _cells(one))))


def _table(states: Sequence[State]) -> rich_table.Table:
  table = rich_table.Table(
      'run', 'state', 'where', 'reward', 'accuracy', 'time')
  for one in states:
    table.add_row(*_cells(one, ''))
  return table


def _cells(one: State, label: str = '{} ') -> tuple[str, ...]:
  """As the columns of the table; `label` stands before numbers."""
  now = Progress() if one.state == 'waiting' else progress(one.workdir)
  total = one.steps.get(now.stage)
  where = now.stage and (
      f'{now.stage} {now.step}/{total}' if total else now.stage)
  minutes, seconds = divmod(int(one.seconds), 60)
  return (one.name, one.state, where, *(
      '' if value is None else label.format(name) + (
          value if isinstance(value, str) else f'{value:.3f}')
      for name, value in (('reward', now.reward), ('accuracy', now.accuracy))),
          f'{minutes}:{seconds:02d}' if one.seconds else '')


def progress(workdir: pathlib.Path) -> Progress:
  """From the last rows of a run's metrics, which it may be writing."""
  found = Progress()
  for row in _last_rows(workdir / 'metrics.jsonl'):
    same = row['stage'] == found.stage
    found = found._replace(
        stage=row['stage'], step=row['step'],
        reward=row.get('reward/mean', found.reward if same else None),
        accuracy=row.get('eval/accuracy', found.accuracy))
  return found


def _last_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  with open(path, 'rb') as file:
    file.seek(max(0, path.stat().st_size - _TAIL))
    lines = file.read().split(b'\n')
  # The first may lack its beginning, the last its end.
  whole = lines[:-1] if len(b'\n'.join(lines)) < _TAIL else lines[1:-1]
  return [json.loads(line) for line in whole]
