"""What a plan is made of: the programs of a stage, from shapes alone."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple


class Program(NamedTuple):
  """One program of a step.

  Fields:
    name: 'prefill', 'decode', 'reference', 'old', 'update'; of pictures
      'sample'.
    trace: () -> jax.stages.Traced.
    arguments: trees of shapes with shardings, by name.
    runs: how often a step runs it.
    trips: how often its loop without a known length runs then.
    forward: operations by part of what it has to do, see `costs`.
    resident: names of what else is in memory meanwhile.
  """
  name: str
  trace: Callable[[], Any]
  arguments: Mapping[str, Any]
  runs: float
  trips: int
  forward: Mapping[str, float]
  resident: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage's programs.

  Fields:
    name, kind: of the stage.
    programs: in the order of a step.
    held: trees that live through a step, by name.
    useful: operations of a step that no implementation can do without: one
      pass over all tokens to sample them, three to train on them.
    tokens: completion tokens of a step at the cap; 0 of pictures.
  """
  name: str
  kind: str
  programs: tuple[Program, ...]
  held: Mapping[str, Any]
  useful: float
  tokens: int
