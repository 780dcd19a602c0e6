"""Stage `rl`: group-relative policy optimisation under verifiable rewards.

The step is the design's line of data, in its order:

  prompts -> sample -> read -> score -> advantage -> select -> assemble
          -> update
"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from mmr1 import columns as columns_lib
from mmr1 import context
from mmr1 import learner as learner_lib
from mmr1 import loop
from mmr1 import phases
from mmr1 import records
from mmr1.rewards import score as score_lib
from mmr1 import rl_setup
from mmr1 import rollouts as rollouts_lib
from mmr1 import training
from mmr1 import types

setup = rl_setup.setup


def learner(
    ctx: context.Context, stage: str, section: Any,
) -> learner_lib.GroupLearner:
  """What the stage learns with, at its start."""
  return learner_lib.GroupLearner(
      ctx, stage, section, rl_setup.objective_of(section, stage, ctx.config))


def run(
    ctx: context.Context, stage: str, section: Any, plan: rl_setup.Plan,
) -> None:
  """Trains; the stage's last checkpoint is its model."""
  trainer = Trainer(ctx, stage, section, plan)
  loop.train(
      ctx, stage, section, trainer.start.state, trainer, trainer.step,
      trainer.start.stored, waiting=trainer)


class Judged(NamedTuple):
  """What the host decides about a rollout.

  Fields:
    samples: of this host's rows, group after group.
    scored: columns, names, metrics.
    rewards: f64[N, G, K'], combined; nan: no value.
    advantage: f32[N, G, 1 or T].
    keep: bool[N, G].
    counts: what select dropped, by name.
  """
  samples: list[records.Sample]
  scored: score_lib.Scored
  rewards: np.ndarray
  advantage: np.ndarray
  keep: np.ndarray
  counts: Mapping[str, int]


