"""The rows that a step samples from, and traces beside what was sampled."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import looks as looks_lib
from mmr1 import types
from mmr1.sampling import sample


def traces(ids: Sequence[Sequence[np.ndarray]], length: int,
           pad_id: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens i32[N, E, T] and kinds i8[N, E, T] of given ids, right-padded."""
  tokens = np.full((len(ids), len(ids[0]), length), pad_id, np.int32)
  kind = np.zeros(tokens.shape, np.int8)
  for i, row in enumerate(ids):
    for e, one in enumerate(row):
      tokens[i, e, :len(one)] = one
      kind[i, e, :len(one)] = types.KIND_EXPERT
  return tokens, kind


@functools.partial(jax.jit, static_argnums=2)
def repeated(prompts: types.Prompts, key: jax.Array,
             count: int) -> types.Prompts:
  """Rows n * count + b, b < count, are those of prompt n."""
  prompts = prompts.replace(noise=looks_lib.noise(key, prompts.uid))
  return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), prompts)


@functools.partial(jax.jit, static_argnums=1)
def branched(asked: types.Prompts,
              branches: tuple[looks_lib.Look, ...]) -> types.Prompts:
  """Row n * B + b under view b."""
  every = [look.shown(jax.tree.map(lambda x, b=b: x[b::len(branches)], asked))
           for b, look in enumerate(branches)]
  return jax.tree.map(
      lambda *x: jnp.stack(x, 1).reshape((-1,) + x[0].shape[1:]), *every)


@jax.jit
def attached(rollout: types.Rollout, tokens: jax.Array,
             kind: jax.Array) -> types.Rollout:
  def joined(a, b):
    return jnp.concatenate([a, b.astype(a.dtype)], axis=1)
  completions, zeros = rollout.completions, jnp.zeros(tokens.shape)
  prompts = rollout.prompts
  return rollout.replace(
      completions=completions.replace(
          tokens=joined(completions.tokens, tokens),
          kind=joined(completions.kind, kind),
          positions=joined(completions.positions, sample.text_positions(
              prompts.next_position, tokens.shape))),
      logp=joined(rollout.logp, zeros),
      behaviour=joined(rollout.behaviour, zeros),
      done=joined(rollout.done, jnp.ones(tokens.shape[:2])))
