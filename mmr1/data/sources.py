"""Random-access sources of Examples, and how they are combined.

A source has `__len__` and `__getitem__(i) -> Example | Broken`: a record that
cannot be used comes back as Broken with its place and the reason; it is never
raised and never left out (M26). The uid of item i is `offset + i` (law 6).
Sources of files are in `mmr1.data.files` and `mmr1.data.tfds_source`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from mmr1 import records
from mmr1.data import shuffle as shuffle_lib

Item = records.Example | records.Broken
# Uids of member m of a mixture are [m, m + 1) * UID_STRIDE: disjoint whatever
# the members' sizes, and the same when a file grows or weights change.
UID_STRIDE = 1 << 26
_MAX_MEMBERS = (1 << 31) // UID_STRIDE


class Source(Protocol):
  """What tasks, files and their combinations have in common."""

  def __len__(self) -> int:
    ...

  def __getitem__(self, i: int) -> Item:
    ...


def check_index(i: int, size: int, name: str) -> int:
  """Returns `i` as int; an index outside 0..size-1 raises IndexError."""
  if not 0 <= i < size:
    raise IndexError(f'{name} has {size} records, index {i} is outside.')
  return int(i)


@dataclasses.dataclass(frozen=True)
class TaskSource:
  """Items of a procedural task.

  Fields:
    fn: `(seed, split, i, **kwargs) -> Example`.
    seed, split: passed on; (seed, split, i) fixes item i.
    size: number of items.
    offset: uid of item 0.
    kwargs: options of the task.
  """
  fn: Callable[..., records.Example]
  seed: int
  split: str
  size: int
  offset: int
  kwargs: dict[str, Any]

  def __init__(self, fn, *, seed: int, split: str, size: int, offset: int = 0,
               **kwargs):
    if size < 1:
      raise ValueError(f'TaskSource: size={size}; it must be positive.')
    for name, value in dict(
        fn=fn, seed=seed, split=split, size=size, offset=offset,
        kwargs=kwargs).items():
      object.__setattr__(self, name, value)

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: int) -> records.Example:
    i = check_index(i, self.size, f'task {self.fn.__name__}')
    example = self.fn(self.seed, self.split, i, **self.kwargs)
    return dataclasses.replace(example, uid=self.offset + i)


@dataclasses.dataclass(frozen=True)
class Subset:
  """Some items of a source, under their own uids.

  Fields:
    source: any source.
    indices: i64[n], the items to keep.
  """
  source: Source
  indices: np.ndarray

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, i: int) -> Item:
    i = check_index(i, len(self.indices), 'subset')
    return self.source[int(self.indices[i])]


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A source whose examples say what the config says of them.

  Fields:
    source: any source.
    member: what they carry.
  """
  source: Source
  member: records.Member

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, i: int) -> Item:
    item = self.source[i]
    return item if isinstance(item, records.Broken) else dataclasses.replace(
        item, member=self.member)


