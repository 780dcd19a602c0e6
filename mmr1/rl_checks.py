"""What an rl section may not ask for (M22)."""

import math
from typing import Any

from mmr1 import average
from mmr1 import objective as objective_lib
from mmr1 import resolve
from mmr1 import sockets
from mmr1.data import datasets

OLD = ('self', 'recompute', 'sampler')
MEMORIES = ('device', 'host')
# Advantages that compare the samples of a group need two of them.
_NEED_GROUP = frozenset({
    *(f'mmr1.advantages.{name}' for name in (
        'grpo', 'dr_grpo', 'rloo', 'pass_at_k', 'opo', 'gpg',
        'normalize_then_sum')),
    'mmr1.returns.reinforce_pp_baseline'})


def check(section: Any, stage: str, config: Any) -> None:
  """Refuses values out of range and settings that contradict each other.

  Raises:
    ValueError: names the key, what was got and what is allowed.
  """
  _check_shapes(section, stage)
  if section.samples_tokens < 0:
    raise ValueError(
        f'{stage}.samples_tokens: got {section.samples_tokens}; allowed: 0 '
        '(none) or more.')
  _check_staleness(section, stage)
  _check_advantage(section, stage, config)
  _check_rollouts(section, stage)
  _check_revise(section, stage)
  _check_replay(section, stage)
  _check_env(section, stage)
  _check_data(section, stage, config)
  if section.data == 'train' and config.data.path is None:
    _check_members(section, stage, config)
  average.check(section, stage)


def check_sockets(section: Any, stage: str, config: Any,
                  objective: objective_lib.Objective) -> None:
  """Refuses views, weights and selections that cannot be; raises as `check`."""
  names = sockets.requested(section, config, objective)
  sockets.looks(section, stage, config, {*names, *section.branches})
  sockets.weights(
      config, (*section.weights, *objective.weights), section.old)
  sockets.check_select(section, stage)
  weights = *section.weights, *objective.weights
  if section.replay.fn is not None and weights:
    raise ValueError(
        f'{stage}.replay.fn: got {section.replay.fn!r} with weights={weights}, '
        'which are made of the whole of a minibatch; what is replayed would '
        'have none. Set one of both to its default.')


def _check_rollouts(section: Any, stage: str) -> None:
  if len({*section.branches}) < len(section.branches):
    raise ValueError(f'{stage}.branches: got {section.branches}; every view '
                     'once.')
  if section.rounds < 1:
    raise ValueError(f'{stage}.rounds: got {section.rounds}; allowed: at least '
                     '1 rollout a step.')
  if section.rounds > 1 and section.staleness:
    raise ValueError(
        f'{stage}.rounds: got {section.rounds} with staleness='
        f'{section.staleness}; later rollouts of a step cannot be made ahead. '
        'Set one of both to its default.')
  if section.branches and section.staleness:
    raise ValueError(
        f'{stage}.branches: got {section.branches} with staleness='
        f'{section.staleness}; set one of both to its default.')
  if not 0 <= section.experts < section.samples_per_prompt:
    raise ValueError(
        f'{stage}.experts: got {section.experts} of samples_per_prompt='
        f'{section.samples_per_prompt}; allowed: 0 to one less.')
  if not section.experts_required and section.policy.rows != 'live':
    raise ValueError(
        f'{stage}.experts_required: False with policy.rows='
        f"{section.policy.rows!r}: a trace that is not there would count. Set "
        "policy.rows to 'live'.")
  if section.experts and section.branches:
    raise ValueError(f'{stage}.experts: got {section.experts} with branches='
                     f'{section.branches}: a trace has no image it was sampled '
                     'from. Set one of both to its default.')


def _check_revise(section: Any, stage: str) -> None:
  revise = section.revise
  if revise.fn is None:
    return
  if revise.keep.fn is None:
    raise ValueError(
        f'{stage}.revise.keep.fn: got None, and revise.fn={revise.fn!r}: '
        'nothing says which completions it replaces.')
  if not 0 < revise.temperature < math.inf:
    raise ValueError(f'{stage}.revise.temperature: got {revise.temperature}; '
                     'allowed: above 0.')
  for key in ('staleness', 'experts', 'branches'):
    if section[key]:
      raise ValueError(
          f'{stage}.revise.fn: got {revise.fn!r} with {key}={section[key]}: '
          'completions go on by the policy that made them, after the images '
          'that it saw. Set one of both to its default.')


def _check_env(section: Any, stage: str) -> None:
  if section.env is None:
    return
  for key in ('staleness', 'experts', 'branches'):
    if section[key]:
      raise ValueError(
          f'{stage}.env: got {section.env!r} with {key}={section[key]}: an '
          'environment answers the policy of this step, about the pictures of '
          'the data. Set one of both to its default.')
  if section.judges:
    raise ValueError(
        f'{stage}.env: got {section.env!r} with judges='
        f'{tuple(section.judges)}: a judge reads one turn of text. Set one of '
        'both to its default.')
  if section.revise.fn is not None or (
      needs(resolve.function(section.advantage.fn, 'mmr1.advantages'))
      == 'baseline'):
    raise ValueError(
        f'{stage}.env: got {section.env!r} with revise.fn='
        f'{section.revise.fn!r} and advantage.fn={section.advantage.fn!r}: '
        'what is sampled for these hears no environment. Set one of both to '
        'its default.')


