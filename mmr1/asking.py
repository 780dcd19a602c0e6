"""What a step is asked and what came of it; traces beside what was sampled."""

from collections.abc import Sequence
from concurrent import futures
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import looks as looks_lib
from mmr1 import playing
from mmr1 import records
from mmr1 import types
from mmr1.data import pipeline
from mmr1.rewards import score as score_lib
from mmr1.sampling import read as read_lib
from mmr1.sampling import sample


class Prompted(NamedTuple):
  """A step's prompts.

  Fields:
    pairs: of the rows of this host.
    needs: tokens and patches of the longest prompt of all hosts.
    imitated: the step learns from their completions; nothing is sampled.
    before: what `lanes.Lanes.restore` needs to read them again, of this
      host's lanes.
  """
  pairs: list[pipeline.Pair]
  needs: tuple[int, int]
  imitated: bool
  before: dict[str, Any]


class Made(NamedTuple):
  """A rollout, whose rewards are on their way.

  Fields:
    at: the step, from 0, before which it was sampled; step: that it is for.
    prompted: its prompts.
    asked: the prompts with the images of the data, one for every row of the
      rollout, whose own prompts have those that it was sampled from.
    branch: i32[N], number of the view that a row was sampled from.
    rollout: on the devices.
    host: what the host needs of it.
    samples: of this host's rows, group after group.
    scores: (part of this host's rows or None, what went wrong or None), later.
    greedy: the same of a greedy completion of every prompt, where the
      advantage reads its reward.
    scored: the scores of all hosts' samples, where they are known already.
    played: the episodes, with an environment.
  """
  at: int
  step: int
  prompted: Prompted
  asked: types.Prompts
  branch: np.ndarray
  rollout: types.Rollout
  host: read_lib.Host
  samples: list[records.Sample]
  scores: futures.Future
  greedy: futures.Future | None = None
  scored: score_lib.Scored | None = None
  played: playing.Player | None = None


def traces(ids: Sequence[Sequence[np.ndarray]], count: int, length: int,
           pad_id: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens i32[N, E, T] and kinds i8[N, E, T] of given ids, right-padded; of
  fewer than E = count traces the last are padding alone."""
  tokens = np.full((len(ids), count, length), pad_id, np.int32)
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
def demonstrated(prompts: types.Prompts, tokens: jax.Array, kind: jax.Array,
                 step: jax.Array) -> types.Rollout:
  """A rollout of traces alone, [N, E, T]: the line goes on as after a sampler.
  """
  zeros = jnp.zeros(tokens.shape)
  return types.Rollout(
      prompts=prompts, completions=types.Completions(
          tokens=tokens, kind=kind, positions=sample.text_positions(
              prompts.next_position, tokens.shape)),
      logp=zeros, behaviour=zeros, done=jnp.ones(tokens.shape[:2], bool),
      version=step + 0)  # a copy: the state's own is given up by its update


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
      entropy=None if rollout.entropy is None else joined(
          rollout.entropy, zeros),
      done=joined(rollout.done, jnp.ones(tokens.shape[:2])))
