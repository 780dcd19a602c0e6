"""Counts compilations (M17, M28: their number must not grow with steps)."""

from collections.abc import Callable
import re

import jax

_STEPS = ('jaxpr_trace', 'jaxpr_to_mlir_module', 'backend_compile')
_BEGINS = {f'/jax/core/compile/{step}_duration' for step in _STEPS}
_COMPILE = '/jax/core/compile/backend_compile_duration'
_CACHE_HIT = '/jax/compilation_cache/cache_hits'


class CompileCounter:
  """Counts the programs that XLA compiles from its creation on.

  A program that the persistent cache delivers counts as well, so the number is
  the same in a first and in a second run; only the seconds differ.

  Attributes:
    count: programs compiled or loaded.
    seconds: time spent on it.
    cached: how many of them came from the persistent cache.
  """

  def __init__(self, tell: Callable[[str | None], None] | None = None):
    """Begins to count.

    Args:
      tell: called with a program's name when jax begins to trace, lower or
        compile it, and with None when that is done; None: nobody is.
    """
    self.count, self.seconds, self.cached = 0, 0.0, 0
    self._tell, self._inside = tell, 0  # functions of a program are traced too
    jax.monitoring.register_event_duration_secs_listener(self._duration)
    jax.monitoring.register_event_listener(self._event)
    if tell is not None:
      jax.monitoring.register_scalar_listener(self._begin)

  def _begin(self, event: str, value: float, *, fun_name: str = '', **_):
    if event in _BEGINS:
      self._inside += 1
      if self._inside == 1:
        self._tell(re.sub(r'^jit[_(]|\)$', '', fun_name))

  def _duration(self, event: str, duration: float, **_):
    if event in _BEGINS and self._tell is not None:
      self._inside = max(0, self._inside - 1)
      if not self._inside:
        self._tell(None)
    if event == _COMPILE:
      self.count += 1
      self.seconds += duration

  def _event(self, event: str, **_):
    if event == _CACHE_HIT:
      self.cached += 1

  def metrics(self) -> dict[str, float]:
    """{'compile/count', 'compile/seconds'} so far."""
    return {'compile/count': self.count, 'compile/seconds': self.seconds}

  def close(self) -> None:
    """Stops counting."""
    jax.monitoring.unregister_event_duration_listener(self._duration)
    jax.monitoring.unregister_event_listener(self._event)
    if self._tell is not None:
      jax.monitoring.unregister_scalar_listener(self._begin)
