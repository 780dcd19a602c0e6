"""What a reward model says of whole completions."""

from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import forward
from mmr1 import types

Array = jax.Array


def scores(
    policy: forward.Policy,
    params: Any,
    prefix: types.Prefix,
    block: types.Block,
    temperature: Array,
    *,
    ref_params: Any = None,
    looks: Any = (),
) -> types.Scores:
  """`reward` f32[N, G, 1] alone: no logits are made. Arguments as of
  `forward.score`, whose place in an update it takes."""
  del temperature, ref_params, looks
  said = forward.reward(
      policy, params, block.prompts, block.completions, prefix)
  return types.Scores(logp=None, entropy=None, reward=said[..., None])


def rewards(
    policy: forward.Policy, params: Any, prompts: types.Prompts,
    completions: types.Completions, *, chunks: int = 1) -> Array:
  """f32[N, G], without gradient.

  Args:
    policy: the model and its constants.
    params: its parameters.
    prompts: N, each read once.
    completions: [N, G, T].
    chunks: pieces that each group of several is read in, a divisor of G: memory
      falls with it, the result stays the same.
  """
  prefix = policy.prompt_pass(params, prompts)
  n, g, _ = completions.tokens.shape

  def one(part):
    return forward.reward(policy, params, prompts, part, prefix)

  def parts(x):
    return jnp.moveaxis(
        x.reshape((n, chunks, g // chunks) + x.shape[2:]), 1, 0)
  if 1 in (chunks, g):  # demonstrations are groups of one
    return jax.lax.stop_gradient(one(completions))
  made = jax.lax.map(one, jax.tree.map(parts, completions))
  return jax.lax.stop_gradient(jnp.moveaxis(made, 0, 1).reshape(n, g))


given = jax.jit(rewards, static_argnames=('policy', 'chunks'))
