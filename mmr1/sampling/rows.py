"""The sampler's device side: rows that decode, whoever sits in them.

D shards of R rows each. Where every sample keeps its row (`Seating` None) a
shard is one prompt and its rows the group: D = N, R = G. Letters as in
`mmr1.types`; M samples of a shard, A prompts that it reads, U cache tokens.

All rows write to the same index of the cache, whatever their age: one update
in place. A row sees what lies from its own start to there.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mmr1 import forward
from mmr1 import types
from mmr1.models import attention
from mmr1.models import cache as cache_lib
from mmr1.sampling import draw as draw_lib
from mmr1.sampling import given as given_lib
from mmr1.sampling import keys as keys_lib
from mmr1.sampling import moves
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
    sharpness: f32[]; tokens are drawn at temperature / sharpness, and log-probs
      stay those of the temperature.
  """
  temperature: Array
  top_k: Array
  top_p: Array
  max_new_tokens: Array
  sharpness: Array


@flax.struct.dataclass
class Asked:
  """What the prompts left for all their samples.

  Fields:
    prefix: of all N prompts, best as `module.per_layer` makes it.
    mask: bool[N, P], real tokens.
    following: i32[N], rotary position of the first completion token.
    keys: [N, G], of the samples.
    given: how they begin; None: with what is drawn.
    stops: i32[Z, V] | None, see `stops.table`: a row ends where that does.
  """
  prefix: types.Prefix
  mask: Array
  following: Array
  keys: Array
  given: given_lib.Given | None = None
  stops: Array | None = None


@flax.struct.dataclass
class Seating:
  """Who sits where.

  Fields:
    task: i32[D, R], sample of the row, counted in the shard; M: idle.
    start: i32[D, R], index in the cache of the row's first token.
    seats: how rows read prompts; None: row g of shard n is of prompt n.
    shift: i32[D, R] | None, added to rotary positions behind images.
    limit: i32[D, R] | None, tokens at which a row ends; None: the knobs say.
  """
  task: Array
  start: Array
  seats: attention.Seats | None
  shift: Array | None = None
  limit: Array | None = None


@flax.struct.dataclass
class Found:
  """What has been sampled; entries past the length are padding.

  Fields:
    tokens: i32[D, M, T]. logp, behaviour: f32[D, M, T].
    length: i32[D, M]. done: bool[D, M], ended by eos.
    entropy: f32[D, M, T] | None, see `types.Rollout`.
  """
  tokens: Array
  logp: Array
  behaviour: Array
  length: Array
  done: Array
  entropy: Array | None = None


@flax.struct.dataclass
class State:
  """What the decode carries.

  Fields:
    t: i32[], tokens in the cache.
    live: bool[D, R], rows that go on.
    token: i32[D, R], the last one drawn; the cache does not have it yet.
    cache: keys and values of U completion tokens.
    found: the samples.
    matched: i32[D, R] | None, how far `Asked.stops` has got.
  """
  t: Array
  live: Array
  token: Array
  cache: cache_lib.Cache
  found: Found
  matched: Array | None = None


def ask(
    policy: forward.Policy, params: Any, prompts: types.Prompts, key: Array,
    *, group: int) -> Asked:
  """Reads the prompts."""
  return Asked(
      prefix=policy.prompt_pass(params, prompts), mask=prompts.mask,
      following=prompts.next_position.astype(jnp.int32),
      keys=keys_lib.row_keys(key, prompts.uid, group))


def begin(
    policy: forward.Policy, shards: int, rows: int, samples: int, length: int,
    size: int, entropy: bool = False) -> State:
  """A state in which nobody sits; `entropy`: there will be that of tokens."""
  shape = (shards, samples, length)
  zeros = jnp.zeros(shape, jnp.float32)
  return State(
      t=jnp.int32(0), live=jnp.zeros((shards, rows), bool),
      token=jnp.zeros((shards, rows), jnp.int32),
      cache=policy.module.init_cache(shards, rows, size),
      found=Found(
          tokens=jnp.full(shape, policy.pad_id, jnp.int32), logp=zeros,
          behaviour=zeros, length=jnp.zeros(shape[:2], jnp.int32),
          done=jnp.zeros(shape[:2], bool), entropy=zeros if entropy else None))


