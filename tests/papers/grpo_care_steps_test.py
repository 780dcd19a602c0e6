"""GRPO-CARE's stage on the tests' random model, which learns fast: its average
stays behind, and judges answers that are put into its rollouts."""

import dataclasses

import jax
from ml_collections import config_dict
import numpy as np
import pytest

from mmr1 import lineage
from mmr1 import loop
from mmr1 import sockets
from mmr1 import trees
from mmr1.data import encode
from mmr1.rewards import likelihood
from tests.papers import runs

N, G, T = 2, 4, 32
STEPS = 4


def begun(shrink, open_run, folder, **flat):
  c = shrink(runs.config('grpo_care'))
  # The card's world: four cells to choose from.
  c.data.mixture, c.data.prompt_tokens, c.data.patches = ('motion',), 128, 64
  # The model meets no format; whether tokens sum to an even number it varies.
  c.rewards.format.fn = 'tests.own:even'
  return runs.trainer(c, open_run, folder, optimizer__lr=.02, **flat)


@pytest.fixture(scope='module')
def made(shrink, open_run, tmp_path_factory):
  """(trainer, its steps, the state after them); averaged every 2 updates."""
  one = begun(shrink, open_run, tmp_path_factory.mktemp('care') / 'run',
              max_new_tokens=T, ema__every=2)
  state, steps = runs.take(one, one.start.state, range(STEPS))
  return one, steps, state


@pytest.fixture
def state(made):
  """A copy of the state after the steps, to be given up."""
  return jax.tree.map(lambda x: x.copy(), made[2])


def ema_of(state):
  return state.slow['ema']


def test_the_average_moves_at_every_second_update(made):
  """a, then .995 a + .005 theta_2, as if by hand; it begins as theta_0."""
  _, steps, last = made
  states = [step.before for step in steps] + [runs.copied(last)]
  start, policies = states[0].params['policy'], [
      state.params['policy'] for state in states]
  assert runs.same(ema_of(states[0]), start)
  assert runs.same(ema_of(states[1]), start)
  assert not runs.same(policies[1], start)
  wanted = start
  for k in (2, 4):
    wanted = jax.tree.map(
        lambda a, b: .995 * a + .005 * b, wanted, policies[k])
    for a, b in zip(*map(jax.tree.leaves, (ema_of(states[k]), wanted))):
      np.testing.assert_allclose(a, b, atol=1e-6)
    assert not runs.same(ema_of(states[k]), ema_of(states[k - 1]))
  assert runs.same(ema_of(states[3]), ema_of(states[2]))


def test_steps_train_and_compile_nothing_new(made):
  _, steps, _ = made
  # The average is first moved at the end of the second step.
  counts = [step.programs for step in steps]
  assert counts[1] - counts[0] <= 1 and len(set(counts[1:])) == 1
  for step in steps:
    assert step.metrics['update/skipped'] == 0
    assert step.metrics['grad_norm'] > 0 and step.metrics['ratio/max'] == 1
    assert step.metrics['sampler/logp_diff_max'] < 1e-4
    assert step.block.ref is None and 'kl' not in step.metrics
    # Nobody answers: no bonus, and R = whether the sum is even.
    assert step.metrics['reward/bonus/mean'] == 0
    assert step.metrics['reward/likelihood/mean'] == 1
    even = (step.block.completions.tokens * step.block.mask).sum(-1) % 2 == 0
    np.testing.assert_array_equal(step.rewards['format'], even)
    spread = even.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(
        step.block.advantage[..., 0],
        (even - even.mean(1, keepdims=True)) / (spread + 1e-4), atol=1e-5)


def under(one, params, step):
  """log p of a step's tokens under other parameters, by another pass."""
  block = step.block
  return np.where(block.mask, runs.of_tokens(runs.distributions(
      one, params, block.prompts, block.completions),
                                             block.completions.tokens), 0)


def test_the_look_is_the_averages(made):
  one, steps, _ = made
  for step in (steps[0], steps[3]):
    slow = under(one, ema_of(step.before), step)
    np.testing.assert_allclose(step.block.extra['view/slow'], slow, atol=1e-4)
  own = under(one, steps[3].before.params['policy'], steps[3])
  gap = (own - slow)[steps[3].block.mask]
  assert np.abs(gap).mean() > .1  # they differ by now
  assert steps[3].metrics['view/slow/drop'] == pytest.approx(
      gap.mean(), rel=1e-3)


