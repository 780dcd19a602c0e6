"""ARES's stage on the tests' random model, its numbers made again in numpy, and
its config."""

import json

import jax
import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import types
from mmr1.papers.ares import duals
from mmr1.papers.ares import entropy
from mmr1.papers.ares import shaping
from mmr1.stages import rl
from tests.papers import runs
from tests.papers import two_steps

N, G, T, W = 6, 4, 16, 2
STEPS = 4
WORDS = tuple('abcdefghijklmnopqrstuvwxyz0123456789')  # tokens of the model


@pytest.fixture(scope='module')
def made(shrink, open_run, tmp_path_factory):
  """(trainer, its steps, a second that goes on from the third, its step, the
  host's state after each)."""
  c = shrink(runs.config('ares'))
  c.stages, c.rewards.result.fn = ('ares',), 'tests.own:even'
  for name in c.probes:
    c.probes[name].kwargs.width = W
  for name in ('high_entropy', 'soft_cost'):
    c.probes[name].kwargs.triggers = WORDS
  one = runs.trainer(
      c, open_run, tmp_path_factory.mktemp('ares') / 'run', prompts_per_step=N,
      samples_per_prompt=G, max_new_tokens=T, optimizer__lr=.02)
  two = rl.Trainer(one._ctx, 'ares', one._section, one.plan)
  two.learner._train_step = one.learner._train_step  # the same program
  state, steps, kept = one.start.state, [], []
  for k in range(STEPS):
    if k == STEPS - 1:
      copy = jax.tree.map(lambda x: x.copy(), state)
      two.restore(json.loads(json.dumps(one.state())))
      two.take_back({})
    state, (step,) = runs.take(one, state, range(k, k + 1))
    steps.append(step)
    kept.append(json.loads(json.dumps(one.state())))
  after, (again,) = runs.take(two, copy, range(STEPS - 1, STEPS))
  return one, steps, (runs.same(after, state), again, two.state()), kept


def distributions(one, step):
  return runs.distributions(one, step.before.params['policy'],
                            step.block.prompts, step.block.completions)


def test_the_look_has_the_policys_own_entropy(made):
  one, steps, *_ = made
  for step in (steps[0], steps[-1]):
    logp, mask = distributions(one, step), step.block.mask
    wanted = -(np.exp(logp) * np.where(np.isfinite(logp), logp, 0)).sum(-1)
    np.testing.assert_allclose(step.block.extra['entropy/own'],
                               np.where(mask, wanted, 0), atol=1e-4)
    assert step.metrics['view/own/entropy'] == pytest.approx(
        wanted[mask].mean(), rel=1e-4)
    assert abs(step.metrics['view/own/drop']) < 1e-5


def pieces(one, tokens, kept):
  decode = one._ctx.processor.tokenizer.decode
  return [decode([int(token)], skip_special_tokens=True)
          for token in tokens[kept]]


def counted(one, step, tau):
  """N_HE and soft costs [N, G], by loops over tokens."""
  number, cost = np.zeros((N, G)), np.zeros((N, G))
  for n, g in np.ndindex(N, G):
    kept = step.block.completions.kind[n, g] == types.KIND_SAMPLED
    h = np.float64(step.block.extra['entropy/own'][n, g][kept])
    for t, piece in enumerate(pieces(
        one, step.block.completions.tokens[n, g], kept)):
      if piece.strip().lower() in WORDS and t + W < len(h):
        window = h[t + 1:t + 1 + W].mean()
        number[n, g] += window >= tau
        cost[n, g] += max(0, window - tau)
  return number, cost


