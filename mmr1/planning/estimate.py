"""Plans: what the compiler, or a formula, says of a config on a topology."""

from collections.abc import Callable, Sequence
import concurrent.futures
import re
import time
from typing import Any

from jax.experimental import topologies

from mmr1 import batch
from mmr1 import resolve
from mmr1 import sharding
from mmr1.planning import chips
from mmr1.planning import costs
from mmr1.planning import hlo
from mmr1.planning import programs as programs_lib
from mmr1.planning import shapes

Note = Callable[[str], None]
_TENSOR = (1, 2, 4, 8)
SPARE = 0.1  # of the memory, that a plan leaves
_USED = re.compile(r'Used ([\d.]+)([GMK]) of ([\d.]+)([GMK]) hbm')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}
# What to turn if a program does not fit.
_KNOBS = {
    'prefill': 'a smaller prompts_per_step or data.patches',
    'decode': 'sampler.rows (fewer completions at a time), mesh.tensor (weights '
              'in parts)',
    'old': 'a larger chunks_per_minibatch',
    'reference': 'a larger chunks_per_minibatch',
    'update': 'a larger minibatches_per_step, chunks_per_minibatch or '
              "(sft) chunks_per_step, model.remat='layer', a smaller "
              'model.head_chunk',
}


def _silent(text: str) -> None:
  del text


class _Device:
  """A device that stands for one that is not there."""

  def __init__(self, number: int, platform: str):
    self.id, self.platform = number, platform
    self.process_index, self.device_kind = 0, platform


def devices(topology: chips.Topology, slices: int = 1) -> list[Any]:
  """What a mesh is made of.

  Raises:
    ValueError: there is no compiler for TPUs.
  """
  if topology.chip.kind != 'tpu':
    return [_Device(i, topology.chip.kind) for i in range(topology.count)]
  name = topology.chip.name
  kw = {'num_slices': slices} if slices > 1 else {}
  if topology.count == 1:
    kw['chips_per_host_bounds'] = (1, 1, 1)
  try:
    return topologies.get_topology_desc(
        platform='tpu', topology_name=f'{name}:{topology.shape}', **kw).devices
  except Exception as error:  # whatever a plug-in that is not there raises
    raise ValueError(
        f'plan: no TPU compiler for {topology.name}: {error}. It comes with '
        '`pip install libtpu` (the version that your jax asks for: '
        '`pip install "jax[tpu]"`); only one process can use it at a time.'
    ) from error


def plan(config: resolve.Section, topology: chips.Topology, *,
         tensor: int | None = None, stages: Sequence[str] | None = None,
         note: Note = _silent) -> dict[str, Any]:
  """A plan of a config on a topology, as JSON has it.

  Args:
    config: from `resolve.finalise`.
    topology: what it is to run on.
    tensor: instead of the config's mesh.tensor.
    stages: which; None: all that train.
    note: called with what is being done.

  Raises:
    ValueError: the config cannot run there at all.
  """
  layout, made = _stages(config, topology, tensor, stages)
  found = {stage.name: _stage(stage, topology, note) for stage in made}
  return {
      'config': config.name, 'scale': config.scale, 'topology': topology.name,
      'chips': topology.count, 'mesh': dict(layout.mesh.shape),
      'memory': topology.chip.memory, 'stages': found,
      'fits': all(p['fits'] for s in found.values()
                  for p in s['programs'].values()),
      'spare': min(p['spare'] for s in found.values()
                   for p in s['programs'].values())}


def _stages(config, topology, tensor, stages):
  """The layout, and the stages that are planned."""
  mesh = config.mesh.as_dict()
  if tensor is not None:
    mesh['tensor'] = tensor
  layout = sharding.make(mesh, devices(topology, mesh['slice'] or 1))
  batch.check(config, layout)
  policy, params = programs_lib.open_model(config, layout)
  made = [programs_lib.stage(config, name, policy, params)
          for name in stages or config.stages]
  return layout, [stage for stage in made if stage is not None]


def _by_formula(config, topology, tensor, stages) -> float:
  """What is left of a chip's memory with arguments and nothing else."""
  _, made = _stages(config, topology, tensor, stages)
  needs = 0
  for stage in made:
    held = {name: shapes.bytes_on_one(tree) for name, tree in stage.held.items()}
    for program in stage.programs:
      own = sum(map(shapes.bytes_on_one, program.arguments.values()))
      needs = max(needs, own + sum(
          held.get(name, 0) for name in program.resident
          if name not in program.arguments))
  return 1 - needs / topology.chip.memory


def _stage(stage: programs_lib.Stage, topology: chips.Topology,
           note: Note) -> dict[str, Any]:
  held = {name: shapes.bytes_on_one(tree)
          for name, tree in stage.held.items()}
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    made = list(pool.map(
        lambda program: _program(program, held, topology, note, stage.name),
        stage.programs))
  programs = {program.name: one for program, one in zip(stage.programs, made)}
  seconds = {name: one['seconds']['step'] for name, one in programs.items()}
  step = sum(seconds.values())
  rate = topology.count * topology.chip.flops
  return {
      'kind': stage.kind, 'held': held, 'programs': programs,
      'step_seconds': step, 'split': {
          name: one / step for name, one in seconds.items()},
      'tokens': stage.tokens, 'mfu': stage.useful / (step * rate)}


