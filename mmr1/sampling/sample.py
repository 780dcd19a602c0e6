"""The sampler: prompts are read once, G completions are decoded from each.

The decode is one loop on the device (`mmr1.sampling.rows`). The host looks at
it when the cache is full or enough rows have ended, and decides who sits where
next (`mmr1.sampling.schedule`; `mmr1.sampling.programs` does it). What comes
out depends on neither: random numbers are addressed by prompt, sample and
position (law 6).

The first call of a shape compiles the programs of every cache size and count
of rows that `Decoding` allows, reached or not: later ones compile nothing.

Temperature, top-k, top-p and the length are traced values; N, G, T and what
`Decoding` says shape the programs.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import arrays
from mmr1 import forward
from mmr1 import types
from mmr1.sampling import given as given_lib
from mmr1.sampling import programs
from mmr1.sampling import rows
from mmr1.sampling import schedule as schedule_lib

Array = jax.Array
Knobs = rows.Knobs
Given = given_lib.Given
Decoding = schedule_lib.Decoding


def knobs(
    *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    max_new_tokens: int, sharpness: float = 1.0,
) -> Knobs:
  """Checked knobs. Errors name the value; 0 tokens is not 'unlimited'."""
  if not 0 <= temperature < math.inf or not 0 < top_p <= 1 or top_k < 0:
    raise ValueError(
        f'sampling: got temperature={temperature}, top_p={top_p}, '
        f'top_k={top_k}; allowed are finite temperature >= 0 (0 is greedy), '
        '0 < top_p <= 1 (1 keeps all), top_k >= 0 (0 keeps all).')
  if not 0 < sharpness < math.inf:
    raise ValueError(f'sampling: got sharpness={sharpness}; allowed: above 0.')
  if max_new_tokens < 1:
    raise ValueError(
        f'sampling: got max_new_tokens={max_new_tokens}; it must be at least '
        '1 (there is no value for unlimited).')
  return Knobs(
      temperature=jnp.float32(temperature), top_k=jnp.int32(top_k),
      top_p=jnp.float32(top_p), max_new_tokens=jnp.int32(max_new_tokens),
      sharpness=jnp.float32(sharpness))


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
    given: Given | None = None,
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
    given: how completions begin, on the host. `knobs.max_new_tokens` counts
      these tokens too, and a Rollout does not tell them from drawn ones.

  Returns:
    A Rollout; rows that ran into the cap have done = False and no eos. Rows
    without a prompt (padding) sample nothing and keep no one waiting.
  """
  n = prompts.tokens.shape[0]
  shards = policy.layout.shards(n)
  real = arrays.fetch(prompts.mask).any(1).reshape(shards, -1)
  schedule = schedule_lib.Schedule(real, group, length, decoding)
  device = programs.ask(
      policy, params, prompts, key, knobs, group=group, length=length,
      whole=schedule.whole, decoding=decoding, given=given)
  device.warm_up(schedule)
  layout = schedule.layout
  state, seen = device.begin(layout), programs.Seen.nothing(layout)
  while layout is not None:
    state = device.go_on(state, layout)
    state, seen = device.decode(state, layout, seen)
    layout = schedule.after(seen.t, seen.live)
  rollout = _rollout(prompts.replace(media={}), state.found, version,
                     group=group)
  return rollout.replace(prompts=prompts)  # not a copy of its pixels


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
      version=version, entropy=found.entropy)


def text_positions(next_position: Array, shape: tuple[int, ...]) -> Array:
  """i32[N, G, T, 3], rotary positions of completions that are all text."""
  t = jnp.arange(shape[2], dtype=jnp.int32)
  position = next_position.astype(jnp.int32)[:, None, None, None]
  return jnp.broadcast_to(position + t[:, None], shape + (3,))
