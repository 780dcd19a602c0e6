"""Which kernels took the time of a GPU, from a trace of `jax.profiler`."""

from collections.abc import Callable
import pathlib
import re
import tempfile
from typing import Any

import jax

from mmr1 import profiling

_TOP = 25
Kernels = dict[str, tuple[float, int]]  # {name: (milliseconds, launches)}


def of(run: Callable[[], Any]) -> Kernels:
  """Traces a call; {} where no GPU was in it."""
  with tempfile.TemporaryDirectory() as folder:
    stop = profiling.start(folder)
    try:
      jax.block_until_ready(run())
    finally:
      stop()
    found: Kernels = {}
    for path in pathlib.Path(folder).rglob('*.xplane.pb'):
      planes = jax.profiler.ProfileData.from_file(str(path)).planes
      _add(found, planes)
  return found


def _add(found: Kernels, planes: Any) -> None:
  """Adds what ran on the streams of the GPUs."""
  for plane in planes:
    if not plane.name.startswith('/device:GPU'):
      continue
    for line in plane.lines:
      if not line.name.startswith('Stream'):  # others repeat these
        continue
      for event in line.events:
        # fusion_12 and fusion_47_3 are the same of other layers.
        name = re.sub(r'([._]\d+)+$', '', event.name)
        milliseconds, launches = found.get(name, (0.0, 0))
        found[name] = milliseconds + event.duration_ns / 1e6, launches + 1


def less(longer: Kernels, shorter: Kernels, by: int) -> Kernels:
  """What `longer` has more than `shorter`, divided by `by`."""
  result = {}
  for name, (milliseconds, launches) in longer.items():
    without = shorter.get(name, (0.0, 0))
    if launches > without[1]:
      result[name] = ((milliseconds - without[0]) / by,
                      (launches - without[1]) / by)
  return result


def summary(kernels: Kernels) -> dict[str, Any]:
  """Busy milliseconds, launches, and the kernels that take most of them.

  Kernels of several streams may overlap; busy is their sum.
  """
  ordered = sorted(kernels.items(), key=lambda item: -item[1][0])
  return dict(
      busy_ms=sum(ms for ms, _ in kernels.values()),
      launches=sum(count for _, count in kernels.values()),
      top=[(name[:80], round(ms, 4), round(count, 2))
           for name, (ms, count) in ordered[:_TOP]])
