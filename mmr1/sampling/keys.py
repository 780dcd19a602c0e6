"""The key law (law 6): every random number is addressed, never drawn in turn.

A key is fold_in(run key, stage, step, round, view, prompt uid, sample,
position). So a sample depends on what it is, not on the batch it came in, on
the host that made it, or on how often the run was restarted.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def step_key(
    seed: int, stage: int, step: Array, *, round_: int = 0, view: int = 0,
) -> Array:
  """Key of one sampling round: run seed, stage index, step, round, view."""
  key = jax.random.key(seed)
  for part in (stage, step, round_, view):
    key = jax.random.fold_in(key, part)
  return key


def row_keys(key: Array, uid: Array, group: int) -> Array:
  """Keys [N, G] of the samples of each prompt.

  A prompt that is there again, as where a small file starts over inside a
  step, goes on counting samples: its groups are not copies of each other.

  Args:
    key: from `step_key`.
    uid: i32[N], uids of the prompts.
    group: samples per prompt, G.
  """
  prompt = jax.vmap(jax.random.fold_in, (None, 0))(key, uid)
  before = jnp.sum(jnp.tril(uid[:, None] == uid, -1), 1, dtype=jnp.int32)
  sample = before[:, None] * group + jnp.arange(group, dtype=jnp.int32)
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(fold)(prompt, sample)


def uniform(keys: Array, position: Array) -> Array:
  """Numbers in [0, 1), f32[D, R, 2], of samples' keys [D, R] for completion
  positions i32[D, R]."""
  def one(key, position):
    return jax.random.uniform(jax.random.fold_in(key, position), (2,))
  return jax.vmap(jax.vmap(one))(keys, position)
