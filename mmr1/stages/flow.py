"""Stage `flow`: a model of pictures, by given ones or by rewards of its own.

One round: prompts -> sample (the old parameters) -> reward -> advantage ->
select -> update -> the old parameters follow. With the objective 'matching'
pictures are given and the line begins at the update.

Beside the parameters that train there are the old ones, which sample; the
reference, those that the stage starts from; and an average, which is evaluated.
"""

from collections.abc import Mapping, Sequence
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import arrays
from mmr1 import context
from mmr1 import flow_objectives
from mmr1 import flow_setup
from mmr1 import flow_update
from mmr1 import generator
from mmr1 import learner
from mmr1 import loop
from mmr1 import optim
from mmr1 import phases
from mmr1 import picture_judges
from mmr1 import records
from mmr1 import trees
from mmr1 import types
from mmr1.data import sources
from mmr1.flows import solvers
from mmr1.models import dit
from mmr1.models import lora
from mmr1.sampling import keys as keys_lib

NAME = generator.NAME
_SAMPLE, _UPDATE = 0, 1  # views in the key law

setup = flow_setup.plan


class Prompts:
  """Examples in order, without those that are banned."""

  def __init__(self, mixture: sources.Mixture):
    self._mixture, self._position = mixture, 0
    self.selected: Mapping[str, Any] = {}  # the state of `select`

  def take(self, n: int) -> list[records.Example]:
    """The next n.

    Raises:
      ValueError: all are banned.
    """
    banned = frozenset(self.selected.get('banned', ()))
    if len(banned) >= len(self._mixture):
      raise ValueError(
          f'flow: all of the {len(banned)} prompts are banned: every one is '
          'followed by all samples. Raise data.train_size, or end the stage '
          'earlier.')
    taken = []
    while len(taken) < n:
      example = self._mixture[self._position]
      self._position += 1
      if example.uid not in banned:
        taken.append(example)
    return taken

  def state(self) -> dict[str, Any]:
    return {'position': self._position, 'select': dict(self.selected)}

  def restore(self, state: Mapping[str, Any]) -> None:
    self._position, self.selected = state['position'], state['select']


