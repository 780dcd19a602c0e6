"""Which sample sits in which row of the sampler, decided on the host.

A shard has `rows` rows and more samples than rows: a row that ends takes the
next waiting sample, and when none waits the last ones move together into fewer
rows. The device decodes in between, without asking. Only numpy: what happens
to the rows follows from their lengths alone.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from mmr1.sampling import sizes

# A shard asks for new samples when this part of its rows has ended. Asking
# costs about as much as a token, idle rows cost theirs.
_REFILL_AT = 1 / 8
# And where rows stop for what comes from outside, when this part of them has.
_TURN_AT = 1 / 4
# Rows are halved at most so often: each count of rows is a program.
_HALVINGS = 2


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How completions are decoded; what comes out does not depend on it.

  Fields:
    rows: completions decoded at a time, the others wait; None: all at once.
    cache_chunk: tokens of the first cache. A full one is doubled, up to the
      cap, so that cost follows the length reached; each size is one more
      program, and there is room for the last one in the first call already.
      None: the cap; more where rows begin at different tokens, see `sizes`.
    shrink: when few completions are left, they go on in half, then a quarter
      of the rows: for where time falls with the rows (CPU, long completions);
      two more programs for every cache size.
    layers: 'scan' or 'unrolled' in the decoding loop; None: as the model has
      them. A scan copies every layer's weights out of their stack for every
      token; unrolled they are copied once, and are there twice.
    entropy: with the entropy of the distribution of each token.

  Raises:
    ValueError: a number below 1, another word.
  """
  rows: int | None = None
  cache_chunk: int | None = None
  shrink: bool = False
  layers: str | None = None
  entropy: bool = False

  def __post_init__(self):
    if self.layers not in (None, 'scan', 'unrolled'):
      raise ValueError(f'sampler.layers: got {self.layers!r}; allowed are '
                       "'scan', 'unrolled', or None for model.layers.")
    for name in ('rows', 'cache_chunk'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(
            f'sampler.{name}: got {value}; allowed: at least 1, or None.')


class Layout(NamedTuple):
  """What the next decode works on. D shards, R rows and A prompts in each.

  Fields:
    task: i32[D, R], sample of the row: prompt * G + slot, both counted in the
      shard; N / D * G where the row is idle.
    start: i32[D, R], index in the cache of the row's first token.
    fresh: bool[D, R], rows that begin.
    source: i32[D, R], the row that each one was before.
    prompts: i32[D, A], the prompts, counted in the shard, that rows may read.
    shift: tokens dropped from the front of the cache.
    size: tokens of the cache, U.
    refill: i32[D], the decode stops when a shard has so many live rows or
      fewer; -1: it does not.
    shrink: and when every shard has.
  """
  task: np.ndarray
  start: np.ndarray
  fresh: np.ndarray
  source: np.ndarray
  prompts: np.ndarray
  shift: int
  size: int
  refill: np.ndarray
  shrink: int

  def seats(self, group: int) -> tuple[np.ndarray, np.ndarray]:
    """(row i32[D, A * G], seat i32[D, R]), see `attention.Seats`."""
    shards, prompts = self.prompts.shape
    row = np.zeros((shards, prompts * group), np.int32)
    seat = np.zeros(self.task.shape, np.int32)
    for d in range(shards):
      place = {int(p): a for a, p in enumerate(self.prompts[d])}
      for r, task in enumerate(self.task[d].tolist()):
        prompt, slot = divmod(task, group)
        if prompt in place:  # not idle
          seat[d, r] = place[prompt] * group + slot
          row[d, seat[d, r]] = r
    return row, seat


class Shape(NamedTuple):
  """What programs are compiled for: rows in a shard, prompts that they may
  read, tokens of the cache."""
  rows: int
  prompts: int
  size: int


class Schedule:
  """The rows of one call of the sampler.

  Attributes:
    idle: number of the task of an idle row.
    layout: of the next decode.
    shapes: all that layouts can have, whatever ends when (law 7): by size, and
      in each from the most rows down.
  """

  def __init__(
      self, real: np.ndarray, group: int, length: int, decoding: Decoding, *,
      spare: int = 0):
    """Seats the first samples.

    Args:
      real: bool[D, N / D], prompts of every shard; False: padding, which
        samples nothing.
      group: samples per prompt, G.
      length: cap of a completion, T.
      decoding: how.
      spare: tokens that the cache has beside those of a layout, for what is
        read at once where rows stop on their way and go on where others have
        got to; 0: rows do not stop.
    """
    shards, prompts = real.shape
    self._group, self._turns = group, spare > 0
    self.idle = prompts * group
    self._prompts, self._shrinks = prompts, decoding.shrink
    self._waiting = [
        np.flatnonzero(np.repeat(part, group)).tolist() for part in real]
    wanted = self.idle if decoding.rows is None else -(
        -decoding.rows // shards)
    self._rows = min(wanted, self.idle)
    # While samples wait the rows begin at different tokens.
    self._apart = self._turns or self._rows < self.idle
    self._chunk = min(decoding.cache_chunk or -(-length // 4), length)
    self._sizes = sizes.caches(
        length, self._chunk, waits=self._rows < self.idle, spare=spare,
        grows=decoding.cache_chunk is not None)
    halvings = range(_HALVINGS + 1 if decoding.shrink else 1)
    # Each once, from the most down.
    self._counts = [*dict.fromkeys(-(-self._rows // 2**h) for h in halvings)]
    self.shapes = tuple(
        Shape(count, self._readable(count), size)
        for size in self._sizes for count in self._counts)
    self._t = 0
    self._task = np.full((shards, self._rows), self.idle, np.int32)
    self._start = np.zeros((shards, self._rows), np.int32)
    self.layout = self._arrange(full=True)

  @functools.cached_property
  def whole(self) -> bool:
    """True if every sample has its row from beginning to end."""
    return self._rows == self.idle and not self._shrinks

  def after(self, t: int, live: np.ndarray,
            start: np.ndarray | None = None) -> Layout | None:
    """The layout to go on with, or None if all samples have ended.

    Args:
      t: tokens in the cache.
      live: bool[D, R], rows that have not ended.
      start: i32[D, R], where rows begin now; None: where they did.
    """
    self._t = t
    if start is not None:
      self._start = start.copy()
    self._task = np.where(live, self._task, self.idle)
    if not live.any() and not any(self._waiting):
      return None
    self.layout = self._arrange(full=t >= self.layout.size)
    return self.layout

  def moves(self, shape: Shape) -> list[Shape]:
    """Where one can go from there by changing either rows or cache.

    The cache itself is among them where its front can be dropped.
    """
    index = self._sizes.index(shape.size)
    sizes = self._sizes[0 if self._apart else index + 1:index + 2]
    return [other for other in self.shapes if (
        other.rows == shape.rows and other.size in sizes
        or other.rows < shape.rows and other.size == shape.size)]

  def nobody(self, shape: Shape, shift: int = 0) -> Layout:
    """A layout of that shape in which every row is idle."""
    shards = len(self._waiting)
    full = functools.partial(np.full, dtype=np.int32)
    source, prompts = (np.tile(np.arange(count, dtype=np.int32), (shards, 1))
                       for count in shape[:2])
    rows = source.shape
    return Layout(
        task=full(rows, self.idle), start=full(rows, 0),
        fresh=np.zeros(rows, bool), source=source, prompts=prompts,
        shift=shift, size=shape.size, refill=full(shards, -1), shrink=0)

  def _arrange(self, *, full: bool) -> Layout:
    shards, rows = self._task.shape
    source = np.tile(np.arange(rows, dtype=np.int32), (shards, 1))
    fewer = self._fewer()
    if fewer < rows:
      source = np.argsort(self._task == self.idle, axis=1, kind='stable')
      source = source[:, :fewer].astype(np.int32)
      self._task, self._start = (
          np.take_along_axis(x, source, 1) for x in (self._task, self._start))
    fresh = self._fill()
    shift, size = 0, self.layout.size if not full else 0
    if full or fewer < rows:
      shift, size = self._room()
      self._start -= shift
      self._t -= shift
    refill, shrink = self._stops()
    return Layout(
        self._task, self._start, fresh, source, self._reading(), shift, size,
        refill, shrink)

  def _fewer(self) -> int:
    """Rows that the samples at hand need, of the counts allowed."""
    rows = self._task.shape[1]
    if not self._shrinks or any(self._waiting):
      return rows
    need = (self._task < self.idle).sum(1).max()
    prompts = max(len(set((task[task < self.idle] // self._group).tolist()))
                  for task in self._task)
    for fewer in reversed(self._counts):
      if need <= fewer < rows and prompts <= self._readable(fewer):
        return fewer
    return rows

  def _readable(self, rows: int) -> int:
    """Prompts that so many rows may read, A: with lengths spread like a
    geometric distribution, about 2.6 per whole group are alive at a time."""
    return min(self._prompts, 3 * -(-rows // self._group) + 1)

  def _fill(self) -> np.ndarray:
    """Gives idle rows waiting samples; returns who begins."""
    fresh = np.zeros(self._task.shape, bool)
    limit = self._readable(self._task.shape[1])
    for d, waiting in enumerate(self._waiting):
      task = self._task[d]
      read = set((task[task < self.idle] // self._group).tolist())
      for r in np.flatnonzero(task == self.idle):
        if not waiting:
          break
        prompt = waiting[0] // self._group
        if prompt not in read and len(read) == limit:
          break
        read.add(prompt)
        task[r] = waiting.pop(0)
        self._start[d, r], fresh[d, r] = self._t, True
    return fresh

  def _reading(self) -> np.ndarray:
    """i32[D, A]: those that are read, then any others."""
    result = []
    for task in self._task:
      read = sorted(set((task[task < self.idle] // self._group).tolist()))
      rest = [p for p in range(self._prompts) if p not in set(read)]
      result.append(
          sorted((read + rest)[:self._readable(self._task.shape[1])]))
    return np.asarray(result, np.int32)

  def _room(self) -> tuple[int, int]:
    """(tokens that no row sees any more, cache size for the rest and more)."""
    seated = self._task < self.idle
    shift = int(self._start[seated].min(initial=self._t))
    need = self._t - shift + -(-self._chunk // 2)
    return shift, next(
        (size for size in self._sizes if size >= need), self._sizes[-1])

  def _stops(self) -> tuple[np.ndarray, int]:
    """When the decode is to come back: `Layout.refill` and `shrink`."""
    live = (self._task < self.idle).sum(1)
    rows = self._task.shape[1]
    refill = np.where(
        [bool(waiting) for waiting in self._waiting],
        np.maximum(live - max(1, int(rows * _REFILL_AT)), 0), -1)
    if self._turns:
      refill = np.where(live, np.maximum(
          live - max(1, int(rows * _TURN_AT)), 0), -1)
    below = [count for count in self._counts if count < live.max()]
    return refill.astype(np.int32), below[0] if (
        below and not any(self._waiting)) else 0
