"""The programs that a config will run, from shapes alone.

No weights, no data, no device of the kind that is planned for: the functions
are those that the stages run, their arguments are shapes with shardings. Chunks
have their full length: smaller buckets would be compiled too, and need less.
"""

import pathlib
from typing import Any

from etils import epath

from mmr1 import forward
from mmr1 import lineage
from mmr1 import sharding
from mmr1 import training
from mmr1.models import checkpoints
from mmr1.planning import costs
from mmr1.planning import pairs
from mmr1.planning import records
from mmr1.planning import rl
from mmr1.planning import shapes as shapes_lib
from mmr1.planning import states
from mmr1.stages import sft

_SHAPES = pathlib.Path(__file__).parent.parent / 'assets' / 'shapes'


def open_model(config: Any, layout: sharding.Layout) -> tuple[
    forward.Policy, Any]:
  """The policy and its parameters' shapes, where they will be.

  From config.json in `model.path`; where there is none, from the published
  sizes of the config's scale.

  Raises:
    ValueError: neither is there; heads that do not divide over the mesh.
  """
  model = config.model
  path = epath.Path(model.path)
  if not (path / 'config.json').exists():
    path = _SHAPES / config.scale
    if not path.exists():
      raise ValueError(
          f'plan: there is no config.json in model.path={model.path!r}, and '
          f'the sizes of {config.scale!r} are not known. Set '
          '--config.model.path to a folder with the config.json of the model.')
  module, shapes = checkpoints.describe(
      path, param_dtype=model.param_dtype, compute_dtype=model.compute_dtype,
      layers=model.layers, remat=model.remat, precision=model.precision,
      attention=model.attention, partition=layout.partition,
      scalars=tuple(model.scalars))
  sharding.check(layout, module.config)
  policy = forward.Policy(
      module, banned=_placeholders(module.config), eos_id=0, pad_id=0,
      head_chunk=model.head_chunk, layout=layout)
  return policy, shapes_lib.placed(shapes, layout.parameters(shapes))


def _placeholders(config: Any) -> tuple[int, ...]:
  """As many ids as a family bans; which ones does not matter for a plan."""
  return tuple(range(1, 5)) if hasattr(config, 'vision') else ()


def stage(config: Any, name: str, policy: forward.Policy,
          params: Any) -> records.Stage | None:
  """The programs of a stage; None of one that trains nothing.

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
  return None


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
