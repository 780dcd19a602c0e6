"""Sockets of the rl stage that no single paper owns: rounds, weights, knobs."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import common
from mmr1 import compiles
from mmr1 import sockets
from mmr1.losses import weights

N, G = 4, 4


def chosen(one, fn):
  """Replaces the select function of a trainer."""
  one.judging.plan = dataclasses.replace(
      one.plan, select=sockets.Bound(fn, {}, {}))


def test_dynamic_sampling_goes_on_until_the_step_is_full(trainer):
  """Of the first rollout groups 0 and 2 are kept, of the second 1, of the
  third all: two more rollouts, whose prompts are the next of the stream."""
  one = trainer(rounds=4)
  rounds = []

  def select(columns, advantage, meta, state, rng):
    keep = np.zeros((N, G), bool)
    keep[[[0, 2], [1], range(N)][len(rounds)]] = True
    np.testing.assert_array_equal(columns['overall'], columns['one'])
    rounds.append(rng.random())
    return keep, {'select/mine': 1}, not keep.all(), state
  chosen(one, select)
  step = one.step(one.start.state, 0)
  metrics, (block,) = jax.device_get((dict(step.metrics), step.batch))
  assert metrics['select/rounds'] == 3 and 'select/short' not in metrics
  assert metrics['select/mine'] == 3 and len({*rounds}) == 3
  # uids of the stream: 4 prompts a round, in order.
  stream = trainer(rounds=4)
  uids = np.concatenate([np.asarray(
      stream.rollouts.take()[1].uid) for _ in range(3)])
  assert block.prompts.uid.tolist() == [
      uids[0], uids[4 + 1], uids[2], uids[8 + 0]]
  assert block.mask.any(-1).all()
  # Rewards and advantages are those of the rows that moved in.
  rows = step.samples()
  for row in rows:
    tokens = block.completions.tokens[row['group'], row['slot']]
    kept = block.completions.kind[row['group'], row['slot']] == 1
    assert row['rewards']['one'] == float(tokens[kept].sum() % 2 == 0)
  rewards = np.asarray(step.given['rewards']['one'])
  centred = rewards - rewards.mean(1, keepdims=True)
  np.testing.assert_allclose(
      block.advantage[..., 0],
      centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-6), atol=1e-5)


def test_rounds_draw_other_numbers_and_compile_nothing_more(trainer):
  """The same prompts in a second round are answered otherwise (M27)."""
  one = trainer(rounds=2)
  state = one.start.state
  _, prompts = one.rollouts.take()
  first, second = (one.rollouts.sample(state, prompts, 0, r) for r in (0, 1))
  assert (first.completions.tokens != second.completions.tokens).any()
  again = one.rollouts.sample(state, prompts, 0, 1)
  assert (again.completions.tokens == second.completions.tokens).all()

  def never(columns, advantage, meta, state, rng):
    return np.zeros((N, G), bool), {}, True, state
  chosen(one, never)
  state = one.step(state, 0).state
  counter = compiles.CompileCounter()
  metrics = one.step(state, 1).metrics
  assert counter.metrics()['compile/count'] == 0
  # A step that stays short is counted, and one without anything is harmless.
  assert metrics['select/short'] == 1 and metrics['select/rounds'] == 2
  assert float(metrics['loss']) == 0


def test_weights_are_made_once_a_minibatch_from_the_policy_that_trains(trainer):
  """high_entropy keeps a fifth of each minibatch, by its own quantile; the
  update sees it as block.weight, and the count of the mean stays that of all
  tokens."""
  def change(c):
    c.weights.top = dict(fn='high_entropy', kwargs=dict(fraction=0.25))
    c.rl.weights = ('top',)
  one = trainer(change, old='recompute', minibatches_per_step=2)
  seen = []
  train = one.learner._train_step
  def spy(state, batch, knobs, ref):
    seen.append(jax.device_get(batch[0]))
    return train(state, batch, knobs, ref)
  one.learner._train_step = spy
  metrics = one.step(one.start.state, 0).metrics
  assert len(seen) == 2
  for block in seen:
    share = block.weight[block.mask].mean()
    assert set(np.unique(block.weight)) <= {0, 1} and 0.2 < share < 0.35
  assert metrics['weight/top/mean'] == pytest.approx(np.mean(
      [block.weight[block.mask].mean() for block in seen]), rel=1e-5)


def test_kl_cov_is_a_term_with_a_weight_of_its_own(trainer):
  """The library's kl to the old policy, on the tokens of largest covariance."""
  def change(c):
    c.weights.cov = dict(fn='top_cov', kwargs=dict(fraction=0.1))
    c.terms.pull = common.term(
        'kl', 1.0, target='old', estimator='absolute', weight='cov')
    c.rl.terms = ('pull',)
  one = trainer(change, old='recompute', minibatches_per_step=2)
  metrics = one.step(one.start.state, 0).metrics
  # |logp - old| is 0 before the first update and not after it.
  assert metrics['term/pull'] >= 0 and 'loss/pull' in metrics
  assert one.learner._params == {}  # no reference pass for it