def seat(
    policy: forward.Policy, params: Any, asked: Asked, seating: Seating,
    state: State, knobs: Knobs, fresh: Array) -> State:
  """Draws the first token of the rows `fresh` bool[D, R]."""
  if asked.stops is not None:
    state = state.replace(matched=jnp.where(fresh, 0, state.matched))
  last = asked.prefix.last
  last = last.reshape(len(fresh), -1, last.shape[1])
  hidden = attention.take(last, seating.task // asked.keys.shape[1])
  return drawn(policy, params, asked, seating, state, knobs, hidden, fresh,
               jnp.zeros_like(seating.start))


def drawn(
    policy: forward.Policy, params: Any, asked: Asked, seating: Seating,
    state: State, knobs: Knobs, hidden: Array, rows: Array, age: Array,
) -> State:
  """Token `age` i32[D, R] of `rows` bool[D, R], drawn from hidden [D, R, W];
  the others stay as they are."""
  new = _draw(policy, params, asked, seating, state, knobs, hidden, rows, age)
  return new.replace(
      live=jnp.where(rows, new.live, state.live),
      token=jnp.where(rows, new.token, state.token),
      matched=None if new.matched is None else jnp.where(
          rows, new.matched, state.matched))


def select(asked: Asked, prompts: Array) -> tuple[types.Prefix, Array]:
  """Prefix and mask of the prompts i32[D, A] of every shard, D * A of them."""
  def some(x):
    x = attention.take(x.reshape((len(prompts), -1) + x.shape[1:]), prompts)
    return x.reshape((-1,) + x.shape[2:])

  def keys(x):
    return moves.over_layers(some, x, 4)

  prefix = asked.prefix
  return types.Prefix(
      keys=jax.tree.map(keys, prefix.keys),
      values=jax.tree.map(keys, prefix.values),
      last=some(prefix.last)), some(asked.mask)


def decode(
    policy: forward.Policy, params: Any, asked: Asked, prefix: types.Prefix,
    mask: Array, seating: Seating, state: State, knobs: Knobs, refill: Array,
    shrink: Array, spare: int = 0) -> State:
  """Draws tokens until the host is needed.

  That is when the cache is full, when a shard has no more live rows than
  `refill`, or when every shard has no more than `shrink`.

  Args:
    policy, params: the model, as `for_decode` makes its parameters.
    asked: of all prompts.
    prefix, mask: of the D * A prompts that rows may read, see `Asked`.
    seating: who sits where.
    state: donate it.
    knobs: settings.
    refill: i32[D']; -1: never. D' divides D: counts are over D / D' shards.
    shrink: i32[].
    spare: tokens of the cache that are left free.
  """
  size = state.cache.size - spare
  following = attention.take(
      asked.following.reshape(len(seating.task), -1),
      seating.task // asked.keys.shape[1])
  if seating.shift is not None:
    following = following + seating.shift

  def body(state):
    age = state.t - seating.start
    position = jnp.broadcast_to(
        (following + age)[..., None], (*age.shape, 3))
    hidden, cache = policy.apply(
        params, prefix, mask, state.cache, state.token, position, state.t,
        seating.start, seating.seats, method='decode')
    state = state.replace(t=state.t + 1, cache=cache)
    return _draw(policy, params, asked, seating, state, knobs, hidden,
                 state.live, age + 1)

  def goes_on(state):
    live = jnp.sum(state.live.reshape(len(refill), -1), axis=1)
    return ((state.t < size) & jnp.all(live > refill)
            & jnp.any(live > shrink))

  return jax.lax.while_loop(goes_on, body, state)


def _draw(
    policy: forward.Policy, params: Any, asked: Asked, seating: Seating,
    state: State, knobs: Knobs, hidden: Array, live: Array, age: Array,
) -> State:
  """Draws token `age` of every row from `hidden` and writes those of `live`."""
  temperature = jnp.where(knobs.temperature > 0, knobs.temperature, 1.0)
  logits = policy.logits(params, hidden, temperature)
  truncated = truncation.truncate(
      logits * knobs.sharpness, knobs.top_k, knobs.top_p)
  keys = attention.take(
      asked.keys.reshape(len(seating.task), -1), seating.task)
  token = jnp.where(
      knobs.temperature > 0,
      draw_lib.draw(truncated, keys_lib.uniform(keys, age)),
      draw_lib.largest(truncated))
  if asked.given is not None:
    token = given_lib.instead(asked.given, seating.task, age, token)

  def logp_of(x):
    chosen = jnp.take_along_axis(x, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(x, axis=-1)

  ended = token == policy.eos_id
  nobody = state.found.length.shape[1]
  limit = seating.limit
  if limit is None:
    limit = jnp.minimum(knobs.max_new_tokens, state.found.tokens.shape[2])
  matched, going = state.matched, live & ~ended & (age + 1 < limit)
  if asked.stops is not None:
    # What a row draws while it waits for the host is part of no turn.
    matched = jnp.where(live, asked.stops[matched, token], matched)
    going &= matched < len(asked.stops) - 1
  return state.replace(
      live=going, token=token, matched=matched,
      found=_write(
          state.found, jnp.where(live, seating.task, nobody), age, ended,
          token, logp_of(logits), logp_of(truncated),
          None if state.found.entropy is None else draw_lib.entropy(logits)))


def _write(
    found: Found, task: Array, age: Array, ended: Array, token: Array,
    logp: Array, behaviour: Array, entropy: Array | None) -> Found:
  """Token `age` of the samples `task`; one past the last sample is nobody."""
  def put(array, value):
    return jax.vmap(
        lambda a, task, age, v: a.at[task, age].set(v, mode='drop'))(
            array, task, age, value.astype(array.dtype))

  def mark(array, value):
    return jax.vmap(lambda a, task, v: a.at[task].set(v, mode='drop'))(
        array, task, value.astype(array.dtype))
  return Found(
      tokens=put(found.tokens, token), logp=put(found.logp, logp),
      behaviour=put(found.behaviour, behaviour),
      entropy=None if entropy is None else put(found.entropy, entropy),
      length=mark(found.length, age + 1), done=mark(found.done, ended))
