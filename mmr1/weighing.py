"""The weights of a minibatch, made once before its update."""

from collections.abc import Collection, Mapping
from typing import Any

import jax

from mmr1 import context
from mmr1 import masked
from mmr1 import passes
from mmr1 import sockets
from mmr1 import types
from mmr1.sampling import keys

_VIEW = 0x3e1  # in the key law: what no sampler draws from


class Weighing:
  """(state, block, knobs, updates so far) -> the block with weights, metrics.

  The weights that the stage names multiply the policy term; those that a term
  names are in `block.extra`, as 'weight/<name>'.
  """

  def __init__(
      self, ctx: context.Context, stage: str, section: Any,
      weights: Mapping[str, sockets.Weight], for_terms: Collection[str]):
    """Binds the functions.

    Args:
      ctx: the run.
      stage: its name.
      section: of the stage.
      weights: every weight, by name.
      for_terms: those that terms read.
    """
    self._ctx, self._stage, self._section = ctx, stage, section
    self._weights = weights
    self._pass = any(map(sockets.reads_scores, weights.values()))
    on_policy, on_terms = tuple(section.weights), tuple(for_terms)

    def weigh(scores, block, key):
      made = {name: fn(scores, block, jax.random.fold_in(key, i))
              for i, (name, fn) in enumerate(weights.items())}
      made = jax.lax.stop_gradient(made)
      total = block.weight
      for name in on_policy:
        total = made[name] if total is None else total * made[name]
      extra = {f'weight/{name}': made[name] for name in on_terms}
      metrics = {f'weight/{name}/mean': masked.mean(x, block.mask)
                 for name, x in made.items()}
      return block.replace(
          weight=total, extra={**block.extra, **extra}), metrics
    self._weigh = jax.jit(weigh)

  def __call__(
      self, state: types.TrainState, block: types.Block,
      knobs: Mapping[str, jax.Array], done: int,
  ) -> tuple[types.Block, Mapping[str, jax.Array]]:
    if not self._weights:
      return block, {}
    made = None
    if self._pass:
      made = scores(
          self._ctx.policy, state.params['policy'], block,
          knobs['temperature'], chunks=self._section.chunks_per_minibatch,
          buckets=tuple(self._section.length_buckets))
    key = keys.step_key(self._ctx.config.seed, self._ctx.index(self._stage),
                        done, view=_VIEW)
    return self._weigh(made, block, key)


scores = jax.jit(
    passes.scores, static_argnames=('policy', 'chunks', 'buckets'))
