"""A batch with the group as an axis, and the same batch without."""

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import types
from mmr1.sampling import sample


def block(prompts: types.Prompts, *, group: int, length: int, words: int,
          seed: int = 0) -> types.Block:
  """A block of random completions that all run to the cap.

  Args:
    prompts: N prompts.
    group, length: G, T.
    words: ids below this are drawn.
    seed: of the tokens, advantages and log-probabilities.
  """
  rng = np.random.default_rng(seed)
  shape = (prompts.tokens.shape[0], group, length)
  logp = jnp.asarray(-rng.random(shape), jnp.float32)
  return types.Block(
      prompts=prompts, mask=jnp.ones(shape, bool),
      completions=types.Completions(
          tokens=jnp.asarray(rng.integers(2, words, shape), jnp.int32),
          kind=jnp.full(shape, types.KIND_SAMPLED, jnp.int8),
          positions=sample.text_positions(prompts.next_position, shape)),
      advantage=jnp.asarray(
          rng.standard_normal((*shape[:2], 1)), jnp.float32),
      ref=logp, extra={'sampler_logp': logp})


def repeated(grouped: types.Block) -> types.Block:
  """The block [N * G, 1, T] of the same completions, prompts G times.

  Loss and gradient are the same; the prompts' share of the work is G times as
  much.
  """
  n, group = grouped.mask.shape[:2]
  prompts = jax.tree.map(
      lambda x: jnp.repeat(x, group, axis=0), grouped.prompts)
  rest = jax.tree.map(
      lambda x: x.reshape(n * group, 1, *x.shape[2:]),
      grouped.replace(prompts=None))
  return rest.replace(prompts=prompts)
