"""From sft to rl: what is imitated must earn the rewards that follow (M12).

A cold start in another format than the reward's (a template that prefills
`<think>`, data of another code base) makes an rl stage in which everything
earns 0. So before sft trains, some of its completions are scored by the
rewards of the next rl stage that say what a right and well-formed completion
earns: `fn.perfect`.
"""


import numpy as np

from mmr1 import context
from mmr1 import records
from mmr1 import rl_setup
from mmr1 import types
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import sources
from mmr1.rewards import score

_ROWS = 64
_LEAST = 0.5  # of the completions, below which sft does not begin


def check(
    ctx: context.Context, stage: str, mixture: sources.Mixture, cap: int,
) -> None:
  """Scores the first completions of an sft stage; says what they earn.

  Args:
    ctx: the run.
    stage: the sft stage.
    mixture: its examples, each with a completion.
    cap: its max_new_tokens; longer completions are not trained on.

  Raises:
    ValueError: most completions do not earn what a reward calls perfect.
  """
  follower = _next_rl(ctx, stage)
  rewards = {} if follower is None else {
      name: reward for name, reward in
      rl_setup.rewards(ctx.config[follower], ctx.config).items()
      if hasattr(reward.fn, 'perfect')}
  samples = _samples(ctx.processor, mixture, cap) if rewards else []
  if not samples:
    return
  scored = score.Scorer(rewards).score(samples, len(samples), 1, {})
  for k, (name, reward) in enumerate(rewards.items()):
    earned = scored.columns[:, 0, k]
    known = ~np.isnan(earned)
    short = np.flatnonzero(known & (earned < reward.fn.perfect))
    if not known.any():
      continue
    told = (f'{stage}: {known.sum() - len(short)} of {known.sum()} completions '
            f'earn {reward.fn.perfect:g} under {name!r}, a reward of '
            f'{follower}')
    if not len(short):
      ctx.logger.note(told)
      continue
    first = samples[short[0]]
    told += (f'; not that of {first.example.source or first.uid}: '
             f'{first.text[:200]!r}, answer {first.example.answer!r}')
    if len(short) > (1 - _LEAST) * known.sum():
      raise ValueError(
          f'{told}. Imitating them would teach what {follower} does not '
          f'reward: change the data, or rewards.{name}.')
    ctx.logger.warn(told)


def _next_rl(ctx: context.Context, stage: str) -> str | None:
  """The first rl stage that starts from what this one makes."""
  made = {stage}
  for later in ctx.order[ctx.order.index(stage) + 1:]:
    kind = ctx.config[later].kind
    if kind in context.TRAINS and ctx.lineage.source(later) in made:
      if kind == 'rl':
        return later
      made.add(later)
  return None


def _samples(
    processor: processor_lib.Processor, mixture: sources.Mixture, cap: int,
) -> list[records.Sample]:
  """Completions as the policy would have sampled them, at most `_ROWS`."""
  found = []
  for k in range(min(len(mixture), 4 * _ROWS)):
    item = mixture[k]
    if isinstance(item, records.Broken):
      continue
    try:
      ids = encode.encode_completion(item.completions[0], processor)
    except ValueError:
      continue  # named and counted by the stream that trains
    if len(ids) > cap:
      continue
    text = encode.decode(ids, processor)
    found.append(records.Sample(
        text=text, tokens=tuple(map(int, ids)),
        kinds=(types.KIND_EXPERT,) * len(ids), length=len(ids),
        truncated=False, example=item, uid=item.uid, group=len(found), slot=0,
        turns=(records.Turn('assistant', text),)))
    if len(found) == _ROWS:
      break
  return found