def test_moments_are_counted_with_the_threshold_of_the_steps_before(made):
  """.5 at first; then the median of the first step, then its average."""
  one, steps, _, kept = made
  tau, average = .5, None
  for step, state in zip(steps, kept):
    number, cost = counted(one, step, tau)
    np.testing.assert_array_equal(step.rewards['high_entropy'], number)
    np.testing.assert_allclose(step.rewards['soft_cost'], cost, atol=1e-5)
    median = np.nanmedian(step.rewards['level'])
    average = median if average is None else .99 * average + .01 * median
    assert state['host']['hooks']['tau'] == {'tau': pytest.approx(average)}
    tau = state['host']['hooks']['tau']['tau']
    for name in ('high_entropy/threshold', 'soft_cost/threshold'):
      assert step.metrics[f'knob/{name}'] == tau == state['host']['knobs'][name]
  first, second = steps[0].rewards['high_entropy'], steps[1].rewards[
      'high_entropy']
  assert first.sum() > second.sum() > 0  # nearly all; about half
  # Counts belong to places: with the first threshold they would be others.
  assert (counted(one, steps[1], .5)[0] != second).any()


def test_rewards_and_advantages_are_by_difficulty(made):
  _, steps, _, kept = made
  state, seen = {}, set()
  for step, after in zip(steps, kept):
    right, number = step.rewards['result'], step.rewards['high_entropy']
    level = np.where(right.mean(1) >= 2/3, 0,
                     np.where(right.mean(1) >= 1/3, 1, 2))
    means = [number[level == d].mean() if (level == d).any() else None
             for d in range(3)]
    target = shaping.targets(means, state.get('target', [None] * 3))
    alpha = shaping.alphas(state.get('alpha', [.5] * 3), means, target)
    state = after['host']['combine']
    assert state == {'target': target, 'alpha': pytest.approx(alpha)}
    at = lambda x: np.array(x, float)[level][:, None]
    score = shaping.entropy_score(
        right, number, at(target), level[:, None], at(alpha))
    np.testing.assert_allclose(
        step.block.advantage,
        advantages.grpo((right + score)[..., None]), atol=1e-5)
    assert step.metrics['reward/mean'] == pytest.approx((right + score).mean())
    assert step.metrics['reward/entropy_score/mean'] == pytest.approx(
        score.mean())
    seen |= {*level.tolist()}
  assert seen == {0, 1, 2}
  # A stub that pays accuracy alone: within a group E differs, R with it.
  assert np.ptp(score - score.mean(1, keepdims=True)) > .01


def test_the_kl_weighs_by_difficulty(made):
  """.01 mean(beta_d zeta_i k3); beta by the KL of each in the step before."""
  one, steps, _, kept = made
  start, state, chances = steps[0].before, duals.kl_start(), 0
  measured = None
  for k, step in enumerate(steps):
    block, right = step.block, step.rewards['result']
    level = np.select([block.extra[name][:, 0, 0] == 1
                       for name in shaping.BUCKETS], [0, 1, 2], -1)
    np.testing.assert_array_equal(level, shaping.difficulty(right))
    chance = ((level == 0)[:, None] & (right == 0)
              & (step.rewards['soft_cost'] >= .5))
    chances += chance.sum()
    if k:
      state = duals.kl_controller(state, measured, every=1)
    assert kept[k]['host']['hooks']['beta'] == dict(
        state, beta=pytest.approx(state['beta']), calls=k,
        kl=[x if x is None else pytest.approx(x, rel=1e-3, abs=1e-9)
            for x in state['kl']],
        error=pytest.approx(state['error'], rel=1e-3, abs=1e-6))
    weight = np.array(state['beta'])[level][:, None] * np.where(chance, .67, 1)
    np.testing.assert_allclose(block.extra['kl_weight'][..., 0], weight,
                               rtol=1e-5)
    logp, ref = (runs.of_tokens(runs.distributions(
        one, at.params['policy'], block.prompts, block.completions),
                                block.completions.tokens)
                 for at in (step.before, start))
    k3, mask = two_steps.k3(logp, ref), block.mask
    assert step.metrics['loss/kl_by_difficulty'] == pytest.approx(
        .01 * two_steps.mean(k3 * weight[..., None], mask), rel=2e-3, abs=1e-8)
    measured = []
    for d, name in enumerate(shaping.BUCKETS):
      inside = mask & (level == d)[:, None, None]
      part, share = (step.metrics[f'term/kl_by_difficulty/{name}{end}']
                     for end in ('', '_share'))
      assert share == pytest.approx(inside.sum() / mask.sum())
      measured.append(part / share if share else None)
      if share:
        assert part / share == pytest.approx(
            two_steps.mean(k3, inside), rel=2e-3, abs=1e-7)
  assert chances and state['beta'] != [1.0] * 3
  assert 'kl' not in step.metrics  # the stage's own term is off


