"""The training loop around a stage's step: everything that is not the step.

Resume, progress, logging one step behind, the non-finite guard, checkpoints,
evaluation, preemption. A stage hands over `take_step` and stays readable.
"""

from collections.abc import Callable, Iterable, Mapping
import time
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from mmr1 import checkpoint
from mmr1 import context
from mmr1 import optim
from mmr1 import recording
from mmr1 import trees
from mmr1 import types

Metrics = Mapping[str, Any]
# (state, stage, steps done) -> {'eval/...': number}
Evaluate = Callable[[types.TrainState, str, int], Mapping[str, float]]


class Resumable(Protocol):
  """A data position or host state that belongs to a checkpoint."""

  def state(self) -> dict[str, Any]:
    """JSON-able."""

  def restore(self, state: dict[str, Any]) -> None:
    ...


class Waiting(Protocol):
  """What was made and not used yet, of arrays [N, ...] or of no axis."""

  def arrays(self) -> dict[str, jax.Array]:
    """{name: array}, for a checkpoint."""

  def take_back(self, arrays: Mapping[str, jax.Array]) -> None:
    """Those of a checkpoint, after the position was restored."""


class Step(NamedTuple):
  """What one step of a stage returns.

  Fields:
    state: the new TrainState.
    metrics: {name: scalar}, device or host.
    batch: what the update saw, written to a file if it was not finite and
      every `record_every` steps.
    samples: rows for the samples file.
    given: what the files hold besides the batch, see `recording.save`.
    tokens: completion tokens that were sampled, or trained on; 0: not counted.
    times: () -> {'time/<phase>_s': seconds}, once the metrics are there.
  """
  state: types.TrainState
  metrics: Metrics
  batch: Any
  samples: Callable[[], list[dict[str, Any]]] | None = None
  given: Mapping[str, Mapping[str, Any]] = {}
  tokens: int = 0
  times: Callable[[], dict[str, float]] = dict


class _Measure(NamedTuple):
  """`evaluate` and `best` of `train`."""
  evaluate: Evaluate
  best: str


def train(
    ctx: context.Context,
    stage: str,
    section: Any,
    state: types.TrainState,
    position: Resumable,
    take_step: Callable[[types.TrainState, int], Step],
    stored: Iterable[str] = ('.*',),
    waiting: Waiting | None = None,
    evaluate: Evaluate | None = None,
    best: str = 'eval/accuracy',
) -> types.TrainState:
  """Runs a stage to its end, from its last checkpoint if it has one.

  Args:
    ctx: the run.
    stage: its name.
    section: reads steps, log_every, checkpoint_every, eval_every,
      samples_every, record_every, max_bad_updates, restore_best.
    state: where the stage starts; its buffers are given up.
    position: data position and host state, saved with each checkpoint.
    take_step: (state, k) -> Step, k from 0.
    stored: regexes of the leaves of the state that checkpoints hold; the rest
      never changes.
    waiting: saved with each checkpoint too.
    evaluate: of stages that train another model than the policy; None: the
      run's, of the policy.
    best: the metric of it whose highest value `restore_best` takes.

  Returns:
    The state the stage ends with: the last, or the best if restore_best.
  """
  measure = _Measure(evaluate or (lambda state, stage, done: ctx.evaluate(
      state.params['policy'], stage, done)), best)
  begin = 0
  if ctx.checkpoints.steps(stage):
    begin, state, extra, arrays = restore(
        ctx, stage, state, stored, 'latest')
    position.restore(extra)
    if waiting is not None:
      waiting.take_back(arrays)
  # An evaluation that was not finished may have left its row: it is made
  # again, and its row is there once.
  again = begin == section.steps or (
      _evaluates(section, begin)
      and ctx.checkpoints.metric(stage, begin) is None)
  ctx.logger.truncate(stage, begin, evaluation=again)
  ctx.logger.start(stage, section.steps, begin)
  if again and begin < section.steps:
    _evaluate(ctx, stage, state, begin, measure)
  pending = None
  for k in range(begin, section.steps):
    started, ctx.watchdog.step = time.perf_counter(), k + 1
    step = ctx.profile.step(stage, k + 1, take_step, state, k)
    state = step.state
    if pending is not None:  # step k - 1, read while step k computes
      _record(ctx, stage, section, *pending)
    # One iteration: this step's host work and the end of the one before.
    pending = k, step, time.perf_counter() - started
    done, asked = k + 1, ctx.interrupt.agreed()
    evaluates = _evaluates(section, done)
    if (asked or evaluates or done % section.checkpoint_every == 0
        or done == section.steps):
      _record(ctx, stage, section, *pending)
      pending = None
      _save(ctx, stage, done, state, position, stored, waiting)
    if evaluates and not asked:
      _evaluate(ctx, stage, state, done, measure)
      asked = ctx.interrupt.agreed()
    if asked:
      ctx.stop()
  ctx.logger.stop()
  ctx.watchdog.prompts = ()
  return _finish(ctx, stage, section, state, stored, measure)


