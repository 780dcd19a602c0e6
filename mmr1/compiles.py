"""Counts compilations (M17, M28: their number must not grow with steps)."""

import jax

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

  def __init__(self):
    self.count, self.seconds, self.cached = 0, 0.0, 0
    jax.monitoring.register_event_duration_secs_listener(self._duration)
    jax.monitoring.register_event_listener(self._event)

  def _duration(self, event: str, duration: float, **_):
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
