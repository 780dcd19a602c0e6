"""One program of a plan, compiled as far as a plan reads.

A compiler for TPUs first decides what runs where and when, which takes seconds,
and then makes machine code, which takes minutes and changes neither memory nor
what is moved and sent. XLA writes the decided program and its buffers to files
in between (`--xla_dump_to`). So each program is compiled in a process of its
own, which is ended when they are there.
"""

from collections.abc import Callable, Mapping
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

_JOB, _TRACED, _ERROR = 'job.pickle', 'traced.json', 'error.txt'
_STDERR = 'stderr.txt'
_ASSIGNED = 'after_optimizations-buffer-assignment.txt'
# The last file before machine code: those before it are whole.
_DECIDED = 'after_optimizations_after_buffer_assignment.txt'
_POLL_S, _LIMIT_S = 0.1, 1800
_MAIN = ('import sys; from mmr1.planning import estimate, worker; '
         'worker.work(sys.argv[1], estimate.traced)')


class Decided(NamedTuple):
  """What the compiler decided about a program.

  Fields:
    flops: operations that jax traced, see `costs.operations`.
    memory: `memory` of its buffers.
    text: the program.
  """
  flops: float
  memory: dict[str, int]
  text: str


class Failed(Exception):
  """What the compiler said instead."""


def decide(job: Mapping[str, Any]) -> Decided:
  """Compiles a program in a process of its own.

  Args:
    job: keywords of `estimate.traced`.

  Raises:
    Failed: it cannot be compiled.
  """
  with tempfile.TemporaryDirectory(prefix='mmr1-plan-') as name:
    folder = pathlib.Path(name)
    (folder / _JOB).write_bytes(pickle.dumps(dict(job)))
    # Not into a pipe: who writes more than it holds waits for a reader.
    with open(folder / _STDERR, 'wb') as stderr:
      process = subprocess.Popen(
          [sys.executable, '-c', _MAIN, name], env=_environment(folder),
          stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
    try:
      return _wait(process, folder)
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def _environment(folder: pathlib.Path) -> dict[str, str]:
  flags = os.environ.get('XLA_FLAGS', '')
  return {
      **os.environ,
      'XLA_FLAGS': f'{flags} --xla_dump_to={folder / "dump"} '
                   '--xla_dump_hlo_as_text',
      # Nothing is run, so several may hold the library at the same time.
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
      'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}


def _wait(process: subprocess.Popen, folder: pathlib.Path) -> Decided:
  began = time.monotonic()
  while True:
    ended = process.poll() is not None
    found = _dumped(folder)
    if found is not None:
      return found
    if ended:
      raise Failed(_said(process, folder))
    if time.monotonic() - began > _LIMIT_S:
      raise Failed(f'not decided after {_LIMIT_S} s')
    time.sleep(_POLL_S)


def _dumped(folder: pathlib.Path) -> Decided | None:
  """None: not yet."""
  last = list((folder / 'dump').glob(f'*.{_DECIDED}'))
  if not last:
    return None
  text = last[0].read_text()
  # The entry comes last: a file that is still being written has no end of it.
  if '\nENTRY ' not in text or not text.rstrip().endswith('}'):
    return None
  buffers = last[0].with_name(last[0].name.replace(_DECIDED, _ASSIGNED))
  flops = json.loads((folder / _TRACED).read_text())['flops']
  return Decided(flops, memory(buffers.read_text()), text)


def _said(process: subprocess.Popen, folder: pathlib.Path) -> str:
  error = folder / _ERROR
  if error.exists():
    return error.read_text()
  said = (folder / _STDERR).read_text(errors='replace')
  return f'its process ended with {process.returncode}: {said[-2000:]}'


_ALLOCATION = re.compile(r'^allocation \d+: size (\d+), (.*?):?$', re.MULTILINE)
_ELSEWHERE = re.compile(r'\bcolor [1-9]')  # on-chip memory


def memory(text: str) -> dict[str, int]:
  """Bytes of a buffer assignment on one chip, on-chip memory not counted.

    'arguments'    of parameters
    'outputs'      of results
    'aliased'      of results in the place of a parameter, in both
    'temporaries'  of the rest
  """
  found = dict.fromkeys(('arguments', 'outputs', 'aliased', 'temporaries'), 0)
  for size, what in _ALLOCATION.findall(text):
    if _ELSEWHERE.search(what):
      continue
    size = int(size)
    parameter, result = 'parameter ' in what, 'maybe-live-out' in what
    found['arguments'] += size * parameter
    found['outputs'] += size * result
    found['aliased'] += size * (parameter and result)
    found['temporaries'] += size * (not parameter and not result)
  return found


def work(name: str, trace: Callable[..., tuple[Any, float]]) -> None:
  """The other process: traces, and compiles until it is ended.

  Args:
    name: of the folder with the job.
    trace: (**job) -> the traced program, its operations.
  """
  folder = pathlib.Path(name)
  try:
    traced, flops = trace(**pickle.loads((folder / _JOB).read_bytes()))
    lowered = traced.lower()
    (folder / _TRACED).write_text(json.dumps({'flops': flops}))
    lowered.compile()
  except Exception as error:
    (folder / _ERROR).write_text(f'{type(error).__name__}: {error}')
    raise
