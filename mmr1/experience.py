"""Completions of earlier steps that train again: the `replay` socket.

`(advantage, keep, stored, rng, *, capacity, rows, ...) -> (pushed, drawn)`, on
the host, after `select`:

  advantage: f64[N, G], of this step's completions.
  keep: int[N, G], how often each of them trains in this step.
  stored: f64[m], advantages of the memory's completions, oldest first.
  rng: of this step.
  capacity: completions that the memory holds; rows: that train again at most.
  pushed: bool[N, G], what goes into the memory. The oldest make room.
  drawn: int[r], r <= rows, what trains again: indices of the memory after the
    push, oldest first.

What trains again is a block of its own, of groups of one, with the advantages
and old log-probs that it had. The memory is part of a checkpoint.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import arrays as arrays_lib
from mmr1 import context
from mmr1 import recording
from mmr1 import sockets
from mmr1 import trees
from mmr1 import types

_NAME = 'memory'


class Used(NamedTuple):
  """What a step trains on.

  Fields:
    batch: this step's block, and with a memory that of earlier ones.
    metrics: 'replay/stored', completions in the memory, and 'replay/rows',
      those that train again; none without a memory.
  """
  batch: types.Batch
  metrics: Mapping[str, float]


class Experience:
  """The memory of a stage; without a function it keeps nothing."""

  def __init__(self, ctx: context.Context, stage: str, section: Any,
               draw: sockets.Bound | None):
    self._ctx, self._stage, self._section = ctx, stage, section
    self._draw = draw
    self._memory: types.Block | None = None
    self._stored: list[float] = []

  @property
  def keeps(self) -> bool:
    """Whether there is a memory."""
    return self._draw is not None

  # What a checkpoint needs.

  def state(self) -> list[float]:
    """JSON-able: the advantages of what is stored."""
    return list(self._stored)

  def arrays(self) -> dict[str, jax.Array]:
    return trees.named({} if self._memory is None else {_NAME: self._memory})

  def restore(self, state: list[float]) -> None:
    """From `state`; the arrays then come by `take_back`."""
    self._stored = list(state)
    self._memory = None

  def take_back(self, arrays: Mapping[str, jax.Array]) -> None:
    found = recording.nested(arrays)
    if _NAME in found:
      self._memory = self._ctx.policy.layout.spread(
          recording.block(found[_NAME]))

  # What it is for.

  def use(self, block: types.Block, keep: np.ndarray, k: int) -> Used:
    """This step's completions into the memory, and others out of it.

    Args:
      block: of every completion of the step, those included that are not
        kept, with their old log-probs.
      keep: bool or int[N, G], of `select`.
      k: the step.

    Raises:
      ValueError: completions have more than one advantage each, or the
        function draws more than there is room for.
    """
    spread = self._ctx.policy.layout.spread
    if keep.dtype != bool:
      block = block.replace(
          times=spread(keep[..., None].astype(np.float32)))
    if self._draw is None:
      return Used((block,), {})
    if block.advantage.shape[-1] != 1:
      raise ValueError(
          f'{self._stage}.replay: completions are drawn by their advantage, '
          f'and {self._section.advantage.fn!r} gives one to every token. Take '
          'another advantage, or no replay.')
    replay, memory = self._section.replay, self._stored
    # As it is stored: so that a memory that was read again is the same.
    advantage = np.asarray(_advantage(block), np.float64)
    pushed, drawn = self._draw(
        advantage, keep.astype(int), np.asarray(memory, np.float64),
        np.random.default_rng([
            self._ctx.config.seed, self._ctx.index(self._stage), k, 0, 4]),
        capacity=replay.capacity, rows=replay.rows)
    pushed = np.flatnonzero(pushed)
    source = [*range(len(memory)), *(replay.capacity + pushed)][
        -replay.capacity:]
    self._stored = [*memory, *advantage.ravel()[pushed].tolist()][
        -replay.capacity:]
    if len(drawn) > replay.rows or len(drawn) and not (
        0 <= np.min(drawn) <= np.max(drawn) < len(source)):
      raise ValueError(
          f'{self._stage}.replay.fn: {replay.fn!r} drew {list(drawn)}; allowed '
          f'are {replay.rows} indices of the {len(source)} in the memory.')
    return Used(*self._made(block, keep, source, np.asarray(drawn, int)))

  def _made(self, block, keep, source, drawn):
    """Both blocks, and metrics; the memory becomes what `source` says."""
    replay, spread = self._section.replay, self._ctx.policy.layout.spread
    new = block.replace(times=None)
    if self._memory is None:
      self._memory = spread(_nothing(new, replay.capacity))
    size = replay.capacity
    self._memory, again = spread(_moved(
        self._memory, new, _padded(source, size), _padded(drawn, replay.rows),
        np.arange(replay.rows) < len(drawn)))
    mask = spread((keep > 0)[..., None])
    return (block.replace(mask=block.mask & mask), again), {
        'replay/stored': len(source), 'replay/rows': len(drawn)}


def _advantage(block: types.Block) -> np.ndarray:
  """f32[N, G], of completions with one advantage each, on every host."""
  return arrays_lib.fetch(block.advantage)[..., 0]


def _padded(index: Any, size: int) -> np.ndarray:
  made = np.zeros(size, np.int32)
  made[:len(index)] = index
  return made


def _nothing(block: types.Block, size: int) -> types.Block:
  """Zeros in the form of `size` groups of one."""
  def zeros(tree, lead):
    return jax.tree.map(
        lambda x: np.zeros((*lead, *x.shape[len(lead):]), x.dtype), tree)
  return zeros(block.replace(prompts=None), (size, 1)).replace(
      prompts=zeros(block.prompts, (size,)))


@jax.jit
def _moved(memory: types.Block, block: types.Block, source: jax.Array,
           drawn: jax.Array, there: jax.Array):
  """(the memory after the push, the drawn rows).

  Args:
    memory: C groups of one.
    block: [N, G, ...].
    source: i32[C], below C what stays, C + n * G + g what comes in.
    drawn: i32[R], of the new memory; there: bool[R], which of them are meant.
  """
  size, group = len(memory.mask), block.mask.shape[1]

  def rows(old, new):
    return jnp.concatenate([old, new.reshape(-1, 1, *new.shape[2:])])[source]

  def prompts(old, new):  # not repeated for every completion
    return jnp.concatenate([old, new])[jnp.where(
        source < size, source, size + (source - size) // group)]
  after = jax.tree.map(
      rows, memory.replace(prompts=None), block.replace(prompts=None)).replace(
          prompts=jax.tree.map(prompts, memory.prompts, block.prompts))
  again = jax.tree.map(lambda x: x[drawn], after)
  return after, again.replace(mask=again.mask & there[:, None, None])
