"""Examples with the ids of their own completions, in the order of a stream."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmr1.data import encode
from mmr1.data import packing
from mmr1.data import pipeline
from mmr1.data import processor as processor_lib


class Completed:
  """Those too long are dropped, counted and named.

  Attributes:
    dropped: how many so far.
  """

  def __init__(
      self, stream: pipeline.Stream, processor: processor_lib.Processor,
      cap: int, count: int = 1):
    """Takes over a stream.

    Args:
      stream: of examples with `count` completions at least.
      processor: encodes them.
      cap: tokens that a completion may have, with what it goes on from.
      count: how many of an example's completions are read.
    """
    self._stream, self._processor = stream, processor
    self._cap, self._count = cap, count
    self.dropped = 0

  def next(self, n: int) -> list[tuple[packing.Example, ...]]:
    """The next n prompts, each with ids i32[t], t <= cap, of its completions
    after what they go on from."""
    rows, since = [], 0
    while len(rows) < n:
      made = self.made(self._stream.take(1)[0])
      longest = max((len(one.ids) for one in made), default=0)
      if made and longest <= self._cap:
        rows.append(made)
        since = 0
        continue
      self.dropped += 1
      since += 1  # in a row: more than there are means all of them
      if since > len(self._stream.mixture):
        raise ValueError(
            f'every completion is longer than max_new_tokens={self._cap}; the '
            f'last has {longest} tokens. Raise it.' if made else
            'not one episode can be played, for the reasons above.')
    return rows

  def made(self, pair: pipeline.Pair) -> tuple[packing.Example, ...]:
    """What is learnt of an example; () if it cannot be."""
    given = encode.encode_given(pair[0].given, self._processor)
    return tuple(
        packing.Example(pair, np.concatenate([
            given, encode.encode_completion(text, self._processor)]),
                        len(given))
        for text in pair[0].completions[:self._count])

  @property
  def broken(self) -> int:
    """Records that could not be used so far."""
    return len(self._stream.broken)

  def state(self) -> dict[str, Any]:
    return {'stream': self._stream.state(), 'dropped': self.dropped}

  def restore(self, state: Mapping[str, Any]) -> None:
    self._stream.restore(state['stream'])
    self.dropped = state['dropped']