class Trainer:
  """The state of one rl stage around its jitted parts.

  Attributes:
    plan: the stage's functions.
    learner: makes the updates.
    rollouts: makes what they read.
    start: where the stage starts.
    clock: of the phases.
  """

  def __init__(
      self, ctx: context.Context, stage: str, section: Any,
      plan: rl_setup.Plan):
    self._ctx, self._stage = ctx, stage
    self._section, self.plan = section, plan
    self._layout = ctx.policy.layout
    self.learner = learner(ctx, stage, section)
    self.start, self.clock = self.learner.start, self.learner.clock
    self.rollouts = rollouts_lib.Rollouts(
        ctx, stage, section, plan, self.clock)
    self._host_state: dict[str, Any] = {
        'combine': {}, 'select': {}, 'hooks': {}}
    self._last_metrics: dict[str, float] = {}

  # Host state that belongs to a checkpoint.

  def state(self) -> dict[str, Any]:
    return {**self.rollouts.state(), 'host': self._host_state,
            'last_metrics': _numbers(self._last_metrics)}

  def arrays(self) -> dict[str, jax.Array]:
    return self.rollouts.arrays()

  def take_back(self, arrays: Mapping[str, jax.Array]) -> None:
    self.rollouts.take_back(arrays)

  def restore(self, state: Mapping[str, Any]) -> None:
    self.rollouts.restore(state)
    self._host_state = state['host']
    self._last_metrics = state['last_metrics']

  # The step.

  def step(self, state: types.TrainState, k: int) -> loop.Step:
    """One rollout and its updates."""
    made = self.rollouts.next(state, k)
    judged = self.judge(made, k)
    knobs = self.knobs(judged, k)
    block = self.assemble(made, judged, knobs, state)
    state, metrics = self.learner.update(state, (block,), knobs, k)
    metrics = {**metrics, **self._report(made, judged, k)}
    self._last_metrics = metrics
    return loop.Step(
        state, metrics, (block,), functools.partial(self._samples, judged),
        given={'knobs': knobs, 'rewards': judged.scored.named()},
        tokens=int(made.host.lengths.sum()), times=self.clock.take())

  @phases.phase('score')
  def judge(self, made: rollouts_lib.Made, k: int) -> Judged:
    """score, combine, advantage, select."""
    plan, section, host = self.plan, self._section, made.host
    n, g = section.prompts_per_step, section.samples_per_prompt
    scored = self.rollouts.scored(made)
    if scored.failures:
      first = scored.failures[0]
      self._ctx.logger.warn(
          f'{self._stage} step {k + 1}: {len(scored.failures)} reward calls '
          f'failed; the first, of {first.name!r} ({first.kind}): '
          f'{first.message}')
    rewards, self._host_state['combine'] = plan.combine(
        scored.columns, scored.names, plan.objective.knobs,
        self._host_state['combine'])
    tokens = columns_lib.Tokens(mask=host.sampled, lengths=host.lengths)
    advantage = np.asarray(plan.advantage(rewards, tokens), np.float32)
    rng = np.random.default_rng(
        [self._ctx.config.seed, self._ctx.index(self._stage), k])
    keep, counts, more, self._host_state['select'] = plan.select(
        scored.named(), advantage, {'truncated': ~host.done},
        self._host_state['select'], rng)
    if keep.dtype != bool or keep.shape != (n, g):
      raise ValueError(
          f'{self._stage}.select: {section.select.fn!r} gave keep '
          f'{keep.dtype}{list(keep.shape)}; needed is bool[{n}, {g}].')
    if more:  # a step is one rollout: the wish is counted, not granted
      counts = {**counts, 'select/short': 1}
    # A sample without any reward has nothing to say.
    keep = keep & ~np.isnan(rewards).all(-1)
    return Judged(made.samples, scored, rewards, advantage, keep, counts)

  def knobs(self, judged: Judged, k: int) -> dict[str, Any]:
    """This step's numbers, after the hooks."""
    knobs = dict(self.plan.objective.knobs)
    last = _numbers(self._last_metrics) if self.plan.hooks else {}
    for name, hook in self.plan.hooks.items():
      state = self._host_state['hooks'].get(name, {})
      knobs, self._host_state['hooks'][name] = hook(
          knobs, state, judged.scored.named(), last, k)
    knobs['temperature'] = self.plan.temperature
    return training.traced(knobs)

  def assemble(self, made: rollouts_lib.Made, judged: Judged,
                knobs: Mapping[str, Any], state: types.TrainState,
                ) -> types.Block:
    """The block of this step; old and reference log-probs where needed."""
    rollout = made.rollout
    mask, advantage = self._layout.spread(
        (made.host.sampled & judged.keep[..., None], judged.advantage))
    return self.learner.scored(state, types.Block(
        prompts=rollout.prompts, completions=rollout.completions, mask=mask,
        advantage=advantage, extra={'sampler_logp': rollout.logp}), knobs)

  # What is logged.

  def _report(self, made: rollouts_lib.Made, judged: Judged,
              k: int) -> dict[str, float]:
    """Host-side metrics: what was used, by the field's names."""
    _, valid, values = columns_lib.split(judged.rewards)
    total = values.sum(-1)[valid.any(-1)]
    # Without any value there is none to log; 0.0 would be one (M13).
    reward = {'reward/mean': total.mean(),
              'reward/std': total.std()} if total.size else {}
    # As the advantage decides it.
    flat = columns_lib.flat(np, values, valid, 1).all(-1)
    cap = self._section.max_new_tokens
    lengths, done = made.host.lengths, made.host.done
    return {
        **judged.scored.metrics, **judged.counts, **reward,
        'group/zero_std_frac': flat.mean(),
        'response_length/mean': lengths.mean(),
        'response_length/max': lengths.max(),
        'response_length/clip_frac': np.mean((lengths >= cap) & ~done),
        'data/broken': self.rollouts.broken,
        'sampler/staleness': k - made.at,
    }

  def _samples(self, judged: Judged) -> list[dict[str, Any]]:
    """Two groups with their images, rewards and advantages."""
    g, rows = self._section.samples_per_prompt, []
    for s in judged.samples[:2 * g]:
      rows.append({
          'prompt': s.example.question, 'images': list(s.example.images),
          'answer': s.example.answer, 'completion': s.text,
          'length': s.length, 'truncated': s.truncated, 'uid': s.uid,
          'group': s.group, 'slot': s.slot,
          'rewards': dict(zip(judged.scored.names, map(
              float, judged.scored.columns[s.group, s.slot]))),
          'advantage': float(judged.advantage[s.group, s.slot, 0])})
    return rows


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
  """On the host; None where a number is not finite (a skipped update)."""
  return {name: float(x) if x is not None and np.isfinite(x) else None
          for name, x in jax.device_get(dict(metrics)).items()}