def _check_replay(section: Any, stage: str) -> None:
  replay = section.replay
  if replay.fn is None:
    return
  if not 1 <= replay.rows <= replay.capacity:
    raise ValueError(
        f'{stage}.replay: got rows={replay.rows}, capacity={replay.capacity}; '
        'allowed: 1 <= rows <= capacity.')
  parts = section.minibatches_per_step * section.chunks_per_minibatch
  if replay.rows % parts:
    raise ValueError(
        f'{stage}.replay.rows: {replay.rows} rows do not split into '
        f'{section.minibatches_per_step} minibatches of '
        f'{section.chunks_per_minibatch} chunks; take a multiple of {parts}.')
  if section.old == 'self':
    raise ValueError(
        f"{stage}.replay.fn: got {replay.fn!r} with old='self': completions "
        'of earlier steps need the log-probs of the policy that made them. Set '
        f"{stage}.old to 'recompute' or 'sampler'.")


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
  check_memory(section, stage)
  updates = section.epochs_per_step * parts
  if section.old == 'self' and updates > 1:
    raise ValueError(
        f"{stage}.old: 'self' with {updates} updates per rollout: every ratio "
        "would be 1 and nothing would be clipped. Set old to 'recompute' (a "
        "pass before the first update) or 'sampler'.")


def check_memory(section: Any, stage: str) -> None:
  """Refuses an unknown place for a reference."""
  if section.reference_memory not in MEMORIES:
    raise ValueError(
        f'{stage}.reference_memory: got {section.reference_memory!r}; allowed '
        f'are {MEMORIES}.')


def _check_data(section: Any, stage: str, config: Any) -> None:
  """'train', a file, or what a collect stage before wrote."""
  before = config.stages[:config.stages.index(stage)]
  collects = [name for name in before if config[name].kind == 'collect']
  if section.data not in ('train', *collects) and not datasets.is_file(
      section.data):
    raise ValueError(
        f"{stage}.data: got {section.data!r}; rl reads 'train', the mixture "
        'or file of the data section, a file of its own (.jsonl, .parquet, '
        f'tfds:), or what a collect stage before it wrote: {collects}.')
  if datasets.is_file(section.data):  # now, not after the stages before
    required = section.experts and section.experts_required
    datasets.open_expert(
        config, section.data, 'completion' if required else 'answer')
  if section.experts and section.data == 'train' and config.data.path is None:
    raise ValueError(
        f"{stage}.experts: got {section.experts} with data='train': the "
        'procedural worlds have no traces. Set data.path to a file with '
        f'completions, or {stage}.data to a collect stage.')


def _check_members(section: Any, stage: str, config: Any) -> None:
  """Steps of one member of the mixture, and members that are imitated."""
  same, rounds = config.data.homogeneous, section.rounds
  if same and rounds > 1:
    raise ValueError(
        f'{stage}.rounds: got {rounds} with data.homogeneous=True; the next '
        'rollout would be of another member. Set one of both to its default.')
  for name in config.data.mixture:
    member, _ = datasets.member(config, name)
    where, judged = f'tasks.{name}', member.rewards
    if member.imitate and section.env is not None:
      raise ValueError(f'{where}.imitate: True with {stage}.env='
                       f'{section.env!r}; imitate episodes in a stage of sft.')
    if not member.imitate:
      if judged is not None and not {*judged} & {*section.rewards}:
        raise ValueError(
            f'{where}.rewards: got {judged}, none of {stage}.rewards='
            f'{section.rewards}: nothing would judge what is sampled.')
      continue
    if not same:
      raise ValueError(
          f'{where}.imitate: True needs steps of demonstrations alone. Set '
          'data.homogeneous to True.')
    if section.experts or section.branches or section.replay.fn is not None or (
        section.revise.fn is not None):
      raise ValueError(
          f'{where}.imitate: True with {stage}.experts={section.experts}, '
          f'branches={section.branches}, replay.fn={section.replay.fn!r}, '
          f'revise.fn={section.revise.fn!r}: where nothing is sampled there is '
          'no group to join, to keep or to go on from, and no view. Set them to '
          'their defaults.')
    name = section.advantage.fn
    if needs(resolve.function(name, 'mmr1.advantages')) == 'baseline':
      raise ValueError(
          f'{where}.imitate: True with {stage}.advantage.fn={name!r}: beside '
          'demonstrations there is no greedy completion. Take another one.')
    rows = section.prompts_per_step // section.minibatches_per_step
    if rows % section.chunks_per_minibatch:
      raise ValueError(
          f'{stage}.chunks_per_minibatch: {rows} demonstrations of a minibatch '
          f'do not split into {section.chunks_per_minibatch} chunks.')


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


def _check_advantage(section: Any, stage: str, config: Any) -> None:
  name = section.advantage.fn
  fn = resolve.function(name, 'mmr1.advantages')
  path = f'{fn.__module__}.{fn.__name__}'
  if section.samples_per_prompt == 1 and path in _NEED_GROUP:
    raise ValueError(
        f'{stage}: samples_per_prompt=1 with the group advantage {name!r}: a '
        'group of one has advantage 0, so nothing would train. Take at least '
        '2 samples.')
  if needs(fn) and section.staleness:
    raise ValueError(
        f'{stage}.advantage.fn: {name!r} reads what the policy that samples '
        f'says, which with staleness={section.staleness} is not there any '
        'more. Set staleness to 0.')
  if needs(fn) == 'baseline' and section.judges:
    raise ValueError(
        f'{stage}.judges: got {section.judges} with the advantage {name!r}: '
        'the greedy completions that it compares with are not judged. Take '
        "another advantage, or judges=().")
  if needs(fn) == 'values' and 'value' not in config.model.scalars:
    raise ValueError(
        f"{stage}.advantage.fn: {name!r} reads a critic's values; give the "
        "model one with model.scalars=('value',), and train it with a term: "
        "c.terms.critic = common.term('critic', 0.5).")


def needs(fn: Any) -> str | None:
  """What an advantage reads besides rewards and masks: 'baseline' (the reward
  of a greedy completion), 'values' (of a critic)."""
  return getattr(fn, 'needs', None)  # a builtin has no attributes of its own
