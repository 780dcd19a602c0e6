"""The programs of an rl stage, from shapes alone."""

from collections.abc import Mapping
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import average
from mmr1 import forward
from mmr1 import learner
from mmr1 import looks as looks_lib
from mmr1 import pixels as pixels_lib
from mmr1 import resolve
from mmr1 import rl_setup
from mmr1 import sockets
from mmr1 import training
from mmr1 import trees
from mmr1 import types
from mmr1 import weighing
from mmr1.planning import costs
from mmr1.planning import judges
from mmr1.planning import records
from mmr1.planning import sampled
from mmr1.planning import shapes as shapes_lib
from mmr1.planning import states


def stage(config: Any, name: str, policy: forward.Policy,
          params: Any) -> records.Stage:
  """Sampling, looks, old, reference and scores for weights, update.

  What views do to pictures, and the average after an update, cost next to
  nothing beside these and are left out.

  Raises:
    ValueError: the section cannot work.
  """
  made = _Rl(config, name, policy, params)
  found, unread = sampled.programs_of(config, made.section, policy, params)
  found += [*made.judges.programs(), *made.looks(), *made.passes(), made.update()]
  return records.Stage(name, 'rl', tuple(
      one._replace(resident=(
          *one.resident, 'waiting', 'average', 'memory', 'judges'))
      for one in found), made.held() | unread, made.useful(),
      math.prod(made.shape))


