"""The detect stage on a model of a few thousand parameters."""

import ast
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dino_r1
from mmr1 import log
from mmr1 import resolve
from mmr1 import runner
from mmr1.losses import detection
from mmr1.models import detector
from mmr1.papers import dino_r1 as paper
from mmr1.stages import detect
from tests import command
from tests import hosts_test

SIZES = dict(size=32, patch=8, width=16, heads=2, encoder=1, decoder=1,
             queries=9)
STEPS, EPOCH = 6, 2


def config(arg=None, **flat):
  c = dino_r1.get_config(arg)
  c.detector.update(SIZES)
  one = c.dino_r1
  one.steps, one.rows_per_step, one.reference_every = STEPS, 4, EPOCH
  one.queries.after, one.evaluation.examples = 1, 6
  one.optimizer.lr, one.optimizer.warmup_steps = 1e-2, 0
  one.log_every, one.samples_every, one.eval_every = 1, 2, 3
  if len(one.queries.kwargs):
    one.queries.kwargs.mute = 3
  c.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in flat.items()})
  return c


@pytest.fixture(scope='module')
def taken(open_run, shrink, tmp_path_factory):
  """(trainer, states before and after, metrics) of five steps."""
  ctx, plans = open_run(
      shrink(config()), tmp_path_factory.mktemp('detect') / 'run')
  one = detect.Trainer(ctx, 'dino_r1', ctx.config.dino_r1, plans['dino_r1'])
  states, steps, state = [copied(one.start)], [], one.start
  for k in range(5):
    step = one.step(state, k)
    state = step.state
    states.append(copied(state))
    steps.append((step, {name: float(x) for name, x in jax.device_get(
        dict(step.metrics)).items()}))
  return one, states, steps


def copied(state):
  return jax.tree.map(np.array, state)


def same(a, b):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_the_reference_is_the_model_at_the_start_of_each_epoch(taken):
  """Check c: KL 0 in the first step of an epoch, above in the second."""
  _, states, steps = taken
  for k, (_, metrics) in enumerate(steps):
    start = states[k - k % EPOCH].params['detector']
    assert same(states[k].slow['reference'], start)
    if k % EPOCH == 0:
      assert metrics['queries/kl'] == pytest.approx(0, abs=1e-6)
    else:
      assert metrics['queries/kl'] > 1e-6


def test_a_step_by_its_parts(taken):
  """Loss of step 2 from what the model says, layer by layer."""
  one, states, steps = taken
  step, metrics = steps[1]
  batch, section = jax.device_get(step.batch), one._section
  key = jax.random.key(0)
  for part in (one._ctx.index('dino_r1'), 1, 0, 0):
    key = jax.random.fold_in(key, part)
  chosen, known = detect.drawn(key, batch.truth, 3)

  @jax.jit
  def seen(params):
    net = detector.Detector(one.plan.model).bind({'params': params})
    features = net.features(batch.images)
    made = net.prompts(features, batch.truth.boxes).reshape(-1, 16)
    return net.alike(made), net.detect(features, made[chosen], known)
  alike, found = seen(states[1].params['detector'])
  _, before = seen(states[1].slow['reference'])
  flat = lambda x: x.reshape(-1)
  total = float(detection.alignment(
      alike, flat(batch.truth.classes), flat(batch.truth.real)))
  weights = detection.Weights(1.0, 5.0, 2.0)
  for i, (logits, boxes) in enumerate(zip(found.logits, found.boxes)):
    cost = detection.costs(
        logits, boxes, batch.truth, detection.Weights(2.0, 5.0, 2.0))
    total += float(detection.matched(
        logits, boxes, batch.truth, detection.match(cost), weights)[0])
    if i:  # decoder layers alone; scores at the patches that now are queries
      at = lambda x: np.take_along_axis(np.asarray(x), found.index, 1)
      total += float(paper.grqo(
          cost, at(found.scores), at(before.scores), batch.truth.real,
          mute=3)[0])
  assert section.queries.after == 1
  assert metrics['loss'] == pytest.approx(total, rel=1e-4)


