"""What a measurement ran on."""

import os
import pathlib
import platform


def describe() -> dict:
  """Processor, cores, memory in bytes, load of the last minute, system."""
  return dict(
      processor=_field('/proc/cpuinfo', 'model name') or platform.processor(),
      cores=len(os.sched_getaffinity(0)),
      memory_bytes=os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
      load_1min=os.getloadavg()[0], system=platform.platform(),
      python=platform.python_version())


def _field(file: str, name: str) -> str | None:
  """The first 'name : value' of a file of such lines."""
  path = pathlib.Path(file)
  if not path.exists():
    return None
  for line in path.read_text().splitlines():
    key, _, value = line.partition(':')
    if key.strip() == name:
      return value.strip()
  return None
