"""What a section of kind `flow` asks for, checked before anything runs."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from mmr1 import context
from mmr1 import flow_objectives
from mmr1 import generator
from mmr1 import resolve
from mmr1.data import sources
from mmr1.data import worlds
from mmr1.flows import solvers
from mmr1.models import dit

_AT_LEAST_ONE = (
    'steps', 'prompts_per_step', 'samples_per_prompt', 'minibatches_per_step',
    'chunks_per_minibatch', 'solver_steps', 'log_every', 'samples_every',
    'checkpoint_every', 'keep_checkpoints', 'max_bad_updates')
_AT_LEAST_ZERO = ('eval_every', 'record_every')
_LOOKED_AT = 32  # examples of a world


class Plan(NamedTuple):
  """The stage's functions.

  Fields:
    model: sizes of the generator.
    objective: see `flow_objectives`.
    settings, evaluated: how it samples, and for evaluation.
    reward: (images f32[G, H, W, C], Example) -> f64[G].
    advantage, select: sockets as in `rl`.
    world: (split, order) -> examples.
  """
  model: dit.Config
  objective: flow_objectives.Objective
  settings: generator.Settings
  evaluated: generator.Settings
  reward: Callable[..., Any]
  advantage: Callable[..., Any]
  select: Callable[..., Any]
  world: Callable[..., sources.Mixture]


def plan(section: Any, stage: str, config: Any) -> Plan:
  """Resolves and checks everything.

  Raises:
    ValueError: what cannot work, by its key.
  """
  for key in _AT_LEAST_ONE + _AT_LEAST_ZERO:
    least = int(key in _AT_LEAST_ONE)
    if section[key] < least:
      raise ValueError(
          f'{stage}.{key}: got {section[key]}; allowed: at least {least}.')
  generator.source(config, stage, section.kind)
  model = generator.config_of(config.generator)
  solver = generator.solver_of(section.solver, f'{stage}.solver')
  objective = _objective(section, stage, solver)
  _check_numbers(section, stage, objective)
  evaluation = section.evaluation
  evaluated = generator.Settings(evaluation.steps, generator.solver_of(
      evaluation.solver, f'{stage}.evaluation.solver'), section.guidance)
  for key in ('examples', 'samples', 'steps'):
    if evaluation[key] < 1:
      raise ValueError(f'{stage}.evaluation.{key}: got {evaluation[key]}; '
                       'allowed: at least 1.')
  section.evaluation.as_dict(), section.restore_best
  section.optimizer.as_dict()
  if section.judge is not None:
    asked = config.judges[section.judge].as_dict()
    context.check_init(asked['params'], stage, config,
                       f'judge (judges.{section.judge}.params)')
  return Plan(
      model, objective,
      generator.Settings(section.solver_steps, solver, section.guidance),
      evaluated, _socket(section.reward, f'{stage}.reward', 'mmr1.rewards'),
      _socket(section.advantage, f'{stage}.advantage', 'mmr1.advantages'),
      _socket(section.select, f'{stage}.select', 'mmr1.select'),
      functools.partial(_world, config, section.world, model))


def _socket(section: Any, where: str, root: str, provided=(), **given) -> Any:
  fn, kwargs = resolve.function(section.fn, root), section.kwargs.as_dict()
  resolve.check_kwargs(fn, kwargs, where, provided)
  return functools.partial(fn, **kwargs, **given)


def _objective(section: Any, stage: str, solver: solvers.Solver,
               ) -> flow_objectives.Objective:
  """Of the section; an objective that asks for it has the stage's solver."""
  where, root = f'{stage}.objective', 'mmr1.flow_objectives'
  asks = 'solver' in inspect.signature(
      resolve.function(section.objective.fn, root)).parameters
  made = _socket(section.objective, where, root, ('solver',) if asks else (),
                 **({'solver': solver} if asks else {}))()
  x = jnp.zeros((1, 1, 1))
  if made.trace and solver(x, x, solvers.at(
      solvers.sigmas(2), jnp.int32(0)), x).std is None:
    raise ValueError(
        f'{stage}.solver.fn: {section.solver.fn!r} draws nothing, and '
        f'{section.objective.fn!r} learns from the density of what was drawn. '
        "Take 'flow_sde' or 'dance_sde'.")
  return made


def _check_numbers(section, stage, objective) -> None:
  g, n = section.samples_per_prompt, section.prompts_per_step
  if objective.sampled != (g > 1):
    raise ValueError(
        f'{stage}.samples_per_prompt: got {g}; {section.objective.fn!r} '
        + ('compares samples of a prompt: at least 2.' if objective.sampled
           else 'learns from given pictures, 1 for each prompt.'))
  pieces = section.minibatches_per_step * section.chunks_per_minibatch
  if n % pieces:
    raise ValueError(
        f'{stage}.prompts_per_step: {n} do not split into '
        f'{section.minibatches_per_step} minibatches of '
        f'{section.chunks_per_minibatch} chunks.')
  for key, low, high in (('condition_dropout', 0, 1), ('guidance', 0, 1e3)):
    if not low <= section[key] <= high:
      raise ValueError(f'{stage}.{key}: got {section[key]}; allowed: {low} to '
                       f'{high}.')
  if objective.trace and section.guidance != 1:
    raise ValueError(
        f'{stage}.guidance: got {section.guidance}; {section.objective.fn!r} '
        'compares densities of steps without guidance: allowed is 1.')
  old, ema = section.old, section.ema
  if old.rate < 0 or not 0 <= old.cap < 1 or old.after < 0:
    raise ValueError(
        f'{stage}.old: got rate={old.rate}, after={old.after}, cap={old.cap}; '
        'allowed: rate and after 0 or more, cap 0 to below 1.')
  if not 0 <= ema.cap < 1:
    raise ValueError(f'{stage}.ema.cap: got {ema.cap}; allowed: 0 to below 1.')
  if section.lora.rank < 0:
    raise ValueError(f'{stage}.lora.rank: got {section.lora.rank}; allowed: at '
                     'least 1, or 0 for none.')
  if section.lora.rank:
    section.lora.as_dict()


def _world(config: Any, name: str, model: dit.Config, split: str,
           order: int) -> sources.Mixture:
  """Examples of a section of `tasks`; one of them is looked at.

  Raises:
    ValueError: they do not fit the generator.
  """
  made = worlds.open_world(
      config, name, split, order=order, needs=('condition', 'target'))
  first = made[0]
  for key, got, want in (
      ('tokens', len(first.meta['condition']), model.tokens),
      ('size', first.meta['target'].size[0], model.size),
      ('source', bool(first.images), model.source)):
    if got != want:
      raise ValueError(f'generator.{key}: got {want}; the examples of tasks.'
                       f'{name} have {got}.')
  most = max(max(made[i].meta['condition']) for i in 
             range(min(len(made), _LOOKED_AT)))
  if most >= model.vocabulary:
    raise ValueError(
        f'generator.vocabulary: got {model.vocabulary}; conditions of tasks.'
        f'{name} have the word {most}: at least {most + 1}.')
  return made
