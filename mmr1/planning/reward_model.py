"""The program of a reward_model stage, from shapes alone."""

from typing import Any

import jax.numpy as jnp

from mmr1 import forward
from mmr1 import scoring
from mmr1 import training
from mmr1.planning import costs
from mmr1.planning import records
from mmr1.planning import shapes as shapes_lib
from mmr1.planning import states
from mmr1.stages import reward_model


def stage(config: Any, name: str, policy: forward.Policy,
          params: Any) -> records.Stage:
  """The update.

  Raises:
    ValueError: the section cannot work.
  """
  section, make = config[name], shapes_lib.Shapes(policy, config.data)
  n, t = section.pairs_per_step, section.max_new_tokens
  terms, numbers = reward_model.objective_of(section, name, config)
  state, optimizer = states.of(policy, section, params, section.steps)
  train = training.make_update(
      policy, optimizer, terms, chunks=section.chunks_per_step,
      score=scoring.scores)
  block, knobs = make.block(n, 2, t, extra={
      key: make.array(jnp.float32, n, 2, 1) for key in ('margin', 'label')
  }), states.knobs(numbers)
  parts = costs.forward(policy.module.config, make.work(n, 2, t, 0))
  return records.Stage(
      name, 'reward_model', (records.Program(
          'update', lambda: train.trace(state, (block,), knobs, None),
          {'state': state, 'batch': block}, 1, 1,
          costs.gradient(parts, config.model.remat), ()),),
      {'state': state}, useful=3 * sum(parts.values()), tokens=2 * n * t)
