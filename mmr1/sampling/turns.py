"""Completions of several turns: an environment speaks where a row stops.

Rows decode as in `mmr1.sampling.sample`. One that stops (eos, a stop string,
its limit) waits until a part of the others has stopped too; then the host asks
the environment, what it says is read into the cache of all these rows in one
pass, images included, and decoding goes on: nothing is read twice. Rows that
end make room for samples that wait.

All rows write to one index of the cache, so that rows of different lengths end
together: after every pass the caches are closed up, see `moves.close`. As long
as a row waits there is a hole behind it, which nobody sees.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import arrays
from mmr1 import forward
from mmr1 import types
from mmr1.data import trajectories
from mmr1.sampling import chunks
from mmr1.sampling import programs
from mmr1.sampling import rows
from mmr1.sampling import schedule as schedule_lib

Array = jax.Array


def sample(
    policy: forward.Policy, params: Any, prompts: types.Prompts, key: Array,
    knobs: rows.Knobs, version: Array, *, group: int, length: int,
    decoding: schedule_lib.Decoding, player: chunks.Player) -> types.Rollout:
  """Plays G episodes from every prompt.

  Args:
    policy, params, prompts, key, knobs, version, group, decoding: as in
      `sample.sample`.
    length: T, of all tokens of an episode.
    player: of this rollout; its trajectories are what was played.

  Returns:
    A Rollout; done where an episode came to its end by itself.
  """
  n = prompts.tokens.shape[0]
  shards = policy.layout.shards(n)
  real = arrays.fetch(prompts.mask).any(1).reshape(shards, -1)
  schedule = schedule_lib.Schedule(
      real, group, length, decoding, spare=player.chunk)
  count = n // shards * group
  first = min(length, player.turn_tokens)
  asked = programs.ask(
      policy, params, prompts, key, knobs, group=group, length=length,
      whole=schedule.whole, decoding=decoding)
  stops = None if player.stops is None else jnp.asarray(player.stops)
  device = chunks.Device(
      asked.policy, asked.params, asked.asked.replace(stops=stops), knobs,
      length, schedule.whole, spare=player.chunk, entropy=decoding.entropy,
      player=player,
      limit=np.full((shards, count + 1), first, np.int32),
      shift=np.zeros((shards, count + 1), np.int32))
  device.warm_up(schedule)
  layout = schedule.layout
  kept, seen = device.begin(layout), programs.Seen.nothing(layout)
  while layout is not None:
    kept = device.go_on(kept, layout)
    kept, seen = device.decode(kept, layout, seen)
    kept, seen, sits, start = _answered(
        device, kept, seen, layout, count, length)
    layout = schedule.after(seen.t, sits, start)
  completions = policy.layout.spread(trajectories.collate(
      player.trajectories, length, player.room, policy.pad_id, player.codec))
  logp, behaviour, entropy = _grouped(
      (kept.found.logp, kept.found.behaviour, kept.found.entropy), group=group)
  return types.Rollout(
      prompts=prompts, completions=completions, logp=logp, behaviour=behaviour,
      done=policy.layout.spread(player.done), version=version + 0,
      entropy=entropy)


@functools.partial(jax.jit, static_argnames='group')
def _grouped(found: Any, *, group: int) -> Any:
  """[D, M, ...] of shards and their samples as [N, G, ...]."""
  return jax.tree.map(
      lambda x: x.reshape((-1, group) + x.shape[2:]), found)


def _answered(device: chunks.Device, kept, seen, layout, count: int, length: int):
  """After the environment has spoken to the rows that stopped.

  Returns:
    kept, seen, bool[D, R], rows that do not make room, and where they begin;
    None: where they did.
  """
  sits = layout.task < count
  stopped = sits & ~seen.live
  if not stopped.any():
    return kept, seen, seen.live, None
  player, found = device.player, kept.found
  lengths, tokens = arrays.fetch((found.length, found.tokens))
  lengths, tokens = (x.reshape(len(layout.task), count, *x.shape[2:])
                     for x in (lengths, tokens))
  group = device.asked.keys.shape[1]
  places = np.stack(np.divmod(
      layout.task + np.arange(len(sits))[:, None] * count, group), -1)
  asked, ends = {}, np.full(sits.shape, seen.t, np.int32)
  for d, r in np.argwhere(stopped):
    task, (n, g) = layout.task[d, r], map(int, places[d, r])
    size, before = lengths[d, task], len(player.trajectories[n][g])
    said = tokens[d, task, before:size]
    why = 'length' if size >= device.limit[d, task] else 'stop'
    if player.stops is not None and (
        seen.matched[d, r] == len(player.stops) - 1):
      why = 'stop'
    if said[-1] == device.policy.eos_id:
      why = 'eos'
    asked[n, g] = chunks.Stopped(said, why)
    ends[d, r] = layout.start[d, r] + size - 1
  told = player.step(asked)
  if not told:
    return kept, seen, seen.live, None
  held = np.where(seen.live, seen.t - layout.start, 0)
  for (d, r), one in chunks.told_at(places, told):
    n, g = places[d, r]
    whole, task = player.trajectories[n][g], layout.task[d, r]
    device.limit[d, task] = min(length, len(whole) + player.turn_tokens)
    device.shift[d, task] = whole.shift
    held[d, r] = len(whole)
  t = int(held.max())
  begin = (t - held).astype(np.int32)
  chunk = device.chunk_of(layout, seen, places, told, ends)
  live = seen.live
  kept, seen = device.observe(kept, layout, seen, chunk, begin)
  # A turn may have ended with its first token: it is looked at next time.
  return kept, seen._replace(t=t), live | (chunk.length > 0), begin
