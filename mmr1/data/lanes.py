"""The prompts of a step, each row from a lane of its own.

Row r of a batch of n reads the positions r, r + n, r + 2n, ... of a mixture; a
broken record moves its lane on and no other. So who reads which rows changes
nothing: a host opens the lanes of its own rows, and what it trains on is the
same with one host or many.
"""

import collections
from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

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
      ValueError: an argument outside its range.
    """
    pipeline.check_workers(worker_count, worker_buffer)
    self.mixture, self.shape, self.count = mixture, shape, count
    self.own = tuple(range(count) if own is None else own)
    self.breakage = breakage.Breakage(mixture, max_broken_frac)
    self._workers = worker_count, worker_buffer
    self._turns = [0] * count  # of every lane, the next; true of the own ones
    self._ahead: dict[int, collections.deque] = {}
    self._iterator = None

  def take(self) -> Taken:
    """The next prompt of every own lane.

    Raises:
      ValueError: a lane has nothing but broken records.
    """
    broken: list[tuple[int, records.Broken]] = []
    return Taken([self._next(lane, broken) for lane in self.own], broken)

  def note(self, broken: Sequence[tuple[int, records.Broken]]) -> None:
    """Tells what was broken in all lanes, whoever read them.

    Raises:
      ValueError: too much of a member is.
    """
    for k, one in sorted(broken, key=lambda item: item[0]):
      self.breakage.note(k, one)

  def turns(self) -> dict[int, int]:
    """{own lane: its next turn}."""
    return {lane: self._turns[lane] for lane in self.own}

  def state(self, turns: dict[int, int] | None = None) -> dict[str, Any]:
    """JSON-able state; `turns` of all lanes, where not all are own."""
    every = self.turns() if turns is None else turns
    return {'turns': [every[lane] for lane in range(self.count)],
            **self.breakage.state()}

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on from a saved state. The mixture and the count must be the same.
    """
    self.close()
    self._turns = [int(turn) for turn in state['turns']]
    self.breakage.restore(state)

  def close(self) -> None:
    """Stops the workers; the next `take` starts them again."""
    if self._iterator is not None and self._workers[0]:
      self._iterator.close()
    self._iterator = None

  def _next(self, lane: int, broken: list) -> pipeline.Pair:
    bad = 0
    while True:
      k, item = self._pull(lane)
      self._turns[lane] = k // self.count + 1
      if not isinstance(item, records.Broken):
        return item
      broken.append((k, item))
      bad += 1
      if bad > len(self.mixture):
        raise ValueError(
            f'{bad} records one after the other cannot be used; the last is '
            f'{item.where}: {item.reason}')

  def _pull(self, lane: int):
    if self._iterator is None:
      start = min(self._turns[own] for own in self.own)
      self._ahead = {own: collections.deque() for own in self.own}
      self._iterator = pipeline.iterate(
          _Turns(self.mixture, self.shape, self.count, self.own, start),
          *self._workers)
    while not self._ahead[lane]:
      k, item = next(self._iterator)
      turn, other = divmod(k, self.count)
      if turn >= self._turns[other]:  # else it was taken before a restart
        self._ahead[other].append((k, item))
    return self._ahead[lane].popleft()
