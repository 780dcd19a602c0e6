"""The stream of prompts a stage trains on: decoded, encoded, checkpointable.

Grain runs the workers. Item k of the mixture depends only on (seed, k), and
the state is the number of items consumed, not prefetched: a restored stream
goes on with exactly the items an uninterrupted one would have given, whatever
the number of workers, epoch boundaries included. Every host reads the same
stream and takes its own rows of a batch, so results do not depend on how many
hosts there are.
"""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import grain
from absl import flags

from mmr1 import records
from mmr1 import types
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import sources
from mmr1.data import template as template_lib

_LOG = logging.getLogger(__name__)
_ENDLESS = 1 << 40  # positions of a stream
_NAMED = 5  # reasons that an error message lists
# The broken fraction is never taken over fewer records than this.
_AT_LEAST = 100

Pair = tuple[records.Example, encode.Encoded]


@dataclasses.dataclass(frozen=True)
class Shape:
  """How prompts are written and what fits.

  Fields:
    processor: of the checkpoint.
    template: Example -> messages.
    prompt_length: P; longer prompts are dropped.
    patches: S; prompts with more patches are dropped.
    prompt_buckets, patch_buckets: smaller P and S, ascending, for batches that
      fit; every pair that occurs is one more compiled program. S = 0: no media
      at all, the tower is not run.
    prefix: start of the assistant's turn.
    completions: items must have one that can be trained on, else they are
      Broken.
  """
  processor: processor_lib.Processor
  template: template_lib.Template
  prompt_length: int
  patches: int
  prompt_buckets: tuple[int, ...] = ()
  patch_buckets: tuple[int, ...] = ()
  prefix: str = ''
  completions: bool = False

  @property
  def prefilled(self) -> bool:
    """True if prompts end with an open `<think>`."""
    return encode.prefilled(
        self.processor, template=self.template, prefix=self.prefix)

  def collate(
      self, rows: Sequence[encode.Encoded], pad_rows: int = 0,
  ) -> types.Prompts:
    """Stacks prompts into the smallest buckets that hold all of them."""
    return collate.collate(
        rows,
        prompt_length=collate.smallest(
            (*self.prompt_buckets, self.prompt_length),
            max(len(row.tokens) for row in rows)),
        patches=collate.smallest(
            (*self.patch_buckets, self.patches),
            max(len(row.patches) for row in rows)),
        pad_id=self.processor.pad_id, pad_rows=pad_rows)

  def encode(self, item: sources.Item, index: int) -> Pair | records.Broken:
    """Encodes item `index` of a source; what is unusable becomes Broken."""
    if isinstance(item, records.Broken):
      return item
    named = ':' in item.source  # files name the line themselves
    where = item.source if named else f'{item.source or "source"}:{index}'
    try:
      encoded = encode.encode(
          item, self.processor, template=self.template, prefix=self.prefix)
      if self.completions:
        encode.encode_completion(item.completions[0], self.processor)
    except ValueError as error:
      return records.Broken(where=where, reason=f'cannot encode: {error}')
    reason = collate.misfit(
        encoded, prompt_length=self.prompt_length, patches=self.patches)
    if reason:
      return records.Broken(where=where, reason=reason)
    return item, encoded


@dataclasses.dataclass(frozen=True)
class _Positions:
  """Positions start, start + 1, ... of a mixture, encoded, for Grain."""
  mixture: sources.Mixture
  shape: Shape
  start: int

  def __len__(self) -> int:
    return _ENDLESS - self.start

  def __getitem__(self, i: int) -> tuple[int, Pair | records.Broken]:
    k = self.start + int(i)
    index = self.mixture.place(k).index
    return k, self.shape.encode(self.mixture[k], index)