# Answers in place of what was sampled.


def said(example, letter, named):
  return (f'<think>It is at {example.meta["choices"][named]}.</think> '
          f'<answer>{letter}</answer>')


def texts(example):
  """Right as reasoned, right all the same, wrong, and without an answer."""
  right = 'ABCD'.index(example.answer)
  other = (right + 1) % 4
  return [said(example, example.answer, right),
          said(example, example.answer, other),
          said(example, 'ABCD'[other], other), 'I see.']


def answered(one, state, k):
  """The rollout of step k with these texts; the last is cut off."""
  first = one.rollouts.next(state, k)
  tokens = np.zeros((N, G, T), np.int32)
  kind, done = np.zeros((N, G, T), np.int8), np.ones((N, G), bool)
  for n, (example, _) in enumerate(first.prompted.pairs):
    for g, text in enumerate(texts(example)):
      ids = encode.encode_completion(text, one._ctx.processor)
      if (n, g) == (1, 3):
        whole = encode.encode_completion(
            said(example, example.answer, 0), one._ctx.processor)
        ids, done[n, g] = whole[:-4], False  # ends with the letter
      tokens[n, g, :len(ids)], kind[n, g, :len(ids)] = ids, 1
  rollout = first.rollout
  return one.rollouts.made(k, k, first.prompted, first.asked, rollout.replace(
      completions=rollout.completions.replace(tokens=tokens, kind=kind),
      done=done))


def likelihoods(one, params, rollout):
  """f64[N, G] of an independent pass."""
  logp = runs.of_tokens(
      runs.distributions(one, params, rollout.rollout.prompts,
                         rollout.rollout.completions), rollout.host.tokens)
  found = np.ones((N, G))
  for sample in rollout.samples:
    inside = likelihood.within(sample.pieces, 'answer', opening=True)
    assert '|'.join(sample.pieces[i] for i in inside) in (
        '>|A', '>|B', '>|C', '>|D', '')
    if inside:
      found[sample.group, sample.slot] = np.exp(
          logp[sample.group, sample.slot][inside].mean())
  return found


def test_the_bonus_of_answers_is_by_the_average(made, state):
  one, _, _ = made
  rollout = answered(one, state, STEPS)
  assert rollout.samples[7].truncated and '<answer>' in rollout.samples[7].text
  looks = one.look(state, rollout)
  scored = one.score(rollout, looks, STEPS)
  columns = dict(zip(scored.names, np.moveaxis(scored.columns, -1, 0)))
  assert columns['result'].tolist() == [[1, 1, 0, 0]] * N
  np.testing.assert_array_equal(
      columns['consistent'], [[1, 0, 1, np.nan]] * N)
  p = likelihoods(one, ema_of(state), rollout)
  np.testing.assert_allclose(columns['likelihood'], p, rtol=1e-3)
  assert (p[:, :3] < .9).all() and (p[:, 3] == 1).all()
  # The policy itself would judge otherwise, by now.
  own = likelihoods(one, state.params['policy'], rollout)
  assert (np.abs(np.log(own / p))[:, :3] > .05).all()
  slow, = one.learner.looks
  try:
    one.learner.looks = dataclasses.replace(slow, params='policy'),
    other = one.score(rollout, one.look(state, rollout), STEPS)
  finally:
    one.learner.looks = slow,
  np.testing.assert_allclose(
      other.columns[..., other.names.index('likelihood')], own, rtol=1e-3)
  # acc + even + the bonus of the likelier right answer.
  judged = one.judge(rollout, looks, scored, one.knobs(scored, STEPS), STEPS)
  better = p[:, :2] == p[:, :2].max(1, keepdims=True)
  bonus = np.concatenate([.5 * better, np.zeros((N, 2))], 1)
  np.testing.assert_allclose(
      judged.judged.rewards[..., 0],
      columns['result'] + columns['format'] + bonus)
  assert judged.judged.said['reward/bonus/mean'] == .125


