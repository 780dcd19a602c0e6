"""The loop around a step: guard, checkpoints, evaluation, resuming."""

import json

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import forkme
from mmr1 import checkpoint
from mmr1 import compiles
from mmr1 import context
from mmr1 import guard
from mmr1 import log
from mmr1 import loop
from mmr1 import resolve
from mmr1 import types
from mmr1.stages import rl
from tests import own


class Position:
  """A data position that counts."""

  def __init__(self):
    self.at = 0

  def state(self):
    return {'at': self.at}

  def restore(self, state):
    self.at = state['at']


@pytest.fixture
def begun(tmp_path):
  """(interrupt) -> a context of the services only, for a stage 's'."""
  opened = []

  def begin(accuracies=()):
    path = epath.Path(tmp_path) / 'run'
    path.mkdir(exist_ok=True)
    ctx = context.Context(
        config=None, path=path,
        logger=log.Logger(path, quiet=True, tensorboard=False),
        checkpoints=checkpoint.Checkpoints(path, keep=2),
        interrupt=guard.Interrupt(), compiles=compiles.CompileCounter(),
        processor=None, policy=None, base=None, order=('s',))
    found = dict(accuracies)
    ctx.evaluate = lambda params, stage, step: {
        'eval/accuracy': found.get(step, 0.0),
        'eval/seen': float(params['w'][0])}
    opened.append(ctx)
    return ctx
  yield begin
  for ctx in opened:
    ctx.close()


def section(**changes):
  return resolve.Section({
      'steps': 6, 'log_every': 1, 'checkpoint_every': 2, 'eval_every': 0,
      'samples_every': 2, 'max_bad_updates': 2, 'restore_best': False,
      'record_every': 0, **changes})


def fresh():
  return types.TrainState(
      step=jnp.int32(0), params={'policy': {'w': jnp.zeros(2)}}, opt={})


def counting(ctx, position, stop_at=None, bad=()):
  """A step that adds 1 to w; asks to stop in step `stop_at`."""
  row, steps = [0], []

  def step(state, k):
    steps.append(k)
    position.at += 10
    if k == stop_at:
      ctx.interrupt.requested, ctx.interrupt.signal = True, 'SIGTERM'
    skipped = k in bad
    row[0] = (row[0] + 1) * skipped
    if not skipped:
      state = state.replace(
          params={'policy': {'w': state.params['policy']['w'] + 1}})
    return loop.Step(
        state, {'loss': jnp.float32(k), 'update/skipped': skipped,
                'update/skipped_in_a_row': row[0]},
        {'tokens': np.full(3, k)}, lambda: [{'prompt': str(k)}])
  step.taken = steps
  return step


def rows(ctx, key='loss'):
  return [(row['step'], row[key]) for row in log.read_rows(
      ctx.path / 'metrics.jsonl') if key in row]


def test_every_step_is_logged_evaluated_and_finished(begun):
  ctx, position = begun({6: 0.5}), Position()
  step = counting(ctx, position)
  state = loop.train(ctx, 's', section(), fresh(), position, step)
  assert step.taken == [0, 1, 2, 3, 4, 5]
  assert float(state.params['policy']['w'][0]) == 6
  assert rows(ctx) == [(k + 1, float(k)) for k in range(6)]
  assert rows(ctx, 'eval/seen') == [(6, 6.0)]
  # Samples of the steps 1, 3, 5 (every 2nd) and of the last.
  samples = log.read_rows(ctx.path / 'samples' / 's.jsonl')
  assert [row['step'] for row in samples] == [1, 3, 5, 6]
  assert ctx.checkpoints.done('s') == {
      'step': 6, 'eval': {'eval/accuracy': 0.5, 'eval/seen': 6.0}}
  assert ctx.checkpoints.restore('s', fresh()).extra == {'at': 60}


def test_log_every_thins_the_rows_but_keeps_the_last(begun):
  ctx, position = begun(), Position()
  loop.train(ctx, 's', section(log_every=4), fresh(), position,
             counting(ctx, position))
  assert [step for step, _ in rows(ctx)] == [4, 6]