class _Rl:
  """Shapes that the programs share."""

  def __init__(self, config: Any, name: str, policy: forward.Policy,
               params: Any):
    section = self.section = config[name]
    self._config, self._policy, self._params = config, policy, params
    self._make = shapes_lib.Shapes(policy, config.data)
    rows = section.prompts_per_step * max(1, len(section.branches))
    self.shape = (rows, section.samples_per_prompt, section.max_new_tokens)
    self.judges = judges.Judges(config, section, self.shape, policy, params)
    self._updates = section.epochs_per_step * section.minibatches_per_step
    self._objective = rl_setup.objective_of(section, name, config)
    names = sockets.requested(section, config, self._objective)
    every = sockets.looks(section, name, config, names, _pixels(policy))
    self._rollout_looks = [x for x in every if x.when == 'rollout']
    self._update_looks = tuple(x for x in every if x.when == 'update')
    self._state, self._optimizer = states.of(
        policy, section, params, section.steps * self._updates)
    self._knobs = states.knobs(['temperature', *self._objective.knobs])
    self._block = self._sized(rows)
    c = policy.module.config
    self._parts = costs.forward(c, self._make.work(*self.shape, math.prod(
        self.shape)))
    self._parts['tower'] += self._make.inside(
        c, rows * self.shape[1], self._make.room(config, section.env))

  def _sized(self, rows: int, **given: Any) -> Any:
    """A block of some of the rows."""
    return self._make.block(
        rows, *self.shape[1:], noise=bool(self._config.views),
                            env=self.section.env, config=self._config, **given)

  def _of(self, whose: str) -> Any:
    """Parameters of a look or a pass."""
    if whose != 'reference':
      return self._params
    return states.only_read(self._policy, self._params)

  def _score(self, name: str, whose: str, resident: tuple[str, ...],
             hidden: bool = False) -> records.Program:
    """A pass over all completions."""
    params = self._of(whose)
    return records.Program(
        name, lambda: learner.log_probs.trace(
            self._policy, params, self._block,
            temperature=self._knobs['temperature'],
            chunks=self.section.chunks_per_minibatch, hidden=hidden),
        {whose if whose != 'policy' else 'parameters': params,
         'batch': self._block}, 1, 1, self._parts, resident)

  def looks(self) -> list[records.Program]:
    """Passes of the rollout's looks."""
    return [self._look(look) for look in self._rollout_looks]

  def _look(self, look: looks_lib.Look) -> records.Program:
    name, beside = f'look_{look.name}', ('moments', 'reference')
    if look.divergence is None:
      return self._score(name, look.params, beside if look.params == 'policy'
                         else ('state',))
    shown = self._block.prompts
    return records.Program(
        name, lambda: learner.pair.trace(
            self._policy, self._params, self._block, shown,
            self._knobs['temperature'], divergence=look.divergence,
            chunks=self.section.chunks_per_minibatch),
        {'parameters': self._params, 'batch': self._block, 'shown': shown},
        1, 1, {part: 2 * x for part, x in self._parts.items()}, beside)

  def passes(self) -> list[records.Program]:
    """Old and reference log-probs; what weights read, per minibatch."""
    found, hidden = [], self._objective.reference_hidden
    if self.section.old == 'recompute':
      found.append(self._score('old', 'policy', ('moments', 'reference'),
                               hidden))
    if self._objective.reference:
      whose = 'ema' if self.section.reference == average.NAME else 'reference'
      found.append(self._score('reference', whose, ('state',), hidden))
    weights = sockets.weights(
        self._config, (*self.section.weights, *self._objective.weights))
    if any(map(sockets.reads_scores, weights.values())):
      part, parts = self._minibatch(), self._minibatch_parts()
      found.append(records.Program(
          'scores', lambda: weighing.scores.trace(
              self._policy, self._params, part, self._knobs['temperature'],
              chunks=self.section.chunks_per_minibatch),
          {'parameters': self._params, 'batch': part}, self._updates, 1,
          parts, ('moments', 'reference', 'rollout')))
    return found

  def _minibatch(self) -> Any:
    """The step's own block of an update; weights are of it alone."""
    size, g, _ = self.shape
    block = self._scored(size // self.section.minibatches_per_step, g)
    if self.section.weights:
      block = block.replace(weight=self._make.scores(*block.mask.shape))
    return block

  def _replayed(self, rows: int) -> Any:
    """Groups of one, of earlier steps."""
    return self._scored(rows, 1)

  def _scored(self, size: int, g: int) -> Any:
    """A block with what an update reads besides weights."""
    t = self.shape[2]
    one = functools.partial(self._make.scores, size, g, t)
    extra = {'sampler_logp': one()}
    for look in self._rollout_looks:
      keys = ('view', 'pair', 'entropy') if look.divergence is not None else (
          ('view', 'entropy') if look.entropy else ('view',))
      extra |= {f'{key}/{look.name}': one() for key in keys}
    extra |= {f'weight/{name}': one() for name in self._objective.weights}
    advantage = resolve.function(self.section.advantage.fn, 'mmr1.advantages')
    extra |= {name: self._make.array(jnp.float32, size, g, 1)
              for name in getattr(advantage, 'hands', ())}
    given: dict[str, Any] = dict(extra=extra)
    if self.section.old != 'self':
      given['old'] = one()
    if self._objective.reference:
      given['ref'] = one()
    if self._objective.reference_hidden:
      tree = self._policy.module.config
      given['ref_hidden'] = self._make.array(
          jnp.dtype(tree.compute_dtype), size, g, t, tree.width)
    return self._make.block(
        size, g, t, noise=bool(self._config.views), env=self.section.env,
        config=self._config, **given)

  def _minibatch_parts(self) -> Mapping[str, float]:
    share = self.section.minibatches_per_step
    return {part: x / share for part, x in self._parts.items()}

  def _batch(self) -> tuple[types.Batch, Mapping[str, float]]:
    """Blocks of an update, and operations of a pass over them."""
    batch, parts = (self._minibatch(),), self._minibatch_parts()
    if self.section.replay.fn is None:
      return batch, parts
    rows = self.section.replay.rows // self.section.minibatches_per_step
    more = costs.forward(self._policy.module.config, self._make.work(
        rows, 1, self.shape[2], rows * self.shape[2]))
    return (*batch, self._replayed(rows)), {
        part: x + more[part] for part, x in parts.items()}

  def update(self) -> records.Program:
    """One of a step's updates."""
    batch, parts = self._batch()
    train = training.make_update(
        self._policy, self._optimizer, self._objective.terms,
        chunks=self.section.chunks_per_minibatch, looks=self._update_looks)
    ref = {'reference': self._of('reference')} if (
        self._objective.reference_hidden) else {}
    remat = self._config.model.remat
    work = dict(costs.gradient(parts, remat))
    for look in self._update_looks:
      more = costs.gradient(parts, remat) if look.gradient else parts
      work = {name: x + more[name] for name, x in work.items()}
    return records.Program(
        'update', lambda: train.trace(
            self._state, batch, self._knobs, *ref.values() or (None,)),
        {'state': self._state, 'batch': batch, **ref}, self._updates, 1, work,
        ('reference', 'rollout'))

  def held(self) -> dict[str, Any]:
    """What lives through a step."""
    held = {'state': self._state, 'moments': self._state.replace(params={}),
            'prompts': self._block.prompts,
            # What minibatches are cut from; one alone is all of it.
            'rollout': (self._block if self.section.minibatches_per_step > 1
                        else {}),
            'waiting': (self._block,) * self.section.staleness}
    if self.section.replay.fn is not None:
      held['memory'] = self._replayed(self.section.replay.capacity)
    held['judges'] = self.judges.held()
    on_device = self.section.reference_memory == 'device'
    looked = {look.params for look in self._rollout_looks}
    if on_device and ('reference' in looked or self._objective.reference
                      and self.section.reference != average.NAME):
      held['reference'] = self._of('reference')
    if on_device and self.section.ema.decay is not None:
      part, _ = trees.partition(self._params, self._optimizer.mask)
      held['average'] = jax.tree.map(lambda x: shapes_lib.Struct(
          x.shape, jnp.float32, sharding=x.sharding), part)
    return held

  def useful(self) -> float:
    """A pass to sample, three for every time that a token trains."""
    return sum(self._parts.values()) * (1 + 3 * self.section.epochs_per_step)


def _pixels(policy: forward.Policy) -> pixels_lib.Pixels | None:
  """Of a model whose folder says sizes only: colours as CLIP's are about."""
  vision = getattr(policy.module.config, 'vision', None)
  if vision is None:
    return None
  frames = max(1, vision.patch_values // (3 * vision.patch**2))
  return pixels_lib.Pixels(mean=(0.5,) * 3, std=(0.25,) * 3,
                           patch=vision.patch, frames=frames)
