"""How completions begin where not all of their tokens are drawn."""

import flax.struct
import jax
import jax.numpy as jnp

from mmr1.models import attention

Array = jax.Array


@flax.struct.dataclass
class Given:
  """How completions begin; they are sampled from there on.

  Given tokens go through the decode like drawn ones, one a step; their
  log-probs are found with the others. A given eos ends a completion.

  Fields:
    tokens: i32[N, G, T].
    length: i32[N, G], how many of them are given, from 0.
  """
  tokens: Array
  length: Array


def instead(given: Given, task: Array, age: Array, token: Array) -> Array:
  """Token `age` of the samples `task` [D, R] where it is given, or `token`."""
  shards = len(task)
  length = attention.take(given.length.reshape(shards, -1), task)
  tokens = given.tokens.reshape(shards, -1, given.tokens.shape[-1])
  own = jax.vmap(lambda x, task, age: x.at[task, age].get(mode='clip'))(
      tokens, task, age)
  return jnp.where(age < length, own, token)