def asked(examples: Sequence[records.Example], model: dit.Config,
          ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
  """(condition i32[N, L], source f32[N, H, W, C] | None, uid i32[N])."""
  condition = np.asarray([e.meta['condition'] for e in examples], np.int32)
  source = np.stack([generator.pixels(e.images[0]) for e in examples]) if (
      model.source) else None
  return condition, source, np.asarray([e.uid for e in examples], np.int32)


class Trainer:
  """A stage. `start`: its state at the start; `prompts`: its position."""

  def __init__(self, ctx: context.Context, stage: str, section: Any,
               plan: flow_setup.Plan):
    self._ctx, self._stage, self._section, self.plan = (
        ctx, stage, section, plan)
    self.clock = phases.Clock(
        lambda name: ctx.watchdog.begin(f'{stage}: {name}'))
    self.prompts = Prompts(plan.world('train', ctx.index(stage)))
    self._judge = (None if section.judge is None else
                   picture_judges.Judge(ctx, section.judge))
    self._begin(generator.Parameters(
        ctx, section.kind, lambda key: dit.init(plan.model, key)).start(stage))
    self._update = flow_update.make(
        plan.model, self.optimizer, plan.objective, ctx.policy.layout,
        steps=plan.settings.steps, chunks=section.chunks_per_minibatch,
        cap=section.ema.cap)
    self._aged = flow_update.make_aged(
        self.optimizer, **section.old.as_dict())
    self._held_out = self._examples_held_out()

  def _begin(self, params):
    section, layout = self._section, self._ctx.policy.layout
    params = layout.own(params)
    trains = lora.trains(params, ()) if section.lora.rank else None
    self.optimizer = optim.make(
        section.optimizer, params,
        section.steps * section.minibatches_per_step, trains)
    trainable, _ = trees.partition(params, self.optimizer.mask)
    # Each in buffers of its own: an update gives all of them up.
    slow = {flow_update.EMA: layout.own(trainable)}
    if self.plan.objective.sampled:
      slow[flow_update.OLD] = layout.own(trainable)
    self.reference = layout.own(trainable) if (
        flow_objectives.REFERENCE in self.plan.objective.reads) else None
    self.start = layout.own(types.TrainState(
        step=jnp.int32(0), params={NAME: params},
        opt={NAME: self.optimizer.tx.init(trainable)},
        aux={'guard': optim.init_guard()})).replace(slow=slow)
    # What never changes follows from the stages before.
    self.stored = ('.*',) if trains is None else (
        f'(?!params/{NAME}/).*', *(
            f'params/{NAME}/{re.escape(name)}'
            for name in trees.named(trainable)))
    self._ctx.logger.note(
        f'{self._stage}: {trees.count(trainable):,} of {trees.count(params):,} '
        'parameters train')

  def _whole(self, state, name):
    """Slow parameters with what does not train."""
    return trees.merge(state.slow[name], trees.partition(
        state.params[NAME], self.optimizer.mask)[1])

  def _key(self, k, view):
    return keys_lib.step_key(
        self._ctx.config.seed, self._ctx.index(self._stage), k, view=view)

  def step(self, state: types.TrainState, k: int) -> loop.Step:
    """Round k, from 0."""
    examples = self.prompts.take(self._section.prompts_per_step)
    if self.plan.objective.sampled:
      path = self._sample(state, examples, k)
      columns = self._reward(examples, arrays.fetch(path.x0))
      round_, metrics = self._select(examples, path, columns, k)
    else:
      columns, metrics = {}, {}
      round_ = self._given(examples, k)
    state, says = self._learn(state, round_, k)
    return loop.Step(
        state, {**says, **metrics}, round_,
        lambda: self._samples(examples, round_, columns),
        given={'rewards': columns}, times=self.clock.take())

  @phases.phase('sample', ready=lambda path: path.x0)
  def _sample(self, state, examples, k) -> solvers.Path:
    given = self._ctx.policy.layout.spread(asked(examples, self.plan.model))
    return generator.sample(
        self.plan.model, self._whole(state, flow_update.OLD), *given,
        self._key(k, _SAMPLE), settings=self.plan.settings,
        group=self._section.samples_per_prompt,
        trace=self.plan.objective.trace)

  @phases.phase('reward')
  def _reward(self, examples, images) -> dict[str, np.ndarray]:
    """{name: f64[N, G]}: 'reward', and beside a judge's the 'score'."""
    score = np.stack([self.plan.reward(group, example)
                      for group, example in zip(images, examples)])
    if self._judge is None:
      return {'reward': score}
    return {'reward': self._judge(examples, images), 'score': score}

  def _select(self, examples, path, columns, k):
    """The round, and metrics of rewards and of what is kept."""
    reward = columns['reward']
    advantage = np.asarray(self.plan.advantage(reward[..., None]))
    rng = np.random.default_rng(
        [self._ctx.config.seed, self._ctx.index(self._stage), k])
    keep, counts, _, self.prompts.selected = self.plan.select(
        {'overall': reward, **columns}, advantage,
        {'uid': np.asarray([e.uid for e in examples])}, self.prompts.selected,
        rng)
    metrics = {
        'reward/mean': reward.mean(), 'reward/std': reward.std(),
        'group/zero_std_frac': np.mean(np.ptp(reward, 1) == 0),
        'select/kept_frac': np.mean(keep > 0), **counts}
    if 'score' in columns:
      metrics['reward/score/mean'] = columns['score'].mean()
    return self._round(
        examples, path.x0, np.float32(advantage[..., 0]), np.float32(keep),
        latents=path.latents, logp=path.logp), metrics

  def _given(self, examples, k) -> flow_objectives.Round:
    """Targets as the only picture of each prompt."""
    x0 = np.stack([generator.pixels(e.meta['target']) for e in examples])
    ones = np.ones((len(examples), 1), np.float32)
    round_ = self._round(examples, x0[:, None], 0 * ones, ones)
    if not self._section.condition_dropout:
      return round_
    rng = np.random.default_rng(
        [self._ctx.config.seed, self._ctx.index(self._stage), k])
    told = rng.random(len(examples)) >= self._section.condition_dropout
    return round_.replace(condition=self._ctx.policy.layout.spread(
        np.where(told[:, None], asked(examples, self.plan.model)[0], 0)))

  def _round(self, examples, x0, advantage, keep, **made):
    condition, source, uid = asked(examples, self.plan.model)
    spread = self._ctx.policy.layout.spread(flow_objectives.Round(
        condition=condition, source=source, uid=uid, x0=x0,
        advantage=advantage, keep=keep, schedule=None, **made))
    return spread.replace(
        schedule=solvers.sigmas(self.plan.settings.steps))

  @phases.phase('update', ready=lambda result: result[1])
  def _learn(self, state, round_, k):
    """Minibatches of prompts, then the old parameters follow."""
    seen, parts = [], self._section.minibatches_per_step
    for part in range(parts):
      key = keys_lib.step_key(
          self._ctx.config.seed, self._ctx.index(self._stage), k, round_=part,
          view=_UPDATE)
      state, metrics = self._update(
          state, self._minibatch(round_, part, parts), key, self.reference)
      seen.append(metrics)
    if self.plan.objective.sampled:
      state = self._aged(state)
    return state, learner.combine(seen)

  def _minibatch(self, round_, part, parts):
    if parts == 1:
      return round_
    rows = _rows(round_.replace(schedule=None), part, parts)
    return self._ctx.policy.layout.spread(rows).replace(
        schedule=round_.schedule)

  def _samples(self, examples, round_, columns) -> list[dict[str, Any]]:
    """Rows for the samples file, of a group each; rewards are its means."""
    images, rows = arrays.fetch(round_.x0), []
    for i, example in enumerate(examples[:4]):
      # Without rewards nothing was made: x0 is the target.
      made = [*map(picture_judges.picture, images[i][:8])] if columns else []
      says = [', '.join(f'{name} {x[i][j]:.3g}' for name, x in columns.items())
              for j in range(len(made))]
      rows.append({
          'prompt': example.question,
          'images': [*example.images, *made, example.meta['target']],
          'captions': [*['given'] * len(example.images), *says, 'target'],
          **({'rewards': {name: float(x[i].mean())
                          for name, x in columns.items()}} if columns else {})})
    return rows

  def _examples_held_out(self) -> list[records.Example]:
    mixture = self.plan.world('eval', 0)
    count = min(self._section.evaluation.examples, len(mixture))
    return [mixture[i] for i in range(count)]

  def evaluate(self, state: types.TrainState, stage: str, done: int,
               ) -> dict[str, float]:
    """Rewards of pictures of the average for held-out prompts."""
    del stage, done
    section = self._section.evaluation
    path = generator.sample(
        self.plan.model, self._whole(state, flow_update.EMA),
        *self._ctx.policy.layout.spread(
            asked(self._held_out, self.plan.model)),
        keys_lib.step_key(section.seed, 0, 0), settings=self.plan.evaluated,
        group=section.samples)
    images = arrays.fetch(path.x0)
    score = np.stack([self.plan.reward(group, example)
                      for group, example in zip(images, self._held_out)])
    followed = score >= section.followed
    forms = np.asarray([e.meta.get('form', 'all') for e in self._held_out])
    return {
        'eval/reward': float(score.mean()),
        'eval/followed': float(followed.mean()),
        **{f'eval/{form}': float(followed[forms == form].mean())
           for form in sorted({*forms})}, 'eval/n': score.size}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _rows(round_: flow_objectives.Round, part: int, parts: int,
          ) -> flow_objectives.Round:
  return jax.tree.map(lambda x: x[part::parts], round_)


def run(ctx: context.Context, stage: str, section: Any,
        plan: flow_setup.Plan) -> None:
  """Trains; the stage's last checkpoint is its model."""
  trainer = Trainer(ctx, stage, section, plan)
  loop.train(
      ctx, stage, section, trainer.start, trainer.prompts, trainer.step,
      trainer.stored, evaluate=trainer.evaluate, best='eval/reward')
