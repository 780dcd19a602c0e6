"""The flow stage on a model of a few thousand parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from mmr1 import flow_objectives
from mmr1 import flow_update
from mmr1 import generator
from mmr1 import learner
from mmr1 import log
from mmr1 import picture_judges
from mmr1 import resolve
from mmr1 import runner
from mmr1 import select
from mmr1 import trees
from mmr1.models import dit
from mmr1.sampling import keys as keys_lib
from mmr1.stages import flow
from tests import command
from tests import hosts_test

N, G, T = 4, 4, 3
SIZES = dict(size=16, patch=8, width=16, layers=1, heads=2)
SMALL = dict(
    steps=3, prompts_per_step=N, samples_per_prompt=G, solver_steps=T,
    optimizer=dict(lr=1e-2, clip_norm=1.0), samples_every=1,
    evaluation=dict(examples=4, samples=2, steps=2))


# Rewards, named 'tests.stages.flow_test:...' where a config asks for them.


def brightness(images, example):
  """Something that every picture has another of."""
  del example
  return np.tanh(images.mean((1, 2, 3))) / 2 + 0.5


def constant(images, example):
  del example
  return np.full(len(images), 0.4)


def all_follow(images, example):
  """[.95, .95, .96, .95]: nothing left to learn."""
  del example
  return 0.95 + 0.01 * (np.arange(len(images)) == 2)


OWN = 'tests.stages.flow_test:'


def config(name='nft', reward='brightness', **changes):
  c = common.get_base()
  c.name, c.stages, c.evaluate_base = 'small', ('made',), False
  c.generator.update(SIZES)
  kwargs = changes.pop('kwargs', {})
  c.made = common.overlay(c.flow, **{
      **SMALL, 'objective': dict(fn=name, kwargs=kwargs),
      'reward': dict(fn=OWN + reward, kwargs=dict()), **changes})
  return c


@pytest.fixture(scope='module')
def begin(open_run, shrink, tmp_path_factory):
  """(config) -> a Trainer with random parameters everywhere."""
  def make(c):
    ctx, plans = open_run(shrink(c), tmp_path_factory.mktemp('flow') / 'run')
    stage = c.stages[-1]
    one = flow.Trainer(ctx, stage, ctx.config[stage], plans[stage])
    keys = iter(jax.random.split(jax.random.key(7), 100))
    params = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape),
        one.start.params['generator'])
    one._begin(params)
    return one
  return make


@pytest.fixture(scope='module')
def nft(begin):
  """Two steps of NFT: (trainer, states before, between and after, steps)."""
  c = config(old=dict(rate=0.3, cap=0.5))
  c.data.patches, c.data.prompt_tokens = 32, 96  # what a judge reads
  c.judges.eye = common.judge('base', instruction='0 to 5?', suffix='')
  one = begin(c)
  states, steps, state = [copied(one.start)], [], one.start
  for k in range(2):
    step = one.step(state, k)
    state = step.state
    states.append(copied(state))
    steps.append(step)
  return one, states, steps


def copied(state):
  return jax.tree.map(np.array, state)


def given(state):
  """In new buffers, to be given up."""
  return jax.tree.map(jnp.array, state)


def numbers(step):
  return {k: float(v) for k, v in jax.device_get(dict(step.metrics)).items()}


def same(a, b):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def close(a, b, tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, atol=tolerance, rtol=0), a, b)


def test_the_state_has_old_parameters_and_an_average(nft):
  """old: d = min(.3 updates, .5); average: min((1 + u) / (10 + u), .9)."""
  _, states, _ = nft
  assert same(states[0].slow['old'], states[0].params['generator'])
  old = ema = states[0].params['generator']
  for u, state in enumerate(states[1:], 1):
    now, d, e = state.params['generator'], min(.3 * u, .5), (1 + u) / (10 + u)
    old = jax.tree.map(lambda a, b: d * a + (1 - d) * b, old, now)
    ema = jax.tree.map(lambda a, b: e * a + (1 - e) * b, ema, now)
    close(state.slow['old'], old, 1e-6)
    close(state.slow['ema'], ema, 1e-6)
    assert not same(now, old) and not same(now, ema)


def test_the_first_step_in_numpy(nft):
  """Loss, r and metrics of the first update, from velocities alone."""
  one, states, steps = nft
  round_, metrics = jax.device_get(steps[0].batch), numbers(steps[0])
  reward = steps[0].given['rewards']['reward']
  np.testing.assert_allclose(
      reward, np.stack([brightness(x, None) for x in round_.x0]), atol=1e-6)
  a = (reward - reward.mean(1, keepdims=True)) / (reward.std() + 1e-4)
  np.testing.assert_allclose(round_.advantage, a, rtol=1e-4, atol=1e-5)
  r = np.clip(a, -5, 5) / 10 + .5
  key = keys_lib.step_key(0, 1, 0, round_=0, view=1)
  order = flow_update._orders(key, round_.uid, G, T)
  assert {tuple(sorted(x)) for x in np.asarray(order).reshape(-1, T)} == {
      tuple(range(T))}
  losses = []
  for j in range(2):  # int(3 x .99) of three times
    keys = keys_lib.row_keys(jax.random.fold_in(key, j), round_.uid, G)
    eps = np.stack([[jax.random.normal(
        jax.random.fold_in(k, 1), (16, 16, 3)) for k in row] for row in keys])
    t = np.linspace(1, 0, T + 1)[order[..., j]][..., None, None, None]
    x = (1 - t) * round_.x0 + t * eps
    v = np.asarray(generator.velocity(
        one.plan.model, states[0].params['generator'], jnp.float32(x),
        jnp.float32(t[..., 0, 0, 0]), round_.condition, round_.source))
    off = x - t * v - round_.x0  # the same of both branches: old is new
    size = np.abs(off).mean((2, 3, 4))
    losses.append(5 * (off**2).mean((2, 3, 4)) / size)
  assert metrics['loss'] == pytest.approx(np.mean(losses), rel=1e-4)
  assert metrics['optimality'] == pytest.approx(r.mean(), abs=1e-5)
  assert metrics['kl'] == 0 and metrics['old/distance'] == 0
  assert metrics['reward/mean'] == pytest.approx(reward.mean())
  later = numbers(steps[1])  # now both have moved, the old ones half
  assert later['kl'] > 0 and later['old/distance'] > 0


def test_samples_are_rows_of_groups(nft):
  _, _, steps = nft
  rows, rewards = steps[0].samples(), steps[0].given['rewards']
  assert rows
  for i, row in enumerate(rows):
    assert row['captions'][0] == 'given' and row['captions'][-1] == 'target'
    assert len(row['captions']) == len(row['images']) == G + 2
    assert row['rewards'] == {
        name: pytest.approx(x[i].mean()) for name, x in rewards.items()}


def test_what_nft_learns_from_is_no_trajectory(nft):
  """Check 2: the round has none, and one that is put in changes nothing."""
  one, _, steps = nft
  round_, objective = steps[0].batch, one.plan.objective
  assert round_.latents is None and round_.logp is None
  noise = jax.random.normal(jax.random.key(0), (N, G, T + 1, 16, 16, 3))
  keys = keys_lib.row_keys(jax.random.key(1), round_.uid, G)

  def loss(latents):
    here = round_.replace(latents=latents)
    point = objective.point(here, jnp.ones((N, G), jnp.int32), keys)
    v = 0.5 * point.x
    return objective.loss(
        flow_objectives.Said(v, v - 0.1, v + 0.1), point, here)[0]
  np.testing.assert_array_equal(loss(None), loss(noise))
  np.testing.assert_array_equal(loss(noise), loss(noise[:, :, ::-1]))


def again(nft, **changes):
  """The first step once more, with other functions in the plan."""
  one, states, _ = nft
  plan, one.plan = one.plan, one.plan._replace(**changes)
  one.prompts = flow.Prompts(plan.world('train', 1))
  try:
    return one.step(given(states[0]), 0), states[0]
  finally:
    one.plan = plan


def test_equal_rewards_leave_the_parameters_where_they_are(nft):
  """Check 1, in the stage: r = 1/2 for all, and both branches cancel."""
  step, before = again(nft, reward=constant)
  metrics = numbers(step)
  assert metrics['optimality'] == .5 and metrics['group/zero_std_frac'] == 1
  assert metrics['grad_norm'] < 1e-4 < metrics['loss']
  assert not same(step.state.opt, before.opt)


def test_without_a_decay_the_old_parameters_are_the_new_ones(nft):
  """Check 3."""
  one, states, _ = nft
  assert not same(states[2].slow['old'], states[2].params['generator'])
  state = flow_update.make_aged(
      one.optimizer, rate=0.0, after=0, cap=.5)(given(states[2]))
  assert same(state.slow['old'], states[2].params['generator'])


@pytest.mark.parametrize('kwargs, done, want', [
    (dict(rate=0.0, after=0, cap=.5), 9, 0),
    (dict(rate=.001, after=0, cap=.5), 9, .009),
    (dict(rate=.001, after=0, cap=.5), 900, .5),
    (dict(rate=.0075, after=75, cap=.999), 74, 0),
    (dict(rate=.0075, after=75, cap=.999), 85, .075),
    (dict(rate=.0075, after=75, cap=.999), 400, .999)])
def test_the_three_types_of_decay(kwargs, done, want):
  assert float(flow_update.old_decay(jnp.int32(done), **kwargs)) == (
      pytest.approx(want))


def test_a_round_without_anything_to_learn_changes_nothing(nft):
  """Check 4: [.95, .95, .96] is dropped, and its prompts are banned."""
  step, before = again(
      nft, reward=all_follow, select=select.drop_saturated)
  one, *_ = nft
  metrics = numbers(step)
  assert metrics['select/kept_frac'] == 0 and metrics['update/idle'] == 1
  assert metrics['grad_norm'] == 0 and metrics['loss'] == 0
  assert same(step.state.params, before.params)
  assert same(step.state.opt, before.opt)
  state = one.prompts.state()
  banned = state['select']['banned']
  assert banned == [int(uid) for uid in step.batch.uid]
  # They do not come again, also after the position is restored.
  later = flow.Prompts(one.plan.world('train', 1))
  later.restore({**state, 'position': 0})
  assert not {e.uid for e in later.take(2 * N)} & {*banned}


def test_flow_grpo_begins_at_a_ratio_of_1(begin):
  """Its densities are those that the sampler recorded, to rounding."""
  one = begin(config('flow_grpo', kwargs=dict(kl=0.1), solver=dict(
      fn='flow_sde', kwargs=dict(eta=.7))))
  before = copied(one.start)
  step = one.step(one.start, 0)
  metrics = numbers(step)
  assert step.batch.latents.shape == (N, G, T + 1, 16, 16, 3)
  assert metrics['ratio/mean'] == pytest.approx(1, abs=1e-5)
  assert metrics['kl'] == pytest.approx(0, abs=1e-8)
  # At ratio 1 the loss is minus the mean advantage, which is 0.
  assert metrics['loss'] == pytest.approx(0, abs=1e-4)
  assert metrics['grad_norm'] > 1e-3
  assert not same(step.state.params, before.params)


def test_dpo_begins_at_ln_2_and_compares_best_and_worst(nft):
  """A group without a best says nothing."""
  round_ = nft[2][0].batch.replace(advantage=jnp.float32(
      [[0, 1, -1, 0], [2, 0, 0, -2], [0, 0, 0, 0], [-1, 0, 0, 3]]))
  objective = flow_objectives.dpo(beta=50.0)
  keys = keys_lib.row_keys(jax.random.key(0), round_.uid, G)
  step = jnp.broadcast_to(jnp.arange(G) % T, (N, G))
  point = objective.point(round_, step, keys)
  # One time and one noise for all of a group.
  assert (np.ptp(point.t, 1) == 0).all()
  assert not np.ptp(np.asarray(point.given), 1).any()
  v = jnp.zeros_like(round_.x0)
  loss, _ = objective.loss(
      flow_objectives.Said(v, reference=v), point, round_)
  want = np.full((N, G), np.log(2))
  want[2] = 0
  np.testing.assert_allclose(loss, want, atol=1e-6)
  # Better on the best alone: less than ln 2 there.
  target = point.given - round_.x0
  better = v.at[0, 1].set(0.1 * target[0, 1])
  loss, _ = objective.loss(
      flow_objectives.Said(better, reference=v), point, round_)
  assert (loss[0] < np.log(2)).all()
  np.testing.assert_allclose(loss[1:], want[1:], atol=1e-6)


def test_chunks_change_nothing(nft):
  one, states, steps = nft
  update = flow_update.make(
      one.plan.model, one.optimizer, one.plan.objective,
      one._ctx.policy.layout, steps=T, chunks=2, cap=.9)
  key = keys_lib.step_key(0, 1, 0, view=1)
  _, metrics = update(given(states[0]), steps[0].batch, key, one.reference)
  first = numbers(steps[0])
  for name in ('loss', 'grad_norm', 'optimality'):
    assert float(metrics[name]) == pytest.approx(first[name], rel=1e-4)


def test_minibatches_are_all_of_a_round(nft):
  one, _, steps = nft
  round_ = steps[0].batch
  parts = [one._minibatch(round_, i, 2) for i in range(2)]
  assert sorted(int(x) for part in parts for x in part.uid) == sorted(
      int(x) for x in round_.uid)
  np.testing.assert_array_equal(parts[1].x0, round_.x0[1::2])
  np.testing.assert_array_equal(parts[1].schedule, round_.schedule)


def test_adapters_alone_train(begin):
  """Slow copies, moments and checkpoints have them and nothing else."""
  one = begin(config(lora=dict(rank=2)))
  names = set(trees.named(one.start.params['generator']))
  adapters = {name for name in names if name.endswith(('lora_a', 'lora_b'))}
  assert adapters and adapters < names
  for tree in (*one.start.slow.values(), one.reference,
               one.start.opt['generator'][1].mu):
    assert set(trees.named(tree)) == adapters
  kept = {name for name, on in trees.named(
      trees.select(one.start, one.stored)).items()
          if on and name.startswith('params/')}
  assert kept == {f'params/generator/{name}' for name in adapters}


# The judge.


@pytest.mark.parametrize('logits, score', [
    ([0, 0, 1, 2, 3, 2], .737160), ([-2, -1, 0, 1, 4, 5], .937092)])
def test_the_score_is_an_expectation(logits, score):
  got = picture_judges.expected(jnp.float32(logits))
  assert float(got) == pytest.approx(score, abs=1e-6)


def test_a_judge_reads_pictures_and_writes_nothing(nft):
  one, _, steps = nft
  judge = picture_judges.Judge(one._ctx, 'eye')
  examples, images = one._held_out[:2], np.asarray(steps[0].batch.x0)[:2]
  scores = judge(examples, images)
  assert scores.shape == (2, G)
  assert ((0 < scores) & (scores < 1)).all()
  assert np.ptp(scores, 1).all()  # it sees what is before it
  # One picture at a time gives the same.
  for g in range(G):
    np.testing.assert_allclose(
        judge(examples[:1], images[:1, g:g + 1])[0, 0], scores[0, g],
        atol=1e-5)
  # In a stage its scores are the rewards, and the pixels' beside them.
  one._judge = judge
  columns = one._reward(examples, images)
  one._judge = None
  np.testing.assert_array_equal(columns['reward'], scores)
  np.testing.assert_array_equal(
      columns['score'], np.stack([brightness(x, None) for x in images]))


# Runs.


def two_stages():
  c = config(start='first', eval_every=2)
  c.stages = ('first', 'made')
  c.first = common.overlay(c.flow, **{
      **SMALL, 'samples_per_prompt': 1, 'condition_dropout': .5})
  return c


@pytest.fixture(scope='module')
def run(shrink, tmp_path_factory):
  """(config, folder, evaluations) of a run from start to end."""
  c = shrink(two_stages())
  folder = tmp_path_factory.mktemp('flow') / 'run'
  return c, folder, runner.run(c, str(folder), quiet=True)


def test_a_run_of_two_stages(run):
  _, folder, results = run
  assert set(results) == {'first', 'made'}
  assert results['made']['eval/n'] == 8
  rows = log.read_rows(folder / 'metrics.jsonl')
  made = [row for row in rows if row['stage'] == 'made']
  assert [row['step'] for row in made if 'loss' in row] == [1, 2, 3]
  assert [row['step'] for row in made if 'eval/reward' in row] == [2, 3]
  # Nothing is compiled after the first step of each stage.
  counts = [row['compile/count'] for row in made if 'loss' in row]
  assert counts[1] == counts[0]
  samples = log.read_rows(folder / 'samples' / 'made.jsonl')
  assert len(samples[0]['images']) == 2 + G and samples[0]['prompt']


def test_a_finished_run_prints_its_table_alone(run, capsys):
  c, folder, results = run
  assert runner.run(c, str(folder)) == results
  printed = capsys.readouterr().out
  assert 'on held-out examples' in printed and 'accuracy' not in printed


def test_a_stage_goes_on_from_the_one_it_names(run, open_run):
  c, folder, _ = run
  ctx, plans = open_run(c, folder)
  parameters = generator.Parameters(ctx, 'flow', functools.partial(
      dit.init, plans['made'].model))
  ended = parameters.ended('first')
  assert same(parameters.start('made'), ended)
  assert not same(ended, parameters.start('first'))


@pytest.mark.parametrize('c, match', [
    (lambda: config('matching'), 'samples_per_prompt: got 4'),
    (lambda: config(samples_per_prompt=1), 'at least 2'),
    (lambda: config('flow_grpo'), "'dpm2' draws nothing"),
    (lambda: config('flow_grpo', solver=dict(fn='flow_sde', kwargs=dict(eta=.7)),
                    guidance=2.0), 'guidance: got 2.0.*allowed is 1'),
    (lambda: config(start='made'), "start: got 'made'"),
    (lambda: config(prompts_per_step=3, minibatches_per_step=2), 'split'),
    (lambda: config(kwargs=dict(gamma=1)), 'objective.gamma'),
    (lambda: config(kwargs=dict(fraction=0.)), 'fraction: got 0'),
    (lambda: config(old=dict(rate=-1.)), 'rate=-1'),
    (lambda: config(lora=dict(rank=-1)), 'lora.rank: got -1'),
    (lambda: config(steps=0), 'steps: got 0')])
def test_m22_what_cannot_work_is_named(c, match):
  with pytest.raises(ValueError, match=match):
    runner.plan(resolve.finalise(c()))


def test_m22_worlds_that_do_not_fit(begin):
  c = config()
  c.tasks.edits.scale = 2
  with pytest.raises(ValueError, match='generator.size: got 16.*have 32'):
    begin(c)
  c = config()
  c.generator.vocabulary = 3
  with pytest.raises(ValueError, match='vocabulary: got 3.*at least'):
    begin(c)


def test_skipped_updates_are_left_out_of_a_steps_metrics():
  rows = [{'loss': 1.0, 'update/skipped': 0}, {'loss': 9., 'update/skipped': 1}]
  assert learner.combine(rows)['loss'] == 1.0


@pytest.mark.slow
def test_m15_m27_killed_and_resumed_and_on_other_devices(
    shell, flags, tmp_path):
  """To the bit; and one device in place of two, to rounding."""
  small = (
      '--config.pretrain.steps=3', '--config.pretrain.log_every=1',
      '--config.pretrain.prompts_per_step=8',
      '--config.pretrain.optimizer.warmup_steps=0', '--config.nft.steps=4',
      '--config.nft.eval_every=2', '--config.flow.checkpoint_every=1',
      '--config.flow.evaluation.examples=8', '--config.nft.old.rate=.2',
      '--config.flow.samples_every=1')

  def run(name, *more, moment=None):
    (tmp_path / name).mkdir(exist_ok=True)
    result = shell.run('uniworld_v2', '--workdir=run', *flags, *small, *more,
                       cwd=tmp_path / name, moment=moment)
    return tmp_path / name / 'run', result
  whole, result = run('whole')
  assert result.code == 0, result.err[-3000:]
  for stage, step in (('pretrain', 2), ('nft', 3)):
    name = f'killed_{stage}'
    _, result = run(name, moment=command.Moment('write', stage, step))
    assert result.code == -9, result.err[-3000:]
    folder, result = run(name)
    assert result.code == 0, result.err[-3000:]
    assert hosts_test.rows(folder) == hosts_test.rows(whole)
    assert hosts_test.texts(folder) == hosts_test.texts(whole)
    hosts_test.assert_same_arrays(
        hosts_test.arrays(folder), hosts_test.arrays(whole))
  one, result = run('one', '--config.cpu_devices=1')
  assert result.code == 0, result.err[-3000:]
  hosts_test.assert_close(hosts_test.rows(one), hosts_test.rows(whole))
