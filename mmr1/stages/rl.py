"""Stage `rl`: group-relative policy optimisation under verifiable rewards.

The step is the design's line of data, in its order:

  repeat until full:  prompts -> sample -> read -> look -> score -> advantage
                      -> select
  then:               assemble -> update
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import numpy as np

from mmr1 import asking
from mmr1 import context
from mmr1 import experience
from mmr1 import judged as judged_lib
from mmr1 import judges
from mmr1 import judging
from mmr1 import learner as learner_lib
from mmr1 import loop
from mmr1 import phases
from mmr1 import probing
from mmr1 import rl_checks
from mmr1 import rl_setup
from mmr1 import revising
from mmr1 import rollouts as rollouts_lib
from mmr1 import sample_rows
from mmr1 import training
from mmr1 import types
from mmr1.rewards import score as score_lib

setup = rl_setup.setup
Knobs = Mapping[str, float]
Looks = Mapping[str, types.Seen]
_SHOWN = 2  # groups of a step in the samples file


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


class Trainer:
  """The state of one rl stage around its jitted parts.

  Attributes:
    plan: the stage's functions.
    learner: makes the updates.
    rollouts: makes what they read.
    judges: other models, that score them.
    judging: makes advantages of their rewards.
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
    self.judges = judges.Judges(
        ctx, plan.judges, section.max_new_tokens, self.clock)
    self.revising = revising.Revising(
        ctx, stage, section, plan, self.rollouts)
    self.judging = judging.Judging(ctx, stage, section, plan)
    self.experience = experience.Experience(ctx, stage, section, plan.replay)
    self._hooks: dict[str, Any] = {}  # the state of each
    self._before: dict[str, float] = {}  # knobs of the step before
    self._last_metrics: dict[str, float] = {}

  # Host state that belongs to a checkpoint.

  def state(self) -> dict[str, Any]:
    return {**self.rollouts.state(),
            'host': {**self.judging.state, 'hooks': self._hooks,
                     'knobs': self._before},
            'memory': self.experience.state(),
            'last_metrics': _numbers(self._last_metrics)}

  def arrays(self) -> dict[str, jax.Array]:
    return {**self.rollouts.arrays(), **self.experience.arrays()}

  def take_back(self, waiting: Mapping[str, jax.Array]) -> None:
    self.rollouts.take_back(waiting)
    self.experience.take_back(waiting)

  def restore(self, state: Mapping[str, Any]) -> None:
    self.rollouts.restore(state)
    self.experience.restore(state['memory'])
    self._hooks = state['host']['hooks']
    self._before = state['host']['knobs']
    self.judging.state = {
        key: state['host'][key] for key in self.judging.state}
    self._last_metrics = state['last_metrics']

  # The step.

  def step(self, state: types.TrainState, k: int) -> loop.Step:
    """Rollouts until `select` is content, and the updates from them."""
    made = self.revised(state, self.rollouts.next(state, k), k)
    looks = self.look(state, made)
    scored = self.score(made, looks, k)
    knobs = self.knobs(scored, k)
    filled = self.judge(made, looks, scored, knobs, k)
    while filled.short and filled.rounds < self._section.rounds:
      again = self.revised(
          state, self.rollouts.again(state, k, filled.rounds), k,
          filled.rounds)
      looks = self.look(state, again)
      filled = filled.with_next(self.judge(
          again, looks, self.score(again, looks, k), knobs, k, filled.rounds))
    if filled.rounds > 1:
      filled = self.judging.together(filled, knobs, k)
    traced = training.traced(knobs)
    used = self.experience.use(
        self.assemble(filled, traced, state), filled.judged.keep, k)
    state, metrics = self.learner.update(state, used.batch, traced, k)
    metrics = {
        **metrics, **used.metrics, **self._report(filled, made.at, k),
        **{f'knob/{name}': knobs[name] for name in self.plan.moved}}
    self._last_metrics, self._before = metrics, knobs
    return loop.Step(
        state, metrics, used.batch,
        functools.partial(
            sample_rows.rows, filled, _SHOWN, self._ctx.processor,
            count=self._section.samples_tokens),
        given={'knobs': traced, 'rewards': filled.judged.scored.named()},
        tokens=int(filled.arrays.lengths.sum()), times=self.clock.take())

  def revised(self, state: types.TrainState, made: asking.Made, k: int,
              round_: int = 0) -> asking.Made:
    """With its revisions, and a critic's values of its tokens where the
    advantage reads them."""
    made = self.revising(state, made, k, round_)
    if rl_checks.needs(self.plan.advantage.fn) != 'values':
      return made
    return made._replace(rollout=made.rollout.replace(
        value=self.learner.values(
            state, made.rollout, np.float32(self.plan.temperature))))

  def look(self, state: types.TrainState, made: asking.Made) -> Looks:
    """What the looks of a rollout see of its tokens."""
    return self.learner.look(
        state, made.rollout, made.asked, np.float32(self.plan.temperature))

  @phases.phase('score')
  def score(self, made: asking.Made, looks: Looks,
            k: int) -> score_lib.Scored:
    """Rewards, judges, and probes with the knobs of the step before."""
    scored = self.judges.beside(made, self.rollouts.probed(
        made, self.rollouts.scored(made),
        probing.read(self.plan.probes, looks),
        {**self.plan.knobs, **self._before}))
    if scored.failures:
      first = scored.failures[0]
      self._ctx.logger.warn(
          f'{self._stage} step {k + 1}: {len(scored.failures)} reward calls '
          f'failed; the first, of {first.name!r} ({first.kind}): '
          f'{first.message}')
    return scored

  def knobs(self, scored: score_lib.Scored, k: int) -> dict[str, float]:
    """This step's numbers, after the hooks."""
    knobs = dict(self.plan.knobs)
    last = _numbers(self._last_metrics) if self.plan.hooks else {}
    for name, hook in self.plan.hooks.items():
      knobs, self._hooks[name] = hook(
          knobs, self._hooks.get(name, {}), scored.named(), last, k)
    return {**knobs, 'temperature': self.plan.temperature}

  @phases.phase('score')
  def judge(self, made: asking.Made, looks: Looks,
            scored: score_lib.Scored, knobs: Knobs, k: int,
            round_: int = 0) -> judged_lib.Filled:
    """combine, advantage, select."""
    return self.judging.judge(
        made, looks, scored, self.rollouts.baseline(made), knobs, k, round_)

  def assemble(self, filled: judged_lib.Filled,
               knobs: Mapping[str, jax.Array], state: types.TrainState,
               ) -> types.Block:
    """The block of this step; old and reference log-probs where needed."""
    rollout, judged = filled.rollout, filled.judged
    spoken = filled.arrays.spoken
    if not self.experience.keeps:  # else all of them may train later
      spoken = spoken & (judged.keep > 0)[..., None]
    mask, advantage, extra = self._layout.spread(
        (spoken, judged.advantage, dict(judged.extra)))
    extra['sampler_logp'] = rollout.logp
    for name, seen in filled.looks.items():
      made = {'view': seen.logp, 'pair': seen.pair, 'entropy': seen.entropy}
      extra |= {f'{key}/{name}': x for key, x in made.items() if x is not None}
    return self.learner.scored(state, types.Block(
        prompts=rollout.prompts, completions=rollout.completions, mask=mask,
        advantage=advantage, extra=extra), knobs)

  def _report(self, filled: judged_lib.Filled, at: int,
              k: int) -> dict[str, float]:
    """Host-side metrics."""
    rounds = {}
    if self._section.rounds > 1:
      rounds = {'select/rounds': filled.rounds}
    return {**judging.report(filled, episodes=self.plan.env is not None),
            **rounds, 'data/broken': self.rollouts.broken,
            'sampler/staleness': k - at}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
  """On the host; None where a number is not finite (a skipped update)."""
  return {name: float(x) if x is not None and np.isfinite(x) else None
          for name, x in jax.device_get(dict(metrics)).items()}
