"""Plans: what the compiler, or a formula, says of a config on a topology."""

from collections.abc import Callable, Sequence
import concurrent.futures
import math
import re
import threading
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
from mmr1.planning import records
from mmr1.planning import shapes
from mmr1.planning import traffic
from mmr1.planning import worker

Note = Callable[[str], None]
SPARE = 0.1  # of the memory, that a plan leaves
# What the compiler says where there is no room: of everything, or of what is
# besides arguments.
_USED = re.compile(r'Used ([\d.]+)([GMK]) of [\d.]+[GMK] hbm')
_TEMPORARIES = re.compile(r'HLO temporaries \(([\d.]+)([GMK])\) exceeds')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}
# What to turn if a program does not fit.
_KNOBS = {
    'sample': 'a smaller prompts_per_step or samples_per_prompt',
    'prefill': 'a smaller prompts_per_step or data.patches',
    'decode': 'sampler.rows (fewer completions at a time), mesh.tensor (weights '
              'in parts)',
    'observe': 'sampler.rows, or observation_tokens and observation_patches of '
               'the environment',
    'old': 'a larger chunks_per_minibatch',
    'reference': 'a larger chunks_per_minibatch',
    'look': 'a larger chunks_per_minibatch',
    'scores': 'a larger chunks_per_minibatch',
    'judge': "a larger chunks of the judge, or its memory='host'",
    'update': 'a larger minibatches_per_step, chunks_per_minibatch or '
              "(other kinds) chunks_per_step, model.remat='layer', a smaller "
              'model.head_chunk',
}


def silent(text: str) -> None:
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
        '`pip install "jax[tpu]"`).') from error


def plan(config: resolve.Section, topology: chips.Topology, *,
         tensor: int | None = None, stages: Sequence[str] | None = None,
         until: float = -math.inf, note: Note = silent) -> dict[str, Any]:
  """A plan of a config on a topology, as JSON has it.

  Args:
    config: from `resolve.finalise`.
    topology: what it is to run on.
    tensor: instead of the config's mesh.tensor.
    stages: which; None: all that train.
    until: programs that leave less of the memory than this end the plan;
      it is then without those that come after.
    note: called with what is being done.

  Raises:
    ValueError: the config cannot run there at all.
  """
  layout, made = stages_of(config, topology, tensor, stages)
  rows = _rows(made, topology, until, note, dict(
      config=config, topology=topology, tensor=tensor))
  found = {stage.name: _stage(stage, rows, topology) for stage in made}
  return {
      'config': config.name, 'scale': config.scale, 'topology': topology.name,
      'chips': topology.count, 'mesh': dict(layout.mesh.shape),
      'memory': topology.chip.memory, 'stages': found,
      'unplanned': programs_lib.unplanned(config, stages or config.stages),
      'fits': all(p['fits'] for s in found.values()
                  for p in s['programs'].values()),
      'spare': min(p['spare'] for s in found.values()
                   for p in s['programs'].values())}


def stages_of(config, topology, tensor, stages):
  """The layout, and the stages that are planned."""
  mesh = config.mesh.as_dict()
  if tensor is not None:
    mesh['tensor'] = tensor
  layout = sharding.make(mesh, devices(topology, mesh['slice'] or 1))
  batch.check(config, layout)
  policy, params = programs_lib.open_model(config, layout)
  made = [programs_lib.stage(config, name, policy, params)
          for name in stages or config.stages]
  made = [stage for stage in made if stage is not None]
  if not made:
    raise ValueError(
        f'plan: none of the stages {tuple(stages or config.stages)} trains '
        'what a plan knows, so there is nothing to plan. ' + ' '.join(
            f'{name}: {why}' for name, why in programs_lib.unplanned(
                config, stages or config.stages).items()))
  return layout, made


def traced(config: resolve.Section, topology: chips.Topology,
           tensor: int | None, stage: str, program: str) -> tuple[Any, float]:
  """(a program as jax traced it, its operations on one chip).

  Operations of one turn of a loop without a known length, what is around the
  loop included.
  """
  _, (found,) = stages_of(config, topology, tensor, (stage,))
  one = next(one for one in found.programs if one.name == program)
  made = one.trace()
  return made, _operations(made, one, topology)


def _operations(made: Any, program: records.Program,
                topology: chips.Topology) -> float:
  return costs.operations(made.jaxpr, program.trips) / (
      program.trips * topology.count)


# What takes longest to compile comes first, so that no thread is left with it,
# and what needs most, where a plan ends with what does not fit.
_LONGEST = ('update', 'decode', 'sample', 'look', 'reference', 'old', 'scores',
            'judge', 'observe', 'prefill')


def _kind(program: records.Program) -> str:
  """Its name; looks are of a kind, what judges do is of another's."""
  return program.name.partition('_')[0]


