"""The training loop around a stage's step: everything that is not the step.

Resume, progress, logging one step behind, the non-finite guard, checkpoints,
evaluation, preemption. A stage hands over `take_step` and stays readable.
"""

from collections.abc import Callable, Mapping
import time
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from mmr1 import context
from mmr1 import optim
from mmr1 import types

Metrics = Mapping[str, Any]


class Resumable(Protocol):
  """A data position or host state that belongs to a checkpoint."""

  def state(self) -> dict[str, Any]:
    ...

  def restore(self, state: dict[str, Any]) -> None:
    ...


class Step(NamedTuple):
  """What one step of a stage returns.

  Fields:
    state: the new TrainState.
    metrics: {name: scalar}, device or host.
    batch: what the update saw, written to a file if it was not finite.
    samples: rows for the samples file.
  """
  state: types.TrainState
  metrics: Metrics
  batch: Any
  samples: Callable[[], list[dict[str, Any]]] | None = None


def train(
    ctx: context.Context,
    stage: str,
    section: Any,
    state: types.TrainState,
    position: Resumable,
    take_step: Callable[[types.TrainState, int], Step],
) -> types.TrainState:
  """Runs a stage to its end, from its last checkpoint if it has one.

  Args:
    ctx: the run.
    stage: its name.
    section: reads steps, log_every, checkpoint_every, eval_every,
      samples_every, max_bad_updates, restore_best.
    state: where the stage starts.
    position: data position and host state, saved with each checkpoint.
    take_step: (state, k) -> Step, k from 0.

  Returns:
    The state the stage ends with: the last, or the best if restore_best.
  """
  restored = ctx.checkpoints.restore(stage, state)
  begin = 0
  if restored is not None:
    state, begin = restored.tree, restored.step
    position.restore(restored.extra)
  ctx.logger.truncate(stage, begin)
  ctx.logger.start(stage, section.steps, begin)
  pending, accuracy = None, None
  for k in range(begin, section.steps):
    started = time.perf_counter()
    step = take_step(state, k)
    state = step.state
    if pending is not None:  # step k - 1, read while step k computes
      _record(ctx, stage, section, *pending)
    # One iteration: this step's host work and the end of the one before.
    pending = k, step, time.perf_counter() - started
    done, accuracy = k + 1, None
    last = done == section.steps
    if section.eval_every and not last and done % section.eval_every == 0:
      accuracy = _evaluate(ctx, stage, state, done)['eval/accuracy']
    asked = ctx.interrupt.agreed()
    due = accuracy is not None or done % section.checkpoint_every == 0
    if asked or (due and not last):
      _record(ctx, stage, section, *pending)
      pending = None
      ctx.checkpoints.save(
          stage, done, state, position.state(), metric=accuracy)
      ctx.logger.flush()
    if asked:
      ctx.stop()
  if pending is not None:
    _record(ctx, stage, section, *pending)
  ctx.logger.stop()
  return _finish(ctx, stage, section, state, position)


def _finish(ctx, stage, section, state, position):
  """Last evaluation, last checkpoint, DONE."""
  result = _evaluate(ctx, stage, state, section.steps)
  ctx.checkpoints.save(
      stage, section.steps, state, position.state(),
      metric=result['eval/accuracy'])
  final = section.steps
  if section.restore_best:
    final = ctx.checkpoints.best(stage)
    state = ctx.checkpoints.restore(stage, state, step=final).tree
    if final != section.steps:  # the numbers of what the stage ends with
      result = dict(ctx.evaluate(state.params['policy'], stage, final))
  ctx.checkpoints.finish(stage, {'step': final, 'eval': result})
  return state


def _evaluate(ctx, stage, state, done) -> dict[str, float]:
  result = dict(ctx.evaluate(state.params['policy'], stage, done))
  ctx.logger.write(stage, done, result)
  return result


def _record(ctx, stage, section, k, step, seconds):
  """Reads and writes the metrics of step k; stops a run that is not finite."""
  metrics = {name: np.asarray(value).item()
             for name, value in jax.device_get(dict(step.metrics)).items()}
  metrics['time/step_s'] = seconds
  metrics.update(ctx.compiles.metrics())
  if ((k + 1) % section.log_every == 0 or k + 1 == section.steps
      or metrics['update/skipped']):
    ctx.logger.write(stage, k + 1, metrics)
  if step.samples is not None and (
      k % section.samples_every == 0 or k + 1 == section.steps):
    ctx.logger.samples(stage, k + 1, step.samples())
  if metrics['update/skipped']:
    path = ctx.path / 'bad_batches' / f'{stage}_{k + 1}.npz'
    optim.dump(step.batch, path)
    ctx.logger.warn(f'{stage}: update {k + 1} was not finite and was skipped; '
                    f'its batch is in {path}')
    optim.check_guard(
        int(metrics['update/skipped_in_a_row']), section.max_bad_updates,
        str(path))
