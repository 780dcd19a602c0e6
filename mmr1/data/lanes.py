"""The prompts of a step, each row from a lane of its own.

Row r of a batch of n reads the positions r, r + n, r + 2n, ... of a mixture; a
broken record moves its lane on and no other. So who reads which rows changes
nothing: a host opens the lanes of its own rows, and what it trains on is the
same with one host or many.

Of a mixture in blocks of n all prompts of a step are of one member, and step s
is of the member of block s. A broken record then moves its lane on to its next
position in a block of the same member, ahead of the other lanes there and
nowhere else: the steps of other members stay as they are.
"""

import collections
from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from mmr1 import records
from mmr1.data import breakage
from mmr1.data import pipeline
from mmr1.data import sources


class Taken(NamedTuple):
  """A step's prompts of some lanes.

  Fields:
    pairs: one of each lane, in order.
    broken: [(position, Broken)] on the way there.
  """
  pairs: list[pipeline.Pair]
  broken: list[tuple[int, records.Broken]]


@dataclasses.dataclass(frozen=True)
class _Turns:
  """Items of the lanes `own`, turn after turn from `start` on, for Grain."""
  mixture: sources.Mixture
  shape: pipeline.Shape
  count: int
  own: tuple[int, ...]
  start: int

  def __len__(self) -> int:
    return pipeline.ENDLESS // self.count * len(self.own)

  def __getitem__(self, i: int) -> tuple[int, pipeline.Pair | records.Broken]:
    turn, lane = divmod(int(i), len(self.own))
    k = (self.start + turn) * self.count + self.own[lane]
    return k, self.shape.encode(self.mixture[k], self.mixture.place(k).index)


class Lanes:
  """A deterministic, endless source of batches.

  Attributes:
    breakage: broken records of all lanes, as far as `note` was told.
  """

  def __init__(
      self,
      mixture: sources.Mixture,
      shape: pipeline.Shape,
      count: int,
      own: Sequence[int] | None = None,
      *,
      max_broken_frac: float,
      worker_count: int = 0,
      worker_buffer: int = 16,
  ):
    """Makes the lanes; workers start with the first `take`.

    Args:
      mixture: what to read.
      shape: how to encode it.
      count: lanes, prompts of a step.
      own: those that are read here; None: all.
      max_broken_frac, worker_count, worker_buffer: see `pipeline.Stream`.

    Raises:
      ValueError: an argument outside its range; blocks of another size.
    """
    pipeline.check_workers(worker_count, worker_buffer)
    if mixture.block not in (None, count):
      raise ValueError(f'Lanes: {count} lanes over blocks of {mixture.block}; '
                       'a step is a block, so both must be the same.')
    self.mixture, self.shape, self.count = mixture, shape, count
    self.own = tuple(range(count) if own is None else own)
    self.breakage = breakage.Breakage(mixture, max_broken_frac)
    self._workers = worker_count, worker_buffer
    # Of every lane, the first turn that it has not taken, of each member where
    # steps are of one; true of the own ones.
    queues = 1 if mixture.block is None else len(mixture.sources)
    self._turns = [(0,) * queues for _ in range(count)]
    self._steps = 0
    self._ahead: dict[tuple[int, int], collections.deque] = {}
    self._iterator = None

  def take(self) -> Taken:
    """The next prompt of every own lane.

    Raises:
      ValueError: a lane has nothing but broken records.
    """
    broken: list[tuple[int, records.Broken]] = []
    queue = self._queue(self._steps)
    pairs = [self._next(lane, queue, broken) for lane in self.own]
    self._steps += 1
    return Taken(pairs, broken)

  def note(self, broken: Sequence[tuple[int, records.Broken]]) -> None:
    """Tells what was broken in all lanes, whoever read them.

    Raises:
      ValueError: too much of a member is.
    """
    for k, one in sorted(broken, key=lambda item: item[0]):
      self.breakage.note(k, one)

  def turns(self) -> dict[int, int | list[int]]:
    """{own lane: its next turn}; of each member where steps are of one."""
    return {lane: list(turns) if self.mixture.block is not None else turns[0]
            for lane, turns in enumerate(self._turns) if lane in self.own}

  def position(self) -> dict[str, Any]:
    """What `restore` needs, with the turns of the own lanes alone."""
    return {'turns': self.turns(), 'steps': self._steps,
            **self.breakage.state()}

  def state(self, turns: dict[int, Any] | None = None) -> dict[str, Any]:
    """JSON-able state; `turns` of all lanes, where not all are own."""
    every = self.turns() if turns is None else turns
    return {**self.position(),
            'turns': [every[lane] for lane in range(self.count)]}

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on from a saved state. The mixture and the count must be the same.
    """
    self.close()
    self._turns = [tuple(map(int, np.atleast_1d(turn)))
                   for turn in state['turns']]
    self._steps = int(state['steps'])
    self.breakage.restore(state)

  def close(self) -> None:
    """Stops the workers; the next `take` starts them again."""
    if self._iterator is not None and self._workers[0]:
      self._iterator.close()
    self._iterator = None

  def _queue(self, turn: int) -> int:
    """What the lanes' turns are counted by: the member of a block, or 0."""
    if self.mixture.block is None:
      return 0
    return self.mixture.place(turn * self.count).member

  def _next(self, lane: int, queue: int, broken: list) -> pipeline.Pair:
    bad, every = 0, self.mixture
    if self.mixture.block is not None:
      every = self.mixture.sources[queue]
    most = self.breakage.in_a_row(len(every))
    while True:
      k, item = self._pull(lane, queue)
      turns = list(self._turns[lane])
      turns[queue] = k // self.count + 1
      self._turns[lane] = tuple(turns)
      if not isinstance(item, records.Broken):
        return item
      broken.append((k, item))
      bad += 1
      if bad > most:
        raise ValueError(
            f'{bad} records one after the other cannot be used; the last is '
            f'{item.where}: {item.reason}')

  def _pull(self, lane: int, queue: int):
    if self._iterator is None:
      # Turns of steps that were taken are behind every lane.
      start = max(self._steps, min(
          min(self._turns[own]) for own in self.own))
      self._ahead = collections.defaultdict(collections.deque)
      self._iterator = pipeline.iterate(
          _Turns(self.mixture, self.shape, self.count, self.own, start),
          *self._workers)
    while not self._ahead[lane, queue]:
      k, item = next(self._iterator)
      turn, other = divmod(k, self.count)
      its = self._queue(turn)
      if turn >= self._turns[other][its]:  # else taken before a restart
        self._ahead[other, its].append((k, item))
    return self._ahead[lane, queue].popleft()
