"""Requests and replies as JSON lines. Standard library only.

An engine is a process that reads one request per line from its standard input,
{'do': name, ...}, and answers each with one line. Whatever its libraries print
goes to standard error, so that it cannot be taken for a reply.
"""

import json
import os
import resource
import sys
import time


class Lines:
  """The engine's end."""

  def __init__(self):
    self._out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

  def read(self) -> dict:
    """The next request; 'close' where the other end is gone."""
    line = sys.stdin.readline()
    return json.loads(line) if line.strip() else {'do': 'close'}

  def write(self, **reply) -> None:
    self._out.write(json.dumps(reply) + '\n')
    self._out.flush()

  def close(self) -> None:
    """The last reply: the largest resident set of the process, in bytes."""
    self.write(peak_bytes=1024 * resource.getrusage(
        resource.RUSAGE_SELF).ru_maxrss)


class Watch:
  """Seconds since its creation: by the wall, and of this process's threads."""

  def __init__(self):
    self._wall, self._cpu = time.perf_counter(), time.process_time()

  def read(self) -> dict:
    return dict(seconds=time.perf_counter() - self._wall,
                cpu_seconds=time.process_time() - self._cpu)


class Clock:
  """Seconds spent in named parts of a step."""

  def __init__(self):
    self.parts = {}

  def time(self, name, fn):
    """`fn` whose calls add to part `name`; calls inside it count once."""
    def call(*args, **kwargs):
      inner = sum(self.parts.values())
      started = time.perf_counter()
      try:
        return fn(*args, **kwargs)
      finally:
        spent = time.perf_counter() - started
        spent -= sum(self.parts.values()) - inner
        self.parts[name] = self.parts.get(name, 0.0) + spent
    return call

  def take(self) -> dict:
    """The parts so far; counting starts again."""
    parts, self.parts = self.parts, {}
    return parts
