"""Several examples in one row: which ones, and how the row is written.

A row has room for P prompt tokens, T completion tokens, S image patches and E
examples. Prompts stand one after the other, left-padded as a whole, and so do
completions, right-padded; numbers in `segment` say what belongs together.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmr1 import types
from mmr1.data import encode
from mmr1.data import pipeline
from mmr1.data import trajectories


class Example(NamedTuple):
  """A prompt with ids i32[t] of its completion; the first `given` of them are
  read and not trained on. `whole`: of several turns, with what came between."""
  pair: pipeline.Pair
  ids: np.ndarray
  given: int = 0
  whole: trajectories.Trajectory | None = None

  @property
  def encoded(self) -> encode.Encoded:
    return self.pair[1]


class Source(Protocol):
  """Examples in an order that goes on from a saved state."""

  def take(self, n: int) -> list[Example]:
    ...

  def state(self) -> dict[str, Any]:
    ...

  def restore(self, state: Mapping[str, Any]) -> None:
    ...


@dataclasses.dataclass(frozen=True)
class Room:
  """What fits into one row, or into what is left of it.

  Fields:
    prompt: P, prompt tokens.
    completion: T, completion tokens.
    patches: S.
    examples: E.
  """
  prompt: int
  completion: int
  patches: int
  examples: int

  def without(self, example: Example) -> 'Room | None':
    """What one more example leaves; None if it does not fit."""
    left = Room(self.prompt - len(example.encoded.tokens),
                self.completion - len(example.ids),
                self.patches - len(example.encoded.patches),
                self.examples - 1)
    return None if min(dataclasses.astuple(left)) < 0 else left


class Packer:
  """Fills rows by first fit, in the order of a source.

  Each example goes into the first row that has room for it. The first that
  has no place in any row begins the next step; so every example is used once,
  none much later than its turn, and a saved state needs no examples.
  """

  def __init__(self, source: Source, room: Room):
    self._source = source
    self._room = room
    # The example that begins the next step, and the state that gives it again.
    self._held: tuple[Example, dict[str, Any]] | None = None

  def take(self, n: int) -> list[list[Example]]:
    """The examples of the next n rows, at least one in each.

    An example must fit into an empty row.
    """
    rows: list[list[Example]] = [[] for _ in range(n)]
    left = [self._room] * n
    while True:
      example, before = self._next()
      for i, room in enumerate(left):
        rest = room.without(example)
        if rest is not None:
          rows[i].append(example)
          left[i] = rest
          break
      else:
        if not all(rows):
          raise AssertionError('an example does not fit into an empty row')
        self._held = example, before
        return rows

  def _next(self) -> tuple[Example, dict[str, Any]]:
    """The next example and the state of the source before it."""
    if self._held is not None:
      result, self._held = self._held, None
      return result
    before = self._source.state()
    return self._source.take(1)[0], before

  def state(self) -> dict[str, Any]:
    """That of the source after the last example that was used."""
    return self._source.state() if self._held is None else self._held[1]

  def restore(self, state: Mapping[str, Any]) -> None:
    self._held = None
    self._source.restore(state)


def metrics(
    rows: Sequence[Sequence[Example]], room: Room) -> dict[str, float]:
  """How full rows are.

    'pack/examples'   examples in all rows
    'pack/fill_frac'  tokens over room for tokens, of prompts and completions;
                      '.../prompt', '.../completion', '.../patches' of each
  """
  every = [one for row in rows for one in row]
  used = {
      'prompt': (sum(len(one.encoded.tokens) for one in every), room.prompt),
      'completion': (sum(len(one.ids) for one in every), room.completion)}
  filled, held = map(sum, zip(*used.values()))
  if room.patches:
    used['patches'] = (
        sum(len(one.encoded.patches) for one in every), room.patches)
  return {
      'pack/examples': len(every),
      'pack/fill_frac': filled / (len(rows) * held),
      **{f'pack/fill_frac/{name}': some / (len(rows) * size)
         for name, (some, size) in used.items()}}


def prompts(
    rows: Sequence[Sequence[encode.Encoded]], shape: pipeline.Shape, most: int,
) -> types.Prompts:
  """Packs and stacks prompts.

  Args:
    rows: N rows of the prompts of 1 to E examples that fit.
    shape: P, S and how they are padded.
    most: E.

  Returns:
    `types.Prompts` of numpy arrays, `segment` and `ends` included.
  """
  result = shape.collate(
      [_joined(row, shape.processor.codec) for row in rows])
  segment = np.zeros(result.tokens.shape, np.int32)
  ends = np.zeros((len(rows), most), np.int32)
  for i, row in enumerate(rows):
    numbers = segments([len(one.tokens) for one in row])
    segment[i, -len(numbers):] = numbers
    last = np.cumsum([len(one.tokens) for one in row]) - 1
    ends[i, :len(row)] = segment.shape[1] - len(numbers) + last
  return result.replace(segment=segment, ends=ends)


def segments(lengths: Sequence[int]) -> np.ndarray:
  """[2, 3] -> i32[5], [1, 1, 2, 2, 2]."""
  return np.repeat(np.arange(len(lengths), dtype=np.int32) + 1, lengths)


def _joined(row: Sequence[encode.Encoded], codec: Any) -> encode.Encoded:
  """Prompts one after the other, as one; the cells and frames of the media of
  the later ones count on from those of the earlier."""
  parts, cells, frames = [], 0, 0
  for one in row:
    parts.append(dataclasses.replace(
        one, slot=np.where(one.slot >= 0, one.slot + cells, one.slot),
        taps=None if one.taps is None else one.taps + cells,
        patch_segment=np.where(
            one.patch_segment > 0, one.patch_segment + frames, 0)))
    cells += len(one.patches) // codec.unit if codec else 0
    frames += int(one.patch_segment.max(initial=0))

  def whole(name):
    values = [getattr(part, name) for part in parts]
    return None if values[0] is None else np.concatenate(values)
  last = row[-1]
  return encode.Encoded(
      next_position=last.next_position, uid=last.uid, **{
          name: whole(name) for name in vars(last)
          if name not in ('next_position', 'uid')})
