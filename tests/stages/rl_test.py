"""The rl stage, one step at a time, on a random model."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from configs import forkme
from mmr1 import advantages
from mmr1 import compiles
from mmr1 import judged
from mmr1 import judging
from mmr1 import learner
from mmr1 import resolve
from mmr1 import rl_setup
from mmr1 import sockets
from mmr1 import trees
from mmr1.stages import rl

N, G, T = 4, 4, 8


def run(one, steps=1):
  """Steps of a trainer: (last state, [metrics], [block])."""
  state, metrics, blocks = one.start.state, [], []
  for k in range(steps):
    step = one.step(state, k)
    state = step.state
    blocks += jax.device_get(step.batch)
    metrics.append({name: np.asarray(value).item() for name, value in
                    jax.device_get(dict(step.metrics)).items()})
  return state, metrics, blocks


def params_of(one):
  return jax.tree.map(np.array, one.start.state.params['policy'])


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(
      jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize('changes', [
    dict(old='self', temperature=0.7, top_k=400, top_p=0.995),
    dict(old='recompute', minibatches_per_step=2, epochs_per_step=2),
    pytest.param(dict(old='recompute', chunks_per_minibatch=2,
                      temperature=0.7), marks=pytest.mark.slow),
], ids=['self', 'recompute_2x2', 'recompute_chunks'])
def test_m1_lr_0_moves_nothing_and_every_ratio_is_1(trainer, changes):
  one = trainer(optimizer__lr=0.0, **changes)
  before = params_of(one)
  state, metrics, blocks = run(one, 3)
  assert same(before, state.params['policy'])
  exact = changes['old'] == 'self'
  for row in metrics:
    assert row['sampler/logp_diff_max'] < 1e-4
    # With the parameters unchanged the second epoch has ratio 1 too.
    for name in ('ratio/first', 'ratio/max', 'ratio/mean'):
      assert abs(row[name] - 1) <= (0 if exact else 1e-5), (name, row[name])
    assert row['clip_frac/low'] == row['clip_frac/high'] == 0
    assert abs(row['kl_old']) < 1e-5 and row['update/skipped'] == 0
    assert row['lr'] == 0 and row['grad_norm'] > 0
  # The steps are other prompts under other noise (M27).
  uids = [tuple(block.prompts.uid) for block in blocks]
  assert len(set(uids)) == 3


def test_law_5_old_of_the_sampler(trainer):
  """Its log-probs at the temperature, before truncation; and the ratio is
  what corrects for the difference."""
  one = trainer(old='sampler', optimizer__lr=0.0, temperature=0.7, top_k=3,
                minibatches_per_step=2)
  _, (row,), (block,) = run(one)
  np.testing.assert_array_equal(block.old, block.extra['sampler_logp'])
  assert row['sampler/logp_diff_max'] < 1e-4
  assert abs(row['ratio/first'] - 1) < 1e-4
  assert abs(row['kl_old']) < 1e-4


def test_m27_noise_differs_between_steps_and_repeats_with_the_seed(trainer):
  one, two = trainer(optimizer__lr=0.0), trainer(optimizer__lr=0.0)
  _, _, blocks = run(one, 2)
  _, _, again = run(two, 2)
  tokens = [block.completions.tokens for block in blocks]
  assert not np.array_equal(tokens[0], tokens[1])
  for a, b in zip(blocks, again):
    np.testing.assert_array_equal(a.completions.tokens, b.completions.tokens)
  # No two samples of a group are the same.
  assert all(len({tuple(row) for row in group}) == G for group in tokens[0])


def test_m7_groups_that_do_not_vary_move_nothing(trainer):
  one = trainer(reward='tests.own:flat', optimizer__lr=0.5)
  before = params_of(one)
  state, metrics, blocks = run(one, 2)
  assert same(before, state.params['policy'])
  for row, block in zip(metrics, blocks):
    assert not block.advantage.any()
    assert row['grad_norm'] == 0 and row['loss'] == 0
    assert row['group/zero_std_frac'] == 1
    assert row['reward/mean'] == pytest.approx(0.9)
    assert row['update/skipped'] == 0
  # The same with rewards that vary does move.
  one = trainer(optimizer__lr=0.5)
  state, metrics, _ = run(one)
  assert metrics[0]['group/zero_std_frac'] < 1
  assert not same(before, state.params['policy'])


def test_m13_none_is_masked_and_zero_is_not(trainer):
  one = trainer(reward='tests.own:some')
  _, (row,), (block,) = run(one)
  sampled = block.completions.kind == 1
  # Rewards of a group: 0, None, 1, None.
  np.testing.assert_array_equal(block.mask[:, 0::2], sampled[:, 0::2])
  assert not block.mask[:, 1::2].any() and sampled[:, 1::2].any()
  # Over the two values: mean 1/2, unbiased std sqrt(1/2) = .707107, so
  # -+ .5 / .707108 = -+ .707106.
  np.testing.assert_allclose(
      block.advantage[..., 0], np.tile([-.707106, 0, .707106, 0], (N, 1)),
      atol=1e-6)
  assert row['reward/none_frac'] == 0.5
  assert row['reward/mean'] == 0.5 and row['reward/one/mean'] == 0.5
  assert row['group/zero_std_frac'] == 0


def test_m6_m9_without_any_reward_nothing_happens(trainer):
  one = trainer(reward='tests.own:nothing', optimizer__lr=0.5)
  before = params_of(one)
  state, (row,), (block,) = run(one)
  assert not block.mask.any()
  assert row['loss'] == 0 and row['grad_norm'] == 0
  assert row['update/skipped'] == 0 and np.isfinite(list(row.values())).all()
  assert same(before, state.params['policy'])


def test_all_truncated_under_drop_truncated(trainer):
  one = trainer(select__fn='drop_truncated')
  _, (row,), (block,) = run(one)
  ended = (block.completions.tokens == one._ctx.processor.eos_id).any(-1)
  np.testing.assert_array_equal(block.mask.any(-1), ended)
  assert row['select/truncated_rows'] == (~ended).sum() > 0
  # The random model all but never ends within 8 tokens.
  assert row['response_length/clip_frac'] == pytest.approx(
      (~ended).mean(), abs=1e-6)


def choose(one, fn):
  """Replaces the select function of a trainer."""
  one.judging.plan = dataclasses.replace(
      one.plan, select=sockets.Bound(fn, {}, {}))


def test_reward_calls_that_fail_are_named(trainer):
  one = trainer(reward='tests.own:sometimes')
  said = []
  one._ctx.logger.warn = said.append
  _, (row,), _ = run(one)
  assert row['reward/error_frac'] == 0.25
  assert len(said) == 1 and f'{N * G // 4} reward calls failed' in said[0]
  assert "grpo step 1" in said[0] and 'slot 1 is odd' in said[0]


def test_what_select_gives_is_checked_and_its_wish_counted(trainer):
  one = trainer()
  for keep, said in ((np.ones((N, G)), r'float64\[4, 4\]'),
                     (np.ones(N, bool), r'bool\[4\]'),
                     (np.full((N, G), -1), r'int64\[4, 4\] with -1')):
    choose(one, lambda columns, advantage, meta, state, rng, keep=keep: (
        keep, {}, False, state))
    with pytest.raises(ValueError, match=f'grpo.select.*{said}; needed is'):
      one.step(one.start.state, 0)
  choose(one, lambda columns, advantage, meta, state, rng: (
      np.ones((N, G), bool), {'select/mine': 3}, True, state))
  metrics = one.step(one.start.state, 0).metrics
  assert metrics['select/mine'] == 3 and metrics['select/short'] == 1


def test_m27_select_and_minibatches_draw_different_numbers(trainer):
  one = trainer(old='recompute', minibatches_per_step=N)
  drawn, used = [], []
  def select(columns, advantage, meta, state, rng):
    drawn.append(rng.permutation(N))
    return np.ones((N, G), bool), {}, False, state
  def update(state, batch, knobs, ref):
    del knobs, ref
    used.append(int(batch[0].prompts.uid[0]))
    return state, {'update/skipped': 0}
  choose(one, select)
  one.learner._train_step = update
  orders = []
  for k in range(3):
    used.clear()
    (block,) = one.step(one.start.state, k).batch
    uids = np.asarray(block.prompts.uid).tolist()
    orders.append([uids.index(uid) for uid in used])
    assert sorted(orders[-1]) == list(range(N))
  assert orders != [list(order) for order in drawn]


def test_m10_a_reward_that_is_not_finite_stops_the_run(trainer):
  with pytest.raises(RuntimeError, match='outside of the declared range'):
    run(trainer(reward='tests.own:infinite'))


def test_the_reference_is_where_the_stage_starts(trainer):
  one = trainer(kl__coefficient=0.1, optimizer__lr=0.05)
  _, metrics, blocks = run(one, 2)
  # Both passes score the same model: k3 of a difference d is d^2 / 2.
  assert abs(metrics[0]['kl']) < 1e-7
  assert metrics[1]['kl'] > 1e-4
  assert metrics[1]['loss/kl'] == pytest.approx(
      0.1 * metrics[1]['kl'], rel=1e-4)
  assert blocks[0].ref is not None
  # Without a kl term there is no reference.
  assert 'reference' in one.learner._params
  assert not trainer().learner._params


def test_m24_what_is_logged_is_what_was_used(trainer):
  one = trainer(kl__coefficient=0.1, entropy__coefficient=0.01)
  step = one.step(one.start.state, 0)
  metrics, (block,) = jax.device_get((dict(step.metrics), step.batch))
  rows = step.samples()
  rewards = [row['rewards']['one'] for row in rows]
  # Two groups of the four.
  assert len(rows) == 2 * G and len({row['uid'] for row in rows}) == 2
  for i, row in enumerate(rows):
    place = divmod(i, G)
    assert (row['group'], row['slot']) == place
    assert row['advantage'] == pytest.approx(block.advantage[place][0])
    sampled = block.completions.kind[place] == 1
    tokens = block.completions.tokens[place][sampled]
    assert row['rewards']['one'] == float(tokens.sum() % 2 == 0)
    assert row['length'] == (block.completions.kind[place] == 1).sum()
    assert row['reward'] == row['rewards']['one'] and row['kept'] == 1
    if 'tokens' in row:
      logp = block.extra['sampler_logp'][place][sampled]
      assert row['tokens']['kind'] == 's' * row['length']
      np.testing.assert_allclose(row['tokens']['logp'], logp, rtol=6e-3)
      # Nothing but eos is certain here, and no advantage differs by token.
      assert 0 < np.mean(row['tokens']['entropy'])
      assert 'advantage' not in row['tokens']
  assert sum('tokens' in row for row in rows) == 4
  grouped = np.reshape(rewards, (2, G))
  spread = grouped.std(1, ddof=1, keepdims=True)
  np.testing.assert_allclose(
      block.advantage[:2, :, 0],
      (grouped - grouped.mean(1, keepdims=True)) / (spread + 1e-6), atol=1e-5)
  parts = [metrics[f'loss/{name}'] for name in ('policy', 'kl', 'entropy')]
  assert metrics['loss'] == pytest.approx(sum(parts), abs=1e-6)
  assert metrics['loss/entropy'] == pytest.approx(
      -0.01 * metrics['entropy'], rel=1e-5)
  # Old is the policy itself: every ratio is 1, so the policy's loss is minus
  # the mean advantage of the tokens.
  weight = np.broadcast_to(block.advantage, block.mask.shape)[block.mask]
  assert metrics['loss/policy'] == pytest.approx(-weight.mean(), abs=1e-5)


def report(rewards):
  """Metrics of combined rewards [N, G, K'], without a model."""
  rewards = np.asarray(rewards, np.float64)
  shape = rewards.shape[:2]
  made = judged.Judged([], types.SimpleNamespace(metrics={}), rewards,
                       advantages.grpo(rewards), np.ones(shape, bool), {})
  filled = judged.Filled(None, {}, judged.Arrays(
      spoken=None, lengths=np.full(shape, 3), done=np.ones(shape, bool),
      whole=np.full(shape, 3), cut=np.zeros(shape, bool),
      branch=None, expert=np.zeros(shape, bool), baseline=None, turn=None,
      turn_rewards=None), made)
  return judging.report(filled), made.advantage


def test_m24_m7_spread_is_judged_as_by_the_advantage():
  """.1 + .2 and .3 differ by rounding alone: no variance, advantage 0."""
  row, advantage = report([[[0.1 + 0.2], [0.3]], [[0.0], [1.0]]])
  assert not advantage[0].any() and advantage[1].all()
  assert row['group/zero_std_frac'] == 0.5


def test_m13_m24_a_reward_counts_while_one_column_has_a_value():
  """Sums of two columns: 1 + -, 0 + 2, - + -: mean of 1 and 2."""
  none = float('nan')
  row, advantage = report([[[1.0, none], [0.0, 2.0], [none, none]]])
  assert row['reward/mean'] == 1.5 and row['reward/std'] == 0.5
  assert advantage[0, :2].all() and row['group/zero_std_frac'] == 0
  # Without any value there is no mean, rather than a mean of 0.
  row, _ = report([[[none], [none]]])
  assert 'reward/mean' not in row and 'reward/std' not in row
  assert row['group/zero_std_frac'] == 1


def test_numbers_of_a_skipped_update_are_no_values():
  got = rl._numbers({'a': np.float32(1.5), 'b': np.nan, 'c': None, 'd': 2})
  assert got == {'a': 1.5, 'b': None, 'c': None, 'd': 2.0}
  assert rl._numbers(got) == got


def test_m28_hooks_see_the_last_metrics_and_compile_nothing(
    shrink, open_run, tmp_path):
  c = shrink(forkme.get_config())
  c.rewards.one = dict(fn='tests.own:even', weight=1.0, in_pool=False,
                       limit_s=5.0, kwargs=dict())
  c.hooks.beta = dict(fn='adaptive_kl', kwargs=dict(
      knob='coef/kl', metric='kl', target=1e-9, horizon=16.0, samples=16))
  c.hooks.high = dict(fn='linear', kwargs=dict(
      knob='policy/eps_high', start=0.2, end=0.4, steps=2))
  c.rl.hooks, c.rl.rewards = ('beta', 'high'), ('one',)
  c.grpo.steps, c.grpo.prompts_per_step = 4, N
  c.grpo.samples_per_prompt, c.grpo.max_new_tokens = G, T
  c.grpo.kl.coefficient, c.grpo.optimizer.lr = 0.1, 0.05
  ctx, plans = open_run(c, tmp_path / 'hooks')
  one = rl.Trainer(ctx, 'grpo', ctx.config.grpo, plans['grpo'])
  state, betas, counts = one.start.state, [], []
  for k in range(4):
    step = one.step(state, k)
    state, metrics = step.state, jax.device_get(dict(step.metrics))
    betas.append(metrics['loss/kl'] / metrics['kl'])
    counts.append(ctx.compiles.count)
    host = one.state()
    assert json.loads(json.dumps(host, allow_nan=False)) == host
  # Steps 0 and 1: no metric yet, then the KL of step 0, which is about 0 and
  # may lie on either side of the target. Later it is far above: x 1.2.
  assert betas[2] == pytest.approx(1.2 * betas[1], rel=1e-3)
  assert betas[3] == pytest.approx(1.2 * betas[2], rel=1e-3)
  assert one.state()['host']['hooks']['beta']['coef/kl'] == pytest.approx(
      betas[3], rel=1e-3)
  # M28: nothing was compiled for a new value.
  assert counts[1] == counts[2] == counts[3]


def test_m28_a_sweep_of_numbers_compiles_nothing(trainer):
  """Temperature, top-k, top-p, coefficients, clip range, learning rate and
  lengths, each with an effect that a step shows."""
  one = trainer(
      kl__coefficient=0.1, entropy__coefficient=0.01, old='recompute',
      length_buckets=(5,),
      chunks_per_minibatch=2, steps=20, optimizer__lr=1e-3,
      optimizer__warmup_steps=12)
  base, state, rows, blocks = one.plan, one.start.state, [], []

  def step(knobs=(), **sampling):
    nonlocal state
    temperature = sampling.get('temperature', 1.0)
    one.plan = one.rollouts.plan = one.judging.plan = dataclasses.replace(
        base, temperature=temperature,
        sampling=base.sampling.replace(**{
            name: np.asarray(value, getattr(base.sampling, name).dtype)
            for name, value in sampling.items()}),
        objective=base.objective._replace(
            knobs={**base.objective.knobs, **dict(knobs)}))
    made = one.step(state, len(rows))
    state = made.state
    rows.append(jax.device_get(dict(made.metrics)))
    blocks.append(np.asarray(made.batch[0].completions.tokens))
    return rows[-1]

  step()
  step(temperature=0.5)  # from here on the state is a program's
  counter, programs = compiles.CompileCounter(), [
      one.learner._train_step._cache_size(), learner.log_probs._cache_size()]
  assert step(temperature=0.1)['entropy'] < step(temperature=2.0)['entropy']
  for single in (dict(top_k=1), dict(top_p=1e-6)):  # one candidate is left
    step(**single)
    assert (blocks[-1] == blocks[-1][:, :1]).all()
  step(top_k=7, top_p=0.9)
  assert not (blocks[-1] == blocks[-1][:, :1]).all()
  for length in (1, 2, 4, 5, 6, 8):  # within both buckets
    assert step(max_new_tokens=length)['response_length/max'] <= length
  assert step({'coef/kl': 0.0})['loss/kl'] == 0
  assert step({'coef/entropy': 0.0})['loss/entropy'] == 0
  assert step({'coef/policy': 0.0})['loss/policy'] == 0
  step({'policy/eps_low': 0.1, 'policy/eps_high': 5.0})
  counter.close()
  assert counter.count == 0
  assert programs == [one.learner._train_step._cache_size(),
                      learner.log_probs._cache_size()]
  # The learning rate was another one in each step of the warm-up.
  assert len({float(row['lr']) for row in rows}) == 12


def test_m3_chunks_change_nothing(trainer):
  rows = []
  for chunks in (1, 2):
    _, (row,), _ = run(trainer(
        chunks_per_minibatch=chunks, entropy__coefficient=0.1))
    rows.append(row)
  for name in ('loss', 'grad_norm', 'entropy', 'ratio/mean'):
    assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4), name


