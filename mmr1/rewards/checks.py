"""What a reward must be before it is called, and what it may return."""

import inspect
import math
import numbers
from typing import Any


class RangeError(ValueError):
  """A reward returned something outside of its declared range."""


def reward(name: str, reward: Any) -> None:
  """Refuses what cannot be called, or says no range.

  Args:
    name: of its section.
    reward: see `score.Reward`.

  Raises:
    ValueError: what is wrong with it.
  """
  fn = reward.fn
  if not hasattr(fn, 'range'):
    raise ValueError(
        f'reward {name!r}: {fn!r} declares no range; add, after the function, '
        'for example: fn.range = (0.0, 1.0)')
  low, high = fn.range
  if not (math.isfinite(low) and math.isfinite(high) and low <= high):
    raise ValueError(
        f'reward {name!r}: range {fn.range} must be finite, low <= high')
  if not math.isfinite(reward.weight):
    raise ValueError(f'reward {name!r}: weight {reward.weight} is not finite')
  try:
    inspect.signature(fn).bind(None, None, **reward.kwargs)
  except TypeError as error:
    raise ValueError(
        f'reward {name!r}: {error}; its signature is '
        f'{fn.__name__}{inspect.signature(fn)}') from None
  if not reward.in_pool:
    return
  if not 0 < reward.limit_s < math.inf:
    raise ValueError(
        f'reward {name!r}: limit_s={reward.limit_s} must be finite, above 0')
  if fn.__module__ == '__main__' or fn.__qualname__ != fn.__name__:
    raise ValueError(
        f'reward {name!r}: {fn.__module__}.{fn.__qualname__} cannot be '
        'imported by a worker process; move it to the top level of a module, '
        'or set in_pool=False')


def in_range(value: Any, bounds: tuple[float, float]) -> float | None:
  """The value of a call as a float, inside its bounds; None is no value."""
  if value is None:
    return None
  if not isinstance(value, numbers.Real):
    raise RangeError(
        f'a reward must return a float or None, got {type(value).__name__} '
        f'{value!r:.200}')
  value = float(value)
  if not bounds[0] <= value <= bounds[1]:  # also true for nan
    raise RangeError(
        f'value {value} is outside of the declared range {bounds}')
  return value
