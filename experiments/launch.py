"""Runs of mmr1 beside each other: each is a process with a workdir of its own.

What they print goes to a file each. A run that dies takes no other with it;
Ctrl-C asks all of them to save their state and leave, and a second one ends
them at once. They compile into one cache, since its folder is a config's
(`cache_dir`).
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from experiments import board as board_lib

MEMORY_GIB = 4  # what a run of the embedded model may take
_GRACE_S = 300  # to save a state
_LOOK_S = 0.5
_THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


class Machine(NamedTuple):
  """What runs may take.

  Fields:
    platform: 'cpu', 'gpu' or 'tpu', as jax finds it.
    devices: how many of it.
    cores: numbers of the cores that this process may use.
    memory: GiB.
  """
  platform: str
  devices: int
  cores: tuple[int, ...]
  memory: float


class Slot(NamedTuple):
  """A part of the machine for one process at a time.

  Fields:
    env: of its process, besides this one's.
    cores: that its process is bound to; (): to none in particular.
  """
  env: Mapping[str, str]
  cores: tuple[int, ...] = ()


class Job(NamedTuple):
  """A run.

  Fields:
    name: of it, for a person.
    command: starts it.
    workdir: its own.
    log: file that takes what it prints.
    steps: {stage: steps} of those that train.
    over: it has been run to its end before; it is not started.
  """
  name: str
  command: tuple[str, ...]
  workdir: pathlib.Path
  log: pathlib.Path
  steps: Mapping[str, int] = {}
  over: bool = False


class Ended(NamedTuple):
  """What became of a run.

  Fields:
    job: the run.
    state: 'done', 'failed', or 'stopped' where somebody asked for it.
    code: exit code; negative: a signal; None: it was not started here.
    seconds: since it was started here.
    continued: it had begun before.
  """
  job: Job
  state: str
  code: int | None = None
  seconds: float = 0.0
  continued: bool = False


def machine() -> Machine:
  """This machine; a process of its own asks jax, which keeps an accelerator to
  itself as long as it lives.

  Raises:
    ValueError: jax does not start.
  """
  asked = subprocess.run(
      [sys.executable, '-c', 'import jax; '
       'print(jax.default_backend(), jax.local_device_count())'],
      capture_output=True, text=True)
  if asked.returncode:
    raise ValueError('jax finds no device: '
                     + (asked.stderr.strip().splitlines() or ['?'])[-1])
  platform, devices = asked.stdout.split()[-2:]
  cores = (sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
           else range(os.cpu_count() or 1))
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
  return Machine(platform, int(devices), tuple(cores), memory)


def slots(on: Machine, jobs: int | None = None, *, each: int = 2,
          env: Mapping[str, str] = os.environ) -> list[Slot]:
  """The machine in parts.

  On a CPU as many as there are times `each` cores, and memory for; each process
  is bound to cores of its own. On accelerators one that has all of them; with
  `jobs` GPUs or more each process has some to itself, with fewer they share
  memory.

  Args:
    on: the machine.
    jobs: how many; None: what fits.
    each: cores of a run.
    env: of this process.

  Raises:
    ValueError: fewer than one; several on a TPU.
  """
  if jobs is not None and jobs < 1:
    raise ValueError(f'--jobs: got {jobs}; allowed: at least 1.')
  if on.platform == 'cpu':
    fitting = min(len(on.cores) // each, int(on.memory // MEMORY_GIB))
    return _of_cores(on.cores, jobs or max(1, fitting))
  jobs = jobs or 1
  if jobs == 1:
    return [Slot({})]
  if on.platform == 'tpu':
    raise ValueError(f'--jobs: got {jobs}; a TPU is held by one process at a '
                     'time. Leave --jobs out, or run on several machines.')
  if on.devices < jobs:
    share = env.get('XLA_PYTHON_CLIENT_MEM_FRACTION', f'{0.9 / jobs:.3f}')
    return [Slot({'XLA_PYTHON_CLIENT_MEM_FRACTION': share})] * jobs
  given = env.get('CUDA_VISIBLE_DEVICES', '')
  names = given.split(',') if given else [str(i) for i in range(on.devices)]
  size = on.devices // jobs
  return [Slot({'CUDA_VISIBLE_DEVICES': ','.join(
      names[i * size:(i + 1) * size])}) for i in range(jobs)]


def _of_cores(cores: tuple[int, ...], jobs: int) -> list[Slot]:
  if jobs == 1:
    return [Slot({})]
  size = len(cores) // jobs
  env = {name: str(max(1, size)) for name in _THREADS}
  return [Slot(env, cores[i * size:(i + 1) * size]) for i in range(jobs)]


def run(jobs: Sequence[Job], parts: Sequence[Slot], board: board_lib.Board,
        after: Callable[[Ended], None] = lambda ended: None) -> list[Ended]:
  """Runs all of them, in order, as many at a time as there are parts.

  Args:
    jobs: the runs.
    parts: of the machine.
    board: shows what they are doing.
    after: told of each that ended by itself, when it has.

  Returns:
    What became of each, in the order of `jobs`.

  Raises:
    What `after` or the board does: all runs are stopped first, as by Ctrl-C.
  """
  ended = {job.name: Ended(job, 'done', continued=True)
           for job in jobs if job.over}
  waiting = collections.deque(job for job in jobs if not job.over)
  free, running = collections.deque(parts), []
  with _signals_interrupt():
    try:
      while waiting or running:
        while waiting and free:
          running.append(_Process(waiting.popleft(), free.popleft()))
        for one in [one for one in running if one.over()]:
          running.remove(one)
          free.append(one.slot)
          ended[one.job.name] = one.end()
          after(ended[one.job.name])
        board.show(_states(jobs, running, ended))
        time.sleep(_LOOK_S if running else 0)
    except BaseException as error:  # whatever it is: no run outlives this one
      _stop(running, board.say)
      ended |= {one.job.name: one.end(stopped=True) for one in running}
      if not isinstance(error, KeyboardInterrupt):
        raise
  for job in jobs:
    ended.setdefault(job.name, Ended(job, 'stopped'))
  board.show(_states(jobs, [], ended))
  return [ended[job.name] for job in jobs]


def _states(jobs, running, ended) -> list[board_lib.State]:
  now = {one.job.name: one for one in running}
  return [board_lib.State(
      job.name, job.workdir, job.steps,
      *((ended[job.name].state, ended[job.name].seconds) if job.name in ended
        else ('running', now[job.name].seconds()) if job.name in now
        else ('waiting', 0.0))) for job in jobs]


class _Process:
  """A run that was started."""

  def __init__(self, job: Job, slot: Slot):
    self.job, self.slot = job, slot
    self._continued = (job.workdir / 'config.json').exists()
    self._began = time.monotonic()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, 'ab') as log:
      log.write(f'$ {" ".join(job.command)}\n'.encode())
      log.flush()
      # A session of its own: a terminal's Ctrl-C comes here and not there.
      self._process = subprocess.Popen(
          job.command, stdin=subprocess.DEVNULL, stdout=log,
          stderr=subprocess.STDOUT, env={**os.environ, **slot.env},
          start_new_session=True)
    if slot.cores and hasattr(os, 'sched_setaffinity'):
      with contextlib.suppress(ProcessLookupError):  # over already
        # Long before it starts threads, which inherit it.
        os.sched_setaffinity(self._process.pid, slot.cores)

  def over(self) -> bool:
    return self._process.poll() is not None

  def seconds(self) -> float:
    return time.monotonic() - self._began

  def signal(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      self._process.send_signal(number)

  def wait(self, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(seconds)

  def end(self, *, stopped: bool = False) -> Ended:
    """Ends what is left of it, its workers too, and says what it came to."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    code = self._process.wait()
    state = 'stopped' if stopped else 'failed'
    if not code and (self.job.workdir / 'FINISHED').exists():
      state = 'done'
    elif code in (0, 130):  # somebody asked it to: SIGTERM, Ctrl-C
      state = 'stopped'
    return Ended(self.job, state, code, self.seconds(), self._continued)


def _stop(running: Sequence[_Process], say: Callable[[str], None]) -> None:
  """Waits until they have saved their states, or for a second Ctrl-C."""
  with contextlib.suppress(KeyboardInterrupt):
    for one in running:
      one.signal(signal.SIGTERM)
    with contextlib.suppress(Exception):  # it may be why they are stopped
      say('stopping: each run saves its state; Ctrl-C once more ends them at '
          'once')
    until = time.monotonic() + _GRACE_S
    for one in running:
      one.wait(max(0.0, until - time.monotonic()))


@contextlib.contextmanager
def _signals_interrupt():
  """SIGTERM and a closed terminal are as Ctrl-C: no run outlives this one.

  Ctrl-C itself is listened to also where a shell's `&` has it ignored; a
  terminal that `nohup` wants ignored may close.
  """
  def interrupt(number, frame):
    del number, frame
    raise KeyboardInterrupt
  wanted = [signal.SIGINT, signal.SIGTERM]
  if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    wanted.append(signal.SIGHUP)
  old = {number: signal.signal(number, interrupt) for number in wanted}
  try:
    yield
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
