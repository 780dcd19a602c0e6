"""An rl section becomes functions, or an error that says what to do."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from mmr1 import columns
from mmr1 import resolve
from mmr1 import rl_setup
from mmr1 import sockets
from mmr1 import types
from tests.losses import blocks


def setup(change=None, **flat):
  c = common.get_base()
  c.stages = ('rl',)
  if change:
    change(c)
  c.update_from_flattened_dict(
      {f'rl.{k.replace("__", ".")}': v for k, v in flat.items()})
  final = resolve.finalise(c)
  return rl_setup.setup(final.rl, 'rl', final)


def test_the_plan_of_the_defaults():
  plan = setup(temperature=0.7, top_k=5, top_p=0.9, max_new_tokens=11)
  assert [term.name for term in plan.objective.terms] == ['policy']
  assert plan.temperature == 0.7
  assert float(plan.sampling.temperature) == pytest.approx(0.7)
  assert int(plan.sampling.top_k) == 5
  assert float(plan.sampling.top_p) == pytest.approx(0.9)
  assert int(plan.sampling.max_new_tokens) == 11
  assert plan.scorer.names == ('result',)
  # GRPO with the sample's deviation: [1, 0, 1, 0] has mean 1/2, sqrt(1/3).
  rewards = np.asarray([[[1.0], [0.0], [1.0], [0.0]]])
  advantage = np.asarray(plan.advantage(rewards, None))
  np.testing.assert_allclose(
      advantage[0, :, 0], np.asarray([1, -1, 1, -1]) * 0.5 * 3**0.5,
      rtol=1e-3)


def test_weights_reach_the_combination():
  def change(c):
    c.rl.rewards = ('result', 'format')
    c.rewards.format.weight = 0.25
  plan = setup(change)
  rewards, _, _ = plan.combine(
      np.asarray([[[1.0, 1.0], [0.0, 1.0]]]), plan.scorer.names, {}, {},
      weights=plan.weights)
  assert rewards[..., 0].tolist() == [[1.25, 0.25]]


def test_a_hook_keeps_its_term():
  def change(c):
    c.hooks.beta = dict(fn='linear', kwargs=dict(
        knob='coef/kl', start=0.0, end=0.1, steps=10))
    c.rl.hooks = ('beta',)
  plan = setup(change)
  assert [t.name for t in plan.objective.terms] == ['policy', 'kl']
  assert plan.objective.reference
  knobs, _ = plan.hooks['beta'](plan.objective.knobs, {}, {}, {}, 5)
  assert knobs['coef/kl'] == pytest.approx(0.05)


def test_m27_what_programs_go_through_has_the_order_of_names():
  """A set of names has another order under every PYTHONHASHSEED: on every
  host, and after every restart."""
  names = tuple('abcdefgh')

  def asked(terms, watch):
    c = common.get_base()
    c.stages = ('rl',)
    for name in names:
      c.views[f'view_{name}'] = common.view('mask')
      c.weights[f'cov_{name}'] = dict(fn='clip_cov', kwargs={})
      c.terms[name] = common.term(
          'kl', 0.1, target='old', estimator='absolute', weight=f'cov_{name}')
      c.terms[f'seen_{name}'] = common.term(
          'mmr1.papers.papo:perception', 0.1, view=f'view_{name}')
    c.rl.old, c.rl.watch = 'recompute', [f'view_{name}' for name in watch]
    c.rl.terms = [f'{kind}{name}' for name in terms for kind in ('', 'seen_')]
    final = resolve.finalise(c)
    made = rl_setup.objective_of(final.rl, 'rl', final)
    return made.weights, made.views, sockets.requested(final.rl, final, made)
  weights, views, looks = asked(names, names)
  assert weights == tuple(f'cov_{name}' for name in names)
  assert views == looks == tuple(f'view_{name}' for name in names)
  assert asked(names[::-1], names[3:] + names[:3]) == (weights, views, looks)


@pytest.mark.parametrize('of_a_term', [True, False])
def test_m22_what_is_replayed_has_no_weights(of_a_term):
  def change(c):
    c.weights.cov = dict(fn='clip_cov', kwargs={})
    c.terms.near = common.term(
        'kl', 0.1, target='old', estimator='absolute',
        **({'weight': 'cov'} if of_a_term else {}))
    c.rl.terms = ('near',)
    if not of_a_term:
      c.rl.weights = ('cov',)
  with pytest.raises(ValueError, match=r"replay.fn: .* weights=\('cov',\)"):
    setup(change, old='recompute', replay__rows=2, replay__capacity=8,
          replay__fn='mmr1.papers.vl_rethinker_replay:refilled')


def test_sampler_and_trainer_are_compared_over_kept_tokens():
  """|logp - sampler| = [.5, 0, -], its mean .25, its maximum .5."""
  term = setup().objective.terms[0]
  row = lambda *x: jnp.asarray([[x]], jnp.float32)
  block = types.Block(
      prompts=None, completions=blocks.UNPACKED, advantage=row(1.0),
      mask=jnp.asarray([[[True, True, False]]]),
      extra={'sampler_logp': row(-1.5, -2.0, 7.0)})
  scores = types.Scores(logp=row(-1.0, -2.0, 0.0), entropy=row(0, 0, 0))
  means, tops = term.metrics(scores, block, {})
  total, count = means['sampler/logp_diff_mean']
  assert (float(total), float(count)) == (0.5, 2)
  assert float(tops['sampler/logp_diff_max']) == 0.5
  # The term's own metrics are still there.
  assert float(tops['ratio/max']) == 1 and 'clip_frac/low' in means


def hook(knob):
  def change(c):
    c.hooks.mine = dict(fn='constant', kwargs=dict(knob=knob, value=0.1))
    c.rl.hooks = ('mine',)
  return change


def reward(**values):
  def change(c):
    c.rewards.result.update(values)
  return change


@pytest.mark.parametrize('flat, said', [
    (dict(samples_per_prompt=1), 'samples_per_prompt=1.*grpo.*at least 2'),
    (dict(samples_per_prompt=1, advantage__fn='mmr1.advantages:rloo'),
     'samples_per_prompt=1.*mmr1.advantages:rloo.*at least 2'),
    (dict(samples_per_prompt=1,
          advantage__fn='mmr1.returns:reinforce_pp_baseline'),
     'samples_per_prompt=1.*reinforce_pp_baseline.*at least 2'),
    (dict(advantage__fn='mmr1.returns:gae'), "rl.advantage.fn.*critic's values"),
    (dict(samples_per_prompt=0), 'rl.samples_per_prompt: got 0'),
    (dict(minibatches_per_step=2), "rl.old: 'self' with 2.*recompute"),
    (dict(epochs_per_step=3), "rl.old: 'self' with 3.*recompute"),
    (dict(minibatches_per_step=3, old='recompute'),
     'rl.minibatches_per_step: 16 prompts do not split into 3'),
    (dict(chunks_per_minibatch=3),
     'rl.chunks_per_minibatch: 8 samples .* into 3'),
    (dict(old='stale'), "rl.old: got 'stale'.*recompute"),
    (dict(temperature=0.0), 'rl.temperature: got 0.0.*greedy'),
    (dict(temperature=-1.0), 'rl.temperature: got -1'),
    (dict(top_p=0.0), 'rl: sampling.*top_p=0.0'),
    (dict(top_k=-1), 'rl: sampling.*top_k=-1'),
    (dict(max_new_tokens=0), 'rl.max_new_tokens: got 0'),
    (dict(policy__coefficient=0.0), 'rl: every coefficient is 0'),
    (dict(rewards=()), 'rl.rewards: names no reward.*result'),
    (dict(rewards=('resutl',)), 'resutl.*Nearest: result'),
    (dict(advantage__fn='gpro'), "'gpro'.*Nearest: grpo"),
    (dict(select__fn='keep'), "'keep'.*keep_all"),
    (dict(combine__fn='combine.sum'), "'combine.sum'.*combine.weighted_sum"),
    (dict(policy__surrogate='clpi'), "'clpi'.*clip"),
    (dict(hooks=('none_such',)), 'none_such'),
    (dict(data='bridge'), "rl.data: got 'bridge'.*train"),
    (dict(reference='cold_strat'), "rl.reference: got 'cold_strat'"),
    (dict(init='cold_strat'), "rl.init: got 'cold_strat'"),
    (dict(steps=0), 'rl.steps: got 0'),
    (dict(carry=('momentum',)), "rl.carry: got 'momentum'.*optimizer"),
    (dict(eval_every=-1), 'rl.eval_every: got -1'),
    (dict(select__fn='drop_saturated'),
     r"rl.select.kwargs.ban: 'drop_saturated' bans .*to False"),
    # No checkpoint could hold these.
    (dict(kl__coefficient=float('inf')), r'rl.kl.coefficient: got inf.*finite'),
    (dict(policy__kwargs=dict(eps_low=.2, eps_high=float('inf'))),
     r'rl.policy.kwargs.eps_high: got inf.*1e9'),
    (dict(advantage__kwargs=dict(eps=float('nan'))),
     r'rl.advantage.kwargs.eps: got nan.*finite'),
])
def test_m22_contradictions_and_typos_are_refused(flat, said):
  with pytest.raises(ValueError, match=said):
    setup(**flat)


@pytest.mark.parametrize('change, said', [
    (reward(fn='answer.corect'), "'answer.corect'.*answer.correct"),
    (reward(fn='anwser.correct'), "'anwser.correct'.*answer.correct"),
    (reward(kwargs=dict(no_such=1)), 'no_such'),
    (hook('coef/kll'), "rl.hooks.*'coef/kll'.*coef/"),
    (hook('policy/eps_low'), "rl.hooks.*'policy/eps_low'"),
    (lambda c: c.update_from_flattened_dict({
        'terms.pull': common.term('kl', float('inf')), 'rl.terms': ('pull',)}),
     'terms.pull.coefficient: got inf'),
    (lambda c: c.rl.advantage.kwargs.update(epsilon=1.0),
     'rl.advantage.kwargs.epsilon.*eps'),
    (lambda c: c.rl.combine.kwargs.update(weight=1.0),
     'rl.combine.kwargs.weight'),
])
def test_m22_unknown_functions_and_keywords_are_refused(change, said):
  with pytest.raises(ValueError, match=said):
    setup(change)


def test_saturated_groups_may_be_dropped():
  rewards = np.array([[1.0, 1.0], [0.0, 1.0]])
  plan = setup(select__fn='drop_saturated', select__kwargs=dict(ban=False))
  keep, _, more, _ = plan.select(
      {'overall': rewards}, rewards[..., None], {}, {}, None)
  assert keep.tolist() == [[False] * 2, [True] * 2] and not more


def test_a_group_of_one_may_have_another_advantage():
  def change(c):
    c.rl.advantage.fn = 'math:floor'  # a user's own
  assert setup(change, samples_per_prompt=1).advantage.fn.__name__ == 'floor'


def test_advantages_per_token_are_config_values():
  """REINFORCE++ over two groups: see `returns_test`."""
  plan = setup(advantage__fn='mmr1.returns:reinforce_pp', samples_per_prompt=1)
  mask = np.asarray([[[1, 1, 0]], [[1, 1, 1]]], bool)
  got = plan.advantage(
      np.asarray([[[1.0]], [[0.0]]]), columns.Tokens(mask=mask))
  np.testing.assert_allclose(
      got[:, 0], [[1.095445, 1.095445, 0], [-0.730297] * 3], atol=1e-5)


def test_several_updates_with_recomputed_old():
  assert setup(minibatches_per_step=4, epochs_per_step=2, old='recompute')
  assert setup(minibatches_per_step=4, old='sampler')


def test_limit_s_reaches_the_worker_or_the_reward():
  def in_process(c):
    c.rewards.result.limit_s = 2.5
  reward = setup(in_process).scorer.rewards['result']
  assert reward.kwargs['limit_s'] == 2.5 and not reward.in_pool
  def pooled(c):
    c.rewards.result.limit_s, c.rewards.result.in_pool = 2.5, True
  reward = setup(pooled).scorer.rewards['result']
  assert reward.limit_s == 2.5 and 'limit_s' not in reward.kwargs


@pytest.mark.parametrize('given', [False, True])
@pytest.mark.parametrize('written', [False, True])
def test_m12_rewards_agree_with_the_prompts_about_who_opens_think(
    given, written):
  c = common.get_base()
  c.stages, c.rl.rewards = ('rl',), ('format',)
  c.rewards.format.kwargs = dict(prefilled=given)
  final = resolve.finalise(c)
  if given == written:
    rl_setup.check_prefilled(final, written)
  else:
    with pytest.raises(ValueError, match=(
        rf'rewards.format.kwargs.prefilled: got {given}.*prefilled={written}')):
      rl_setup.check_prefilled(final, written)


def test_gdpo_normalises_each_reward_by_itself():
  def change(c):
    c.rl.rewards = ('result', 'format')
    c.rl.combine.fn = 'combine.separate'
    c.rl.advantage.fn = 'normalize_then_sum'
  plan = setup(change)
  scored = np.asarray([[[1.0, 10.0], [0.0, 10.0], [1.0, 30.0], [0.0, 30.0]]])
  rewards, _, _ = plan.combine(scored, plan.scorer.names, {}, {},
                               weights=plan.weights)
  np.testing.assert_array_equal(rewards, scored)
  # Both columns are +-sqrt(3)/2 by their group, whatever their scale: sums
  # 0, -sqrt(3), sqrt(3), 0 with mean 0 and unbiased deviation sqrt(2).
  np.testing.assert_allclose(
      plan.advantage(rewards, None)[0, :, 0],
      [0, -1.5**0.5, 1.5**0.5, 0], atol=1e-3)
  with pytest.raises(ValueError, match='advantage.kwargs.weights'):
    def weigh(c):
      change(c)
      c.rewards.format.weight = 0.5
    plan = setup(weigh)
    plan.combine(scored, plan.scorer.names, {}, {}, weights=plan.weights)


def test_m22_a_view_of_images_needs_a_model_that_sees():
  c = common.get_base()
  c.stages = ('rl',)
  c.views.masked = common.view('mask')
  c.views.slow = common.view('same')
  c.rl.watch = ('slow',)
  rl_setup.check_media(resolve.finalise(c), False)  # changes no image
  for key in ('watch', 'branches'):
    c.rl[key] = ('masked',)
    final = resolve.finalise(c)
    rl_setup.check_media(final, True)
    with pytest.raises(ValueError, match="views.masked.fn: 'mask'.*text only"):
      rl_setup.check_media(final, False)
    c.rl[key] = ()


@pytest.mark.parametrize('section, flat, said', [
    (dict(imitate=True), {}, r'tasks.mine.imitate.*homogeneous to True'),
    (dict(imitate=True, same=True), dict(branches=('own',)),
     r"imitate.*rl.experts=0, branches=\('own',\)"),
    (dict(imitate=True, same=True), dict(
        prompts_per_step=6, samples_per_prompt=8, chunks_per_minibatch=4),
     r'rl.chunks_per_minibatch: 6 demonstrations .* 4 chunks'),
    (dict(imitate=True, same=True), dict(
        revise__fn='mmr1.papers.vl_rethinker:rethink',
        revise__keep__fn='mmr1.papers.vl_rethinker:rethought'),
     r"imitate.*revise.fn='mmr1"),
    (dict(imitate=True, same=True), dict(advantage__fn='mmr1.returns:remax'),
     r'imitate: True with rl.advantage.fn=.*no greedy completion'),
    (dict(same=True), dict(rounds=2), r'rl.rounds: got 2 with data.homogeneous'),
    (dict(rewards=('format',)), {},
     r"tasks.mine.rewards: got \('format',\), none of rl.rewards")])
def test_m22_members_of_the_mixture(section, flat, said):
  def change(c):
    c.data.homogeneous = section.pop('same', False)
    c.data.mixture, c.data.weights = ('digits', 'mine'), (1.0, 1.0)
    c.tasks.mine = dict(fn='digits.reading', **section)
    c.views.own = common.view('same')
  section = dict(section)
  with pytest.raises(ValueError, match=said):
    setup(change, **flat)