class Stream:
  """A deterministic, endless iterator over a mixture.

  Broken and over-long records are skipped, each named once in the log.

  Attributes:
    broken: Broken records so far, each once, in order of appearance.
  """

  def __init__(
      self,
      mixture: sources.Mixture,
      shape: Shape,
      *,
      max_broken_frac: float,
      worker_count: int = 0,
      worker_buffer: int = 16,
  ):
    """Makes the stream; workers start with the first `take`.

    Args:
      mixture: what to read.
      shape: how to encode it.
      max_broken_frac: 0..1. More broken records in a member, as a fraction of
        its records seen so far (counted as 100 at least, or all of a smaller
        member), end the run. A member without one good record always does.
      worker_count: processes that decode and encode; 0: this process.
      worker_buffer: items each worker prepares ahead.

    Raises:
      ValueError: an argument outside its range.
    """
    if not 0 <= max_broken_frac <= 1 or worker_count < 0 or worker_buffer < 1:
      raise ValueError(
          f'Stream: max_broken_frac={max_broken_frac} (0..1), worker_count='
          f'{worker_count} (0 or more), worker_buffer={worker_buffer} (1 or '
          'more).')
    self.mixture = mixture
    self.shape = shape
    self.max_broken_frac = max_broken_frac
    self.worker_count = worker_count
    self.worker_buffer = worker_buffer
    self.broken: list[records.Broken] = []
    self._position = 0
    self._known: dict[tuple[int, int], int] = {}  # place -> index in broken
    self._iterator = None

  def take(self, n: int) -> list[Pair]:
    """The next n usable prompts with their examples.

    Raises:
      ValueError: too many records of a member are broken.
    """
    result = []
    while len(result) < n:
      k, item = next(self._open())
      if k != self._position:
        raise AssertionError(f'item {k} came at position {self._position}')
      self._position = k + 1
      if isinstance(item, records.Broken):
        self._note(k, item)
      else:
        result.append(item)
    return result

  def counts(self) -> dict[str, int]:
    """Broken records by kind, the part of the reason before the colon."""
    return dict(collections.Counter(
        broken.reason.split(':')[0] for broken in self.broken))

  def state(self) -> dict[str, Any]:
    """JSON-able state: what was consumed and which records were broken."""
    return {
        'position': self._position,
        'broken': [[*place, self.broken[i].where, self.broken[i].reason]
                   for place, i in self._known.items()],
    }

  def restore(self, state: dict[str, Any]):
    """Goes on from a saved state. The mixture must be the same."""
    self.close()
    self._position = int(state['position'])
    self.broken, self._known = [], {}
    for member, index, where, reason in state['broken']:
      self._known[member, index] = len(self.broken)
      self.broken.append(records.Broken(where=where, reason=reason))

  def close(self):
    """Stops the workers; the next `take` starts them again."""
    if self._iterator is not None:
      if self.worker_count:
        self._iterator.close()
      self._iterator = None

  def _open(self):
    if self._iterator is None:
      data = _Positions(self.mixture, self.shape, self._position)
      items = grain.MapDataset.source(data).to_iter_dataset(
          grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
      if self.worker_count:
        if not flags.FLAGS.is_parsed():  # a notebook; Grain reads its flags
          flags.FLAGS.mark_as_parsed()
        items = items.mp_prefetch(grain.MultiprocessingOptions(
            num_workers=self.worker_count,
            per_worker_buffer_size=self.worker_buffer))
      self._iterator = iter(items)
    return self._iterator

  def _note(self, k: int, broken: records.Broken):
    """Records a broken item, logs it once, refuses when there are too many."""
    place = self.mixture.place(k)
    if (place.member, place.index) in self._known:
      return
    self._known[place.member, place.index] = len(self.broken)
    self.broken.append(broken)
    _LOG.warning('skipped %s: %s', broken.where, broken.reason)
    size = len(self.mixture.sources[place.member])
    seen = min(place.seen + 1, size)
    mine = [i for (m, _), i in self._known.items() if m == place.member]
    allowed = self.max_broken_frac * max(seen, min(size, _AT_LEAST))
    if len(mine) > allowed or len(mine) == seen == size:
      raise ValueError(_refusal(
          [self.broken[i] for i in mine], seen, size, place.member,
          self.max_broken_frac))


def _refusal(broken, seen, size, member, fraction) -> str:
  first = '\n'.join(
      f'  {b.where}: {b.reason}' for b in broken[:_NAMED])
  return (
      f'{len(broken)} of the {seen} records seen (of {size}) of source '
      f'{member} cannot be used; max_broken_frac={fraction} allows fewer. '
      f'The first:\n{first}\n'
      'Repair them, or raise data.max_broken_frac, or where prompts are too '
      'long raise data.prompt_tokens or data.patches.')


def all_examples(
    source: sources.Source,
    shape: Shape,
    n: int | None = None,
    *,
    max_broken_frac: float = 1.0,
) -> tuple[list[Pair], list[records.Broken]]:
  """The first n usable items of a source, in its order, for evaluation.

  Args:
    source: any source.
    shape: how to encode.
    n: how many; None: all. Fewer come back when the source is shorter. None
      comes twice.
    max_broken_frac: more broken records, as a fraction of those seen (counted
      as 100 at least, or all of a smaller source), are refused.

  Returns:
    (example, encoded) pairs, and the records that were skipped on the way.

  Raises:
    ValueError: not one record is usable, or too many are not.
  """
  pairs, broken, uids, seen = [], [], set(), 0
  for i in range(len(source)):
    if n is not None and len(pairs) == n:
      break
    item, seen = shape.encode(source[i], i), i + 1
    if isinstance(item, records.Broken):
      broken.append(item)
      _LOG.warning('skipped %s: %s', item.where, item.reason)
      # Not at the end: a procedural source of such items is as good as endless.
      if seen >= _AT_LEAST and len(broken) > max_broken_frac * seen:
        break
    elif item[0].uid not in uids:  # weights make a mixture repeat a member
      uids.add(item[0].uid)
      pairs.append(item)
  allowed = max_broken_frac * max(seen, min(len(source), _AT_LEAST))
  if not pairs or len(broken) > allowed:
    raise ValueError(
        _refusal(broken, seen, len(source), 0, max_broken_frac))
  return pairs, broken
