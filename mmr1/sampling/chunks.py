"""What rows of the sampler read at once, on their way.

See `mmr1.sampling.turns`; letters as in `mmr1.sampling.rows`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import types
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import trajectories
from mmr1.sampling import moves
from mmr1.sampling import programs
from mmr1.sampling import rows
from mmr1.sampling import schedule as schedule_lib

Array = jax.Array


@flax.struct.dataclass
class Chunk:
  """What rows read at once; O tokens.

  Fields:
    tokens: i32[D, R, O]: the last token that was drawn, which the cache does
      not have yet, and what was inserted behind it.
    length: i32[D, R], how many; 0: nothing, the row does not go on.
    positions: i32[D, R, O, 3].
    media: {tower: Media} with arrays [D, R, S, ...] | None.
    age: i32[D, R], number of the first of them in its completion.
    start, end: i32[D, R], where the row's earlier tokens are in the cache.
  """
  tokens: Array
  length: Array
  positions: Array
  media: dict[str, types.Media] | None
  age: Array
  start: Array
  end: Array


class Stopped(NamedTuple):
  """A row that has stopped.

  Fields:
    tokens: i32[t], sampled in this turn.
    why: 'eos', 'stop' (a string) or 'length'.
  """
  tokens: np.ndarray
  why: str


class Player(Protocol):
  """Who plays the episodes of a rollout, see `mmr1.playing`.

  Attributes:
    stops: i32[Z, V], see `stops.table`, or None.
    turn_tokens: sampled in a turn at most.
    chunk: O, tokens inserted at once at most, and one.
    patches: of an observation's images at most; 0: there are none.
    codec: of the family, or None.
    room: S, patches of an episode at most.
    trajectories: [N][G].
    done: bool[N, G], episodes that came to their end by themselves.
  """
  stops: np.ndarray | None
  turn_tokens: int
  chunk: int
  patches: int
  codec: Any
  room: int
  trajectories: Sequence[Sequence[trajectories.Trajectory]]
  done: np.ndarray

  def step(self, stopped: Mapping[tuple[int, int], Stopped],
           ) -> Mapping[tuple[int, int], encode.Encoded]:
    """What is inserted behind rows (prompt, slot) that go on. A collective."""


@dataclasses.dataclass(frozen=True)
class Device(programs.Device):
  """As in `programs`, and what is known of each sample between its turns.

  Fields:
    player: of the rollout.
    limit, shift: i32[D, M + 1] on the host, see `rows.Seating`; the last is of
      nobody.
  """
  player: Player | None = None
  limit: np.ndarray | None = None
  shift: np.ndarray | None = None

  def _seating(self, seating: rows.Seating, task: np.ndarray) -> rows.Seating:
    shift, limit = (self.by_shards(np.take_along_axis(x, task, 1))
                    for x in (self.shift, self.limit))
    return seating.replace(shift=shift, limit=limit)

  def arguments(self, kept, layout, seen):
    found = list(super().arguments(kept, layout, seen))
    found[4] = self._seating(found[4], layout.task)
    matched = None
    if self.asked.stops is not None:
      matched = self.by_shards(seen.moved(layout).matched)
    return (*found, matched)

  def observe(self, kept: programs.Kept, layout: schedule_lib.Layout,
              seen: programs.Seen, chunk: Chunk, begin: np.ndarray,
              ) -> tuple[programs.Kept, programs.Seen]:
    """Rows read a chunk, draw the first token of their turn, and close up.

    Args:
      kept, seen: from `decode`; kept is used up.
      layout: who sits where.
      chunk: of rows [D, R]; limits and shifts are those of the new turn.
      begin: i32[D, R], where rows begin in the closed cache.
    """
    n = len(self.asked.mask)
    here = layout._replace(shift=0, source=np.tile(
        np.arange(layout.task.shape[1]), (len(layout.task), 1)))
    policy, params, asked, kept, seating, *_ = self.arguments(
        kept, here, seen)
    live, token = map(self.by_shards, (seen.live, seen.token))
    matched = None if asked.stops is None else self.by_shards(seen.matched)
    chunk = jax.tree.map(self.by_shards, chunk)
    kept, found = observe(
        policy, params, asked, kept, seating, chunk,
        None if layout.prompts.size == n else layout.prompts,
        np.int32(seen.t), live, token, matched, self.knobs)
    close = functools.partial(
        _close, self.policy, start=chunk.start, end=chunk.end,
        t=np.int32(seen.t), begin=self.by_shards(begin))

    def instead(x, axis):
      new = close(x, axis=axis)
      x.delete()
      return new
    return kept.replace(cache=kept.cache.map(instead)), self.seen(
        found, layout)

  def nothing(self, layout: schedule_lib.Layout) -> Chunk:
    """A chunk for nobody, in numpy."""
    shape, size = layout.task.shape, self.player.chunk
    media = None
    if self.player.patches:
      media = {collate.TOWER: self._media([()] * layout.task.size, shape)}
    zeros = functools.partial(np.zeros, dtype=np.int32)
    return Chunk(
        tokens=zeros((*shape, size)), length=zeros(shape),
        positions=zeros((*shape, size, 3)), media=media, age=zeros(shape),
        start=zeros(shape), end=zeros(shape))

  def _media(self, parts, shape) -> types.Media:
    codec = self.player.codec
    flat = trajectories.media_of(
        parts, self.player.chunk, self.player.patches, codec.unit,
        codec.channels, trajectories.fields(codec))
    return jax.tree.map(lambda x: x.reshape((*shape, *x.shape[1:])), flat)

  def chunk_of(self, layout: schedule_lib.Layout, seen: programs.Seen,
               places: np.ndarray, told: Mapping[tuple[int, int], Any],
               ends: np.ndarray) -> Chunk:
    """What `told` has for the rows that sit at `places` (prompt, slot)."""
    chunk = self.nothing(layout)
    chunk = chunk.replace(start=layout.start.copy(), end=ends)
    parts = [()] * layout.task.size
    for (d, r), one in told_at(places, told):
      n, g = places[d, r]
      whole = self.player.trajectories[n][g]
      first = len(whole) - len(one.tokens) - 1
      count = 1 + len(one.tokens)
      chunk.tokens[d, r, :count] = whole.tokens[first:]
      chunk.positions[d, r, :count] = whole.positions()[first:]
      chunk.length[d, r], chunk.age[d, r] = count, first
      parts[d * layout.task.shape[1] + r] = [(1, one)]
    if chunk.media is None:
      return chunk
    return chunk.replace(media={
        collate.TOWER: self._media(parts, layout.task.shape)})

  def warm_up(self, schedule: schedule_lib.Schedule) -> None:
    """Also what observations run."""
    leaves = jax.tree.leaves((self.params, self.asked))
    key = (self.policy, self.length, self.entropy, schedule.shapes,
           self.player.chunk, self.player.patches,
           *((x.shape, x.dtype) for x in leaves))
    if key in _warm:
      return
    super().warm_up(schedule)
    for shape in schedule.shapes:
      layout = schedule.nobody(shape)
      kept = self.begin(layout)
      kept, seen = self.observe(
          kept, layout, programs.Seen.nothing(layout), self.nothing(layout),
          np.zeros(layout.task.shape, np.int32))
      jax.tree.map(lambda x: x.delete(), kept)
    _warm.add(key)


_warm: set[Any] = set()


def told_at(places: np.ndarray, told: Mapping[tuple[int, int], Any]):
  """((shard, row), what it is told) of rows that sit at (prompt, slot)."""
  for d, r in np.ndindex(places.shape[:2]):
    if tuple(places[d, r]) in told:
      yield (d, r), told[tuple(places[d, r])]


def _observe(policy, params, asked, kept, seating, chunk, prompts, t, live,
             token, matched, knobs):
  """One pass over a chunk, and the first token of the turns behind it."""
  seating, chunk, prompts, live, token, matched = programs.spread(
      policy, (seating, chunk, prompts, live, token, matched))
  prefix, mask = asked.prefix, asked.mask
  if prompts is not None:
    prefix, mask = rows.select(asked, prompts)
  index = jnp.arange(kept.cache.size)
  keys = (index >= chunk.start[..., None]) & (index < chunk.end[..., None])
  number = jnp.arange(chunk.tokens.shape[2])
  real = number < chunk.length[..., None]
  hidden, cache = policy.apply(
      params, prefix, mask, kept.cache, chunk.tokens, chunk.positions, real, t,
      keys, seating.seats, chunk.media, method='extend')
  last = jnp.take_along_axis(hidden, jnp.maximum(
      chunk.length - 1, 0)[..., None, None], axis=2)[:, :, 0]
  nobody = kept.found.length.shape[1]
  task = jnp.where(real & (number > 0), seating.task[..., None], nobody)
  place = chunk.age[..., None] + number
  found = kept.found.replace(tokens=jax.vmap(
      lambda a, task, place, x: a.at[task, place].set(x, mode='drop'))(
          kept.found.tokens, task, place, chunk.tokens))
  came = chunk.length > 0
  if matched is not None:
    matched = jnp.where(came, 0, matched)
  return programs.left(policy, rows.drawn(
      policy, params, asked, seating, rows.State(
          t, live, token, cache, found, matched), knobs, last, came,
      chunk.age + chunk.length))


observe = jax.jit(_observe, static_argnames='policy', donate_argnames='kept')


@functools.partial(jax.jit, static_argnames=('policy', 'axis'))
def _close(policy, leaf, *, start, end, t, begin, axis):
  start, end, begin = programs.spread(policy, (start, end, begin))
  return programs.spread(
      policy, moves.close(leaf, start, end, t, begin, axis))
