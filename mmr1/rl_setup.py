"""Set-up of an rl stage: its section becomes functions before it runs."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import inspect
from typing import Any

import jax.numpy as jnp

from mmr1 import average
from mmr1 import context
from mmr1 import environments
from mmr1 import judges
from mmr1 import objective as objective_lib
from mmr1 import resolve
from mmr1 import rl_checks
from mmr1 import sockets
from mmr1 import training
from mmr1.losses import reading
from mmr1.rewards import score as score_lib
from mmr1.sampling import sample as sample_lib


@dataclasses.dataclass(frozen=True)
class Plan:
  """The resolved functions of an rl stage.

  Fields:
    objective: terms and starting knobs.
    sampling: traced settings of the sampler.
    temperature: of the sampler, and of every log-prob (law 5).
    scorer: the rewards.
    probes: columns made of looks.
    judges: columns made by other models.
    combine: (columns, names, knobs, state) -> (rewards, metrics, state).
    advantage: (rewards, tokens) -> [N, G, 1 or T].
    select: (columns, advantage, meta, state, rng) -> keep, counts, more, state.
    revise, revise_keep: see `mmr1.revising`; None: no revisions.
    replay: see `mmr1.experience`; None: no memory.
    env: that answers the turns of a completion; None: there is one turn.
    hooks: {name: (knobs, state, columns, metrics, step) -> knobs, state}.
    host_knobs: numbers of combine, advantage, select and probes.
    moved: knobs that hooks move, logged as 'knob/<name>'.
  """
  objective: objective_lib.Objective
  sampling: sample_lib.Knobs
  temperature: float
  scorer: score_lib.Scorer
  probes: Mapping[str, sockets.Probe]
  judges: Mapping[str, judges.Settings]
  combine: sockets.Bound
  advantage: sockets.Bound
  select: sockets.Bound
  revise: sockets.Bound | None
  revise_keep: sockets.Bound | None
  replay: sockets.Bound | None
  env: environments.Environment | None
  hooks: Mapping[str, Callable[..., Any]]
  host_knobs: Mapping[str, float]
  moved: tuple[str, ...]

  @property
  def weights(self) -> dict[str, float]:
    """Of every column; those of probes and judges are there to be combined by
    name."""
    return {**self.scorer.weights,
            **dict.fromkeys((*self.probes, *self.judges), 0.0)}

  @property
  def knobs(self) -> dict[str, float]:
    """{name: float}, where everything that a hook may move starts."""
    return {**self.objective.knobs, **self.host_knobs}


def setup(section: Any, stage: str, config: Any) -> Plan:
  """Reads and checks an rl section.

  Raises:
    ValueError: a value out of range, a name that does not exist, settings
      that contradict each other (M22).
  """
  training.check(section, stage, config)
  rl_checks.check(section, stage, config)
  reference = section.reference
  if reference not in ('init', average.NAME):
    context.check_init(reference, stage, config, 'reference')
  hooks = {name: _hook(config.hooks[name], f'hooks.{name}', section.steps)
           for name in section.hooks}
  objective = objective_of(section, stage, config)
  moved, host_knobs = _moved(section, config), sockets.host_knobs(
      section, config)
  for knob in sorted(moved - {'', *objective.knobs, *host_knobs}):
    raise ValueError(
        f'{stage}.hooks: there is no knob {knob!r}. '
        f'{resolve.nearest(knob, {**objective.knobs, **host_knobs})}')
  sockets.check_knobs(section, stage, {**objective.knobs, **host_knobs})
  rl_checks.check_sockets(section, stage, config, objective)
  scorer = _scorer(section, stage, config)
  if not 0 < section.temperature:
    raise ValueError(
        f'{stage}.temperature: got {section.temperature}; greedy completions '
        'of a group are all the same, so rl needs a temperature above 0.')
  try:
    sampling = sample_lib.knobs(
        temperature=section.temperature, top_k=section.top_k,
        top_p=section.top_p, max_new_tokens=section.max_new_tokens)
  except ValueError as error:
    raise ValueError(f'{stage}: {error}') from error
  return Plan(
      objective=objective,
      sampling=sampling,
      temperature=section.temperature, scorer=scorer,
      probes=sockets.probes(section, config, moved),
      judges=judges.settings(section, stage, config),
      combine=sockets.bind(
          section.combine, 'mmr1.rewards', f'{stage}.combine', moved,
          ('weights',)),
      advantage=sockets.bind(
          section.advantage, 'mmr1.advantages', f'{stage}.advantage', moved),
      select=sockets.bind(
          section.select, 'mmr1.select', f'{stage}.select', moved),
      **_optional(section, stage),
      env=environments.environment(config, section.env),
      hooks=hooks, host_knobs=host_knobs,
      moved=tuple(sorted(moved - {''})))


def _optional(section: Any, stage: str) -> dict[str, sockets.Bound | None]:
  """Sockets that may be empty."""
  found: dict[str, Any] = dict.fromkeys(('revise', 'revise_keep', 'replay'))
  if section.revise.fn is not None:
    found['revise'] = sockets.bind(
        section.revise, 'mmr1.papers', f'{stage}.revise')
    found['revise_keep'] = sockets.bind(
        section.revise.keep, 'mmr1.papers', f'{stage}.revise.keep')
  if section.replay.fn is not None:
    found['replay'] = sockets.bind(
        section.replay, 'mmr1.papers', f'{stage}.replay',
        provided=('capacity', 'rows'))
  return found


def objective_of(
    section: Any, stage: str, config: Any) -> objective_lib.Objective:
  """What an rl stage optimises; terms whose coefficient a hook moves stay.

  Raises:
    ValueError: an unknown name or value; nothing to optimise.
  """
  objective = objective_lib.build(
      section, _moved(section, config), config.terms)
  if not objective.terms:
    raise ValueError(
        f'{stage}: every coefficient is 0, so there is nothing to optimise.')
  return _with_sampler_metrics(
      objective, sockets.requested(section, config, objective))


def _moved(section: Any, config: Any) -> frozenset[str]:
  """Knobs that the stage's hooks move, each one or several."""
  named = [config.hooks[name].kwargs.as_dict().get('knob', '')
           for name in section.hooks]
  return frozenset(knob for one in named for knob in (
      (one,) if isinstance(one, str) else one))