def test_m15_a_trainer_goes_on_where_another_stopped(trainer):
  one, two = trainer(), trainer()
  state = one.step(one.start.state, 0).state
  kept = jax.tree.map(np.array, state)
  two.restore(json.loads(json.dumps(one.state())))
  a, b = one.step(state, 1), two.step(jax.device_put(kept), 1)
  a, b = jax.device_get((a.batch, dict(a.metrics))), jax.device_get(
      (b.batch, dict(b.metrics)))
  assert same(a, b)


# Set-up.


def setup(**flat):
  c = forkme.get_config()
  c.update_from_flattened_dict(
      {f'grpo.{k}'.replace('__', '.'): v for k, v in flat.items()})
  final = resolve.finalise(c)
  return rl_setup.setup(final.grpo, 'grpo', final)


@pytest.mark.parametrize('changes, message', [
    (dict(reference_memory='disk'),
     r"grpo.reference_memory: got 'disk'; allowed are \('device', 'host'\)"),
    (dict(staleness=-1), r'grpo.staleness: got -1; allowed: 0'),
    (dict(staleness=1, old='recompute'),
     r"staleness: got 1 with old='recompute'.*Set grpo.old to 'sampler'"),
    (dict(samples_per_prompt=1), r'group of one has advantage 0'),
    (dict(prompts_per_step=0), r'grpo.prompts_per_step: got 0'),
    (dict(prompts_per_step=6, minibatches_per_step=4, old='recompute'),
     r'grpo.minibatches_per_step: 6 prompts do not split into 4'),
    (dict(chunks_per_minibatch=3), r'grpo.chunks_per_minibatch: 8 samples'),
    (dict(epochs_per_step=2), r"grpo.old: 'self' with 2 updates"),
    (dict(old='new'), r"grpo.old: got 'new'"),
    (dict(max_new_tokens=0), r'grpo.max_new_tokens: got 0'),
    (dict(top_p=0.0), r'grpo: .*top_p=0.0'),
    (dict(top_k=-1), r'grpo: .*top_k=-1'),
    (dict(temperature=0.0), r'grpo.temperature: got 0.0'),
    (dict(steps=-3), r'grpo.steps: got -3'),
    (dict(checkpoint_every=0), r'grpo.checkpoint_every: got 0'),
    (dict(log_every=0), r'grpo.log_every: got 0'),
    (dict(eval_every=-1), r'grpo.eval_every: got -1'),
    (dict(rewards=()), r'grpo.rewards: names no reward'),
    (dict(rewards=('reslt',)), r'rewards.reslt.*Nearest: result'),
    (dict(advantage__fn='gpro'), r"'gpro'.*Nearest: grpo"),
    (dict(policy__surrogate='clp'), r"'clp'.*clip"),
    (dict(policy__reduce='mean'), r"policy.reduce: got 'mean'"),
    (dict(policy__length=5.0), r'policy.length'),
    (dict(policy__coefficient=0.0), r'nothing to optimise'),
    (dict(kl__coefficient=0.1, kl__estimator='k9'), r"'k9'"),
    (dict(data='bridge'), r"grpo.data: got 'bridge'"),
    (dict(init='grpo'), r"grpo.init: 'grpo' does not come before"),
    (dict(init='bse'), r"grpo.init: got 'bse'.*Nearest: base"),
    (dict(reference='cold_start'), r"grpo.reference: got 'cold_start'"),
    (dict(reference='grpo'), r"grpo.reference: 'grpo' does not come before"),
    (dict(carry=('moments',)), r"grpo.carry: got 'moments'"),
    (dict(hooks=('ramp',)), r'hooks.ramp'),
])
def test_m22_settings_that_cannot_work(changes, message):
  with pytest.raises(ValueError, match=message):
    setup(**changes)


def test_a_group_of_one_is_fine_for_an_advantage_without_groups():
  plan = setup(samples_per_prompt=1, advantage__fn='tests.own:poisoned')
  assert plan.temperature == 1.0


def test_coefficients_of_zero_remove_their_term():
  plan = setup()
  assert [term.name for term in plan.objective.terms] == ['policy']
  assert not plan.objective.reference
  plan = setup(kl__coefficient=0.1)
  assert [term.name for term in plan.objective.terms] == ['policy', 'kl']
  assert plan.objective.reference and not plan.objective.reference_hidden


def test_names_of_parameters(trainer):
  assert {name.split('/')[0] for name in trees.named(params_of(trainer()))} == {
      'language', 'visual'}
