"""Set-up of an rl stage: its section becomes functions before it runs."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
from typing import Any

import jax.numpy as jnp

from mmr1 import context
from mmr1 import objective as objective_lib
from mmr1 import resolve
from mmr1.rewards import score as score_lib
from mmr1.sampling import sample as sample_lib
from mmr1 import training

OLD = ('self', 'recompute', 'sampler')
MEMORIES = ('device', 'host')
# Advantages that compare the samples of a group need two of them.
_NEED_GROUP = frozenset({
    *(f'mmr1.advantages.{name}' for name in (
        'grpo', 'dr_grpo', 'rloo', 'pass_at_k', 'opo', 'gpg',
        'normalize_then_sum')),
    'mmr1.returns.reinforce_pp_baseline'})
# And those that need what this stage does not make.
_LACK = {'mmr1.returns.remax': 'the reward of a greedy completion (baseline)',
         'mmr1.returns.gae': "a critic's values"}


@dataclasses.dataclass(frozen=True)
class Plan:
  """The resolved functions of an rl stage.

  Fields:
    objective: terms and starting knobs.
    sampling: traced settings of the sampler.
    temperature: of the sampler, and of every log-prob (law 5).
    scorer: the rewards.
    combine: (columns, names, knobs, state) -> (rewards, state).
    advantage: (rewards, tokens) -> [N, G, 1 or T].
    select: (columns, advantage, meta, state, rng) -> keep, counts, more, state.
    hooks: {name: (knobs, state, columns, metrics, step) -> knobs, state}.
  """
  objective: objective_lib.Objective
  sampling: sample_lib.Knobs
  temperature: float
  scorer: score_lib.Scorer
  combine: Callable[..., Any]
  advantage: Callable[..., Any]
  select: Callable[..., Any]
  hooks: Mapping[str, Callable[..., Any]]


def setup(section: Any, stage: str, config: Any) -> Plan:
  """Reads and checks an rl section.

  Raises:
    ValueError: a value out of range, a name that does not exist, settings
      that contradict each other (M22).
  """
  training.check(section, stage, config)
  _check_shapes(section, stage)
  _check_staleness(section, stage)
  _check_advantage(section, stage)
  if section.data != 'train':
    raise ValueError(
        f"{stage}.data: got {section.data!r}; rl reads 'train', the mixture "
        'or file of the data section.')
  reference = section.reference
  if reference != 'init':
    context.check_init(reference, stage, config, 'reference')
  hooks = {name: _bound(config.hooks[name], 'mmr1.hooks', f'hooks.{name}')
           for name in section.hooks}
  objective = objective_of(section, stage, config)
  for knob in sorted(_moved(section, config) - {'', *objective.knobs}):
    raise ValueError(
        f'{stage}.hooks: there is no knob {knob!r}. '
        f'{resolve.nearest(knob, objective.knobs)}')
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
      combine=_combine(section, stage, scorer),
      advantage=_bound(
          section.advantage, 'mmr1.advantages', f'{stage}.advantage'),
      select=_bound(section.select, 'mmr1.select', f'{stage}.select'),
      hooks=hooks)


def objective_of(
    section: Any, stage: str, config: Any) -> objective_lib.Objective:
  """What an rl stage optimises; terms whose coefficient a hook moves stay.

  Raises:
    ValueError: an unknown name or value; nothing to optimise.
  """
  objective = objective_lib.build(section, _moved(section, config))
  if not objective.terms:
    raise ValueError(
        f'{stage}: every coefficient is 0, so there is nothing to optimise.')
  return _with_sampler_metrics(objective)


def _moved(section: Any, config: Any) -> frozenset[str]:
  """Knobs that the stage's hooks move."""
  return frozenset(
      config.hooks[name].kwargs.as_dict().get('knob', '')
      for name in section.hooks)