@pytest.mark.parametrize('stop_at', [0, 2, 3, 5])
def test_m16_stopping_loses_nothing_and_going_on_ends_the_same(
    begun, stop_at):
  ctx, position = begun(), Position()
  with pytest.raises(context.Preempted) as stopped:
    loop.train(ctx, 's', section(), fresh(), position,
               counting(ctx, position, stop_at))
  assert stopped.value.code == 0
  assert ctx.checkpoints.steps('s')[-1] == stop_at + 1
  assert rows(ctx)[-1] == (stop_at + 1, float(stop_at))
  ctx, position = begun(), Position()
  step = counting(ctx, position)
  state = loop.train(ctx, 's', section(), fresh(), position, step)
  assert step.taken == list(range(stop_at + 1, 6))
  assert float(state.params['policy']['w'][0]) == 6 and position.at == 60
  assert rows(ctx) == [(k + 1, float(k)) for k in range(6)]


def test_m15_there_is_never_room_for_two_states(begun):
  """Resumed, and back at the best step: what is read goes in place of it."""
  ctx = begun({3: 0.9})
  args = section(eval_every=3, restore_best=True)
  stored = ('params/policy/w', 'step')
  for stop_at in (3, None):
    start = fresh()
    start.params['policy']['frozen'] = jnp.ones(2)
    position, last = Position(), []
    step = counting(ctx, position, stop_at)
    def take(state, k):
      result = step(state, k)
      kept = {'w': result.state.params['policy']['w'],
              'frozen': start.params['policy']['frozen']}
      last.append(result._replace(
          state=result.state.replace(params={'policy': kept})))
      return last[-1]
    if stop_at is None:
      ctx.interrupt.requested = False
      loop.train(ctx, 's', args, start, position, take, stored)
    else:
      with pytest.raises(context.Preempted):
        loop.train(ctx, 's', args, start, position, take, stored)
    own = start.params['policy']
    assert own['w'].is_deleted() == (stop_at is None)
    assert not own['frozen'].is_deleted()
  assert last[-1].state.params['policy']['w'].is_deleted()
  assert ctx.checkpoints.done('s')['step'] == 3


def test_m15_rows_past_the_checkpoint_are_cut_and_done_again(begun):
  ctx, position = begun(), Position()
  step = counting(ctx, position)
  def dying(state, k):
    if k == 4:  # rows 1-3 are out, the last checkpoint is of step 2... or 4
      raise KeyboardInterrupt
    return step(state, k)
  with pytest.raises(KeyboardInterrupt):
    loop.train(ctx, 's', section(checkpoint_every=3), fresh(), position, dying)
  assert ctx.checkpoints.steps('s') == [3]
  ctx, position = begun(), Position()
  step = counting(ctx, position)
  loop.train(ctx, 's', section(checkpoint_every=3), fresh(), position, step)
  assert step.taken == [3, 4, 5]
  assert rows(ctx) == [(k + 1, float(k)) for k in range(6)]


@pytest.mark.parametrize('killed_in', ['evaluate', 'score', 'finish'])
@pytest.mark.parametrize('at', [4, 6])
def test_m15_m16_killed_around_an_evaluation_nothing_is_lost_or_twice(
    begun, monkeypatch, killed_in, at):
  """At step 4 in the middle of the stage, and at its end."""
  if (at, killed_in) == (4, 'finish'):
    pytest.skip('a stage finishes once')
  accuracies = {4: 0.9, 6: 0.4}
  args = section(eval_every=4, checkpoint_every=100)
  ctx, position = begun(accuracies), Position()
  class Killed(BaseException):
    pass
  def dying(name, original):
    def call(*args):
      if name == 'finish' or at in args:
        raise Killed
      return original(*args)
    return call
  owner = ctx if killed_in == 'evaluate' else ctx.checkpoints
  monkeypatch.setattr(
      owner, killed_in, dying(killed_in, getattr(owner, killed_in)))
  with pytest.raises(Killed):
    loop.train(ctx, 's', args, fresh(), position, counting(ctx, position))
  # The steps were saved before the evaluation that may take long.
  assert ctx.checkpoints.steps('s')[-1] == at
  ctx, position = begun(accuracies), Position()
  step = counting(ctx, position)
  state = loop.train(ctx, 's', args, fresh(), position, step)
  assert step.taken == list(range(at, 6))
  assert float(state.params['policy']['w'][0]) == 6 and position.at == 60
  assert rows(ctx) == [(k + 1, float(k)) for k in range(6)]
  assert rows(ctx, 'eval/seen') == [(4, 4.0), (6, 6.0)]
  assert ctx.checkpoints.best('s') == 4
  assert ctx.checkpoints.done('s')['eval']['eval/accuracy'] == 0.4


