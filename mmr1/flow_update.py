"""The jitted update of a flow stage, and the slow copies around it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import flow_objectives
from mmr1 import generator
from mmr1 import optim
from mmr1 import sharding
from mmr1 import trees
from mmr1 import types
from mmr1.models import dit
from mmr1.sampling import keys as keys_lib

Array = jax.Array
Tree = Any
NAME = generator.NAME
OLD, EMA = 'old', 'ema'  # in `TrainState.slow`
_ORDER = 1 << 20  # a round of the key law that no point has


def make(
    config: dit.Config,
    optimizer: optim.Optimizer,
    objective: flow_objectives.Objective,
    layout: sharding.Layout,
    *,
    steps: int,
    chunks: int,
    cap: float,
) -> Callable[..., tuple[types.TrainState, Mapping[str, Array]]]:
  """A jitted (state, round, key, reference) -> (state, metrics).

  The gradient is the mean over the samples that are kept and the points of
  each; without any the parameters and moments stay, but it counts as an update
  and the average moves on towards the parameters. The gradient is made in
  pieces, a point of 1 / `chunks` of the prompts at a time. The state is donated.

  Args:
    config: of the model.
    optimizer: over what trains of it.
    objective: see `flow_objectives`.
    layout: of the devices.
    steps: of the solver that sampled.
    chunks: pieces of the prompts.
    cap: of the decay of the average.
  """
  points = objective.points(steps)

  def velocities(trainable, frozen, slow, reference, part, point):
    def at(params):
      return generator.velocity(
          config, params, point.x, point.t, part.condition, part.source)
    stopped = lambda name, tree: jax.lax.stop_gradient(
        at(trees.merge(tree, frozen))) if name in objective.reads else None
    return flow_objectives.Said(
        at(trees.merge(trainable, frozen)), stopped(OLD, slow.get(OLD)),
        stopped(flow_objectives.REFERENCE, reference))

  def gradient(trainable, frozen, slow, reference, round_, key):
    group = round_.x0.shape[1]
    kept = jnp.maximum(round_.keep.sum(), 1.0) * points
    order = _orders(key, round_.uid, group, steps)

    def loss(trainable, j, c):
      keys = keys_lib.row_keys(jax.random.fold_in(key, j), round_.uid, group)
      part, step, keys = _chunk(
          (round_.replace(schedule=None), order[..., j], keys), c, chunks)
      part = part.replace(schedule=round_.schedule)
      point = objective.point(part, step, keys)
      each, metrics = objective.loss(
          velocities(trainable, frozen, slow, reference, part, point), point,
          part)
      mean = lambda x: jnp.sum(x * part.keep) / kept
      return mean(each), jax.tree.map(mean, {**metrics, 'loss': each})

    def piece(i):
      (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
          trainable, i // chunks, i % chunks)
      return grads, metrics

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                         jax.eval_shape(piece, 0))
    return jax.lax.scan(
        lambda total, i: (jax.tree.map(jnp.add, total, piece(i)), None),
        zeros, jnp.arange(points * chunks))[0]

  def update(state, round_, key, reference):
    trainable, frozen = trees.partition(state.params[NAME], optimizer.mask)
    grads, metrics = gradient(
        trainable, frozen, state.slow, reference, round_, key)
    trainable, opt, guard, more = optim.guarded_update(
        optimizer, grads, metrics['loss'], state.opt[NAME], trainable,
        state.aux['guard'], jnp.logical_not(jnp.any(round_.keep > 0)))
    done = state.step + 1
    decay = jnp.minimum((1 + done) / (10 + done), cap)
    state = state.replace(
        step=done, params={NAME: trees.merge(trainable, frozen)},
        opt={NAME: opt}, aux={'guard': guard},
        slow={**state.slow, EMA: mixed(state.slow[EMA], trainable, decay)})
    return layout.keep(state), metrics | more
  return jax.jit(update, donate_argnums=0)


def mixed(slow: Tree, now: Tree, decay: Array) -> Tree:
  """decay slow + (1 - decay) now."""
  return jax.tree.map(
      lambda a, b: (decay * a + (1 - decay) * b).astype(a.dtype), slow, now)


def old_decay(done: Array, *, rate: float, after: int, cap: float) -> Array:
  """d of old = d old + (1 - d) params after so many updates, f32[].

  min(rate (done - after), cap), at least 0. DiffusionNFT's types: 0 is rate 0;
  1 is rate .001, cap .5; 2 is rate .0075 after 75, cap .999.
  """
  return jnp.clip(rate * (done - after).astype(jnp.float32), 0.0, cap)


def make_aged(
    optimizer: optim.Optimizer, *, rate: float, after: int, cap: float,
) -> Callable[[types.TrainState], types.TrainState]:
  """A jitted (state) -> state whose old parameters have moved towards the new
  ones, see `old_decay`. The state is donated."""
  def aged(state):
    decay = old_decay(state.step, rate=rate, after=after, cap=cap)
    now = trees.partition(state.params[NAME], optimizer.mask)[0]
    return state.replace(
        slow={**state.slow, OLD: mixed(state.slow[OLD], now, decay)})
  return jax.jit(aged, donate_argnums=0)


def _orders(key: Array, uid: Array, group: int, steps: int) -> Array:
  """i32[N, G, T], a permutation of the steps for each sample."""
  keys = keys_lib.row_keys(jax.random.fold_in(key, _ORDER), uid, group)
  return jax.vmap(jax.vmap(
      lambda one: jax.random.permutation(one, steps)))(keys)


def _chunk(tree: Tree, c: Array, chunks: int) -> Tree:
  """Rows c, c + chunks, ... of arrays [N, ...]: some of every device's."""
  if chunks == 1:
    return tree
  return jax.tree.map(
      lambda x: x.reshape(len(x) // chunks, chunks, *x.shape[1:])[:, c], tree)
