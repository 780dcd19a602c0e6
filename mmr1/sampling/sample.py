"""The sampler: prompts are read once, G completions are decoded from each.

The decode is one loop on the device (`mmr1.sampling.rows`). The host looks at
it when the cache is full or enough rows have ended, and decides who sits where
next (`mmr1.sampling.schedule`). What comes out depends on neither: random
numbers are addressed by prompt, sample and position (law 6).

Temperature, top-k, top-p and the length are traced values; N, G, T and what
`Decoding` says shape the programs.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import forward
from mmr1 import sharding
from mmr1 import types
from mmr1.models import attention
from mmr1.sampling import rows
from mmr1.sampling import schedule as schedule_lib

Array = jax.Array
Knobs = rows.Knobs
Decoding = schedule_lib.Decoding


def knobs(
    *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    max_new_tokens: int,
) -> Knobs:
  """Checked knobs. Errors name the value; 0 tokens is not 'unlimited'."""
  if not 0 <= temperature < math.inf or not 0 < top_p <= 1 or top_k < 0:
    raise ValueError(
        f'sampling: got temperature={temperature}, top_p={top_p}, '
        f'top_k={top_k}; allowed are finite temperature >= 0 (0 is greedy), '
        '0 < top_p <= 1 (1 keeps all), top_k >= 0 (0 keeps all).')
  if max_new_tokens < 1:
    raise ValueError(
        f'sampling: got max_new_tokens={max_new_tokens}; it must be at least '
        '1 (there is no value for unlimited).')
  return Knobs(
      temperature=jnp.float32(temperature), top_k=jnp.int32(top_k),
      top_p=jnp.float32(top_p), max_new_tokens=jnp.int32(max_new_tokens))


def sample(
    policy: forward.Policy,
    params: Any,
    prompts: types.Prompts,
    key: Array,
    knobs: Knobs,
    version: Array,
    *,
    group: int,
    length: int,
    decoding: Decoding = Decoding(),
) -> types.Rollout:
  """Samples G completions per prompt.

  Args:
    policy: the model and its constants.
    params: its parameters.
    prompts: N prompts.
    key: from `keys.step_key`.
    knobs: traced settings.
    version: i32[], recorded in the rollout.
    group: G.
    length: T, the array length (a bound on `knobs.max_new_tokens`).
    decoding: rows at a time, sizes of the cache.

  Returns:
    A Rollout; rows that ran into the cap have done = False and no eos. Rows
    without a prompt (padding) sample nothing and keep no one waiting.
  """
  n = prompts.tokens.shape[0]
  shards = sharding.shards(n)
  real = np.asarray(prompts.mask).any(1).reshape(shards, -1)
  schedule = schedule_lib.Schedule(real, group, length, decoding)
  whole, layout = schedule.whole, schedule.layout
  asked = _ask(policy, params, prompts, key, group=group)
  policy = _decoder(policy, decoding.layers)
  params = _for_decode(policy, params)
  state = None
  while layout is not None:
    seating, fresh = _seating(layout, group, whole, n)
    if state is None:
      state = _begin(policy, params, asked, seating, knobs, fresh,
                     length=length, size=layout.size)
    else:
      state = _go_on(layout, state, whole)
      if layout.fresh.any():
        state = _seat(policy, params, asked, seating, state, knobs, fresh)
    prefix, mask = asked.prefix, asked.mask
    if layout.prompts.size < n:
      prefix, mask = _select(asked, sharding.spread(layout.prompts))
    state = _decode(
        policy, params, asked, prefix, mask, seating, state, knobs,
        layout.refill, np.int32(layout.shrink))
    t, live = jax.device_get((state.t, state.live))
    layout = schedule.after(int(t), live.reshape(shards, -1))
  rollout = _rollout(prompts.replace(media={}), state.found, version,
                     group=group)
  return rollout.replace(prompts=prompts)  # not a copy of its pixels


def _seating(
    layout: schedule_lib.Layout, group: int, whole: bool, n: int,
) -> tuple[rows.Seating, Array]:
  """On the device: who sits where, and who begins."""
  task, start, fresh = layout.task, layout.start, layout.fresh
  seats = None
  if whole:  # each prompt is a shard of its own
    samples = layout.prompts.shape[1] * group
    task = np.where(task == samples, group, task % group)
    task, start, fresh = (x.reshape(n, group) for x in (task, start, fresh))
  else:
    seats = attention.Seats(*layout.seats(group))
  return sharding.spread((rows.Seating(task, start, seats), fresh))


def _go_on(
    layout: schedule_lib.Layout, state: rows.State, whole: bool) -> rows.State:
  """The state in the rows and the cache of a layout."""
  size = jax.tree.leaves(state.cache)[0].shape[-2]
  kept = whole or layout.source.shape == state.live.shape
  if kept and layout.size == size and not layout.shift:
    return state
  source = None if kept else sharding.spread(layout.source)
  found = state.found  # stays where it is
  return _move(
      state.replace(found=None), source, np.int32(layout.shift),
      size=layout.size).replace(found=found)


_ask = jax.jit(rows.ask, static_argnames=('policy', 'group'))
_select = jax.jit(rows.select)
_seat = jax.jit(rows.seat, static_argnames='policy', donate_argnames='state')
_decode = jax.jit(
    rows.decode, static_argnames='policy', donate_argnames='state')


def _decoder(policy: forward.Policy, layers: str | None) -> forward.Policy:
  """The policy that decodes."""
  if layers is None:
    return policy
  return dataclasses.replace(policy, module=policy.module.clone(
      config=dataclasses.replace(policy.module.config, layers=layers)))


def _for_decode(policy: forward.Policy, params: Any) -> Any:
  """Once per call; scanned layers are read as they are."""
  if policy.module.config.layers == 'scan':
    return params
  return _rearranged(policy, params)


@functools.partial(jax.jit, static_argnames='policy')
def _rearranged(policy, params):
  return policy.module.for_decode(params)


@functools.partial(jax.jit, static_argnames=('policy', 'length', 'size'))
def _begin(policy, params, asked, seating, knobs, fresh, *, length, size):
  """The first rows, about to draw their first token."""
  shards, count = fresh.shape
  state = rows.begin(
      policy, shards, count, asked.keys.size // shards, length, size)
  return _spread(rows.seat(
      policy, params, asked, seating, state, knobs, fresh))


@functools.partial(jax.jit, static_argnames='size')
def _move(state, source, shift, *, size):
  """Other rows, another cache: nothing of the old one can be reused."""
  return _spread(rows.move(state, source, shift, size=size))


def _spread(state: rows.State) -> rows.State:
  """The shards over the devices; inside a program."""
  def place(x):
    # Only a scanned cache has its layers in front of the shards.
    return sharding.along(x, int(x.ndim == 6)) if x.ndim else x
  return jax.tree.map(place, state)


@functools.partial(jax.jit, static_argnames='group')
def _rollout(
    prompts: types.Prompts, found: rows.Found, version: Array, *, group: int,
) -> types.Rollout:
  """[D, M, ...] of shards and their samples as [N, G, ...]."""
  def grouped(x):
    return x.reshape((-1, group) + x.shape[2:])
  found = jax.tree.map(grouped, found)
  shape = found.tokens.shape
  kind = jnp.arange(shape[2]) < found.length[..., None]
  return types.Rollout(
      prompts=prompts,
      completions=types.Completions(
          tokens=found.tokens, kind=kind.astype(jnp.int8),
          positions=text_positions(prompts.next_position, shape)),
      logp=found.logp, behaviour=found.behaviour, done=found.done,
      version=version)


def text_positions(next_position: Array, shape: tuple[int, ...]) -> Array:
  """i32[N, G, T, 3], rotary positions of completions that are all text."""
  t = jnp.arange(shape[2], dtype=jnp.int32)
  position = next_position.astype(jnp.int32)[:, None, None, None]
  return jnp.broadcast_to(position + t[:, None], shape + (3,))
