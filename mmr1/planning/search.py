"""The smallest slice that a config fits on."""

from collections.abc import Sequence
from typing import Any

from mmr1 import resolve
from mmr1.planning import chips
from mmr1.planning import estimate
from mmr1.planning import shapes

_TENSOR = (1, 2, 4, 8)


class NoneWillDo(ValueError):
  """No listed slice holds what is there before anything is computed.

  Attributes:
    refused: why, slice by slice.
  """

  def __init__(self, refused: list[str]):
    super().__init__('plan: none of the listed slices will do.\n  '
                     + '\n  '.join(refused[-8:]))
    self.refused = refused


def smallest(config: resolve.Section, names: tuple[str, ...], *,
             stages: Sequence[str] | None = None,
             note: estimate.Note = estimate.silent) -> list[dict[str, Any]]:
  """Plans on ever larger slices, the last of which fits with some to spare.

  On each with the smallest mesh.tensor with which the batch divides and the
  arguments fit by formula, then with larger ones. What does not fit by formula
  is not compiled, and a plan ends with the first program that leaves too
  little. If none leaves enough, the last is a whole plan of the one that
  leaves most, whether it fits or not.

  Raises:
    NoneWillDo: the arguments fit on none of them.
  """
  tried, refused, best = [], [], None
  for topology in chips.slices(names):
    for tensor in _TENSOR:
      where = f'{topology.name}, mesh.tensor={tensor}'
      try:
        spare = _by_formula(config, topology, tensor, stages)
      except ValueError as error:
        refused.append(f'{where}: {error}')
        continue
      if spare < estimate.SPARE:
        missing = (estimate.SPARE - spare) * topology.chip.memory
        refused.append(f'{where}: arguments alone leave {spare:+.0%}, '
                       f'{missing / 1e9:.1f} GB too little')
        note(refused[-1])
        continue
      kw = dict(tensor=tensor, stages=stages, note=note)
      tried.append(estimate.plan(
          config, topology, until=estimate.SPARE, **kw))
      if best is None or tried[-1]['spare'] > best[0]:
        best = tried[-1]['spare'], topology, kw
      note(f'{where}: {tried[-1]["spare"]:+.0%} of its memory to spare')
      if tried[-1]['spare'] >= estimate.SPARE:
        return tried
  if not tried:
    raise NoneWillDo(refused)
  _, topology, kw = best
  return [*tried, estimate.plan(config, topology, **kw)]


def _by_formula(config, topology, tensor, stages) -> float:
  """What is left of a chip's memory with arguments and nothing else."""
  _, made = estimate.stages_of(config, topology, tensor, stages)
  needs = 0
  for stage in made:
    held = estimate.held(stage)
    for program in stage.programs:
      own = sum(map(shapes.bytes_on_one, program.arguments.values()))
      needs = max(needs, own + sum(
          held.get(name, 0) for name in program.resident
          if name not in program.arguments))
  return 1 - needs / topology.chip.memory
