"""What the commands that compare engines on workloads have in common."""

from collections.abc import Callable, Iterable

from absl import flags

from experiments.bench import rounds
from experiments.bench import workloads

FLAGS = flags.FLAGS


def run(name: str, title: str, names: Iterable[str], do: str,
        lanes_of: Callable[[str, list[str]], dict[str, rounds.Lane]],
        part: str | None = None, **more) -> None:
  """Measures workload after workload, prints a table, leaves a record.

  The record is written after every workload, so that a run which is stopped
  has lost only the one it was at.

  Args:
    name: of the record.
    title: of the table.
    names: workloads, unless --workloads says which.
    do: 'step' or 'generate'.
    lanes_of: (workload, engines that are there) -> `rounds.measure`'s lanes.
    part: of the step that is compared; None: all of it.
    **more: for the record.
  """
  engines, absent = rounds.present(FLAGS.engines or rounds.ENGINES)
  results, table = {}, []
  for workload in FLAGS.workloads or names:
    w = workloads.named(workload)
    found = rounds.measure(lanes_of(workload, engines), do)
    results[workload] = dict(
        about=w.about, engines=found, ratios=rounds.ratios(found, part))
    rounds.record(name, results, engines, absent, **more)
    table += rounds.rows(workload, found, rounds.able(absent, w), part)
    rounds.show(title, table)


def lanes(workload: str, engines: list[str]) -> dict[str, rounds.Lane]:
  """A lane for every engine that can run the workload."""
  w = workloads.named(workload)
  return {engine: rounds.Lane(engine, w)
          for engine in rounds.able(engines, w)}
