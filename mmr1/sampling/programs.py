"""The programs of the sampler, and what passes between them and the host.

Between two looks of the host there is one program: it seats who is new and
decodes. Its small inputs come from the host; the cache and what has been found
stay on the device. Caches change their size and rows in programs of their own,
layer by layer, since those are small and alike.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import forward
from mmr1 import sharding
from mmr1 import types
from mmr1.models import attention
from mmr1.models import cache as cache_lib
from mmr1.sampling import given as given_lib
from mmr1.sampling import moves
from mmr1.sampling import rows
from mmr1.sampling import schedule as schedule_lib

Array = jax.Array
# What `Device.warm_up` has run; jax keeps the programs.
_warm: set[Any] = set()


class Seen(NamedTuple):
  """What the host has of `rows.State`: t, live bool[D, R], token and matched
  i32[D, R]."""
  t: int
  live: np.ndarray
  token: np.ndarray
  matched: np.ndarray | None = None

  @classmethod
  def nothing(cls, layout: schedule_lib.Layout) -> 'Seen':
    """Before the first decode."""
    shape = layout.task.shape
    return cls(0, np.zeros(shape, bool), *np.zeros((2, *shape), np.int32))

  def moved(self, layout: schedule_lib.Layout) -> 'Seen':
    """In the rows and the cache of a layout."""
    return Seen(self.t - layout.shift, *(
        x if x is None else np.take_along_axis(x, layout.source, 1)
        for x in self[1:]))


@flax.struct.dataclass
class Kept:
  """What stays on the device, of `rows.State`."""
  cache: cache_lib.Cache
  found: rows.Found


@dataclasses.dataclass(frozen=True)
class Device:
  """The device side of one call of the sampler.

  Fields:
    policy, params, asked, knobs: as `rows.decode` has them.
    length: T.
    whole: each prompt is a shard of its own, see `Schedule.whole`.
    spare: tokens that the cache has beside those of a layout.
    entropy: as in `schedule.Decoding`.
  """
  policy: forward.Policy
  params: Any
  asked: rows.Asked
  knobs: rows.Knobs
  length: int
  whole: bool
  spare: int = 0
  entropy: bool = False

  def begin(self, layout: schedule_lib.Layout) -> Kept:
    """Room for the samples."""
    shards, count = self.by_shards(layout.task).shape
    size = layout.size + self.spare
    return begin(self.policy, self.asked, shards=shards, count=count,
                 length=self.length, size=size, entropy=self.entropy)

  def go_on(self, kept: Kept, layout: schedule_lib.Layout, *,
            spare: bool = False) -> Kept:
    """`kept` in the rows and the cache of a layout; each array is given up as
    soon as there is a new one, for there may be no room for two caches.
    `spare`: they are left."""
    cache = kept.cache

    def instead(move):
      def one(x, axis):
        new = move(x, axis)
        if not spare:
          x.delete()
        return new
      return one
    for move in self._moves(cache, layout):
      cache = cache.map(instead(move))
      spare = False
    return kept.replace(cache=cache)

  def _moves(self, cache: cache_lib.Cache, layout: schedule_lib.Layout,
             ) -> list[Callable[[Array, int], Array]]:
    """Programs of (array, axis of its tokens) that bring it into a layout."""
    moves, count = [], jax.tree.leaves(cache)[0].shape[-4]
    if not self.whole and layout.task.shape[1] != count:
      moves.append(lambda x, axis: _regroup(self.policy, x, layout.source))
    size = layout.size + self.spare
    if layout.shift or size != cache.size:
      shift = np.int32(layout.shift)
      moves.append(lambda x, axis: _resize(
          self.policy, x, shift, size=size, axis=axis))
    return moves

  def decode(
      self, kept: Kept, layout: schedule_lib.Layout, seen: Seen,
  ) -> tuple[Kept, Seen]:
    """Seats who is new and decodes until the host is needed; `kept`, from
    `go_on`, is used up, `seen` is of the decode before."""
    kept, seen = decode(*self.arguments(kept, layout, seen), spare=self.spare)
    return kept, self.seen(seen, layout)

  def seen(self, seen: Seen, layout: schedule_lib.Layout) -> Seen:
    """What a program says, on the host."""
    t, *rest = jax.device_get(seen)
    return Seen(int(t), *(x if x is None else x.reshape(layout.task.shape)
                          for x in rest))

  def arguments(self, kept: Kept, layout: schedule_lib.Layout,
                seen: Seen) -> tuple[Any, ...]:
    """Of the program that decodes; arrays, or shapes where this has shapes."""
    n, group = self.asked.keys.shape
    seen = seen.moved(layout)
    task, seats = layout.task, None
    if self.whole:
      idle = layout.prompts.shape[1] * group
      task = np.where(task == idle, group, task % group)
    else:
      seats = attention.Seats(*layout.seats(group))
    task, start, fresh, live, token = map(self.by_shards, (
        task, layout.start, layout.fresh, seen.live, seen.token))
    return (
        self.policy, self.params, self.asked, kept,
        rows.Seating(task, start, seats), fresh,
        None if layout.prompts.size == n else layout.prompts,
        np.int32(seen.t), live, token, self.knobs, layout.refill,
        np.int32(layout.shrink))

  def by_shards(self, x: np.ndarray) -> np.ndarray:
    """[D, R, ...] of a layout as programs have it."""
    if not self.whole:
      return x
    return x.reshape(self.asked.keys.shape + x.shape[2:])

  def warm_up(self, schedule: schedule_lib.Schedule) -> None:
    """Runs every program that schedules of this shape can come to, once.

    Later calls compile nothing, however long their samples get (M28). Nobody
    is alive in it, so that nothing is drawn and every decode ends at once.
    """
    if len(schedule.shapes) == 1:
      return  # the call itself runs all there are
    leaves, tree = jax.tree.flatten((self.params, self.asked))
    key = (self.policy, self.length, self.entropy, self.spare, schedule.shapes,
           tree, *((x.shape, x.dtype, x.sharding)
                   for x in map(jnp.asarray, leaves)))
    if key in _warm:
      return
    kept = self.begin(schedule.nobody(schedule.shapes[0]))
    for shape in schedule.shapes:  # all counts of rows in one size, then next
      layout = schedule.nobody(shape)
      first = shape.rows == schedule.shapes[0].rows
      here = self.go_on(kept, layout, spare=not first)
      here, _ = self.decode(here, layout, Seen.nothing(layout))
      # What has been found goes from one to the next.
      kept = here if first else kept.replace(found=here.found)
      for other in schedule.moves(shape):
        there = schedule.nobody(other, shift=int(other.rows == shape.rows))
        for move in self._moves(here.cache, there):
          here.cache.map(lambda x, axis: move(x, axis).delete())
    _warm.add(key)


def decoder_of(policy: forward.Policy, layers: str | None) -> forward.Policy:
  """The policy that decodes; `layers` as in `schedule.Decoding`."""
  if layers is None:
    return policy
  return dataclasses.replace(policy, module=policy.module.clone(
      config=dataclasses.replace(policy.module.config, layers=layers)))


def ask(
    policy: forward.Policy, params: Any, prompts: types.Prompts, key: Array,
    knobs: rows.Knobs, *, group: int, length: int, whole: bool, decoding:
    schedule_lib.Decoding, given: given_lib.Given | None = None) -> Device:
  """Reads the prompts; `given` on the host."""
  decoder = decoder_of(policy, decoding.layers)
  asked = prefill(policy, decoder, params, prompts, key, group=group)
  if given is not None:
    asked = asked.replace(given=policy.layout.spread(given))
  if decoder.module.config.layers != 'scan':  # scanned ones are read as is
    params = _rearranged(decoder, params)
  return Device(decoder, params, asked, knobs, length, whole,
                entropy=decoding.entropy)


@functools.partial(jax.jit, static_argnames=('policy', 'decoder', 'group'))
def prefill(policy, decoder, params, prompts, key, *, group):
  """`rows.Asked` of prompts, as `decoder` reads it."""
  asked = rows.ask(policy, params, prompts, key, group=group)
  # Cut into layers here, once, and not by every program that decodes.
  asked = asked.replace(prefix=decoder.module.per_layer(asked.prefix))
  return jax.lax.with_sharding_constraint(
      asked, asked_where(policy.layout, asked))


def asked_where(layout: sharding.Layout, asked: rows.Asked) -> rows.Asked:
  """Shardings of what `prefill` leaves (arrays or shapes)."""
  prefix = asked.prefix
  keys, values = (jax.tree.map(layout.prefix, x)
                  for x in (prefix.keys, prefix.values))
  return jax.tree.map(layout.rows, asked).replace(prefix=types.Prefix(
      keys=keys, values=values, last=layout.rows(prefix.last)))


def kept_where(layout: sharding.Layout, kept: Kept) -> Kept:
  """Shardings of what stays on the devices (arrays or shapes)."""
  return jax.tree.map(functools.partial(_where, layout), kept)


def _where(layout: sharding.Layout, x: Any) -> jax.sharding.NamedSharding:
  if x.ndim >= 5:
    return layout.cache(x)
  return layout.rows(x) if x.ndim else layout.whole


@functools.partial(jax.jit, static_argnames='policy')
def _rearranged(policy, params):
  return policy.module.for_decode(params)


@functools.partial(
    jax.jit, static_argnames=(
        'policy', 'shards', 'count', 'length', 'size', 'entropy'))
def begin(policy, asked, *, shards, count, length, size, entropy=False):
  state = rows.begin(
      policy, shards, count, asked.keys.size // shards, length, size, entropy)
  return spread(policy, Kept(state.cache, state.found))


@functools.partial(
    jax.jit, static_argnames=('policy', 'spare'), donate_argnames='kept')
def decode(policy, params, asked, kept, seating, fresh, prompts, t, live,
            token, knobs, refill, shrink, matched=None, *, spare=0):
  """All that happens between two looks of the host."""
  seating, fresh, prompts, live, token, matched = spread(
      policy, (seating, fresh, prompts, live, token, matched))
  state = rows.seat(policy, params, asked, seating, rows.State(
      t, live, token, kept.cache, kept.found, matched), knobs, fresh)
  prefix, mask = asked.prefix, asked.mask
  if prompts is not None:
    prefix, mask = rows.select(asked, prompts)
  state = rows.decode(policy, params, asked, prefix, mask, seating, state,
                      knobs, refill, shrink, spare)
  return left(policy, state)


def left(policy: forward.Policy, state: rows.State) -> tuple[Kept, Seen]:
  """What a program leaves."""
  # What the host looks at is on every one of them.
  seen = jax.lax.with_sharding_constraint(
      Seen(state.t, state.live, state.token, state.matched),
      policy.layout.whole)
  return spread(policy, Kept(state.cache, state.found)), seen


@functools.partial(jax.jit, static_argnames=('policy', 'size', 'axis'))
def _resize(policy, leaf, shift, *, size, axis):
  return spread(policy, moves.resize(leaf, shift, size, axis))


@functools.partial(jax.jit, static_argnames='policy')
def _regroup(policy, leaf, source):
  return spread(policy, moves.regroup(leaf, spread(policy, source)))


def spread(policy: forward.Policy, tree: Any) -> Any:
  """The shards over the devices, and heads of a cache; inside a program."""
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(
      x, _where(policy.layout, x)) if x.ndim else x, tree)
