"""From a rollout's arrays to Samples: what rewards and people see."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmr1 import arrays
from mmr1 import records
from mmr1 import types
from mmr1.data import encode
from mmr1.data import processor as processor_lib


class Host(NamedTuple):
  """A rollout's small arrays on the host: tokens i32[N, G, T],
  kind i8[N, G, T], done bool[N, G], of all hosts' rows. `inserted`: whether
  tokens that were put in train as if the policy had said them."""
  tokens: np.ndarray
  kind: np.ndarray
  done: np.ndarray
  inserted: bool = False

  @property
  def sampled(self) -> np.ndarray:
    """bool[N, G, T], tokens that the policy sampled."""
    return self.kind == types.KIND_SAMPLED

  @property
  def spoken(self) -> np.ndarray:
    """bool[N, G, T], tokens that were sampled, are an expert's or were put
    in."""
    mask = self.sampled | (self.kind == types.KIND_EXPERT)
    return mask | (self.kind == types.KIND_FORCED) if self.inserted else mask

  @property
  def expert(self) -> np.ndarray:
    """bool[N, G], traces of the data."""
    return (self.kind == types.KIND_EXPERT).any(-1)

  @property
  def lengths(self) -> np.ndarray:
    """i64[N, G], spoken tokens of each completion."""
    return self.spoken.sum(-1)

  @property
  def whole(self) -> np.ndarray:
    """i64[N, G], all its tokens, whoever they are of."""
    return (self.kind != types.KIND_PAD).sum(-1)


def to_host(rollout: types.Rollout) -> Host:
  """Copies what the host needs; the prompts stay where they are."""
  return Host(*arrays.fetch((
      rollout.completions.tokens, rollout.completions.kind, rollout.done)))


def read(
    host: Host,
    examples: Sequence[records.Example],
    processor: processor_lib.Processor,
    rows: Sequence[int] | None = None,
    *,
    pieces: bool = False,
) -> list[records.Sample]:
  """Samples, group after group.

  Args:
    host: from `to_host`; rows beyond the examples (padding) are left out.
    examples: the prompts' examples, one per row.
    processor: decodes the ids.
    rows: whose examples they are; None: the first ones.
    pieces: with the text of every token.
  """
  samples, known = [], {}
  def piece(token):
    if token not in known:
      known[token] = encode.decode([token], processor)
    return known[token]
  for row, example in zip(
      range(len(examples)) if rows is None else rows, examples):
    for slot in range(host.tokens.shape[1]):
      kept = host.kind[row, slot] != types.KIND_PAD
      tokens = tuple(map(int, host.tokens[row, slot][kept]))
      text = encode.decode(tokens, processor)
      samples.append(records.Sample(
          text=text, tokens=tokens,
          kinds=tuple(map(int, host.kind[row, slot][kept])),
          length=int(host.lengths[row, slot]),
          truncated=not bool(host.done[row, slot]), example=example,
          uid=example.uid, group=row, slot=slot,
          pieces=tuple(map(piece, tokens)) if pieces else (),
          turns=(records.Turn('assistant', text),)))
  return samples
