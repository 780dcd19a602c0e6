"""What a run writes while it runs: metrics, events, samples, the console.

    metrics.jsonl            one object per row: stage, step, time, metrics
    events/<stage>/          TensorBoard, steps counted inside the stage
    samples/<stage>.jsonl    one object per completion
    samples/images/          thumbnails, named by their content

On a remote workdir the files are kept locally and uploaded whole by `flush`.
A sink that fails never stops the run: failures are counted in `log/errors` and
the first of each sink is shown. Text logs hold no pixels (M23).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
import math
import tempfile
import time
from typing import Any

from etils import epath
import jax
import numpy as np
from rich import console as rich_console
import tensorboardX

from mmr1 import console as console_lib
from mmr1 import thumbnails
from mmr1 import workdir as workdir_lib

_ERRORS = 'log/errors'


class Logger:
  """Writes a run's records; every method is a no-op on hosts but the first."""

  def __init__(
      self,
      workdir: Any,
      *,
      quiet: bool = False,
      tensorboard: bool = True,
      console: rich_console.Console | None = None,
      screen: console_lib.Console | None = None,
  ):
    """Opens the logs of `workdir`, a local path or gs://.

    Args:
      workdir: the run's folder.
      quiet: nothing on the console but warnings and failures.
      tensorboard: write events as well.
      console: where to print; the default is stdout.
      screen: the console of the run, in place of `quiet` and `console`.
    """
    self._active = jax.process_index() == 0
    self._remote = epath.Path(workdir)
    self.screen = screen or console_lib.Console(quiet=quiet, out=console)
    self.screen.active = self._active
    self._tensorboard = tensorboard
    self._events: dict[str, tensorboardX.SummaryWriter] = {}
    self._purge: dict[str, int] = {}
    self._shown: set[str] = set()
    self.errors = 0
    self.flushed: Callable[[], None] | None = None  # told after each flush
    local = '://' not in str(workdir)
    self._scratch = None if local else tempfile.mkdtemp(prefix='mmr1-log-')
    self._folder = epath.Path(workdir if local else self._scratch)
    if self._active and not local:
      self._download()  # must not fail: an upload would replace what is there

  # Rows of numbers.

  def write(
      self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Appends one row to metrics.jsonl and TensorBoard, moves the progress.

    A later row with the same stage and step adds to the earlier one.

    Args:
      stage: the stage's name.
      step: steps of the stage done.
      metrics: {name: scalar}; jax and numpy scalars are read here. None is no
        value and leaves the key out; nan and inf are written as strings.
    """
    if not self._active:
      return
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
      if value is not None:
        self._try(f'metric {name}', lambda: numbers.update(
            {name: float(np.asarray(value).reshape(()))}))
    if self.errors:
      numbers[_ERRORS] = float(self.errors)
    row = {'stage': stage, 'step': int(step), 'time': time.time(), **numbers}
    self._try('metrics.jsonl', lambda: self._append('metrics.jsonl', [row]))
    if self._tensorboard:
      self._try('tensorboard', lambda: self._event(stage, step, numbers))
    self._try('progress', lambda: self.screen.row(stage, step, numbers))

  def samples(
      self, stage: str, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends completions to samples/<stage>.jsonl.

    Args:
      stage: the stage's name.
      step: the step they belong to.
      rows: JSON-like values: 'prompt', 'completion', 'rewards', 'advantage',
        ... PIL images and uint8[H, W, 3] arrays anywhere inside are written as
        thumbnails and replaced by their file's name.
    """
    if not self._active:
      return
    def write():
      images = self._folder / 'samples' / 'images'
      clean = [{'stage': stage, 'step': int(step),
                **thumbnails.without_pixels(dict(row), images)}
               for row in rows]
      self._append(f'samples/{stage}.jsonl', clean)
    self._try('samples', write)

  def truncate(
      self, stage: str, step: int, *, evaluation: bool = False) -> None:
    """Cuts the stage's rows, events and samples past `step` (on resume).

    A half-written last line is cut as well. `step` = -1 removes the stage.
    `evaluation`: also the row of metrics 'eval/...' of `step` itself.
    """
    if not self._active:
      return
    self._purge[stage] = step + 1
    for name in ('metrics.jsonl', f'samples/{stage}.jsonl'):
      self._try(f'truncate {name}', lambda: _cut(
          self._folder / name, stage, step, evaluation))

  # The console.

  def start(self, stage: str, total: int, step: int = 0) -> None:
    """Opens the progress line of a stage with `total` steps."""
    self._try('progress', lambda: self.screen.steps(stage, total, step))

  def stop(self) -> None:
    """Closes the progress line."""
    self._try('progress', self.screen.stopped)

  def note(self, text: str) -> None:
    """Prints a line for a person."""
    self._try('console', lambda: self.screen.note(text))

  def warn(self, text: str) -> None:
    """Prints a warning, also when quiet."""
    self._try('console', lambda: self.screen.warn(text))

  def table(
      self,
      rows: Sequence[Sequence[Any]],
      columns: Sequence[str],
      title: str = '',
  ) -> None:
    """Prints a table; numbers are aligned to the right."""
    self._try('console', lambda: self.screen.table(rows, columns, title))

  # Files.

  def flush(self) -> None:
    """Writes events out and uploads to a remote workdir."""
    for writer in self._events.values():
      self._try('tensorboard', writer.flush)
    if self._active and self._scratch is not None:
      self._try(f'upload from {self._scratch}', self._upload)
    if self._active and self.flushed is not None:
      self._try('report', self.flushed)

  def close(self) -> None:
    """Flushes and closes everything."""
    self.stop()
    self.flush()
    for writer in self._events.values():
      self._try('tensorboard', writer.close)
    self._events = {}
    if self._scratch and f'upload from {self._scratch}' not in self._shown:
      epath.Path(self._scratch).rmtree()  # else it is all there is

  def _try(self, sink: str, action) -> None:
    """Runs an action of a sink; its failure is counted and shown once (M23)."""
    try:
      action()
    except Exception as error:
      self.errors += 1
      if sink in self._shown:
        return
      self._shown.add(sink)
      message = (f'WARNING: logging failed ({sink}): {type(error).__name__}: '
                 f'{error}. The run goes on; see {_ERRORS}.')
      try:
        self.screen.print(message)
      except Exception:
        self.errors += 1  # no console either; the count is what remains

  def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
    path = self._folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ''.join(
        json.dumps(_strict(row), ensure_ascii=False, allow_nan=False) + '\n'
        for row in rows)
    _end_last_line(path)
    # A lone surrogate becomes its escape, which JSON knows.
    with open(path, 'ab') as file:  # local by construction
      file.write(text.encode('utf-8', 'backslashreplace'))

  def _event(self, stage: str, step: int, numbers: dict[str, float]) -> None:
    if stage not in self._events:
      self._events[stage] = tensorboardX.SummaryWriter(
          str(self._folder / 'events' / stage),
          purge_step=self._purge.get(stage))
    for name, value in numbers.items():
      if math.isfinite(value):  # tensorboardX warns at each; the row has it
        self._events[stage].add_scalar(name, value, step)

  def _download(self) -> None:
    for name in ('metrics.jsonl', 'samples', 'events'):
      workdir_lib.copy(self._remote / name, self._folder / name)

  def _upload(self) -> None:
    for name in ('metrics.jsonl', 'samples', 'events'):
      workdir_lib.copy(self._folder / name, self._remote / name)


def read_rows(path: Any) -> list[dict[str, Any]]:
  """Rows of a metrics or samples file; a half-written last line is left out.

  Raises:
    ValueError: any other line that is not JSON, with its number.
  """
  lines = epath.Path(path).read_bytes().split(b'\n')
  rows = []
  for number, line in enumerate(lines, 1):
    if not line:
      continue
    try:
      rows.append(json.loads(line.decode('utf-8')))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
      if number < len(lines):  # only what no newline ends can be half-written
        raise ValueError(f'{path}:{number}: no JSON: {error}.') from error
  return rows


def _cut(path: epath.Path, stage: str, step: int, evaluation: bool) -> None:
  if not path.exists():
    return
  def keeps(row):
    again = evaluation and any(key.startswith('eval/') for key in row)
    return row['stage'] != stage or row['step'] <= step - again
  whole = path.read_bytes().split(b'\n')[:-1]
  kept = [line + b'\n' for line in whole if keeps(json.loads(line))]
  temporary = path.parent / f'{path.name}.tmp'
  temporary.write_bytes(b''.join(kept))
  temporary.replace(path)


def _end_last_line(path: epath.Path) -> None:
  """Cuts what a kill or a full disk left after the last newline."""
  if path.exists() and path.stat().length:
    with open(path, 'r+b') as file:
      file.seek(-1, 2)
      if file.read(1) != b'\n':
        file.seek(0)
        file.truncate(file.read().rfind(b'\n') + 1)


def _strict(value: Any) -> Any:
  """nan and inf as strings: JSON has no such numbers."""
  if isinstance(value, Mapping):
    return {str(key): _strict(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_strict(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value
