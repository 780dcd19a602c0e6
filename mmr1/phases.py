"""Phases of a step: where its time goes, and their names in a profile.

A phase is a method of something that has a `clock`:

  @phases.phase('score')
  def _judge(self, ...): ...

  @phases.phase('sample', ready=lambda rollout: rollout.done)
  def _sample(self, ...): ...

The second returns before the devices have done what it asked for. Its time
ends when `ready(result)` is there, which a thread waits for: the step itself
waits for nothing that it would not wait for without a clock.
"""

from collections.abc import Callable
from concurrent import futures
import functools
import time
from typing import Any

import jax


class Clock:
  """Wall time of the phases of the step that is being made."""

  def __init__(self, begin: Callable[[str], None] = lambda name: None):
    """`begin` is told the name of each phase when it begins."""
    self.begin = begin
    # One thread: devices work in the order in which they were asked.
    self._thread = futures.ThreadPoolExecutor(1, 'clock')
    self._free = 0.0  # when the devices were through with the phase before
    self._seen: list[tuple[str, Callable[[], float]]] = []

  def note(self, name: str, began: float, arrays: Any = None) -> None:
    """A phase that began at `began` (`time.perf_counter`) and ends now.

    Args:
      name: of the phase.
      began: when it was asked for.
      arrays: what a device is still to make; None: nothing.
    """
    if arrays is None:
      seconds = time.perf_counter() - began
      self._seen.append((name, lambda: seconds))
    else:
      self._seen.append(
          (name, self._thread.submit(self._wait, began, arrays).result))

  def _wait(self, began: float, arrays: Any) -> float:
    jax.block_until_ready(arrays)
    now = time.perf_counter()
    # What waited in the queue behind another phase is that one's time.
    seconds = now - max(began, self._free)
    self._free = now
    return seconds

  def take(self) -> Callable[[], dict[str, float]]:
    """Ends the step: () -> {'time/<phase>_s': seconds}, summed by name.

    Calling it waits for the devices.
    """
    seen, self._seen = self._seen, []

    def read():
      result: dict[str, float] = {}
      for name, seconds in seen:
        key = f'time/{name}_s'
        result[key] = result.get(key, 0.0) + seconds()
      return result
    return read


def phase(
    name: str, ready: Callable[[Any], Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Makes a method a phase.

  Args:
    name: in 'time/<name>_s' and in a profile.
    ready: result -> arrays that are there when the phase is over; None: it is
      over when the method returns.
  """
  def wrap(method):
    @functools.wraps(method)
    def timed(self, *args, **kwargs):
      self.clock.begin(name)
      began = time.perf_counter()
      with jax.profiler.TraceAnnotation(name):
        result = method(self, *args, **kwargs)
      self.clock.note(name, began, None if ready is None else ready(result))
      return result
    return timed
  return wrap
