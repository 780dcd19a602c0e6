"""Stage `detect`: a detector that is shown its classes.

In a step every box of the pictures is read as an instance of its class; one
instance of each class, drawn at random, is the prompt by which all pictures of
the step are searched. Losses of every layer as in DINO, the agreement of
instances with names of classes, and a term about the queries.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import arrays
from mmr1 import average_precision
from mmr1 import context
from mmr1 import detect_setup
from mmr1 import generator
from mmr1 import loop
from mmr1 import optim
from mmr1 import phases
from mmr1 import records
from mmr1 import trees
from mmr1 import types
from mmr1.losses import detection
from mmr1.models import detector
from mmr1.sampling import keys as keys_lib

NAME, REFERENCE = 'detector', 'reference'

setup = detect_setup.plan

class Batch(NamedTuple):
  """images f32[B, H, W, 3] in -1 .. 1, and what is in them."""
  images: Any
  truth: detection.Truth


def batch_of(examples: Sequence[records.Example], size: int, boxes: int,
             ) -> Batch:
  """Arrays of examples, padded to `boxes` of each.

  Raises:
    ValueError: a picture of another size or with more boxes.
  """
  made = detection.Truth(
      np.full((len(examples), boxes, 4), 0.5, np.float32),
      np.zeros((len(examples), boxes), np.int32),
      np.zeros((len(examples), boxes), bool))
  for i, example in enumerate(examples):
    edges = np.asarray(example.meta['boxes'], np.float32) / size
    if len(edges) > boxes or example.images[0].size != (size, size):
      raise ValueError(
          f'{example.source}: a picture of {example.images[0].size} with '
          f'{len(edges)} boxes; allowed are {size} (detector.size) and at most '
          f'{boxes}.')
    made.boxes[i, :len(edges)] = np.concatenate(
        [(edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]], 1)
    made.classes[i, :len(edges)] = example.meta['classes']
    made.real[i, :len(edges)] = True
  return Batch(np.stack([generator.pixels(e.images[0]) for e in examples]),
               made)


def drawn(key: jax.Array, truth: detection.Truth, classes: int,
          ) -> tuple[jax.Array, jax.Array]:
  """(i32[C], bool[C]): an instance of each class among B x M, and which are
  there."""
  of = (truth.classes.reshape(-1) == jnp.arange(classes)[:, None]) & (
      truth.real.reshape(-1))
  noise = jax.random.uniform(key, of.shape)
  return jnp.argmax(jnp.where(of, noise, -1.0), 1), of.any(1)


def losses(model: detector.Config, section: Any, term: Any, params: Any,
           reference: Any, batch: Batch, key: jax.Array, on: jax.Array,
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
  """f32[] and metrics; `on`: f32[], whether the term about queries counts."""
  truth = batch.truth
  chosen, known = drawn(key, truth, model.classes)

  def seen(params):
    net = detector.Detector(model).bind({'params': params})
    features = net.features(batch.images)
    instances = net.prompts(features, truth.boxes)
    flat = instances.reshape(-1, model.width)
    return net.alike(flat), net.detect(features, flat[chosen], known)
  alike, found = seen(params)
  total = section.alignment * detection.alignment(
      alike, truth.classes.reshape(-1), truth.real.reshape(-1))
  metrics = {'loss/alignment': total}
  costs = [detection.costs(logits, boxes, truth, detection.Weights(
      **section.cost.as_dict())) for logits, boxes in zip(
          found.logits, found.boxes)]
  for logits, boxes, cost in zip(found.logits, found.boxes, costs):
    value, parts = detection.matched(
        logits, boxes, truth, detection.match(cost),
        detection.Weights(**section.loss.as_dict()))
    total = total + value
    for name, part in parts.items():  # of the last layer in the end
      metrics[f'loss/{name}'] = part
  if term is None:
    return total, metrics
  take = lambda x: jnp.take_along_axis(x, found.index, 1)
  before = jax.lax.stop_gradient(take(seen(reference)[1].scores))
  for cost in costs[1:]:
    value, says = term(cost, take(found.scores), before, truth.real)
    total = total + on * value
    for name, part in says.items():
      metrics[f'queries/{name}'] = part
  return total, metrics


class Trainer:
  """A stage. `start`: its state at the start."""

  def __init__(self, ctx: context.Context, stage: str, section: Any,
               plan: detect_setup.Plan):
    self._ctx, self._stage, self._section, self.plan = (
        ctx, stage, section, plan)
    self.clock = phases.Clock(
        lambda name: ctx.watchdog.begin(f'{stage}: {name}'))
    self._mixture = plan.world('train', ctx.index(stage))
    self._position = 0
    layout = ctx.policy.layout
    params = layout.own(generator.Parameters(
        ctx, section.kind, functools.partial(detector.init, plan.model),
        NAME).start(stage))
    self.optimizer = optim.make(section.optimizer, params, section.steps)
    trainable, _ = trees.partition(params, self.optimizer.mask)
    slow = {REFERENCE: layout.own(params)} if plan.term else {}
    self.start = layout.own(types.TrainState(
        step=jnp.int32(0), params={NAME: params},
        opt={NAME: self.optimizer.tx.init(trainable)},
        aux={'guard': optim.init_guard()})).replace(slow=slow)
    ctx.logger.note(f'{stage}: {trees.count(trainable):,} of '
                    f'{trees.count(params):,} parameters train')
    self._update = self._make_update()
    self._refreshed = jax.jit(
        lambda state: state.replace(slow={REFERENCE: jax.tree.map(
            jnp.copy, state.params[NAME])}), donate_argnums=0)
    self._held_out = self._examples_held_out()

  def _make_update(self):
    mask, layout = self.optimizer.mask, self._ctx.policy.layout

    def update(state, batch, key, on):
      trainable, frozen = trees.partition(state.params[NAME], mask)
      (loss, metrics), grads = jax.value_and_grad(
          lambda t: losses(
              self.plan.model, self._section, self.plan.term,
              trees.merge(t, frozen), state.slow.get(REFERENCE), batch, key,
              on), has_aux=True)(trainable)
      trainable, opt, guard, more = optim.guarded_update(
          self.optimizer, grads, loss, state.opt[NAME], trainable,
          state.aux['guard'])
      state = state.replace(
          step=state.step + 1,
          params={NAME: trees.merge(trainable, frozen)}, opt={NAME: opt},
          aux={'guard': guard})
      return layout.keep(state), {'loss': loss, **metrics, **more}
    return jax.jit(update, donate_argnums=0)

  def state(self) -> dict[str, Any]:
    return {'position': self._position}

  def restore(self, state: Mapping[str, Any]) -> None:
    self._position = state['position']

  def step(self, state: types.TrainState, k: int) -> loop.Step:
    """Step k, from 0."""
    rows = range(self._position, self._position + self._section.rows_per_step)
    examples = [self._mixture[i] for i in rows]
    self._position = rows.stop
    batch = self._ctx.policy.layout.spread(batch_of(
        examples, self.plan.model.size, self._section.boxes))
    state, metrics = self._learn(state, batch, k)
    if self.plan.term and (k + 1) % self._section.reference_every == 0:
      state = self._refreshed(state)
    return loop.Step(
        state, metrics, batch, lambda: [
            {'prompt': e.question, 'images': list(e.images),
             'size': list(e.images[0].size), 'boxes': e.meta['boxes'],
             'classes': e.meta['classes']}
            for e in examples[:4]], times=self.clock.take())

  @phases.phase('update', ready=lambda result: result[1])
  def _learn(self, state, batch, k):
    key = keys_lib.step_key(
        self._ctx.config.seed, self._ctx.index(self._stage), k)
    on = jnp.float32(k >= self._section.queries.after)
    return self._update(state, batch, key, on)

  def _examples_held_out(self):
    """Pictures of the other split; those of this one show the classes."""
    shown, asked = self.plan.world('train', 0), self.plan.world('eval', 0)
    count = self._section.evaluation.examples
    return [[mixture[i] for i in range(min(count, len(mixture)))]
            for mixture in (shown, asked)]

  def found(self, params: Any) -> list[average_precision.Boxes]:
    """Detections in the held-out pictures, by one instance of each class."""
    model, section = self.plan.model, self._section
    shown, asked = (batch_of(examples, model.size, section.boxes)
                    for examples in self._held_out)
    key = keys_lib.step_key(section.evaluation.seed, 0, 0)
    boxes, scores = arrays.fetch(_detected(
        model, params, shown, self._ctx.policy.layout.spread(asked.images),
        key))
    result = []
    for box, score in zip(boxes, scores):
      query, label = np.nonzero(score > -1)
      result.append(average_precision.Boxes(
          np.asarray(detection.corners(box[query])), label,
          score[query, label]))
    return result

  def evaluate(self, state: types.TrainState, stage: str, done: int,
               ) -> dict[str, float]:
    """COCO's AP on held-out pictures."""
    del stage, done
    size = self.plan.model.size
    truth = [average_precision.Boxes(
        np.asarray(e.meta['boxes']) / size, np.asarray(e.meta['classes']))
             for e in self._held_out[1]]
    by_iou = average_precision.average_precision(
        self.found(state.params[NAME]), truth)
    return {'eval/ap': float(np.mean([*by_iou.values()])),
            'eval/ap50': by_iou[0.5], 'eval/ap75': by_iou[0.75],
            'eval/n': len(truth)}


@functools.partial(jax.jit, static_argnums=0)
def _detected(model: detector.Config, params: Any, shown: Batch,
              images: jax.Array, key: jax.Array,
              ) -> tuple[jax.Array, jax.Array]:
  """Boxes f32[B, Q, 4] and scores f32[B, Q, C] of the last layer; -1 for a
  class that none of the pictures shows."""
  net = detector.Detector(model).bind({'params': params})
  chosen, known = drawn(key, shown.truth, model.classes)
  prompts = net.prompts(net.features(shown.images), shown.truth.boxes)
  found = net.detect(
      net.features(images), prompts.reshape(-1, model.width)[chosen], known)
  return found.boxes[-1], jnp.where(
      known, jax.nn.sigmoid(found.logits[-1]), -1.0)


def run(ctx: context.Context, stage: str, section: Any,
        plan: detect_setup.Plan) -> None:
  """Trains; the stage's last checkpoint is its model."""
  trainer = Trainer(ctx, stage, section, plan)
  loop.train(ctx, stage, section, trainer.start, trainer, trainer.step,
             evaluate=trainer.evaluate, best='eval/ap')
