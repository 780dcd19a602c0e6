"""What is known of a piece of work while it goes on, in words.

A piece of work is a stage, the evaluation of the base, or what comes before
them: its steps, how fast they are, and the number that says how it goes.
"""

import collections
from collections.abc import Mapping
import time

# The first of these that a row has is shown, with its label.
MAIN = (('reward/mean', 'reward'), ('accuracy', 'accuracy'),
        ('rewards/accuracies', 'accuracy'), ('loss', 'loss'))
# Of what a stage ends with; a bound stands beside what it bounds.
_ENDS = (('eval/accuracy', 'greedy'), ('eval/accuracy_sampled', 'sampled'),
         ('eval/pair_accuracy', 'pairs right'), ('eval/reward', 'reward'),
         ('eval/ap', 'AP'))
_RECENT = 32  # steps whose pace is that of those to come
_COMPILES_S = 1.0  # programs that are ready sooner are not spoken of
_GAP_S = 0.5  # between tracing a program, lowering and compiling it


def shown(numbers: Mapping[str, float]) -> str:
  """'reward 0.431', of the row's main number; '' if it has none."""
  return next((f'{label} {numbers[key]:.3f}' for key, label in MAIN
               if key in numbers), '')


def ended(record: Mapping[str, object]) -> str:
  """What a stage's marker says of its end: 'greedy 0.912 (0.88-0.94), ...'.

  Args:
    record: from `checkpoint.Checkpoints.done`: 'eval' where it was evaluated,
      'kept' of a data set.
  """
  if 'kept' in record:
    return f'{record["kept"]} examples kept'
  metrics = record.get('eval') or {}
  return ', '.join(f'{label} {interval(metrics, key)}'
                   for key, label in _ENDS if key in metrics)


def interval(metrics: Mapping[str, float], name: str) -> str:
  """'0.912 (0.88-0.94)'; without bounds '0.912'."""
  if f'{name}_low' not in metrics:
    return f'{metrics[name]:.3f}'
  return (f'{metrics[name]:.3f} ({metrics[f"{name}_low"]:.2f}-'
          f'{metrics[f"{name}_high"]:.2f})')


def clock(seconds: float) -> str:
  """'0:07', '12:34', '1:02:03'."""
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (f'{hours}:{minutes:02d}:{rest:02d}' if hours
          else f'{minutes}:{rest:02d}')


class Work:
  """One piece of work.

  Attributes:
    name: of the stage.
    title: name and what goes in front of it: '2/4 think_short'.
    kind: of the stage; '' where there is none.
    total, step: steps, and how many are done; total 0: it has none.
    main: its main number so far, in words.
    phase, since: what is being done, and from when on (`time.monotonic`).
    began: when the work began.
  """

  def __init__(self, name: str, kind: str = '', place: str = ''):
    """`place`: which of how many, '2/4'."""
    self.name, self.kind = name, kind
    self.title = f'{place} {name}'.strip()
    self.total = self.step = 0
    self.main, self.phase = '', ''
    self.began = self.since = time.monotonic()
    self._marks: collections.deque[tuple[int, float]] = collections.deque(
        maxlen=_RECENT)

  def steps(self, total: int, step: int) -> None:
    """It has so many steps, `step` of them done."""
    self.total, self.step = total, step
    self._marks.clear()

  def row(self, step: int, numbers: Mapping[str, float]) -> None:
    """A step's metrics are there."""
    self.step = step
    self.main = shown(numbers) or self.main
    # What came before the first was mostly compiling: nothing is made of it.
    self._marks.append((step, time.monotonic()))

  def doing(self, phase: str) -> None:
    """A phase begins: 'sample', or 'think_short: sample'."""
    self.phase = phase.removeprefix(f'{self.name}: ')
    self.since = time.monotonic()

  @property
  def count(self) -> str:
    """' 12/40', '' of work without steps."""
    return f' {self.step}/{self.total}' if self.total else ''

  @property
  def pace(self) -> float | None:
    """Seconds a step; None: nothing is known yet."""
    if len(self._marks) < 2 or self._marks[-1][0] <= self._marks[0][0]:
      return None
    (first, began), (last, now) = self._marks[0], self._marks[-1]
    return (now - began) / (last - first)

  def said(self) -> str:
    """'reward 0.431, 1:05 left, 2.1 s a step', as far as it is known."""
    parts = [self.main] if self.main else []
    if self.pace is not None:
      left = self.pace * max(0, self.total - self.step)
      parts += [f'{clock(left)} left', f'{self.pace:.2g} s a step'
                if self.pace < 10 else f'{self.pace:.0f} s a step']
    return ', '.join(parts)

  def ending(self, result: str) -> str:
    """The line that stays: 'done in 1:05, 40 steps, ..., `result`'."""
    parts = [f'done in {clock(time.monotonic() - self.began)}']
    if self.total:
      parts.append(f'{self.total} steps')
      parts += [self.main] if self.main else []
    return ', '.join(parts + ([result] if result else []))


class Compiling:
  """The program that jax traces, lowers or compiles.

  Attributes:
    name: of the last one.
    told: True if somebody was told of it.
  """

  def __init__(self):
    self.name, self.told = '', False
    self._began = self._ended = 0.0
    self._busy = False

  def begin(self, name: str) -> None:
    """A part of the work on a program begins."""
    name, now = name.lstrip('_'), time.monotonic()
    if name != self.name or not self._busy and now - self._ended > _GAP_S:
      self.name, self.told, self._began = name, False, now
    self._busy = True

  def end(self) -> None:
    """That part is done."""
    self._busy, self._ended = False, time.monotonic()

  @property
  def seconds(self) -> float | None:
    """How long it has taken so far; None: nothing that takes long goes on."""
    taken = time.monotonic() - self._began
    return taken if self._busy and taken >= _COMPILES_S else None

  @property
  def took(self) -> float | None:
    """How long a program took that was told of, once it is there."""
    if self._busy or not self.told or time.monotonic() - self._ended < _GAP_S:
      return None
    return self._ended - self._began
