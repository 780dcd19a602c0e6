"""What a stage learns with: its state, and an update from an assembled batch.

It reads neither data nor rewards and samples nothing, so that a batch that was
written to a file can be trained on again (`python -m mmr1.replay`).
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import average
from mmr1 import context
from mmr1 import forward
from mmr1 import looks as looks_lib
from mmr1 import objective as objective_lib
from mmr1 import passes
from mmr1 import phases
from mmr1 import sockets
from mmr1 import training
from mmr1 import types
from mmr1 import update as update_lib
from mmr1 import weighing

Update = tuple[types.TrainState, Mapping[str, Any]]


class Learner:
  """One update per batch.

  Attributes:
    start: where the stage starts.
    clock: of its phases.
  """

  def __init__(
      self, ctx: context.Context, stage: str, section: Any,
      terms: tuple[update_lib.Term, ...], *, updates: int, chunks: int,
      looks: update_lib.Looks = (),
      score: Callable[..., types.Scores] = forward.score):
    """Starts a stage.

    Args:
      ctx: the run.
      stage: its name.
      section: the stage's section.
      terms: the objective.
      updates: optimiser updates in the stage.
      chunks: pieces that a batch's gradient is made in.
      looks: those of every update.
      score: see `update.gradient`.
    """
    self._ctx, self._stage, self._section = ctx, stage, section
    self._chunks = chunks
    self.clock = phases.Clock(
        lambda name: ctx.watchdog.begin(f'{stage}: {name}'))
    self.start = training.start(ctx, stage, section, updates)
    self._train_step = training.make_update(
        ctx.policy, self.start.optimizer, terms, chunks=chunks,
        buckets=tuple(section.length_buckets), looks=looks, score=score)

  @phases.phase('update', ready=lambda result: result[1])
  def update(
      self, state: types.TrainState, batch: types.Batch,
      knobs: Mapping[str, jax.Array], k: int) -> Update:
    """The state and the metrics after step k, from 0; `state` is given up."""
    return self._step(state, batch, knobs, k)

  def _step(self, state, batch, knobs, k) -> Update:
    del k
    return self._train_step(state, batch, knobs, None)


class GroupLearner(Learner):
  """Looks, old and reference log-probs, then epochs of minibatches (rl)."""

  def __init__(
      self, ctx: context.Context, stage: str, section: Any,
      objective: objective_lib.Objective):
    looks = sockets.looks(
        section, stage, ctx.config,
        sockets.requested(section, ctx.config, objective),
        ctx.processor.patch_pixels)
    self.looks = tuple(x for x in looks if x.when == 'rollout')
    self._updates = section.epochs_per_step * section.minibatches_per_step
    super().__init__(
        ctx, stage, section, objective.terms,
        updates=section.steps * self._updates,
        chunks=section.chunks_per_minibatch,
        looks=tuple(x for x in looks if x.when == 'update'))
    self._objective = objective
    self._average = average.Average(section.ema, section.reference_memory)
    self.start = self._average.begin(self.start, ctx.policy.layout)
    self._params = {name: self._read(name) for name in sorted(self._others())}
    self._weigh = weighing.Weighing(
        ctx, stage, section, sockets.weights(
            ctx.config, dict.fromkeys((*section.weights, *objective.weights))),
        objective.weights)

  def _others(self) -> set[str]:
    """Whose parameters are read besides the policy's."""
    found = {look.params for look in self.looks} - {'policy'}
    return found | ({'reference'} if self._objective.reference else set())

  def _read(self, name: str) -> Callable[[types.TrainState], Any]:
    """(state) -> parameters: 'reference', 'ema'."""
    section, source = self._section, name
    whole = name == 'reference' and self._objective.reference_hidden
    if name == 'reference':
      source = section.reference
    if source == average.NAME:
      return self._average.reader(self._ctx.policy.layout, whole=whole)
    return training.reference(self._ctx, self.start, source, whole=whole,
                              memory=section.reference_memory)

  @phases.phase('look', ready=lambda seen: seen)
  def look(
      self, state: types.TrainState, rollout: types.Rollout,
      asked: types.Prompts, temperature: jax.Array,
  ) -> dict[str, types.Seen]:
    """What the looks of a rollout see, before anything is made of it.

    Args:
      state: the policy that made it.
      rollout: its prompts are as they were sampled from.
      asked: the prompts with the images of the data.
      temperature: f32[].
    """
    if not self.looks:
      return {}
    block = _whole(rollout)
    return {look.name: self._seen(look, state, block, asked, temperature)
            for look in self.looks}

  @phases.phase('look', ready=lambda values: values)
  def values(self, state: types.TrainState, rollout: types.Rollout,
             temperature: jax.Array) -> jax.Array:
    """f32[N, G, T], what the policy's critic says before each token."""
    return weighing.scores(
        self._ctx.policy, state.params['policy'], _whole(rollout), temperature,
        chunks=self._chunks, buckets=tuple(self._section.length_buckets)).value

  def _seen(self, look, state, block, asked, temperature) -> types.Seen:
    given = dict(temperature=temperature, chunks=self._chunks,
                 buckets=tuple(self._section.length_buckets))
    params = (state.params['policy'] if look.params == 'policy'
              else self._params[look.params](state))
    shown = _shown(look, asked)
    if look.divergence is None and look.entropy:
      made = weighing.scores(
          self._ctx.policy, params, block.replace(prompts=shown), **given)
      return types.Seen(logp=made.logp, entropy=made.entropy)
    if look.divergence is not None:
      return pair(self._ctx.policy, params, block, shown,
                  divergence=look.divergence, **given)
    logp, _ = log_probs(self._ctx.policy, params,
                        block.replace(prompts=shown), hidden=False, **given)
    return types.Seen(logp=logp)

  @phases.phase('reference', ready=lambda block: (block.old, block.ref))
  def scored(
      self, state: types.TrainState, block: types.Block,
      knobs: Mapping[str, jax.Array]) -> types.Block:
    """The block with old and reference log-probs where they are needed.

    With old='sampler' the ratio pi / pi_sampler is itself the importance
    correction between sampler and trainer. All log-probs are those before
    truncation (law 5): no `old` corrects for what top-k and top-p cut off.
    """
    score = functools.partial(
        log_probs, self._ctx.policy, temperature=knobs['temperature'],
        chunks=self._chunks, buckets=tuple(self._section.length_buckets))
    old, ref, ref_hidden = None, None, None
    if self._section.old == 'sampler':
      old = block.extra['sampler_logp']
    elif self._section.old == 'recompute':
      old, _ = score(state.params['policy'], block, hidden=False)
    if self._objective.reference:
      ref, ref_hidden = score(
          self._params['reference'](state), block,
          hidden=self._objective.reference_hidden)
    return block.replace(old=old, ref=ref, ref_hidden=ref_hidden)

  def _step(self, state, batch, knobs, k) -> Update:
    """Epochs of minibatches; metrics as `combine` makes them.

    The first block is the step's own, weighed here; of each block a minibatch
    has an equal part.
    """
    section, seen = self._section, []
    ref = (self._params['reference'](state)
           if self._objective.reference_hidden else None)
    for epoch in range(section.epochs_per_step):
      orders = [self._order(len(block.mask), k, epoch, i)
                for i, block in enumerate(batch)]
      for part in range(section.minibatches_per_step):
        own, *others = (self._minibatch(block, order, part)
                        for block, order in zip(batch, orders))
        done = k * self._updates + len(seen)
        own, weighed = self._weigh(state, own, knobs, done)
        state, metrics = self._average.after(
            self._train_step, state, (own, *others), knobs, ref, done + 1)
        seen.append({**metrics, **weighed})
    metrics = combine(seen)
    if 'ratio/max' in metrics:
      metrics['ratio/first'] = seen[0]['ratio/max']
    return state, metrics

  def _order(self, rows: int, k: int, epoch: int, number: int) -> np.ndarray:
    """Of the rows of block `number` over the minibatches of an epoch."""
    views = 1 if number else max(1, len(self._section.branches))
    order = np.arange(rows // views)
    if self._updates > 1:
      # 1 + epoch: a trailing 0 seeds what select had (M27).
      order = np.random.default_rng([
          self._ctx.config.seed, self._ctx.index(self._stage), k, 1 + epoch,
          *([number] if number else [])]).permutation(order)
    # All branches of a prompt are in the same minibatch.
    return (order[:, None] * views + np.arange(views)).ravel()

  def _minibatch(self, block: types.Block, order: np.ndarray,
                 part: int) -> types.Block:
    count = self._section.minibatches_per_step
    if count == 1:
      return block
    size = len(order) // count
    return self._ctx.policy.layout.spread(_rows(
        block, jnp.asarray(order[part * size:(part + 1) * size])))


def combine(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The metrics of a step's updates as one row.

  Updates that were skipped as not finite are left out, unless all were: they
  changed nothing, and their nan would hide the others.

    'update/skipped'  how many were skipped
    'update/...'      the largest; of skips in a row the longest run
    'sampler/...'     that of the first update: sampler and trainer agree only
                      while they have the same parameters
    '.../max'         the largest
    the rest          the mean over updates
  """
  if len(seen) == 1:
    return dict(seen[0])
  # On the host: small programs over several CPU devices, one after the other,
  # can wait for each other for ever.
  seen = jax.device_get(list(seen))
  used = [row for row in seen if not row['update/skipped']] or seen
  result = {}
  for name, first in seen[0].items():
    every = [row[name] for row in seen]
    if name == 'update/skipped':
      result[name] = np.sum(every)
    elif name.startswith('update/'):
      result[name] = np.max(every)
    elif name.startswith('sampler/'):
      result[name] = first
    else:
      pool = np.max if name.endswith('/max') else np.mean
      result[name] = pool([row[name] for row in used])
  return result


log_probs = jax.jit(passes.log_probs, static_argnames=(
    'policy', 'chunks', 'buckets', 'hidden', 'rows'))
pair = jax.jit(passes.pair, static_argnames=(
    'policy', 'divergence', 'chunks', 'buckets'))


@functools.partial(jax.jit, static_argnums=0)
def _shown(look: looks_lib.Look, prompts: types.Prompts) -> types.Prompts:
  return look.shown(prompts)


def _whole(rollout: types.Rollout) -> types.Block:
  """A block of every token of a rollout that is not an environment's, for
  passes before its rewards."""
  kind = rollout.completions.kind
  mask = (kind != types.KIND_PAD) & (kind != types.KIND_OBSERVATION)
  return types.Block(
      prompts=rollout.prompts, completions=rollout.completions, mask=mask,
      advantage=np.zeros((*mask.shape[:2], 1), np.float32))


@jax.jit
def _rows(block: types.Block, index: jax.Array) -> types.Block:
  return jax.tree.map(lambda x: x[index], block)