def _evaluates(section, done: int) -> bool:
  """True if the stage is evaluated after step `done`, besides at its end."""
  return bool(section.eval_every and 0 < done < section.steps
              and done % section.eval_every == 0)


def _save(ctx, stage, done, state, position, stored, waiting):
  """A checkpoint; the rows up to it are safe before it exists.

  It comes before the evaluation of its step, which at scale takes longer than
  a preempted machine has (M16).
  """
  ctx.watchdog.begin(f'{stage}: checkpoint')
  ctx.logger.flush()
  ctx.checkpoints.save(
      stage, done, state, position.state(), only=stored,
      arrays={} if waiting is None else waiting.arrays())


def restore(
    ctx: context.Context, stage: str, state: types.TrainState,
    stored: Iterable[str], step: int | str) -> checkpoint.Restored:
  """A checkpoint in place of `state`, whose arrays go first: there is no room
  for two of them where one fits."""
  kept = trees.named(trees.select(state, stored))

  def leave(path, leaf):
    if not isinstance(leaf, jax.Array) or not (
        leaf.size and kept[trees.name_of(path)]):
      return leaf
    shape = jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding)
    leaf.delete()
    return shape

  return ctx.checkpoints.restore(
      stage, jax.tree_util.tree_map_with_path(leave, state), step=step,
      only=stored, where=lambda x: (
          ctx.policy.layout.rows(x) if x.ndim else ctx.policy.layout.whole))


def _finish(ctx, stage, section, state, stored, measure):
  """Last evaluation, DONE."""
  result = _evaluate(ctx, stage, state, section.steps, measure)
  final = section.steps
  if section.restore_best:
    final = ctx.checkpoints.best(stage)
    state = restore(ctx, stage, state, stored, final).tree
    if final != section.steps:  # the numbers of what the stage ends with
      result = dict(measure.evaluate(state, stage, final))
  ctx.checkpoints.finish(stage, {'step': final, 'eval': result})
  return state


def _evaluate(ctx, stage, state, done, measure) -> dict[str, float]:
  """Evaluates, writes the row, and then says so in the checkpoint."""
  ctx.watchdog.begin(f'{stage}: evaluation')
  result = dict(measure.evaluate(state, stage, done))
  ctx.logger.write(stage, done, result)
  ctx.logger.flush()
  ctx.checkpoints.score(stage, done, result[measure.best])
  return result


def _record(ctx, stage, section, k, step, seconds):
  """Reads and writes the metrics of step k; stops a run that is not finite."""
  metrics = {name: np.asarray(value).item()
             for name, value in jax.device_get(dict(step.metrics)).items()}
  metrics['time/step_s'] = seconds
  metrics.update(step.times())
  if step.tokens:
    metrics['tokens_per_s'] = step.tokens / seconds
  metrics.update(ctx.compiles.metrics())
  if ((k + 1) % section.log_every == 0 or k + 1 == section.steps
      or metrics['update/skipped']):
    ctx.logger.write(stage, k + 1, metrics)
  if step.samples is not None and (
      k % section.samples_every == 0 or k + 1 == section.steps):
    ctx.logger.samples(stage, k + 1, step.samples())
  if section.record_every and k % section.record_every == 0:
    _write(ctx, 'rollouts', stage, k, step)
  if metrics['update/skipped']:
    path = _write(ctx, 'bad_batches', stage, k, step)
    ctx.logger.warn(f'{stage}: update {k + 1} was not finite and was skipped; '
                    f'its batch is in {path}')
    optim.check_guard(
        int(metrics['update/skipped_in_a_row']), section.max_bad_updates,
        str(path))


def _write(ctx, folder, stage, k, step):
  return recording.save(
      ctx.path / folder / f'{stage}_{k + 1}.npz', step.batch, step.given,
      stage=stage, step=k + 1)