def holdout(
    source: Source, *, every: int = 10, seed: int = 0) -> tuple[
        Subset, Subset]:
  """Splits a source into (train, evaluation).

  Of each `every` consecutive items one goes to evaluation, at a place drawn by
  (seed, block), so that neither the file's order nor its growth matters.

  Raises:
    ValueError: `every` is below 2, or the source is shorter than it.
  """
  size = len(source)
  if not 2 <= every <= size:
    raise ValueError(
        f'data.holdout: every={every} over {size} records; allowed is 2..'
        f'{size}. Or give a file of its own with data.eval_path.')
  chosen = [
      block * every + int(np.random.default_rng([seed, block]).integers(every))
      for block in range(size // every)]
  keep = np.ones(size, bool)
  keep[chosen] = False
  return (Subset(source, np.flatnonzero(keep)),
          Subset(source, np.asarray(chosen, np.int64)))


class Concat:
  """Sources one after the other, each with its own range of uids."""

  def __init__(self, sources: Sequence[Source]):
    _check_members(sources)
    self.sources = tuple(sources)
    self._ends = np.cumsum([len(source) for source in sources])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> Item:
    i = check_index(i, len(self), 'concatenation')
    member = int(np.searchsorted(self._ends, i, side='right'))
    start = int(self._ends[member - 1]) if member else 0
    return placed(self.sources[member][i - start], member)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where item k of a mixture comes from.

  Fields:
    member: which source.
    index: which of its items.
    epoch: how often the member was gone through before.
    seen: how many of the member's items came before this one, epochs included.
  """
  member: int
  index: int
  epoch: int
  seen: int


class Mixture:
  """An endless, weighted, shuffled stream with random access.

  Item k depends only on (seed, order, k). Members alternate in exactly the
  proportion of their weights (off by less than one item each at any k, for two
  members; no draw is involved); a member's items come once per epoch, in
  another order each epoch.

  With a block of n items alternate by n: 0 to n - 1 are of one member.
  """

  def __init__(
      self,
      sources: Sequence[Source],
      weights: Sequence[float] | None = None,
      *,
      seed: int,
      order: int = 0,
      shuffle: bool = True,
      block: int | None = None,
  ):
    """Makes the mixture.

    Args:
      sources: the members, in an order that must not change between runs: it
        fixes their uids.
      weights: positive, any scale; None: by size, so that one pass over the
        mixture is one pass over each member.
      seed: 0 <= seed < 2^32.
      order: which of the seed's shuffles; each stage has its own.
      shuffle: False keeps each member's own order.
      block: how many items in a row are of one member; None: one.

    Raises:
      ValueError: empty members, weights that are not positive.
    """
    _check_members(sources)
    if weights is None:
      weights = [len(source) for source in sources]
    if len(weights) != len(sources) or not all(
        w > 0 and math.isfinite(w) for w in weights):
      raise ValueError(
          f'Mixture: weights={list(weights)} for {len(sources)} sources; '
          'needed is one positive number each.')
    if not 0 <= seed < 1 << 32:
      raise ValueError(f'Mixture: seed={seed}; allowed is 0..2^32-1.')
    self.sources = tuple(sources)
    self.seed, self.order, self.shuffle = seed, order, shuffle
    self.block = block
    exact = [Fraction(repr(float(w))) for w in weights]  # 0.1 is 1/10
    self._shares = [
        share / sum(exact[m:]) for m, share in enumerate(exact)]

  def __len__(self) -> int:
    """Items in one pass over all members; indexing goes on beyond."""
    return sum(len(source) for source in self.sources)

  def __getitem__(self, k: int) -> Item:
    place = self.place(k)
    return placed(self.sources[place.member][place.index], place.member)

  def place(self, k: int) -> Place:
    """Where item k >= 0 comes from. Opens nothing."""
    size = self.block or 1
    member, rank = self._member(k // size)
    rank = rank * size + k % size
    size = len(self.sources[member])
    epoch, index = divmod(rank, size)
    if self.shuffle:
      index = shuffle_lib.shuffled(
          index, size, (self.seed, member, epoch, self.order))
    return Place(member=member, index=index, epoch=epoch, seen=rank)

  def counts(self, k: int) -> tuple[int, ...]:
    """How many of the first k items come from each member."""
    size = self.block or 1
    result, blocks = [], k // size
    left = blocks
    for share in self._shares:
      taken = math.floor(left * share)
      result.append(taken * size)
      left -= taken
    result[self._member(blocks)[0]] += k % size
    return tuple(result)

  def _member(self, k: int) -> tuple[int, int]:
    """The member of item (or block) k and how many it gave before.

    The first member takes item k when floor(k * share) steps up there; what it
    leaves is divided among the others in the same way. Fractions keep this
    exact however far the run goes.
    """
    for member, share in enumerate(self._shares):
      before, after = math.floor(k * share), math.floor((k + 1) * share)
      if after > before:
        return member, before
      k -= before
    raise AssertionError('the last share is 1 and takes every item')


def placed(item: Item, member: int) -> Item:
  """The item with its uid in the range of member `member`."""
  if isinstance(item, records.Broken):
    return item
  if not 0 <= item.uid < UID_STRIDE:
    raise ValueError(
        f'{item.source}: uid {item.uid} inside a mixture; allowed is 0..'
        f'{UID_STRIDE - 1}. Mixtures place their members themselves: leave '
        'offset at 0, and do not nest them.')
  return dataclasses.replace(item, uid=member * UID_STRIDE + item.uid)


def _check_members(sources: Sequence[Source]):
  if not 1 <= len(sources) <= _MAX_MEMBERS:
    raise ValueError(
        f'{len(sources)} sources; allowed are 1 to {_MAX_MEMBERS}.')
  for number, source in enumerate(sources):
    if not 1 <= len(source) <= UID_STRIDE:
      raise ValueError(
          f'source {number} has {len(source)} records; allowed are 1 to '
          f'{UID_STRIDE}.')