def _rows(stages: Sequence[records.Stage], topology: chips.Topology,
          until: float, note: Note, job: dict[str, Any],
          ) -> dict[tuple[str, str], dict[str, Any]]:
  """{(stage, program): its row of the plan}."""
  todo = sorted(
      ((stage, program) for stage in stages for program in stage.programs),
      key=lambda item: _LONGEST.index(_kind(item[1])))
  beside = {stage.name: held(stage) for stage in stages}
  ended = threading.Event()

  def one(item):
    stage, program = item
    if ended.is_set():
      return None
    began = time.perf_counter()
    row = _program(program, beside[stage.name], topology, dict(
        job, stage=stage.name, program=program.name))
    if row['spare'] < until:
      ended.set()
    row['plan_seconds'] = time.perf_counter() - began
    if row['compiled']:
      note(f'{stage.name} {program.name}: {row["plan_seconds"]:.0f} s')
    return (stage.name, program.name), row
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return dict(filter(None, pool.map(one, todo)))


def held(stage: records.Stage) -> dict[str, int]:
  return {name: shapes.bytes_on_one(tree)
          for name, tree in stage.held.items()}


def _stage(stage: records.Stage, rows: dict[tuple[str, str], Any],
           topology: chips.Topology) -> dict[str, Any]:
  programs = {program.name: rows[stage.name, program.name]
              for program in stage.programs
              if (stage.name, program.name) in rows}
  seconds = {name: one['seconds']['step'] for name, one in programs.items()}
  step = sum(seconds.values())
  rate = topology.count * topology.chip.flops
  return {
      'kind': stage.kind, 'held': held(stage), 'programs': programs,
      'complete': len(programs) == len(stage.programs),
      'step_seconds': step, 'split': {
          name: one / step for name, one in seconds.items()},
      'tokens': stage.tokens,
      'mfu': stage.useful / (step * rate) if step else 0.0}


def needs(program: records.Program,
          held: dict[str, int]) -> tuple[dict[str, int], int]:
  """Bytes on one device: ({argument: bytes}, what is in memory beside them).
  Temporaries, which a compiler knows, come on top."""
  arguments = {name: shapes.bytes_on_one(tree)
               for name, tree in program.arguments.items()}
  return arguments, sum(held.get(name, 0) for name in program.resident
                        if name not in arguments)


def _program(program: records.Program, held: dict[str, int],
             topology: chips.Topology, job: dict[str, Any]) -> dict[str, Any]:
  """One row of the plan."""
  arguments, beside = needs(program, held)
  row: dict[str, Any] = {
      'arguments_by_formula': arguments, 'beside': beside,
      'flops_by_formula': sum(program.forward.values()) / topology.count,
      'runs': program.runs, 'trips': program.trips}
  row |= (_compiled(job, program, arguments) if topology.chip.kind == 'tpu'
          else _estimated(program, topology, arguments))
  total = row['needs'] + beside
  spare = 1 - total / topology.chip.memory
  row |= {'total': total, 'spare': spare, 'fits': spare >= 0}
  if spare < SPARE:
    row['turn'] = _KNOBS[_kind(program)]
  return row | {'seconds': _seconds(row, program, topology)}


def _compiled(job: dict[str, Any], program: records.Program,
              arguments: dict[str, int]) -> dict[str, Any]:
  """What the compiler says of a program."""
  try:
    made = worker.decide(job)
  except worker.Failed as error:
    needs = no_room(str(error), sum(arguments.values()))
    if needs is None:
      raise RuntimeError(
          f'plan: {job["stage"]} {job["program"]}: {error}') from error
    return {'needs': needs, 'compiled': False, 'said': str(error)[:200],
            'flops': sum(program.forward.values()) / job['topology'].count,
            'moved': float(sum(arguments.values())), 'collectives': {},
            'sent': 0.0}
  memory, trips = made.memory, program.trips
  moved = traffic.moved(hlo.Module(made.text), trips)
  return memory | {
      'compiled': True, 'flops': made.flops,
      'needs': (memory['arguments'] + memory['outputs'] - memory['aliased']
                + memory['temporaries']),
      'moved': moved.bytes / trips, 'sent': moved.sent / trips,
      'collectives': {
          kind: {'count': count / trips, 'bytes': sent / trips}
          for kind, (count, sent) in moved.collectives.items()}}


def no_room(said: str, arguments: float) -> float | None:
  """Bytes that a program needs, if the compiler says that it has no room."""
  found = _USED.search(said)
  if found:
    return float(found[1]) * _UNITS[found[2]]
  found = _TEMPORARIES.search(said)
  if found:
    return float(found[1]) * _UNITS[found[2]] + arguments
  return None


def _estimated(program: records.Program, topology: chips.Topology,
               arguments: dict[str, int]) -> dict[str, Any]:
  """By formula: every argument is read once, and nothing else is held."""
  needs = sum(arguments.values())
  return {'compiled': False, 'needs': needs, 'moved': float(needs),
          'flops': _operations(program.trace(), program, topology),
          'collectives': {}, 'sent': 0.0}


def _seconds(row: dict[str, Any], program: records.Program,
             topology: chips.Topology) -> dict[str, float]:
  """A bound from below: the slowest of computing, memory and links, each at
  its best and all at once."""
  chip = topology.chip
  parts = {'compute': row['flops'] / chip.flops,
           'memory': row['moved'] / chip.bandwidth,
           'links': row['sent'] / chip.link}
  times = program.runs * program.trips
  return {name: times * one for name, one in parts.items()} | {
      'step': times * max(parts.values())}
