"""Calls that end in time: each runs in a process that can be killed.

A thread cannot be stopped and math-verify's own time limits work on the main
thread only, so a call that may hang (symbolic algebra on a model's text) goes
to a worker process. Workers are started when first needed, kept for the next
call of the same function, killed when a call runs past its limit, and gone
when this process exits. They are plain programs (`rewards.worker`), so that
starting one is safe next to jax's threads and imports neither jax nor the main
module. There are as many as there are callers at the same time.
"""

import atexit
import functools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading

START_LIMIT_S = 120.0  # importing sympy on a busy machine


class TimedOut(Exception):
  """The call ran past its limit; its worker was killed."""


class WorkerDied(Exception):
  """The worker ended during the call (out of memory, crash in C)."""


class RemoteError(Exception):
  """The function raised; the message is its traceback."""


class _Worker:
  """One process that serves one function."""

  def __init__(self, target: str):
    self.target = target
    self._pipe, theirs = multiprocessing.Pipe()
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with theirs:
      self._process = subprocess.Popen(
          [sys.executable, '-P', '-m', 'mmr1.rewards.worker',
           str(theirs.fileno()), target],
          pass_fds=(theirs.fileno(),),
          stdin=subprocess.DEVNULL,
          # An accelerator belongs to the run, never to a reward's worker.
          env={**os.environ, 'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu'},
          start_new_session=True)  # Ctrl-C is for the parent

  @property
  def pid(self) -> int:
    return self._process.pid

  def alive(self) -> bool:
    return self._process.poll() is None

  def receive(self, limit_s: float):
    """The next reply's value; raises as `Pool.call` does."""
    if not self._pipe.poll(limit_s):
      raise TimedOut(f'{self.target} ran past its limit of {limit_s:g} s')
    try:
      status, value = self._pipe.recv()
    except (EOFError, OSError):  # OSError: it ended in the middle of a reply
      self._process.wait()
      raise WorkerDied(
          f'the worker of {self.target} ended with code '
          f'{self._process.returncode} during a call') from None
    if status == 'error':
      raise RemoteError(value)
    return value

  def send(self, args, kwargs, limit_s: float) -> None:
    data = pickle.dumps((args, kwargs))
    try:
      self._pipe.send(limit_s)
      self._pipe.send_bytes(data)
    except (BrokenPipeError, ConnectionResetError):
      raise WorkerDied(
          f'the worker of {self.target} ended before a call') from None

  def kill(self) -> None:
    self._process.kill()
    self._process.wait()

  def discard(self) -> None:
    self.kill()
    self._pipe.close()


class Pool:
  """Worker processes by function. Thread-safe; `call` blocks its caller."""

  def __init__(self):
    self._lock = threading.Lock()
    self._idle: dict[str, list[_Worker]] = {}
    self._all: set[_Worker] = set()
    self._registered = False

  def call(self, target: str, *args, limit_s: float, **kwargs):
    """`target(*args, **kwargs)` in a worker; returns its value.

    The limit covers the call, not the start of a worker. A call returns or
    raises within `limit_s` plus milliseconds once a worker runs.

    Args:
      target: `module:function`, importable without the main module.
      *args, **kwargs: picklable.
      limit_s: seconds, above 0.

    Raises:
      TimedOut: past the limit.
      WorkerDied: the worker ended by itself.
      RemoteError: the function raised.
      RuntimeError: no worker could be started.
    """
    if not 0 < limit_s < float('inf'):
      raise ValueError(f'limit_s={limit_s}: must be finite and above 0')
    worker = self._take(target)
    keep = False
    try:
      worker.send(args, kwargs, limit_s)
      value = worker.receive(limit_s)
      keep = True
      return value
    except RemoteError:
      keep = True
      raise
    finally:  # also on KeyboardInterrupt: its reply would be the next call's
      self._release(worker, keep)

  def pids(self) -> list[int]:
    """Process ids of the workers, idle and busy."""
    with self._lock:
      return sorted(worker.pid for worker in self._all)

  def close(self) -> None:
    """Kills all workers. Calls under way raise; later ones start anew."""
    with self._lock:
      workers, self._all, self._idle = self._all, set(), {}
    for worker in workers:
      worker.kill()  # a caller that waits sees the end, and discards it

  def _take(self, target: str) -> _Worker:
    """An idle worker that is alive, or a new one that has said it is ready."""
    while True:
      with self._lock:
        idle = self._idle.get(target)
        worker = idle.pop() if idle else None
      if worker is None:
        break
      if worker.alive():
        return worker
      self._release(worker, keep=False)
    worker = _Worker(target)
    with self._lock:
      self._all.add(worker)
      if not self._registered:
        atexit.register(self.close)
        self._registered = True
    try:
      worker.receive(START_LIMIT_S)
    except (TimedOut, WorkerDied, RemoteError) as error:
      self._release(worker, keep=False)
      raise RuntimeError(
          f'no worker process for {target} could be started: {error}'
      ) from error
    except BaseException:
      self._release(worker, keep=False)
      raise
    return worker

  def _release(self, worker: _Worker, keep: bool) -> None:
    with self._lock:
      if keep and worker in self._all:
        self._idle.setdefault(worker.target, []).append(worker)
        return
      self._all.discard(worker)
    worker.discard()


@functools.cache
def shared() -> Pool:
  """The pool of this process; nothing starts before the first call."""
  return Pool()
