"""What a section of kind `detect` asks for, checked before anything runs."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from mmr1 import generator
from mmr1 import resolve
from mmr1.data import sources
from mmr1.data import worlds
from mmr1.models import detector

_AT_LEAST = {
    'steps': 1, 'rows_per_step': 1, 'boxes': 1, 'reference_every': 1,
    'log_every': 1, 'samples_every': 1, 'checkpoint_every': 1,
    'keep_checkpoints': 1, 'max_bad_updates': 1, 'eval_every': 0,
    'record_every': 0}


class Plan(NamedTuple):
  """Sizes, the term about queries | None, and the world, (split, order) ->
  examples."""
  model: detector.Config
  term: Callable[..., Any] | None
  world: Callable[..., sources.Mixture]


def plan(section: Any, stage: str, config: Any) -> Plan:
  """Resolves and checks everything.

  Raises:
    ValueError: what cannot work, by its key.
  """
  for key, least in _AT_LEAST.items():
    if section[key] < least:
      raise ValueError(
          f'{stage}.{key}: got {section[key]}; allowed: at least {least}.')
  if section.evaluation.examples < 1 or section.queries.after < 0:
    raise ValueError(
        f'{stage}: got evaluation.examples={section.evaluation.examples}, '
        f'queries.after={section.queries.after}; allowed: at least 1, and 0 or '
        'more.')
  generator.source(config, stage, section.kind)
  model = detector.Config(**config.detector.as_dict())
  side = model.size // max(model.patch, 1)
  if side * model.patch != model.size or not (
      section.boxes <= model.queries <= side**2):
    raise ValueError(
        f'detector: got size={model.size}, patch={model.patch}, queries='
        f'{model.queries}; allowed: whole patches, and from {section.boxes} '
        f'({stage}.boxes) queries to one per patch, {side**2}.')
  if model.width % max(model.heads, 1):
    raise ValueError(f'detector.width: got {model.width}; allowed: multiples '
                     f'of heads={model.heads}.')
  term, queries = None, section.queries
  if queries.fn is not None:
    fn, kwargs = resolve.function(queries.fn, 'mmr1.papers'), (
        queries.kwargs.as_dict())
    resolve.check_kwargs(fn, kwargs, f'{stage}.queries.kwargs')
    term = functools.partial(fn, **kwargs)
  section.cost.as_dict(), section.loss.as_dict(), section.alignment
  section.optimizer.as_dict(), section.restore_best, section.evaluation.seed
  return Plan(model, term, functools.partial(
      _world, config, section.world))


def _world(config: Any, name: str, split: str, order: int) -> sources.Mixture:
  return worlds.open_world(
      config, name, split, order=order, needs=('boxes', 'classes'))