def _program(program: programs_lib.Program, held: dict[str, int],
             topology: chips.Topology, note: Note, stage: str,
             ) -> dict[str, Any]:
  """One row of the plan."""
  began = time.perf_counter()
  traced = program.trace()
  # Of one turn of a loop that runs so often, what is around it included.
  counted = costs.operations(traced.jaxpr, program.trips) / (
      program.trips * topology.count)
  arguments = {name: shapes.bytes_on_one(tree)
               for name, tree in program.arguments.items()}
  beside = sum(held.get(name, 0) for name in program.resident
               if name not in arguments)
  formula = sum(program.forward.values()) / topology.count
  row: dict[str, Any] = {
      'arguments_by_formula': arguments, 'beside': beside,
      'flops': counted, 'flops_by_formula': formula,
      'runs': program.runs, 'trips': program.trips}
  if topology.chip.kind == 'tpu':
    row |= _compiled(traced, program.trips)
    note(f'{stage} {program.name}: {time.perf_counter() - began:.0f} s')
  else:
    row |= _estimated(program, arguments)
  total = row['needs'] + beside
  spare = 1 - total / topology.chip.memory
  row |= {'total': total, 'spare': spare, 'fits': spare >= 0,
          'plan_seconds': time.perf_counter() - began}
  if spare < SPARE:
    row['turn'] = _KNOBS[program.name]
  return row | {'seconds': _seconds(row, program, topology)}


def _compiled(traced: Any, trips: int) -> dict[str, Any]:
  """What the compiler says of a program."""
  try:
    program = traced.lower().compile()
  except Exception as error:
    used = _USED.search(str(error))
    if not used:
      raise
    return {'needs': float(used[1]) * _UNITS[used[2]], 'compiled': False,
            'said': used[0], 'moved': None, 'collectives': {}, 'sent': 0.0}
  memory = program.memory_analysis()
  moved = hlo.Module(program.as_text()).moved(trips)
  return {
      'compiled': True,
      'arguments': memory.argument_size_in_bytes,
      'outputs': memory.output_size_in_bytes,
      'aliased': memory.alias_size_in_bytes,
      'temporaries': memory.temp_size_in_bytes,
      'needs': (memory.argument_size_in_bytes + memory.output_size_in_bytes
                - memory.alias_size_in_bytes + memory.temp_size_in_bytes),
      'moved': moved.bytes / trips, 'sent': moved.sent / trips,
      'collectives': {
          kind: {'count': count / trips, 'bytes': sent / trips}
          for kind, (count, sent) in moved.collectives.items()}}


def _estimated(program: programs_lib.Program, arguments: dict[str, int],
               ) -> dict[str, Any]:
  """By formula: every argument is read once, and nothing else is held."""
  needs = sum(arguments.values())
  return {'compiled': False, 'needs': needs, 'moved': float(needs),
          'collectives': {}, 'sent': 0.0}


def _seconds(row: dict[str, Any], program: programs_lib.Program,
             topology: chips.Topology) -> dict[str, float]:
  """A bound from below: the slowest of computing, memory and links, each at
  its best and all at once."""
  chip = topology.chip
  parts = {'compute': row['flops'] / chip.flops,
           'memory': (row['moved'] or 0.0) / chip.bandwidth,
           'links': row['sent'] / chip.link}
  times = program.runs * program.trips
  return {name: times * one for name, one in parts.items()} | {
      'step': times * max(parts.values())}


def smallest(config: resolve.Section, names: tuple[str, ...], *,
             stages: Sequence[str] | None = None,
             note: Note = _silent) -> list[dict[str, Any]]:
  """Plans on ever larger slices, the last of which fits with some to spare.

  On each with the smallest mesh.tensor with which the batch divides and the
  arguments fit by formula, then with larger ones. What does not fit by formula
  is not compiled.

  Raises:
    ValueError: not on one of them.
  """
  tried, refused = [], []
  for topology in chips.slices(names):
    for tensor in _TENSOR:
      where = f'{topology.name}, mesh.tensor={tensor}'
      try:
        spare = _by_formula(config, topology, tensor, stages)
      except ValueError as error:
        refused.append(f'{where}: {error}')
        continue
      if spare < SPARE:
        refused.append(f'{where}: arguments alone leave {spare:+.0%}')
        note(refused[-1])
        continue
      tried.append(plan(config, topology, tensor=tensor, stages=stages,
                        note=note))
      note(f'{where}: {tried[-1]["spare"]:+.0%} of its memory to spare')
      if tried[-1]['spare'] >= SPARE:
        return tried
  if not tried:
    raise ValueError('plan: none of the listed slices will do.\n  '
                     + '\n  '.join(refused[-8:]))
  return tried