def test_m15_the_rows_are_safe_before_their_checkpoint(begun, monkeypatch):
  """On a remote workdir a row exists from the next flush on."""
  ctx, position = begun({3: 0.5}), Position()
  calls = []
  def noting(owner, name, note):
    original = getattr(owner, name)
    def call(*args, **kwargs):
      calls.append(note(*args))
      return original(*args, **kwargs)
    monkeypatch.setattr(owner, name, call)
  noting(ctx.logger, 'write', lambda stage, step, metrics: step)
  noting(ctx.logger, 'flush', lambda: 'flush')
  for name in ('save', 'score', 'finish'):
    noting(ctx.checkpoints, name, lambda *_, name=name: name)
  loop.train(ctx, 's', section(steps=4, eval_every=3, checkpoint_every=2),
             fresh(), position, counting(ctx, position))
  assert calls == [
      1, 2, 'flush', 'save', 3, 'flush', 'save', 3, 'flush', 'score',
      4, 'flush', 'save', 4, 'flush', 'score', 'finish']


def test_m16_a_signal_during_an_evaluation_stops_after_it(begun):
  ctx, position = begun(), Position()
  evaluate = ctx.evaluate
  def asked(params, stage, step):
    ctx.interrupt.requested, ctx.interrupt.signal = True, 'SIGTERM'
    return evaluate(params, stage, step)
  ctx.evaluate = asked
  step = counting(ctx, position)
  with pytest.raises(context.Preempted):
    loop.train(ctx, 's', section(eval_every=3), fresh(), position, step)
  assert step.taken == [0, 1, 2] and ctx.checkpoints.steps('s')[-1] == 3


def test_eval_every_keeps_the_best_and_restore_best_ends_with_it(begun):
  # Best at step 3, which checkpoint_every=4 alone would not have kept.
  ctx, position = begun({3: 0.9, 6: 0.4}), Position()
  state = loop.train(
      ctx, 's', section(eval_every=3, checkpoint_every=4, restore_best=True),
      fresh(), position, counting(ctx, position))
  assert float(state.params['policy']['w'][0]) == 3
  done = ctx.checkpoints.done('s')
  assert done['step'] == 3
  # What the table shows is what the stage ends with.
  assert done['eval']['eval/accuracy'] == 0.9
  assert rows(ctx, 'eval/accuracy') == [(3, 0.9), (6, 0.4)]


def test_a_stage_of_another_model_brings_its_own_evaluation(begun):
  # Best by its metric at step 3; the run's evaluation is not asked.
  ctx, position = begun({6: 0.9}), Position()
  state = loop.train(
      ctx, 's', section(eval_every=3, restore_best=True), fresh(), position,
      counting(ctx, position), best='eval/reward',
      evaluate=lambda state, stage, done: {
          'eval/reward': 1 - 0.1 * float(state.params['policy']['w'][0])})
  assert float(state.params['policy']['w'][0]) == 3
  assert ctx.checkpoints.done('s')['eval'] == {'eval/reward': 0.7}
  assert rows(ctx, 'eval/accuracy') == []


