"""The sampler: prompts are run once, G completions are decoded from each.

Temperature, top-k, top-p and the length are traced values; only N, G and the
array length T shape the program.
"""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mmr1 import forward
from mmr1 import types
from mmr1.sampling import keys as keys_lib
from mmr1.sampling import truncation

Array = jax.Array


@flax.struct.dataclass
class Knobs:
  """Traced settings of one sampling call.

  Fields:
    temperature: f32[]; 0 is greedy, whose log-probs are those of T = 1.
    top_k: i32[]; 0 keeps all.
    top_p: f32[]; 1 keeps all.
    max_new_tokens: i32[], at most the array length T.
  """
  temperature: Array
  top_k: Array
  top_p: Array
  max_new_tokens: Array


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


@flax.struct.dataclass
class State:
  """What the decode loop carries.

  Fields:
    t: i32[], completion tokens written so far.
    live: bool[N, G], rows that have not ended.
    tokens: i32[N, G, T]; logp, behaviour: f32[N, G, T]; kind: i8[N, G, T].
    cache: keys and values of the completion tokens.
  """
  t: Array
  live: Array
  tokens: Array
  kind: Array
  logp: Array
  behaviour: Array
  cache: Any


def _draw(
    logits: Array, keys: Array, t: Array, knobs: Knobs,
) -> tuple[Array, Array, Array]:
  """Token i32[N, G], its log-prob before and after truncation f32[N, G]."""
  truncated = truncation.truncate(logits, knobs.top_k, knobs.top_p)
  noise = keys_lib.gumbel(keys, t, logits.shape[-1])
  noise = jnp.where(knobs.temperature > 0, noise, 0.0)
  token = _argmax(truncated + noise)

  def logp_of(x):
    chosen = jnp.take_along_axis(x, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(x, axis=-1)
  return token, logp_of(logits), logp_of(truncated)


def _argmax(x: Array) -> Array:
  """i32[...], first index of the largest of x [..., V]; a valid id for nan.

  Two plain reductions: XLA's CPU backend is slower at `jnp.argmax`, which is
  one reduction over pairs.
  """
  last = x.shape[-1] - 1
  top = jnp.max(x, axis=-1, keepdims=True)
  index = jnp.where(x == top, jnp.arange(last + 1, dtype=jnp.int32), last)
  return jnp.min(index, axis=-1)


def _record(
    policy: forward.Policy, state: State, token: Array, logp: Array,
    behaviour: Array,
) -> State:
  """Writes position t of the rows that live, and ends rows at eos."""
  def put(array, value):
    value = jnp.where(state.live, value, array[:, :, state.t])
    return jax.lax.dynamic_update_index_in_dim(
        array, value.astype(array.dtype), state.t, axis=2)
  return state.replace(
      t=state.t + 1,
      live=state.live & (token != policy.eos_id),
      tokens=put(state.tokens, token),
      kind=put(state.kind, types.KIND_SAMPLED),
      logp=put(state.logp, logp),
      behaviour=put(state.behaviour, behaviour))


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
) -> types.Rollout:
  """Samples G completions per prompt.

  Args:
    policy: the model and its constants (static).
    params: its parameters.
    prompts: N prompts.
    key: from `keys.step_key`.
    knobs: traced settings.
    version: i32[], recorded in the rollout.
    group: G.
    length: T, the array length (a bound on `knobs.max_new_tokens`).

  Returns:
    A Rollout; rows that ran into the cap have done = False and no eos. Rows
    without a prompt (padding) sample nothing and keep no one waiting.
  """
  prefix = policy.prompt_pass(params, prompts)
  n = prompts.tokens.shape[0]
  keys = keys_lib.row_keys(key, prompts.uid, group)
  temperature = jnp.where(knobs.temperature > 0, knobs.temperature, 1.0)
  shape = (n, group, length)
  real = jnp.any(prompts.mask, axis=1)
  state = State(
      t=jnp.int32(0),
      live=jnp.broadcast_to(real[:, None], (n, group)),
      tokens=jnp.full(shape, policy.pad_id, jnp.int32),
      kind=jnp.zeros(shape, jnp.int8),
      logp=jnp.zeros(shape, jnp.float32),
      behaviour=jnp.zeros(shape, jnp.float32),
      cache=policy.module.init_cache(n, group, length))

  def step(state, hidden):
    logits = policy.logits(params, hidden, temperature)
    return _record(policy, state, *_draw(logits, keys, state.t, knobs))

  def body(state):
    previous = state.t - 1
    position = prompts.next_position[:, None, None] + previous
    position = jnp.broadcast_to(position, (n, group, 3))
    hidden, cache = policy.apply(
        params, prefix, prompts.mask, state.cache,
        state.tokens[:, :, previous], position, previous, method='decode')
    return step(state.replace(cache=cache), hidden)

  def unfinished(state):
    limit = jnp.minimum(knobs.max_new_tokens, length)
    return (state.t < limit) & jnp.any(state.live)

  first = jnp.broadcast_to(
      prefix.last[:, None], (n, group, prefix.last.shape[-1]))
  state = jax.lax.while_loop(unfinished, body, step(state, first))
  return types.Rollout(
      prompts=prompts,
      completions=types.Completions(
          tokens=state.tokens, kind=state.kind,
          positions=text_positions(prompts.next_position, shape)),
      logp=state.logp, behaviour=state.behaviour,
      done=real[:, None] & ~state.live, version=version)


def text_positions(next_position: Array, shape: tuple[int, ...]) -> Array:
  """i32[N, G, T, 3], rotary positions of completions that are all text."""
  t = jnp.arange(shape[2], dtype=jnp.int32)
  position = next_position.astype(jnp.int32)[:, None, None, None]
  return jnp.broadcast_to(position + t[:, None], shape + (3,))


# One program per (policy, N, G, T); everything else is traced.
sample_jit = jax.jit(sample, static_argnames=('policy', 'group', 'length'))