def _hook(section: Any, where: str, steps: int) -> Callable[..., Any]:
  """The function of a section {fn, kwargs} with its keywords bound; a schedule
  whose `steps` is None is one over all of the stage's."""
  fn = resolve.function(section.fn, 'mmr1.hooks')
  kwargs = section.kwargs.as_dict()
  if 'steps' in kwargs and kwargs['steps'] is None:
    kwargs['steps'] = steps
  resolve.check_kwargs(fn, kwargs, f'{where}.kwargs')
  return functools.partial(fn, **kwargs)


def _scorer(section: Any, stage: str, config: Any) -> score_lib.Scorer:
  if not section.rewards:
    raise ValueError(f'{stage}.rewards: names no reward. Known are '
                     f'{tuple(config.rewards)}.')
  return score_lib.Scorer(
      rewards(section, config), workers=section.reward_workers)


def rewards(section: Any, config: Any) -> dict[str, score_lib.Reward]:
  """The rewards that an rl section names, in its order."""
  return {name: _reward(config.rewards[name]) for name in section.rewards}


def _reward(section: Any) -> score_lib.Reward:
  """`limit_s` bounds the call in a worker, or what the reward runs in one."""
  fn = resolve.function(section.fn, 'mmr1.rewards')
  kwargs = section.kwargs.as_dict()
  if not section.in_pool and _takes(fn, 'limit_s'):
    kwargs.setdefault('limit_s', section.limit_s)
  return score_lib.Reward(
      fn=fn, kwargs=kwargs, weight=section.weight, in_pool=section.in_pool,
      limit_s=section.limit_s)


def _takes(fn: Callable[..., Any], keyword: str) -> bool:
  return keyword in inspect.signature(fn).parameters


def check_media(config: Any, reads_media: bool) -> None:
  """Refuses views of images where the model has no eyes: every look would see
  what the policy saw.

  Args:
    config: the resolved config.
    reads_media: whether the model reads images.

  Raises:
    ValueError: names the view.
  """
  for stage in config.stages:
    section = config[stage]
    if section.kind != 'rl' or reads_media:
      continue
    names = sockets.requested(
        section, config, objective_of(section, stage, config))
    for name in sorted({*names, *section.branches}):
      if config.views[name].fn != 'same':
        raise ValueError(
            f'views.{name}.fn: {config.views[name].fn!r} changes images, and '
            f'the model of {config.model.path} reads text only; {stage} asks '
            'for it. Take a model that sees, or leave the view out.')


def check_prefilled(config: Any, prefilled: bool) -> None:
  """Refuses rewards that expect another start of the completion (M12).

  Args:
    config: the resolved config.
    prefilled: the prompts already end with `<think>`.

  Raises:
    ValueError: a reward reads completions the other way, so that none could
      be well-formed.
  """
  for stage in config.stages:
    if config[stage].kind != 'rl':
      continue
    for name, reward in rewards(config[stage], config).items():
      expects = bool(reward.kwargs.get('prefilled', False))
      if _takes(reward.fn, 'prefilled') and expects != prefilled:
        raise ValueError(
            f'rewards.{name}.kwargs.prefilled: got {expects}, but the chat '
            f"template of the model {'ends' if prefilled else 'does not end'} "
            f'its prompts with <think>. In the config file: c.rewards.{name}'
            f'.kwargs = dict(prefilled={prefilled}).')


def _with_sampler_metrics(
    objective: objective_lib.Objective, views: Iterable[str],
) -> objective_lib.Objective:
  """Adds to the first term's metrics what compares passes: |trainer - sampler|
  and, per look, log pi - log pi(look), both over sampled tokens."""
  first = objective.terms[0]

  def metrics(scores, block, knobs):
    means, tops = ({}, {}) if first.metrics is None else first.metrics(
        scores, block, knobs)
    mask = reading.sampled(block).mask
    gap = jnp.abs(scores.logp - block.extra['sampler_logp'])
    gap = jnp.where(mask, gap, 0.0)
    count = jnp.sum(mask.astype(jnp.float32))
    seen = {f'view/{name}/drop': scores.logp - reading.look(
        scores, block, name) for name in views}
    seen |= {f'view/{name}/{key}': block.extra[f'{key}/{name}']
             for name in views for key in ('pair', 'entropy')
             if f'{key}/{name}' in block.extra}
    return ({**means, 'sampler/logp_diff_mean': (jnp.sum(gap), count), **{
        name: (jnp.sum(jnp.where(mask, x, 0.0)), count)
        for name, x in seen.items()}},
            {**tops, 'sampler/logp_diff_max': jnp.max(gap)})
  return objective._replace(terms=(
      dataclasses.replace(first, metrics=metrics), *objective.terms[1:]))