def test_m15_a_run_that_goes_on_has_tau_targets_alphas_and_betas(made):
  _, steps, (same, again, state), kept = made
  assert same  # parameters, to the bit
  assert json.loads(json.dumps(state)) == kept[-1]
  assert again.metrics == steps[-1].metrics
  for a, b in zip(*map(jax.tree.leaves, (again.block, steps[-1].block))):
    np.testing.assert_array_equal(a, b)
  # What it would be without: the threshold of a first step.
  assert kept[-1]['host']['knobs']['soft_cost/threshold'] != .5


def test_m28_steps_compile_nothing_new(made):
  _, steps, *_ = made
  assert steps[1].programs == steps[2].programs  # then the state is copied
  for step in steps:
    assert step.metrics['update/skipped'] == 0
    assert step.metrics['sampler/logp_diff_max'] < 1e-4


# The config.


def test_the_papers_numbers_at_7b(monkeypatch):
  monkeypatch.setattr('mmr1.stages.sft.datasets.open_expert', lambda *_: None)
  final, plans = runs.commanded('ares', [], 'qwen2_5_vl_7b')
  stage, plan = final.ares, plans['ares']
  assert final.stages == ('cold_start', 'ares')
  assert (stage.prompts_per_step, stage.samples_per_prompt) == (512, 8)
  assert stage.minibatches_per_step == 512 // 128 and stage.top_p == .99
  assert (final.data.prompt_tokens, stage.max_new_tokens) == (4096, 8192)
  assert (stage.optimizer.lr, stage.optimizer.weight_decay) == (1e-6, 1e-2)
  assert stage.policy.kwargs.as_dict() == dict(
      eps_low=.2, eps_high=.3, dual_clip=3.0)
  assert stage.policy.reduce == 'token_mean' and stage.kl.coefficient == 0
  assert plan.knobs['coef/kl_by_difficulty'] == .01
  assert plan.objective.reference and not plan.objective.reference_hidden
  assert stage.select.kwargs.as_dict() == dict(
      column='overall', low=.01, high=.99)
  assert plan.weights == dict(
      result=1.0, format=0.0, level=0.0, high_entropy=0.0, soft_cost=0.0)
  assert plan.knobs['high_entropy/threshold'] == entropy.START
  assert {plan.knobs[f'advantage/{name}'] for name in shaping.BUCKETS} == {1}
  for probe in plan.probes.values():
    assert (probe.view, probe.reads) == ('own', 'entropy')
    assert probe.fn.kwargs['width'] == 4


def test_the_paper_form_is_in_every_place():
  plan = runs.commanded('ares', [], 'paper')[1]['ares']
  assert {fn.kwargs['form'] for fn in (
      plan.combine, plan.advantage, *(x.fn for x in plan.probes.values()))} == {
          'paper'}
  assert plan.hooks['tau'].keywords['form'] == 'paper'


def test_the_ablations_change_what_they_say():
  plain, one, trace, words = [
      runs.commanded('ares', given) for given in runs.ablations('ares')]
  assert plain[1]['ares'].combine.kwargs['alpha'] == 0
  assert plain[1]['ares'].combine.kwargs['lr'] == 0
  assert tuple(one[1]['ares'].hooks) == ('tau',)
  assert one[1]['ares'].advantage.kwargs['relaxed'] == 1
  assert not trace[0].traces.kwargs.fitting_lengths
  assert words[1]['ares'].probes['high_entropy'].fn.kwargs['triggers'] == (
      'wait', 'but')
