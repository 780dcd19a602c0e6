"""The programs of a preference stage, from shapes alone."""

from typing import Any

from mmr1 import forward
from mmr1 import learner
from mmr1 import training
from mmr1.planning import costs
from mmr1.planning import records
from mmr1.planning import shapes as shapes_lib
from mmr1.planning import states
from mmr1.stages import preference


def stage(config: Any, name: str, policy: forward.Policy,
          params: Any) -> records.Stage:
  """The reference's pass, where the loss reads one, and the update.

  Raises:
    ValueError: the section cannot work.
  """
  section, make = config[name], shapes_lib.Shapes(policy, config.data)
  n, t, chunks = (section.pairs_per_step, section.max_new_tokens,
                  section.chunks_per_step)
  objective = preference.objective_of(section)
  state, optimizer = states.of(policy, section, params, section.steps)
  train = training.make_update(
      policy, optimizer, objective.terms, chunks=chunks)
  knobs, bare = states.knobs(objective.knobs), make.block(n, 2, t)
  parts = costs.forward(policy.module.config, make.work(n, 2, t, n * 2 * t))
  held, found = {'state': state}, []
  if objective.reference:
    frozen = states.only_read(policy, params)
    if section.reference_memory == 'device':
      held['reference'] = frozen
    found.append(records.Program(
        'reference', lambda: learner.log_probs.trace(
            policy, frozen, bare, temperature=knobs['temperature'],
            chunks=chunks, rows=True),
        {'reference': frozen, 'batch': bare}, 1, 1, parts, ('state',)))
  block = bare.replace(ref=make.scores(n, 2, t)) if found else bare
  found.append(records.Program(
      'update', lambda: train.trace(state, (block,), knobs, None),
      {'state': state, 'batch': block}, 1, 1,
      costs.gradient(parts, config.model.remat), ('reference',)))
  passes = 3 + (len(found) > 1)
  return records.Stage(
      name, 'preference', tuple(found), held,
      useful=passes * sum(parts.values()), tokens=2 * n * t)
