"""The stream of prompts a stage trains on: decoded, encoded, checkpointable.

Grain runs the workers. Item k of the mixture depends only on (seed, k), and
the state is the number of items consumed, not prefetched: a restored stream
goes on with exactly the items an uninterrupted one would have given, whatever
the number of workers, epoch boundaries included. Where several hosts read a stream,
each reads all of it; `mmr1.data.lanes` divides the reading.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
from absl import flags

from mmr1 import records
from mmr1 import types
from mmr1.data import breakage
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import framing
from mmr1.data import processor as processor_lib
from mmr1.data import sources
from mmr1.data import template as template_lib

_LOG = logging.getLogger(__name__)
ENDLESS = 1 << 40  # positions of a stream

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
    completions: how many of an item are trained on; with fewer it is Broken,
      but for `fewer` (none at all where it is to be imitated).
    completion_tokens: None, or what each may have at most.
  """
  processor: processor_lib.Processor
  template: template_lib.Template
  prompt_length: int
  patches: int
  prompt_buckets: tuple[int, ...] = ()
  patch_buckets: tuple[int, ...] = ()
  prefix: str = ''
  completions: int = 0
  fewer: bool = False
  completion_tokens: int | None = None

  @property
  def prefilled(self) -> bool:
    """True if prompts end with an open `<think>`."""
    return encode.prefilled(
        self.processor, template=self.template, prefix=self.prefix)

  def collate(
      self, rows: Sequence[encode.Encoded], pad_rows: int = 0, *,
      needs: tuple[int, int] | None = None,
  ) -> types.Prompts:
    """Stacks prompts into the smallest buckets that hold all of them; `needs`:
    tokens and patches of the longest, where others have some too."""
    tokens, patches = needs or (
        max(len(row.tokens) for row in rows),
        max(len(row.patches) for row in rows))
    return collate.collate(
        rows,
        prompt_length=collate.smallest(
            (*self.prompt_buckets, self.prompt_length), tokens),
        patches=collate.smallest((*self.patch_buckets, self.patches), patches),
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
      self._check_completions(item)
    except ValueError as error:
      return records.Broken(where=where, reason=f'cannot encode: {error}')
    reason = collate.misfit(
        encoded, prompt_length=self.prompt_length, patches=self.patches)
    if reason:
      return records.Broken(where=where, reason=reason)
    return framing.framed(item, self.processor.codec), encoded

  def _check_completions(self, item: records.Example) -> None:
    used, least = self.completions, int(item.member.imitate)
    texts = item.completions[:max(used, least)]
    needed = least if self.fewer else max(used, least)
    if len(texts) < needed:
      raise ValueError(f'{len(texts)} completions, {needed} needed')
    if item.given and texts:
      encode.encode_given(item.given, self.processor)
      if self.completion_tokens is not None:
        raise ValueError('its completion goes on from a given text, which only '
                         'sft reads')
    for text in texts:
      count = len(encode.encode_completion(text, self.processor))
      if self.completion_tokens is not None and count > self.completion_tokens:
        raise ValueError(f'a completion of {count} tokens, allowed are '
                         f'{self.completion_tokens}')


@dataclasses.dataclass(frozen=True)
class _Positions:
  """Positions start, start + 1, ... of a mixture, encoded, for Grain."""
  mixture: sources.Mixture
  shape: Shape
  start: int

  def __len__(self) -> int:
    return ENDLESS - self.start

  def __getitem__(self, i: int) -> tuple[int, Pair | records.Broken]:
    k = self.start + int(i)
    index = self.mixture.place(k).index
    return k, self.shape.encode(self.mixture[k], index)


def check_workers(count: int, buffer: int) -> None:
  """Refuses numbers of worker processes and of what they prepare.

  Raises:
    ValueError: one out of range.
  """
  if count < 0 or buffer < 1:
    raise ValueError(f'worker_count: got {count} (allowed: 0 or more), '
                     f'worker_buffer: got {buffer} (allowed: 1 or more).')


def iterate(data: Any, worker_count: int, worker_buffer: int) -> Iterator[Any]:
  """A random-access source in its order, by Grain.

  Args:
    data: has a length and items.
    worker_count: processes that make items; 0: this process.
    worker_buffer: items each worker prepares ahead.
  """
  items = grain.MapDataset.source(data).to_iter_dataset(
      grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  if worker_count:
    if not flags.FLAGS.is_parsed():  # a notebook; Grain reads its flags
      flags.FLAGS.mark_as_parsed()
    items = items.mp_prefetch(grain.MultiprocessingOptions(
        num_workers=worker_count, per_worker_buffer_size=worker_buffer))
  return iter(items)


class Stream:
  """A deterministic, endless iterator over a mixture.

  Broken and over-long records are skipped, each named once in the log.
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
    check_workers(worker_count, worker_buffer)
    self.mixture = mixture
    self.shape = shape
    self._breakage = breakage.Breakage(mixture, max_broken_frac)
    self._workers = worker_count, worker_buffer
    self._position = 0
    self._iterator = None

  @property
  def broken(self) -> list[records.Broken]:
    """Broken records so far, each once, in order of appearance."""
    return self._breakage.broken

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
        self._breakage.note(k, item)
      else:
        result.append(item)
    return result

  def counts(self) -> dict[str, int]:
    """Broken records by kind, the part of the reason before the colon."""
    return self._breakage.counts()

  def state(self) -> dict[str, Any]:
    """JSON-able state: what was consumed and which records were broken."""
    return {'position': self._position, **self._breakage.state()}

  def restore(self, state: dict[str, Any]):
    """Goes on from a saved state. The mixture must be the same."""
    self.close()
    self._position = int(state['position'])
    self._breakage.restore(state)

  def close(self):
    """Stops the workers; the next `take` starts them again."""
    if self._iterator is not None:
      if self._workers[0]:
        self._iterator.close()
      self._iterator = None

  def _open(self):
    if self._iterator is None:
      self._iterator = iterate(
          _Positions(self.mixture, self.shape, self._position), *self._workers)
    return self._iterator


def all_examples(
    source: sources.Source,
    shape: Shape,
    n: int | None = None,
    *,
    unusable: Callable[[records.Example], str] = lambda example: '',
    warn: Callable[[str], None] = _LOG.warning,
    max_broken_frac: float = 1.0,
) -> tuple[list[Pair], list[records.Broken]]:
  """The first n usable items of a source, in its order, for evaluation.

  Args:
    source: any source.
    shape: how to encode.
    n: how many at most; None: all. None comes twice.
    unusable: why no answer to it can be judged, '' where one can.
    warn: told of each of these; others that are skipped are logged.
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
    item, seen, tell = shape.encode(source[i], i), i + 1, _LOG.warning
    if not isinstance(item, records.Broken) and (why := unusable(item[0])):
      tell, item = warn, records.Broken(
          item[0].source or f'uid {item[0].uid}', f'bad answer: {why}')
    if isinstance(item, records.Broken):
      broken.append(item)
      tell(f'skipped {item.where}: {item.reason}')
      # Not at the end: a procedural source of such items is as good as endless.
      if seen >= breakage.AT_LEAST and len(broken) > max_broken_frac * seen:
        break
    elif item[0].uid not in uids:  # weights make a mixture repeat a member
      uids.add(item[0].uid)
      pairs.append(item)
  allowed = max_broken_frac * max(seen, min(len(source), breakage.AT_LEAST))
  if not pairs or len(broken) > allowed:
    raise ValueError(
        breakage.refusal(broken, seen, len(source), 0, max_broken_frac))
  return pairs, broken
