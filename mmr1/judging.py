"""What makes advantages of rewards, and says which completions train.

The sockets `combine`, `advantage` and `select`, and what they keep from step to
step.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmr1 import arrays
from mmr1 import asking
from mmr1 import columns as columns_lib
from mmr1 import context
from mmr1 import judged as judged_lib
from mmr1 import rl_setup
from mmr1 import types
from mmr1.rewards import score as score_lib

Knobs = Mapping[str, float]
Looks = Mapping[str, types.Seen]


class Judging:
  """Of one stage.

  Attributes:
    plan: the stage's functions.
    state: {'combine', 'select'}, theirs; JSON-able, part of a checkpoint.
  """

  def __init__(self, ctx: context.Context, stage: str, section: Any,
               plan: rl_setup.Plan):
    self._ctx, self._stage, self._section = ctx, stage, section
    self.plan = plan
    self.state: dict[str, Any] = {'combine': {}, 'select': {}}

  def judge(self, made: asking.Made, looks: Looks, scored: score_lib.Scored,
            greedy: score_lib.Scored | None, knobs: Knobs, k: int,
            round_: int = 0) -> judged_lib.Filled:
    """combine, advantage, select.

    Args:
      made: a rollout.
      looks: what looks saw of it.
      scored: its rewards and probes.
      greedy: rewards of a greedy completion of every prompt, where the
        advantage reads them.
      knobs: this step's.
      k, round_: of the step, from 0.

    Raises:
      ValueError: `select` gave something else than what to keep.
    """
    plan, host = self.plan, made.host
    before = self.state['combine']
    rewards, says, self.state['combine'] = plan.combine(
        scored.columns, scored.names, knobs, before, weights=plan.weights,
        knobs=knobs)
    # A trace that the data does not have is no sample.
    rewards = np.where((host.lengths == 0)[..., None], np.nan, rewards)
    facts = judged_lib.Arrays(
        host.spoken, host.lengths, host.done, host.whole,
        self._cut(made), made.branch, host.expert,
        self._baseline(greedy, len(host.done), knobs, before), *_turns(made))
    advantage, extra = self._advantage(
        rewards, scored, facts, made.rollout, looks, knobs, [k, round_, 1])
    keep, counts, more, self.state['select'] = plan.select(
        {'overall': columns_lib.total(rewards), **scored.named()}, advantage,
        {'truncated': ~host.done, 'branch': made.branch,
         'expert': host.expert, 'spoken': host.spoken},
        self.state['select'],
        self._rng(k, round_, 2) if round_ else self._rng(k), knobs=knobs)
    self._check(keep, rewards.shape[:2])
    # A sample without any reward has nothing to say.
    keep = keep * ~np.isnan(rewards).all(-1)
    return judged_lib.Filled(made.rollout, looks, facts, judged_lib.Judged(
        made.samples, scored, rewards, advantage, keep, counts, more, extra,
        (says,)))

  def _cut(self, made: asking.Made) -> np.ndarray:
    """`judged.Arrays.cut`. The cap is on all tokens of a completion."""
    full = made.host.whole >= self._section.max_new_tokens
    return ~made.host.done & (full | (made.played is not None))

  def together(self, filled: judged_lib.Filled, knobs: Knobs,
               k: int) -> judged_lib.Filled:
    """Advantages of what several rollouts filled a step with, as one batch.

    Groups that were dropped and found no better one have no value in it.
    """
    judged = filled.judged
    rewards = np.where(judged.good[:, None, None], judged.rewards, np.nan)
    advantage, extra = self._advantage(
        rewards, judged.scored, filled.arrays, filled.rollout, filled.looks,
        knobs, [k, filled.rounds, 1])
    return judged_lib.replace(
        filled, rewards=rewards, advantage=advantage, extra=extra)

  def _check(self, keep: np.ndarray, shape: tuple[int, int]) -> None:
    n, g = shape
    odd = keep.dtype.kind not in 'bi' or keep.shape != (n, g)
    if odd or keep.min() < 0:
      low = '' if odd else f' with {keep.min()}'
      raise ValueError(
          f'{self._stage}.select: {self._section.select.fn!r} gave keep '
          f'{keep.dtype}{list(keep.shape)}{low}; needed is bool[{n}, {g}], or '
          f'int[{n}, {g}], how often each, from 0.')

  def _baseline(self, greedy, count: int, knobs, before) -> np.ndarray:
    """f64[N], the combined reward of greedy completions; nan without."""
    if greedy is None:
      return np.full(count, np.nan)
    rewards, _, _ = self.plan.combine(
        greedy.columns, greedy.names, knobs, before,
        weights=self.plan.scorer.weights, knobs=knobs)
    return np.nansum(rewards, axis=(1, 2))

  def _advantage(self, rewards, scored, facts, rollout, looks, knobs, address):
    """f32[N, G, 1 or T], and what it hands to terms."""
    view = self.plan.advantage.kwargs.get('view')
    tokens = columns_lib.Tokens(
        mask=facts.spoken, lengths=facts.lengths, expert=facts.expert,
        branch=facts.branch, baseline=facts.baseline, columns=scored.named(),
        rng=self._rng(*address), values=arrays.fetch(rollout.value),
        turn=facts.turn, turn_rewards=facts.turn_rewards,
        logp=None if view is None else arrays.fetch(rollout.logp),
        looks={} if view is None else {view: arrays.fetch(looks[view])})
    made = self.plan.advantage(rewards, tokens, knobs=knobs)
    made, extra = made if isinstance(made, tuple) else (made, {})
    return np.asarray(made, np.float32), {
        name: np.asarray(x, np.float32) for name, x in extra.items()}

  def _rng(self, *address: int) -> np.random.Generator:
    return np.random.default_rng([
        self._ctx.config.seed, self._ctx.index(self._stage), *address])


def _turns(made: asking.Made) -> tuple[np.ndarray, np.ndarray]:
  """`judged.Arrays.turn` and `turn_rewards`; all is turn 0 without an
  environment."""
  if made.played is not None:
    return made.played.numbers(), made.played.rewards
  spoken = made.host.spoken
  return (spoken.astype(np.int8) - 1, np.zeros((*spoken.shape[:2], 1)))


def report(filled: judged_lib.Filled, *,
           episodes: bool = False) -> dict[str, float]:
  """Metrics of what was used, by the field's names.

  Lengths are of what was said: the tokens that train.

  Args:
    filled: a step's completions.
    episodes: of an environment; then with the longest of all its tokens, which
      is what the cap is on.
  """
  judged, facts = filled.judged, filled.arrays
  _, valid, values = columns_lib.split(judged.rewards)
  total = columns_lib.total(judged.rewards)[valid.any(-1)]
  taught = facts.expert.all()  # by demonstrations alone: no group, no reward
  # Without any value there is none to log; 0.0 would be one (M13).
  reward = {} if taught or not total.size else {
      'reward/mean': total.mean(), 'reward/std': total.std()}
  # As the advantage decides it.
  flat = {} if taught else {'group/zero_std_frac': columns_lib.flat(
      np, values, valid, 1).all(-1).mean()}
  own = (~facts.expert | taught) & (facts.lengths > 0)
  lengths = facts.lengths[own]
  handed = {f'advantage/{name}/mean': (
      x if x.shape[-1] == 1 else x[facts.spoken]).mean()
            for name, x in judged.extra.items()}
  # A wish that was not granted.
  short = {'select/short': 1} if judged.more else {}
  longest = {'env/tokens_max': facts.whole[own].max()} if episodes else {}
  return {
      **judged.scored.metrics, **judged.said, **judged.counts, **reward, **flat,
      **handed, **short, **longest,
      'response_length/mean': lengths.mean(),
      'response_length/max': lengths.max(),
      'response_length/clip_frac': facts.cut[own].mean()}
