"""The programs of a flow stage, from shapes alone."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import flow_objectives
from mmr1 import flow_setup
from mmr1 import flow_update
from mmr1 import generator
from mmr1 import optim
from mmr1 import sharding
from mmr1 import trees
from mmr1 import types
from mmr1.models import dit
from mmr1.models import lora
from mmr1.planning import records
from mmr1.planning import shapes as shapes_lib
from mmr1.sampling import keys as keys_lib

NAME = generator.NAME


def stage(config: Any, name: str, layout: sharding.Layout) -> records.Stage:
  """Sampling, where pictures are sampled, and the update.

  Its judge, and what moves the old parameters, are left out.

  Raises:
    ValueError: the section cannot work.
  """
  section, plan = config[name], flow_setup.plan(config[name], name, config)
  state, optimizer = _state(section, plan, layout)
  trainable, _ = trees.partition(state.params[NAME], optimizer.mask)
  reads = plan.objective.reads
  reference = trainable if flow_objectives.REFERENCE in reads else None
  n, g = section.prompts_per_step, section.samples_per_prompt
  parts = section.minibatches_per_step
  key = jax.eval_shape(lambda: keys_lib.step_key(0, 0, 0))
  train = flow_update.make(
      plan.model, optimizer, plan.objective, layout,
      steps=plan.settings.steps, chunks=section.chunks_per_minibatch,
      cap=section.ema.cap)
  batch = _round(plan, layout, n // parts, g)
  points = plan.objective.points(plan.settings.steps)
  passes = 3 + plan.model.remat + len(reads)
  work = forward(plan.model, n // parts, g)
  found = [records.Program(
      'update', lambda: train.trace(state, batch, key, reference),
      {'state': state, 'batch': batch, 'reference': reference}, parts, 1,
      {part: points * passes * x for part, x in work.items()}, ('rollout',))]
  work = forward(plan.model, n, g)
  asked = plan.settings.steps * (1 + (plan.settings.guidance != 1))
  if plan.objective.sampled:
    whole, params = _round(plan, layout, n, g), state.params[NAME]
    found.insert(0, records.Program(
        'sample', lambda: generator.sample.trace(
            plan.model, params, whole.condition, whole.source, whole.uid, key,
            settings=plan.settings, group=g, trace=plan.objective.trace),
        {'old': params, 'prompts': (whole.condition, whole.source)}, 1, 1,
        {part: asked * x for part, x in work.items()},
        ('learner', 'reference')))
  return records.Stage(
      name, 'flow', tuple(found), {
          'state': state, 'reference': reference,
          'learner': (trainable, state.opt, state.slow[flow_update.EMA]),
          'rollout': _round(plan, layout, n, g) if parts > 1 else {}},
      (asked * plan.objective.sampled + 3 * points) * sum(work.values()), 0)


def forward(c: dit.Config, n: int, g: int) -> Mapping[str, float]:
  """Operations of one velocity of N x G pictures, by part; adapters count
  none."""
  p, d, l = (c.size // c.patch)**2, c.width, c.tokens
  values = c.patch**2 * c.channels
  # q, k, v and o; those of what reads the condition; an MLP of 4 D.
  layer = 2 * d * d * (4 + 2 + 8)
  return {
      'pictures': float(n * g * p * (c.layers * layer + 4 * values * d)
                        + n * p * 2 * values * d * c.source),
      'modulation': 2.0 * n * d * d * (g * (6 * c.layers + 4) + 1),
      'condition': 4.0 * n * l * c.layers * d * d,
      'scores': 4.0 * n * g * c.layers * p * (p + l) * d}


def _state(section: Any, plan: flow_setup.Plan, layout: sharding.Layout,
           ) -> tuple[types.TrainState, optim.Optimizer]:
  """A TrainState of shapes, and its optimiser."""
  def begun(key):
    params = dit.init(plan.model, key)
    if not section.lora.rank:
      return params
    return lora.inject(
        params, key, rank=section.lora.rank, alpha=section.lora.alpha,
        targets=section.lora.targets)
  params = jax.eval_shape(begun, jax.random.key(0))
  optimizer = optim.make(
      section.optimizer, params, section.steps * section.minibatches_per_step,
      lora.trains(params, ()) if section.lora.rank else None)

  def first(params):
    part, _ = trees.partition(params, optimizer.mask)
    slow = {flow_update.EMA: part}
    if plan.objective.sampled:
      slow[flow_update.OLD] = part
    return types.TrainState(
        step=jnp.int32(0), params={NAME: params},
        opt={NAME: optimizer.tx.init(part)},
        aux={'guard': optim.init_guard()}, slow=slow)
  state = jax.eval_shape(first, params)
  return shapes_lib.placed(state, layout.state(state)), optimizer


def _round(plan: flow_setup.Plan, layout: sharding.Layout, n: int,
           g: int) -> flow_objectives.Round:
  """What an update of N prompts sees."""
  c, steps = plan.model, plan.settings.steps

  def array(dtype, *shape):
    one = jax.ShapeDtypeStruct(shape, dtype)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.rows(one))
  f32 = lambda *shape: array(jnp.float32, *shape)
  traced = plan.objective.trace
  return flow_objectives.Round(
      condition=array(jnp.int32, n, c.tokens),
      source=f32(n, *c.shape) if c.source else None, uid=array(jnp.int32, n),
      x0=f32(n, g, *c.shape), advantage=f32(n, g), keep=f32(n, g),
      schedule=jax.ShapeDtypeStruct(
          (steps + 1,), jnp.float32, sharding=layout.whole),
      latents=f32(n, g, steps + 1, *c.shape) if traced else None,
      logp=f32(n, g, steps) if traced else None)
