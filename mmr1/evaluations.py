"""Evaluations that are made beside each other, and what is made of them."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from mmr1 import resolve
from mmr1 import sections

Metrics = Mapping[str, float]


def others(section: Any, config: Any) -> dict[str, Any]:
  """{name: section} of the evaluations beside this one.

  Raises:
    ValueError: a key that no evaluation has.
  """
  own, found = section.as_dict(), {}
  for name in section.also:
    changes, where = config.evaluations[name].as_dict(), f'evaluations.{name}'
    for key in changes.keys() - (own.keys() - {'also', 'summary', 'kind'}):
      raise ValueError(f'{where}.{key}: no such key. '
                       f'{resolve.nearest(key, own)}')
    found[name] = sections.Section({**own, **changes, 'also': ()}, where)
  return found


def summary(
    section: Any, config: Any) -> Callable[[Metrics, Metrics], Metrics] | None:
  """The function of `summary`, or None.

  Raises:
    ValueError: unknown arguments; no metrics of the base to compare with.
  """
  if section.summary.fn is None:
    return None
  fn, where = (resolve.function(section.summary.fn, 'mmr1.papers'),
               f'{section.where}.summary')
  kwargs = section.summary.kwargs.as_dict()
  resolve.check_kwargs(fn, kwargs, f'{where}.kwargs')
  if not config.evaluate_base:
    raise ValueError(f'{where}.fn: got {section.summary.fn!r} with '
                     'evaluate_base=False; it compares with the base.')
  return functools.partial(fn, **kwargs)