def test_without_restore_best_the_last_counts(begun):
  ctx, position = begun({3: 0.9, 6: 0.4}), Position()
  state = loop.train(
      ctx, 's', section(eval_every=3), fresh(), position,
      counting(ctx, position))
  assert float(state.params['policy']['w'][0]) == 6
  assert ctx.checkpoints.done('s')['step'] == 6
  assert ctx.checkpoints.best('s') == 3  # and is still there


def test_m8_a_bad_update_is_named_and_dumped_and_two_in_a_row_stop(
    begun, capsys):
  ctx, position = begun(), Position()
  with pytest.raises(FloatingPointError, match='2 updates in a row'):
    loop.train(ctx, 's', section(), fresh(), position,
               counting(ctx, position, bad=(1, 3, 4)))
  assert 'update 2 was not finite' in capsys.readouterr().out
  dumped = sorted(path.name for path in (ctx.path / 'bad_batches').iterdir())
  assert dumped == ['s_2.npz', 's_4.npz', 's_5.npz']
  with np.load(ctx.path / 'bad_batches' / 's_4.npz') as batch:
    np.testing.assert_array_equal(batch['tokens'], [3, 3, 3])


def test_m8_a_poisoned_advantage_in_a_real_stage(
    shrink, open_run, tmp_path, capsys):
  c = shrink(forkme.get_config())
  c.rewards.result.fn = 'tests.own:even'
  c.rl.rewards = ('result',)
  c.grpo.advantage.fn = 'tests.own:poisoned'
  c.grpo.steps, c.grpo.prompts_per_step, c.grpo.max_bad_updates = 9, 2, 2
  c.grpo.samples_per_prompt, c.grpo.max_new_tokens = 2, 8
  ctx, plans = open_run(c, tmp_path / 'run')
  ctx.evaluate = lambda *_: {'eval/accuracy': 0.0}
  own.calls[0] = 0
  own.bad_steps.clear()
  own.bad_steps.update((2, 4, 5))
  with pytest.raises(FloatingPointError, match='grpo_5.npz'):
    rl.run(ctx, 'grpo', ctx.config.grpo, plans['grpo'])
  found = [row for row in log.read_rows(ctx.path / 'metrics.jsonl')
           if 'loss' in row]
  assert [row['update/skipped'] for row in found] == [0, 1, 0, 1, 1]
  assert [row['update/skipped_total'] for row in found] == [0, 1, 1, 2, 3]
  # The bad ones did not touch the parameters: the next loss is a number.
  assert np.isfinite(found[2]['loss']) and np.isfinite(found[2]['entropy'])
  with np.load(ctx.path / 'bad_batches' / 'grpo_2.npz') as batch:
    (name,) = [name for name in batch.files if 'advantage' in name]
    assert not np.isfinite(batch[name]).all()


def test_m8_parameters_of_a_skipped_update_are_bit_identical(
    shrink, open_run, tmp_path):
  c = shrink(forkme.get_config())
  c.rewards.result.fn = 'tests.own:even'
  c.rl.rewards = ('result',)
  c.grpo.advantage.fn = 'tests.own:poisoned'
  c.grpo.prompts_per_step = 2
  c.grpo.samples_per_prompt, c.grpo.max_new_tokens = 2, 8
  ctx, plans = open_run(c, tmp_path / 'run')
  trainer = rl.Trainer(ctx, 'grpo', ctx.config.grpo, plans['grpo'])
  own.calls[0] = 0
  own.bad_steps.clear()
  own.bad_steps.add(1)
  before = jax.tree.map(np.array, (
      trainer.start.state.params, trainer.start.state.opt))
  step = trainer.step(trainer.start.state, 0)
  after = jax.device_get((step.state.params, step.state.opt))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert int(step.state.step) == 1 and int(step.metrics['update/skipped']) == 1
  # nan is no value: the state that a checkpoint would hold is JSON.
  assert json.dumps(trainer.state(), allow_nan=False)
  step = trainer.step(step.state, 1)
  assert int(step.metrics['update/skipped']) == 0