def _check_shapes(section: Any, stage: str) -> None:
  for key in ('prompts_per_step', 'samples_per_prompt', 'epochs_per_step',
              'minibatches_per_step', 'chunks_per_minibatch', 'log_every',
              'reward_workers'):
    if section[key] < 1:
      raise ValueError(
          f'{stage}.{key}: got {section[key]}; allowed: at least 1.')
  n, parts = section.prompts_per_step, section.minibatches_per_step
  if n % parts:
    raise ValueError(
        f'{stage}.minibatches_per_step: {n} prompts do not split into {parts} '
        'minibatches.')
  g, chunks = section.samples_per_prompt, section.chunks_per_minibatch
  if g % chunks:
    raise ValueError(
        f'{stage}.chunks_per_minibatch: {g} samples per prompt do not split '
        f'into {chunks} chunks.')
  if section.old not in OLD:
    raise ValueError(
        f'{stage}.old: got {section.old!r}; allowed are {OLD}.')
  if section.reference_memory not in MEMORIES:
    raise ValueError(
        f'{stage}.reference_memory: got {section.reference_memory!r}; allowed '
        f'are {MEMORIES}.')
  updates = section.epochs_per_step * parts
  if section.old == 'self' and updates > 1:
    raise ValueError(
        f"{stage}.old: 'self' with {updates} updates per rollout: every ratio "
        "would be 1 and nothing would be clipped. Set old to 'recompute' (a "
        "pass before the first update) or 'sampler'.")


def _check_staleness(section: Any, stage: str) -> None:
  k = section.staleness
  if k < 0:
    raise ValueError(f'{stage}.staleness: got {k}; allowed: 0 (on-policy) or '
                     'more steps.')
  if k and section.old != 'sampler':
    raise ValueError(
        f'{stage}.staleness: got {k} with old={section.old!r}: completions are '
        'then of older weights, and no ratio would correct for that. Set '
        f"{stage}.old to 'sampler'.")


def _check_advantage(section: Any, stage: str) -> None:
  name = section.advantage.fn
  fn = resolve.function(name, 'mmr1.advantages')
  path = f'{fn.__module__}.{fn.__name__}'
  if section.samples_per_prompt == 1 and path in _NEED_GROUP:
    raise ValueError(
        f'{stage}: samples_per_prompt=1 with the group advantage {name!r}: a '
        'group of one has advantage 0, so nothing would train. Take at least '
        '2 samples.')
  if path in _LACK:
    raise ValueError(
        f'{stage}.advantage.fn: {name!r} needs {_LACK[path]}, which the rl '
        'stage does not make. Without it there are those of mmr1.advantages '
        "and 'mmr1.returns:reinforce_pp', 'mmr1.returns:reinforce_pp_baseline'."
    )


def _bound(section: Any, root: str, where: str) -> Callable[..., Any]:
  """The function of a section {fn, kwargs} with its keywords bound."""
  fn = resolve.function(section.fn, root)
  kwargs = section.kwargs.as_dict()
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


def _combine(
    section: Any, stage: str, scorer: score_lib.Scorer,
) -> Callable[..., Any]:
  fn = resolve.function(section.combine.fn, 'mmr1.rewards')
  kwargs = section.combine.kwargs.as_dict()
  resolve.check_kwargs(fn, kwargs, f'{stage}.combine.kwargs', ('weights',))
  return functools.partial(fn, weights=scorer.weights, **kwargs)


def _with_sampler_metrics(
    objective: objective_lib.Objective) -> objective_lib.Objective:
  """Adds |trainer - sampler| log-prob differences to the first term."""
  first = objective.terms[0]

  def metrics(scores, block, knobs):
    means, tops = ({}, {}) if first.metrics is None else first.metrics(
        scores, block, knobs)
    gap = jnp.abs(scores.logp - block.extra['sampler_logp'])
    gap = jnp.where(block.mask, gap, 0.0)
    count = jnp.sum(block.mask.astype(jnp.float32))
    return ({**means, 'sampler/logp_diff_mean': (jnp.sum(gap), count)},
            {**tops, 'sampler/logp_diff_max': jnp.max(gap)})
  return objective._replace(terms=(
      dataclasses.replace(first, metrics=metrics), *objective.terms[1:]))
