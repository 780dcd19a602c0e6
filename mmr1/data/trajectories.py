"""Completions of several turns, as they grow on the host.

What was sampled, and what an environment put in between, with kinds, turns,
rotary positions and images of every token. Stacked they are the completions of
a block.
"""

from collections.abc import Sequence

import numpy as np

from mmr1 import types
from mmr1.data import collate as collate_lib
from mmr1.data import encode


class Trajectory:
  """One completion.

  Attributes:
    kind: of every token, i8.
    turns: of the assistant, so far.
    shift: what rotary positions of text are ahead of a count of the tokens.
    parts: what was inserted, with the number of its first token.
  """

  def __init__(self, following: int):
    """`following`: rotary position of its first token."""
    self._following = following
    self._tokens: list[np.ndarray] = []
    self._kind: list[np.ndarray] = []
    self._turn: list[np.ndarray] = []
    self._place: list[np.ndarray] = []
    self._length = 0
    self.turns, self.shift, self.patches = 0, 0, 0
    self.parts: list[tuple[int, encode.Encoded]] = []

  def __len__(self) -> int:
    return self._length

  @property
  def tokens(self) -> np.ndarray:
    """i32[t]."""
    return np.concatenate([np.zeros(0, np.int32), *self._tokens])

  @property
  def kind(self) -> np.ndarray:
    """i8[t]."""
    return np.concatenate([np.zeros(0, np.int8), *self._kind])

  def say(self, tokens: np.ndarray, kind: int = types.KIND_SAMPLED) -> None:
    """A turn of the assistant."""
    count = np.arange(len(tokens))
    place = self._following + self.shift + self._length + count
    self._add(tokens, kind, self.turns, np.repeat(place[:, None], 3, 1))
    self.turns += 1

  def insert(self, encoded: encode.Encoded) -> None:
    """What `inserting.encode` made of an observation."""
    self.parts.append((self._length, encoded))
    self.patches += len(encoded.patches)
    before = self._following + self.shift + self._length
    self._add(encoded.tokens, types.KIND_OBSERVATION, -1,
              before + encoded.positions)
    self.shift += encoded.next_position - len(encoded.tokens)

  def positions(self) -> np.ndarray:
    """i32[t, 3]."""
    return np.concatenate([np.zeros((0, 3), np.int32), *self._place])

  def numbers(self) -> np.ndarray:
    """i8[t], of the assistant's turn, -1 of others."""
    return np.concatenate([np.zeros(0, np.int8), *self._turn])

  def _add(self, tokens, kind, turn, place):
    self._tokens.append(np.asarray(tokens, np.int32))
    self._kind.append(np.full(len(tokens), kind, np.int8))
    self._turn.append(np.full(len(tokens), turn, np.int8))
    self._place.append(np.asarray(place, np.int32))
    self._length += len(tokens)


def media_of(
    rows: Sequence[Sequence[tuple[int, encode.Encoded]]], length: int,
    patches: int, unit: int, channels: int, more: dict[str, int | bool],
) -> types.Media:
  """The images of rows, each with (first token, what was inserted there).

  Args:
    rows: m of them.
    length: T, of `slot`.
    patches: S, room of a row.
    unit: patches of a cell.
    channels: C.
    more: {'extent': bool, 'taps': A}, of the family, see `types.Media`.

  Returns:
    `types.Media` of arrays [m, S, ...], `slot` i32[m, T].
  """
  m, s = len(rows), patches
  made = dict(
      patches=np.zeros((m, s, channels), np.float32),
      position=np.zeros((m, s, 2), np.int32),
      segment=np.zeros((m, s), np.int32),
      slot=np.full((m, length), -1, np.int32))
  if more.get('extent'):
    made['extent'] = np.zeros((m, s, 2), np.int32)
  if more.get('taps'):
    made['taps'] = np.zeros((m, length, more['taps']), np.int32)
    made['weights'] = np.zeros((m, length, more['taps']), np.float32)
  for i, parts in enumerate(rows):
    done, frames = 0, 0
    for first, one in parts:
      here, there = slice(done, done + len(one.patches)), slice(
          first, first + len(one.tokens))
      cells = done // unit
      made['patches'][i, here] = one.patches
      made['position'][i, here] = one.patch_position
      made['segment'][i, here] = np.where(
          one.patch_segment > 0, one.patch_segment + frames, 0)
      made['slot'][i, there] = np.where(one.slot >= 0, one.slot + cells,
                                        one.slot)
      if 'extent' in made:
        made['extent'][i, here] = one.patch_extent
      if 'taps' in made:
        made['taps'][i, there] = one.taps + cells
        made['weights'][i, there] = one.weights
      done += len(one.patches)
      frames += int(one.patch_segment.max(initial=0))
  return types.Media(**made)


def collate(
    rows: Sequence[Sequence[Trajectory]], length: int, patches: int,
    pad_id: int, codec, ) -> types.Completions:
  """`types.Completions` of numpy arrays [N, G, ...].

  Args:
    rows: N groups of G.
    length: T.
    patches: S, of the images of a completion; 0: there are none.
    pad_id: token where padded.
    codec: of the family, or None.
  """
  n, g = len(rows), len(rows[0])
  tokens = np.full((n, g, length), pad_id, np.int32)
  kind = np.zeros((n, g, length), np.int8)
  turn = np.full((n, g, length), -1, np.int8)
  place = np.zeros((n, g, length, 3), np.int32)
  for i, row in enumerate(rows):
    for j, one in enumerate(row):
      tokens[i, j, :len(one)] = one.tokens
      kind[i, j, :len(one)] = one.kind
      turn[i, j, :len(one)] = one.numbers()
      place[i, j, :len(one)] = one.positions()
  media = None
  if patches:
    flat = media_of([one.parts for row in rows for one in row], length,
                    patches, codec.unit, codec.channels, fields(codec))
    media = {collate_lib.TOWER: flat.replace(**{
        name: x.reshape((n, g, *x.shape[1:]))
        for name, x in vars(flat).items() if x is not None})}
  return types.Completions(tokens=tokens, kind=kind, positions=place,
                           turn=turn, media=media)


def fields(codec) -> dict[str, int | bool]:
  """`more` of `media_of`, of a family."""
  empty = codec.nothing()
  return {'extent': empty.extent is not None,
          'taps': 0 if empty.taps is None else empty.taps.shape[1]}