def test_prompts_are_instances_of_their_class():
  truth = detection.Truth(
      None, jnp.int32([[0, 2, 0], [2, 2, 1]]),
      jnp.asarray([[True, True, False], [True, False, False]]))
  seen = set()
  for seed in range(40):
    chosen, known = detect.drawn(jax.random.key(seed), truth, 3)
    assert known.tolist() == [True, False, True]  # class 1 is padding alone
    assert int(chosen[0]) == 0
    seen.add(int(chosen[2]))
  assert seen == {1, 3}


def test_no_update_is_skipped(taken):
  """Every gradient is finite, with classes and pictures of few boxes."""
  *_, steps = taken
  assert all(metrics['update/skipped'] == 0 for _, metrics in steps)


def test_nothing_is_compiled_after_the_first_epoch(taken):
  one, *_ = taken
  assert one._update._cache_size() == 1 and one._refreshed._cache_size() == 1


def test_no_sampling_and_no_log_probabilities():
  """Check d: what the stage imports has neither."""
  names = {alias.name for node in ast.walk(ast.parse(inspect.getsource(detect)))
           if isinstance(node, ast.ImportFrom) for alias in node.names}
  assert not names & {'sample', 'forward', 'policy', 'objective', 'ratio'}


def test_a_run_of_the_baseline(shrink, tmp_path):
  """Evaluated, without a reference and without the term."""
  c = shrink(config('sft', dino_r1__steps=3, dino_r1__eval_every=2))
  result = runner.run(c, str(tmp_path / 'run'), quiet=True)['dino_r1']
  rows = log.read_rows(tmp_path / 'run' / 'metrics.jsonl')
  assert [row['step'] for row in rows if 'loss' in row] == [1, 2, 3]
  assert [row['step'] for row in rows if 'eval/ap' in row] == [2, 3]
  assert not any('queries/kl' in row for row in rows)
  assert 0 <= result['eval/ap'] <= result['eval/ap50'] <= 1


@pytest.mark.parametrize('flat, match', [
    (dict(detector__queries=17), 'queries=17'),
    (dict(detector__patch=5), 'whole patches'),
    (dict(dino_r1__reference_every=0), 'reference_every: got 0'),
    (dict(dino_r1__queries__fn='dino_r1.grpo'), 'dino_r1.grqo'),
    (dict(dino_r1__start='other'), "start: got 'other'")])
def test_m22_what_cannot_work_is_named(flat, match):
  with pytest.raises(ValueError, match=match):
    runner.plan(resolve.finalise(config(**flat)))


def test_m22_worlds_that_do_not_fit(open_run, shrink, tmp_path):
  c = shrink(config(dino_r1__world='digits'))
  ctx, plans = open_run(c, tmp_path / 'run')
  with pytest.raises(ValueError, match="no meta of .'boxes'"):
    detect.Trainer(ctx, 'dino_r1', ctx.config.dino_r1, plans['dino_r1'])


@pytest.mark.slow
def test_m15_m27_killed_and_resumed_and_on_other_devices(
    shell, flags, tmp_path):
  """To the bit; and one device in place of two, to rounding."""
  small = ('--config.dino_r1.steps=6', '--config.dino_r1.reference_every=2',
           '--config.dino_r1.queries.after=1', '--config.detector.width=16',
           '--config.dino_r1.rows_per_step=8',
           '--config.dino_r1.optimizer.warmup_steps=0',
           '--config.dino_r1.checkpoint_every=1',
           '--config.dino_r1.log_every=1',
           '--config.dino_r1.evaluation.examples=8')

  def run(name, *more, moment=None):
    (tmp_path / name).mkdir(exist_ok=True)
    result = shell.run('dino_r1', '--workdir=run', *flags, *small, *more,
                       cwd=tmp_path / name, moment=moment)
    return tmp_path / name / 'run', result
  whole, result = run('whole')
  assert result.code == 0, result.err[-3000:]
  _, result = run('killed', moment=command.Moment('write', 'dino_r1', 4))
  assert result.code == -9, result.err[-3000:]
  folder, result = run('killed')
  assert result.code == 0, result.err[-3000:]
  assert hosts_test.rows(folder) == hosts_test.rows(whole)
  hosts_test.assert_same_arrays(
      hosts_test.arrays(folder), hosts_test.arrays(whole))
  one, result = run('one', '--config.cpu_devices=1')
  assert result.code == 0, result.err[-3000:]
  hosts_test.assert_close(hosts_test.rows(one), hosts_test.rows(whole))