def test_importance_needs_log_probs_of_the_trainer(trainer):
  def change(c):
    c.weights.tis = dict(fn='importance', kwargs=dict(cap=2.0))
    c.rl.weights = ('tis',)
  with pytest.raises(ValueError, match="weights.*tis.*old='recompute'"):
    trainer(change, old='sampler')
  one = trainer(change, old='recompute')
  metrics = one.step(one.start.state, 0).metrics
  # Sampler and trainer agree in float32.
  assert metrics['weight/tis/mean'] == pytest.approx(1, abs=1e-4)


def test_m28_a_hook_moves_a_number_of_a_host_function(trainer):
  """eps of the advantage: at step 1 it is 1e6, and every advantage about 0."""
  def change(c):
    c.hooks.eps = dict(fn='linear', kwargs=dict(
        knob='advantage/eps', start=1e-6, end=1e6, steps=1))
    c.rl.hooks = ('eps',)
  one = trainer(change)
  state, sizes = one.start.state, []
  for k in range(2):
    step = one.step(state, k)
    state = step.state
    sizes.append(float(np.abs(step.batch[0].advantage).max()))
  assert sizes[0] > 0.5 and sizes[1] < 1e-5


def test_m28_unknown_knobs_of_host_functions_are_refused(trainer):
  def change(c):
    c.hooks.eps = dict(fn='constant', kwargs=dict(
        knob='advantage/epsilon', value=1.0))
    c.rl.hooks = ('eps',)
  with pytest.raises(ValueError, match="no knob 'advantage/epsilon'"):
    trainer(change)
  def two(c):  # a hook may move several
    c.hooks.eps = dict(fn='constant', kwargs=dict(
        knob=('advantage/eps', 'advantage/epsilon'), value=1.0))
    c.rl.hooks = ('eps',)
  with pytest.raises(ValueError, match="no knob 'advantage/epsilon'"):
    trainer(two)


@pytest.mark.parametrize('name, probe, view, said', [
    ('p', dict(reads='logits'), {}, r"probes\.p\.reads: got 'logits'"),
    ('p', dict(kwargs=dict(tags='a')), {}, 'no such argument'),
    ('p', {}, dict(when='update'), "set its when='rollout'"),
    ('one', {}, {}, 'there is a reward, term or socket'),
    ('select', {}, {}, 'there is a reward, term or socket')])
def test_m22_probes_that_cannot_be(trainer, name, probe, view, said):
  def change(c):
    c.views.own = common.view('same')
    c.views.own.update(view)
    c.probes[name] = common.probe('likelihood.answer', 'own')
    c.probes[name].update(probe)
    c.rl.probes = (name,)
  with pytest.raises(ValueError, match=f'(?i){said}'):
    trainer(change)


@pytest.mark.parametrize('change, said', [
    (dict(rounds=0), r'grpo\.rounds: got 0'),
    (dict(rounds=2, staleness=1, old='sampler'), 'rounds.*staleness'),
    (dict(experts=4), r'experts: got 4 of samples_per_prompt=4'),
    (dict(experts=1), 'procedural worlds have no traces'),
    (dict(ema__decay=1.0), r'ema\.decay: got 1\.0'),
    (dict(ema__every=0), r'ema\.every: got 0'),
    (dict(reference='ema'), "reference: 'ema'.*decay is None"),
    (dict(branches=('a', 'a')), 'every view once'),
    (dict(terms=('kl',)), "'kl' is there already"),
    (dict(watch=('masked',)), "no key 'views.masked'"),
    (dict(weights=('top',)), "no key 'weights.top'"),
    (dict(probes=('p',)), "no key 'probes.p'"),
    (dict(advantage__fn='mmr1.returns:remax', staleness=1, old='sampler'),
     'remax.*staleness=1 is not there any more'),
    (dict(advantage__fn='mmr1.returns:remax', judges=('j',)),
     'remax.*are not judged'),
    (dict(env='world', judges=('j',)), "env: got 'world' with judges=.*'j'")])
def test_m22_settings_that_contradict_each_other(trainer, change, said):
  with pytest.raises(ValueError, match=said):
    trainer(**change)