def test_a_skipped_update_counts_and_its_nan_is_nowhere(made, state):
  one, plan = made[0], made[0].plan
  before = runs.copied(state)
  try:
    one.judging.plan = dataclasses.replace(plan, advantage=sockets.Bound(
        lambda rewards, tokens: np.full(rewards.shape, np.inf), {}, {}))
    # The fifth update is not one to average after, the sixth is.
    after, steps = runs.take(one, state, range(STEPS, STEPS + 2))
  finally:
    one.judging.plan = plan
  assert [step.metrics['update/skipped'] for step in steps] == [1, 1]
  after = runs.copied(after)
  assert runs.same(after.params, before.params)
  assert runs.same(ema_of(steps[1].before), ema_of(before))
  for new, old, policy in zip(*map(jax.tree.leaves, (
      ema_of(after), ema_of(before), before.params['policy']))):
    np.testing.assert_allclose(new, .995 * old + .005 * policy, atol=1e-6)
  assert not runs.same(ema_of(after), ema_of(before))


def goes_on(one, state, steps):
  """The state as it comes back from the stage's checkpoint."""
  ctx, stored = one._ctx, one.start.stored
  ctx.checkpoints.save('grpo_care', steps, state, one.state(), only=stored)
  ctx.checkpoints.wait()
  blank = jax.tree.map(lambda x: jax.device_put(0 * x, x.sharding), state)
  return loop.restore(ctx, 'grpo_care', blank, stored, 'latest')[1]


def test_m15_the_average_is_in_checkpoints(made, state):
  found = goes_on(made[0], state, STEPS)
  assert runs.same(found, state)
  assert not runs.same(ema_of(found), found.params['policy'])
  # With adapters the rest of the model is left out, and of it no average.
  section = config_dict.ConfigDict(dict(lora=dict(rank=2, train=())))
  kept = trees.named(trees.select(state, lineage.stored(
      section, state.params['policy'])))
  names = {name for name, on in kept.items() if on}
  assert {name for name in kept if name.startswith('slow/ema/')} <= names
  assert not any(name.startswith('params/policy/') for name in names)


# A penalty to the average, wherever it waits.


@pytest.fixture(scope='module')
def pulled(shrink, open_run, tmp_path_factory):
  """{memory: (trainer, its steps, the state after them)} with the KL to a fast
  average."""
  result = {}
  for memory in ('device', 'host'):
    one = begun(
        shrink, open_run, tmp_path_factory.mktemp('pulled') / memory,
        kl__coefficient=.04, reference='ema', ema__decay=.5, ema__every=1,
        reference_memory=memory)
    if result:  # an update does not see the average: it is the same program
      one.learner._train_step = result['device'][0].learner._train_step
    state, steps = runs.take(one, one.start.state, range(3))
    result[memory] = one, steps, state
  return result


def test_the_reference_of_the_kl_may_be_the_average(pulled):
  one, steps, _ = pulled['device']
  for step in steps:
    np.testing.assert_allclose(
        step.block.ref, under(one, ema_of(step.before), step), atol=1e-4)
    assert step.metrics['loss/kl'] == pytest.approx(
        .04 * step.metrics['kl'], rel=1e-4)
  # It begins as the policy; (theta_0 + theta_1) / 2 is neither.
  assert abs(steps[0].metrics['kl']) < 1e-7 < 1e-4 < steps[1].metrics['kl']
  first, second = (step.before for step in steps[:2])
  for a, b, c in zip(*map(jax.tree.leaves, (
      ema_of(second), first.params['policy'], second.params['policy']))):
    np.testing.assert_allclose(a, (b + c) / 2, atol=1e-6)
  assert steps[1].programs == steps[2].programs


def memories(state):
  return {x.sharding.memory_kind for x in jax.tree.leaves(state.slow)}


def test_an_average_in_host_memory_changes_nothing(pulled):
  (_, a, here), (one, b, there) = pulled['device'], pulled['host']
  assert memories(here) == {'device'} and memories(there) == {'pinned_host'}
  for x, y in zip(a, b):
    assert x.metrics == y.metrics
    for left, right in zip(*(jax.tree.leaves((step.block, step.before))
                             for step in (x, y))):
      np.testing.assert_array_equal(left, right)
  # From a checkpoint it comes back to where it was.
  found = goes_on(one, there, 3)
  assert memories(found) == {'pinned_host'} and runs.same(found, there)
