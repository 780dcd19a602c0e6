"""The programs that a config will run, from shapes alone.

No weights, no data, no device of the kind that is planned for: the functions
are those that the stages run, their arguments are shapes with shardings. Chunks
have their full length: smaller buckets would be compiled too, and need less.
"""

from typing import Any

from mmr1 import context
from mmr1 import forward
from mmr1 import lineage
from mmr1 import sharding
from mmr1 import training
from mmr1.planning import costs
from mmr1.planning import flow
from mmr1.planning import models
from mmr1.planning import pairs
from mmr1.planning import records
from mmr1.planning import reward_model
from mmr1.planning import rl
from mmr1.planning import shapes as shapes_lib
from mmr1.planning import states
from mmr1.stages import sft


def open_model(config: Any, layout: sharding.Layout) -> tuple[
    forward.Policy, Any]:
  """The policy and its parameters' shapes, where they will be.

  From config.json in `model.path`; where there is none, from the published
  sizes of the config's scale.

  Raises:
    ValueError: neither is there; heads that do not divide over the mesh.
  """
  return models.open_at(config, layout, config.model.path, config.scale,
                        'model.path', context.heads_of(config.model))


def stage(config: Any, name: str, policy: forward.Policy,
          params: Any) -> records.Stage | None:
  """The programs of a stage; None of one that trains nothing, or what a plan
  does not know, see `unplanned`.

  Raises:
    ValueError: the section cannot work.
  """
  kind = config[name].kind
  if kind in lineage.TRAINS and lineage.rank_of(config[name]):
    params = _adapted(config, name, policy.layout, params)
  if kind == 'rl':
    return rl.stage(config, name, policy, params)
  if kind == 'sft':
    return _sft(config, name, policy, params)
  if kind == 'preference':
    return pairs.stage(config, name, policy, params)
  if kind == 'reward_model':
    return reward_model.stage(config, name, policy, params)
  if kind == 'flow':
    return flow.stage(config, name, policy.layout)
  return None


# Why a stage of a kind has no plan.
_WHY = {
    'detect': 'a plan knows no programs of a detector',
    'merge': 'what merges reads and writes tensor by tensor; before and after '
             'it one model is on the devices',
    'collect': 'nothing trains; it needs what sampling does',
    'evaluate': 'nothing trains; it needs what sampling does',
    'refine': 'nothing trains; it needs what sampling does'}


def unplanned(config: Any, names: Any) -> dict[str, str]:
  """{stage: what of it, or that all of it, is in no plan, and why}."""
  found = {}
  for name in names:
    kind = config[name].kind
    if kind in _WHY:
      found[name] = f'{kind}: not planned: {_WHY[kind]}.'
    elif kind == 'flow' and config[name].judge is not None:
      found[name] = (f'flow: judges.{config[name].judge} is not planned: its '
                     'parameters, and a pass over every picture and its '
                     'source.')
  return found


def _adapted(config: Any, name: str, layout: sharding.Layout,
             params: Any) -> Any:
  """The stage's parameters, its adapters included."""
  shapes = lineage.Lineage(config, None, params).shapes(name)
  return shapes_lib.placed(shapes, layout.parameters(shapes))


def _sft(config: Any, name: str, policy: forward.Policy,
         params: Any) -> records.Stage:
  section, make = config[name], shapes_lib.Shapes(policy, config.data)
  n, t, chunks = (section.rows_per_step, section.max_new_tokens,
                  section.chunks_per_step)
  state, optimizer = states.of(policy, section, params, section.steps)
  train = training.make_update(
      policy, optimizer, sft.objective_of(section), chunks=chunks)
  block = make.block(n, 1, t, env=section.env, config=config)
  knobs, c = states.knobs(sft.KNOBS), policy.module.config
  parts = costs.forward(c, make.work(n, 1, t, n * t))
  parts['tower'] += make.inside(c, n, make.room(config, section.env))
  return records.Stage(
      name, 'sft', (records.Program(
          'update', lambda: train.trace(state, (block,), knobs, None),
          {'state': state, 'batch': block}, 1, 1,
          costs.gradient(parts, config.model.remat), ()),),
      {'state': state}, useful=3 * sum(parts.values()), tokens=n * t)