@pytest.mark.parametrize('view, stage, said', [
    (dict(params='judge'), {}, 'params: got \'judge\''),
    (dict(when='later'), {}, 'when: got \'later\''),
    (dict(params='ema'), {}, r'ema\.decay is None'),
    (dict(gradient=True), {}, "set when='update'"),
    (dict(when='update', params='reference'), {}, "Take 'rollout'"),
    (dict(params='reference', divergence='kl'), {}, 'divergence: of the policy'),
    (dict(divergence='jensen'), {}, "'jensen'"),
    (dict(kwargs=dict(white=1.0)), {}, 'no such argument'),
    (dict(), dict(staleness=1, old='sampler'), 'Set staleness to 0')])
def test_m22_views_that_cannot_be(trainer, view, stage, said):
  def change(c):
    c.views.masked = common.view('mask')
    c.views.masked.update(view)
    c.rl.watch = ('masked',)
  with pytest.raises(ValueError, match=said):
    trainer(change, **stage)


def test_every_weight_says_whether_it_reads_scores():
  assert sockets.reads_scores(functools.partial(weights.high_entropy))
  assert not sockets.reads_scores(functools.partial(weights.importance))


def test_remax_subtracts_the_reward_of_a_greedy_completion(trainer):
  """Each token has R - b, b the reward of the prompt's greedy completion."""
  one, two = (trainer(advantage__fn='mmr1.returns:remax') for _ in range(2))
  step = one.step(one.start.state, 0)
  (block,), rewards = jax.device_get(step.batch), step.given['rewards']['one']
  # By another trainer, whose parameters are still those of the start.
  rollout = two.rollouts.greedy(two.start.state, step.batch[0].prompts)
  assert rollout.completions.tokens.shape[:2] == (N, 1)
  kept = np.asarray(rollout.completions.kind[:, 0] == 1)
  tokens = np.asarray(rollout.completions.tokens[:, 0])
  baseline = np.asarray([t[k].sum() % 2 == 0 for t, k in zip(tokens, kept)])
  expected = np.asarray(rewards) - baseline[:, None]
  assert len(np.unique(expected)) > 1
  for n in range(N):
    for g in range(G):
      mine = block.advantage[n, g][block.mask[n, g]]
      np.testing.assert_allclose(mine, expected[n, g], atol=1e-6)


def test_a_critic_learns_the_returns(trainer):
  """PPO: values of the policy's own head, returns as targets, and a loss that
  falls when only the critic trains on the same rewards."""
  def change(c):
    c.model.scalars = ('value',)
    c.terms.critic = common.term('critic', 1.0, clip=10.0)
    c.rl.terms = ('critic',)
    c.rl.policy.coefficient = 0.0
  one = trainer(
      change, reward='tests.own:flat', advantage__fn='mmr1.returns:actor_critic',
      optimizer__lr=0.01, old='recompute')
  state, losses = one.start.state, []
  for k in range(4):
    step = one.step(state, k)
    state = step.state
    losses.append(float(step.metrics['term/critic']))
  (block,) = jax.device_get(step.batch)
  # lambda = gamma = 1 and the reward at the end: the return of a token is .9.
  np.testing.assert_allclose(
      block.extra['returns'][block.mask], 0.9, atol=1e-5)
  # At the start a new head says 0: half of .81.
  assert losses[0] == pytest.approx(0.405, abs=1e-3)
  assert losses[-1] < 0.9 * losses[0]


def test_m22_a_critic_must_be_there(trainer):
  with pytest.raises(ValueError, match=r"model.scalars=\('value',\)"):
    trainer(advantage__fn='mmr1.returns:gae')


@pytest.mark.parametrize('flat', [
    dict(minibatches_per_step=2, old='recompute'), dict(lora__rank=2)])
def test_the_average_is_a_reference_over_the_whole_vocabulary(trainer, flat):
  """It is read while an update gives up what it is made of: its own buffers,
  which move after the first of two updates, and the frozen parameters."""
  one = trainer(kl__coefficient=.04, kl__estimator='full', reference='ema',
                ema__decay=.5, **flat)
  state = one.start.state
  for k in range(2):
    step = one.step(state, k)
    state = step.state
  # The policy has left its average.
  assert step.metrics['kl'] > 0 and np.isfinite(step.metrics['loss'])


def test_a_reference_leaves_no_second_base_model(trainer):
  """It is a copy; who needs the base model after that reads it again."""
  one = trainer(kl__coefficient=.04, reference='base')
  ctx, start = one._ctx, one.start.state.params['policy']
  assert ctx.base is None
  for tree in (ctx.params('base'), one.learner._params['reference'](None)):
    jax.tree.map(np.testing.assert_array_equal, tree, start)
