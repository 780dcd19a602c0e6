"""PAPO: the perception loss, its gradient, the double entropy, two steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import papo as config
from mmr1 import pixels
from mmr1 import resolve
from mmr1 import rl_setup
from mmr1 import sockets
from mmr1 import types
from mmr1.losses import reduce
from mmr1.papers import papo
from tests.papers import runs
from tests.papers import two_steps

LOGP, BLIND = (-0.2, -1.0, -0.5), (-1.2, -1.0, -0.1)


def final(arg=None, **flat):
  """The resolved config with changes, dots as __."""
  c = config.get_config(arg)
  c.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in flat.items()})
  return resolve.finalise(c)


def objective(arg=None, **flat):
  c = final(arg, **flat)
  return rl_setup.objective_of(c.papo, 'papo', c)


def of(logp=LOGP, blind=BLIND, mask=None, **fields):
  """(scores, block) of rows [R, T] as one group."""
  logp, blind = (jnp.atleast_2d(jnp.array(x))[None] for x in (logp, blind))
  mask = (jnp.ones(logp.shape, bool) if mask is None
          else jnp.atleast_2d(jnp.array(mask))[None])
  return types.Scores(logp=logp, entropy=jnp.zeros_like(logp)), types.Block(
      prompts=None, mask=mask, advantage=jnp.zeros((*mask.shape[:2], 1)),
      extra={'view/masked': blind, 'sampler_logp': logp},
      **{'completions': types.Completions(
          tokens=None, kind=jnp.ones(mask.shape, jnp.int8), positions=None),
         **fields})


def value_and_slope(term, scores, block, **kw):
  """Of the finished term in log pi."""
  def value(logp):
    return reduce.finish(*term(scores.replace(logp=logp), block, {}, **kw))
  return jax.jit(jax.value_and_grad(value))(scores.logp)


def by_name(made, scores, block):
  """{name: coefficient x term} of an objective."""
  def value(scores, block, knobs):
    return {term.name: knobs[f'coef/{term.name}'] * reduce.finish(
        *term.fn(scores, block, knobs)) for term in made.terms}
  return jax.jit(value)(scores, block, dict(made.knobs))


# The term.


@pytest.mark.parametrize('form, mean, slope', [
    # d = -1, 0, .4: exp(d) - d - 1 = .367879, 0, .091825; / 3 = .153235.
    # -.02 (1 - exp(d)) / 3 = -.02 x (.632121, 0, -.491825) / 3.
    ('code', 0.153235, [-0.004214, 0.0, 0.003279]),
    # r = e, 1, exp(-.4): r - log r - 1 = .718282, 0, .070320; / 3 = .262867.
    # -.02 (r - 1) / 3 = -.02 x (1.718282, 0, -.329680) / 3.
    ('paper', 0.262867, [-0.011455, 0.0, 0.002198])])
def test_both_forms_by_hand(form, mean, slope):
  value, gradient = value_and_slope(papo.perception, *of(), form=form)
  assert value == pytest.approx(-mean, abs=1e-6)
  np.testing.assert_allclose(0.02 * gradient[0, 0], slope, atol=1e-6)


def test_the_extra_loss_of_the_7b_config():
  # -.02 x .153235 = -.00306469. H = 1.7 / 3 = .566667 and H_mask = 2.3 / 3 =
  # .766667, both x .05 ADDED: .0283333 + .0383333; all three .0636020.
  made = by_name(objective('qwen2_5_vl_7b'), *of(
      ref=jnp.array([[LOGP]]), old=jnp.array([[LOGP]])))
  assert made.pop('policy') == made.pop('kl') == 0
  assert {name: float(x) for name, x in made.items()} == pytest.approx({
      'perception': -0.00306469, 'entropy': 0.0283333,
      'blind_entropy': 0.0383333}, abs=1e-6)
  assert float(sum(made.values())) == pytest.approx(0.0636020, abs=1e-6)


def test_slopes_of_the_forms_at_large_differences():
  # d = -5: k = exp(-5) + 4 = 4.006738, slope 1 - exp(-5) = .993262 <= 1; the
  # printed form has r = exp(5), k = 142.4, which is cut at 10: slope 0.
  code, slope = value_and_slope(papo.perception, *of([-0.1], [-5.1]))
  assert code == pytest.approx(-4.006738, abs=1e-5)
  assert slope[0, 0, 0] == pytest.approx(-0.993262, abs=1e-5)
  paper, slope = value_and_slope(
      papo.perception, *of([-0.1], [-5.1]), form='paper')
  assert paper == -10 and slope[0, 0, 0] == 0
  # Without the cut: r - 1 = 147.413159.
  paper, slope = value_and_slope(
      papo.perception, *of([-0.1], [-5.1]), form='paper', value_clamp=1e9)
  assert paper == pytest.approx(-142.413159, rel=1e-5)
  assert slope[0, 0, 0] == pytest.approx(-147.413159, rel=1e-5)
  # The code's own cuts: d = 3 has k = 16.1, d = -30 is taken as -20.
  for blind, want in ((-0.1, 10.0), (-33.1, 10.0)):
    value, slope = value_and_slope(papo.perception, *of([-3.1], [blind]))
    assert value == -want and slope[0, 0, 0] == 0
  value, slope = value_and_slope(
      papo.perception, *of([-3.1], [-33.1]), value_clamp=1e9)
  assert value == pytest.approx(-19, abs=1e-5) and slope[0, 0, 0] == 0


def test_top_keeps_the_largest_of_each_response():
  # Rows of 3 and 2 tokens; top .4 keeps ceil(1.2) = 2 and ceil(.8) = 1 of
  # them: .367879 and .091825, and of the second row .367879, where the two
  # largest of all tokens beside them would be others. The mean is over all 5.
  scores, block = of([LOGP, LOGP], [BLIND, (-0.1, -2.0, 0.0)],
                     [[True] * 3, [True, True, False]])
  value, slope = value_and_slope(papo.perception, scores, block, top=0.4)
  assert value == pytest.approx(-(0.367879 + 0.091825 + 0.367879) / 5, abs=1e-6)
  assert np.asarray(slope[0] != 0).tolist() == [
      [True, False, True], [False, True, False]]
  whole, _ = value_and_slope(papo.perception, scores, block)
  # exp(.1) - .1 - 1 = .005171.
  assert whole == pytest.approx(float(value) - 0.005171 / 5, abs=1e-6)
  # In a config it is a number, so a traced knob.
  made = objective('no_ref', terms__perception__kwargs=dict(top=0.4))
  assert made.knobs['perception/top'] == pytest.approx(0.4)
  assert by_name(made, scores, block)['perception'] == pytest.approx(
      0.01 * float(value), abs=1e-6)


@pytest.mark.parametrize('term, want', [
    # Without the first token: k (0 + .091825) / 2; H_mask (1 + .1) / 2.
    (papo.perception, -0.0459125), (papo.blind_entropy, 0.55)])
def test_only_sampled_tokens_count(term, want):
  scores, block = of(completions=types.Completions(
      tokens=None, positions=None, kind=jnp.array([[[
          types.KIND_EXPERT, types.KIND_SAMPLED, types.KIND_SAMPLED]]])))
  value, slope = value_and_slope(term, scores, block)
  assert value == pytest.approx(want, abs=1e-6) and slope[0, 0, 0] == 0
  # Tokens that the mask leaves out (observations) may be anything (M9).
  scores, block = of([jnp.nan, -1.0, -0.5], [jnp.inf, -1.0, -0.1],
                     [False, True, True])
  value, slope = value_and_slope(term, scores, block)
  assert value == pytest.approx(want, abs=1e-6)
  assert np.isfinite(slope).all() and slope[0, 0, 0] == 0


def test_unknown_forms_and_looks_are_named():
  with pytest.raises(ValueError, match="form='inverse' is not one of"):
    papo.perception(*of(), {}, form='inverse')
  scores, block = of()
  for term in (papo.perception, papo.blind_entropy):
    with pytest.raises(ValueError, match="'dark'; there are .*view/masked"):
      term(scores, block, {}, view='dark')
    # An update's look comes before a rollout's of the same name.
    seen = scores.replace(views={'masked': scores.logp})
    want, _ = term(scores, block.replace(extra={'view/masked': scores.logp}),
                   {})
    assert term(seen, block, {})[0] == want


def test_every_reduction_is_the_policys():
  # seq_mean of rows of 1 and 2 tokens: (.367879 + .091825 / 2) / 2.
  scores, block = of([LOGP, LOGP], [BLIND, BLIND],
                     [[True, False, False], [False, True, True]])
  made = objective('no_ref', rl__policy__reduce='seq_mean')
  assert by_name(made, scores, block)['perception'] == pytest.approx(
      -0.01 * (0.367879 + 0.091825 / 2) / 2, abs=1e-7)


# The config.


GRPO, DAPO = (0.2, 0.3, 1e-2), (0.2, 0.28, 0.0)


@pytest.mark.parametrize('arg, gamma, eta, clip', [
    ('qwen2_5_vl_3b', 0.02, 0.0, GRPO), ('qwen2_5_vl_7b', 0.02, 0.05, GRPO),
    ('qwen2_5_vl_3b,dapo', 0.01, 0.03, DAPO),
    ('qwen2_5_vl_7b,dapo', 0.01, 0.03, DAPO),
    ('qwen2_5_vl_3b,no_ref', 0.01, 0.03, (0.2, 0.3, 0.0)),
    ('qwen2_5_vl_7b,no_ref', 0.01, 0.03, (0.2, 0.3, 0.0))])
def test_the_papers_numbers(arg, gamma, eta, clip):
  c = final(arg)
  s = c.papo
  assert c.stages == ('papo',)
  assert (s.policy.kwargs.as_dict(), s.kl.coefficient) == (
      dict(eps_low=clip[0], eps_high=clip[1], dual_clip=3.0), clip[2])
  assert s.kl.estimator == 'k3' and s.policy.reduce == 'token_mean'
  assert s.advantage.fn == 'grpo'
  assert s.advantage.kwargs.as_dict() == dict(std='group', ddof=1, eps=1e-6)
  made = rl_setup.objective_of(s, 'papo', c)
  want = {'coef/policy': 1.0, 'coef/kl': clip[2], 'coef/perception': gamma,
          'coef/blind_entropy': eta, 'coef/entropy': -eta}
  assert {name: x for name, x in made.knobs.items() if 'coef' in name} == {
      name: x for name, x in want.items() if x}
  assert made.reference == (clip[2] > 0) and s.entropy.source == 'sampled'
  # One mask of each prompt, p = .6, scored once by the rollout's policy.
  (look,) = sockets.looks(s, 'papo', c, sockets.requested(s, c, made))
  assert look.fn.keywords['black'] == 0.6 and 'size' not in look.fn.keywords
  assert (look.params, look.when, look.gradient) == (
      'policy', 'rollout', False)
  weights = {name: c.rewards[name].weight for name in s.rewards}
  assert weights == dict(result=0.9, format=0.1)
  assert c.rewards.format.fn == 'format.think_boxed'
  # G 5; 384 prompts in updates of 128; 78K prompts are two epochs.
  assert (s.samples_per_prompt, s.prompts_per_step) == (5, 384)
  assert s.prompts_per_step // s.minibatches_per_step == 128
  assert s.epochs_per_step == 1 and s.old == 'recompute'
  assert 77_000 < s.steps * s.prompts_per_step <= 78_000
  assert (s.temperature, s.top_p, s.max_new_tokens) == (1.0, 0.99, 2048)
  assert (s.optimizer.lr, s.optimizer.weight_decay) == (1e-6, 1e-2)
  assert s.optimizer.lr_decay == 'constant' and s.optimizer.freeze == ()
  assert (c.data.min_pixels, c.data.max_pixels) == (200_704, 1_003_520)
  assert c.data.prompt_tokens == 4096
  if 'dapo' in arg:
    assert s.select.fn == 'drop_zero_std' and s.rounds > 1
    assert s.select.kwargs.as_dict() == dict(
        column='result', low=0.01, high=0.99)
  else:
    assert s.select.fn == 'keep_all' and s.rounds == 1


def test_dapo_has_no_reference_to_leave_out():
  with pytest.raises(ValueError, match="papo:dapo,no_ref: 'dapo' has no"):
    config.get_config('dapo,no_ref')


def test_recompute_is_a_look_of_every_update():
  c = final('recompute,no_ref')
  made = rl_setup.objective_of(c.papo, 'papo', c)
  (look,) = sockets.looks(
      c.papo, 'papo', c, sockets.requested(c.papo, c, made))
  assert (look.when, look.gradient, look.fn.keywords['black']) == (
      'update', True, 0.6)


@pytest.mark.parametrize('key, gone', [
    ('terms__perception__coefficient', {'perception'}),
    ('rl__entropy__coefficient', {'entropy'}),
    ('terms__blind_entropy__coefficient', {'blind_entropy'})])
def test_a_coefficient_of_0_removes_its_term(key, gone):
  every = {'policy', 'kl', 'perception', 'entropy', 'blind_entropy'}
  made = objective('qwen2_5_vl_7b', **{key: 0.0})
  assert {term.name for term in made.terms} == every - gone
  # The pass goes on, and so does its log: -.2 + 1.2, 0, -.5 + .1.
  means, _ = made.terms[0].metrics(*of(old=jnp.array([[LOGP]])), made.knobs)
  assert reduce.finish(*means['view/masked/drop']) == pytest.approx(0.2)


def test_what_is_neither_read_nor_watched_has_no_pass():
  none = dict(terms__perception__coefficient=0.0)
  def asked(**flat):
    c = final('no_ref', **flat)
    return sockets.requested(
        c.papo, c, rl_setup.objective_of(c.papo, 'papo', c))
  assert asked(**none) == ('masked',)
  # The blind entropy reads it still.
  assert asked(**none, rl__watch=()) == ('masked',)
  assert not asked(**none, rl__watch=(),
                   terms__blind_entropy__coefficient=0.0)


def test_the_other_ablations():
  made = objective('no_ref', terms__perception__kwargs__form='paper')
  assert by_name(made, *of())['perception'] == pytest.approx(
      -0.01 * 0.262867, abs=1e-7)
  c = final(views__masked__kwargs__black=0.8)
  kind = pixels.Pixels(mean=(0.5,), std=(0.5,), patch=2)
  (look,) = sockets.looks(c.papo, 'papo', c, ('masked',), kind)
  side = 64
  place = np.stack(np.meshgrid(*[np.arange(side)] * 2), -1).reshape(-1, 2)
  got = look.fn(types.Media(
      patches=np.ones((1, side**2, 4), np.float32), position=place[None],
      segment=np.ones((1, side**2), np.int32), slot=None),
                jax.random.key_data(jax.random.key(0))[None])
  assert np.mean(np.asarray(got.patches) == -1) == pytest.approx(0.8, abs=0.02)


def test_a_flag_bounds_the_perception_loss():
  _, plans = runs.commanded(
      'papo', ['--config.terms.perception.kwargs.value_clamp=0.2'], 'no_ref')
  value = by_name(plans['papo'].objective, *of())['perception']
  # k = [.367879, 0, .091825], of which the first is now .2.
  assert value == pytest.approx(-0.01 * (.2 + .091825) / 3, abs=1e-7)


def test_gamma_and_both_entropies_anneal_by_hooks():
  c = config.get_config('qwen2_5_vl_7b')
  for name, start in (('perception', 0.02), ('entropy', -0.05),
                      ('blind_entropy', 0.05)):
    c.hooks[name] = dict(fn='linear', kwargs=dict(
        knob=f'coef/{name}', start=start, end=0.0, steps=101, begin=101))
  c.rl.hooks = ('perception', 'entropy', 'blind_entropy')
  c = resolve.finalise(c)
  plan = rl_setup.setup(c.papo, 'papo', c)
  for step, share in ((0, 1.0), (101, 1.0), (202, 0.0)):
    knobs = plan.knobs
    for hook in plan.hooks.values():
      knobs, _ = hook(knobs, {}, {}, {}, step)
    assert [knobs[f'coef/{name}'] for name in plan.hooks] == pytest.approx(
        [0.02 * share, -0.05 * share, 0.05 * share])


# Two steps.


VARIANTS = {None: 'even', 'dapo': 'seldom', 'recompute': 'even'}


@pytest.fixture(scope='module', params=VARIANTS, ids=lambda x: x or 'default')
def variant(request):
  return request.param


@pytest.fixture(scope='module')
def run(variant, shrink, open_run, tmp_path_factory):
  c = two_steps.small_stage(
      shrink(config.get_config(variant)), 'papo', reward=VARIANTS[variant],
      rewards__format__fn='tests.own:late')
  return two_steps.take(c, 'papo', open_run, tmp_path_factory.mktemp('papo'))


def blind_of(run, update, params):
  """By a pass of `params` over prompts that were masked here."""
  prompts = two_steps.masked(run, update.block.prompts, 0.6)
  return two_steps.log_probs(run, params, prompts, update.block)


def test_the_look_is_the_policy_that_saw_black_patches(run, variant):
  for i, update in enumerate(run.updates):
    prompts = update.block.prompts
    before, after = (x.media['vision'] for x in (
        prompts, two_steps.masked(run, prompts, 0.6)))
    changed = np.any(before.patches != after.patches, -1)
    assert changed.any(-1).all() and not changed.all(-1).any()
    if variant == 'recompute':  # nothing of the rollout's is kept
      assert 'view/masked' not in update.block.extra
      continue
    # All G completions of a prompt after one masked image, before any update.
    want = blind_of(run, update, update.start)
    got = update.block.extra['view/masked']
    np.testing.assert_allclose(got, want, atol=1e-5)
    own = two_steps.log_probs(run, update.start, prompts, update.block)
    assert np.abs(own - want).max() > 0.01
    later = np.abs(blind_of(run, update, update.params) - want).max()
    assert later > 0.01 if i % two_steps.MINIBATCHES else later < 1e-5
  noise = np.concatenate([x.block.prompts.noise for x in run.updates])
  assert len({tuple(row) for row in noise.tolist()}) == len(noise)


def test_what_is_logged_and_minimised_by_numpy(run, variant):
  high, gamma, eta, beta = (0.28, 0.01, 0.03, 0.0) if variant == 'dapo' else (
      0.3, 0.02, 0.0, 0.01)
  for update in run.updates:
    block, got = update.block, update.metrics
    mean = functools.partial(two_steps.mean, mask=block.mask)
    logp = two_steps.log_probs(run, update.params, block.prompts, block)
    blind = (blind_of(run, update, update.params) if variant == 'recompute'
             else block.extra['view/masked'])
    k = two_steps.k3(logp, blind)
    parts = {'policy': mean(two_steps.clipped(
        logp, block.old, block.advantage, 0.2, high, 3.0))}
    parts['perception'] = -gamma * mean(k)
    if eta:
      parts |= {'entropy': -eta * mean(logp), 'blind_entropy': -eta * mean(
          blind)}
      assert got['term/blind_entropy'] == pytest.approx(-mean(blind), rel=1e-4)
    if beta:
      parts['kl'] = beta * mean(two_steps.k3(logp, block.ref))
    assert {name for name in got if name.startswith('loss/')} == {
        f'loss/{name}' for name in parts}
    want = {'term/perception': -mean(k), 'loss': sum(parts.values()),
            'view/masked/drop': mean(logp - blind),
            **{f'loss/{name}': x for name, x in parts.items()}}
    for name, x in want.items():  # k starts at about 1e-5
      assert got[name] == pytest.approx(
          x, rel=1e-2, abs=1e-8 if 'perception' in name else 1e-5), name
  assert -run.metrics[1]['term/perception'] > 1e-3


def test_reward_and_advantage(run, variant):
  """R = .9 accuracy + .1 format, in groups of the block's first two rows."""
  for rows in run.samples:
    columns = np.reshape([[x['rewards'][name] for name in ('result', 'format')]
                          for x in rows], (2, two_steps.G, 2))
    total = columns @ [0.9, 0.1]
    want = (total - total.mean(1, keepdims=True)) / (
        total.std(1, ddof=1, keepdims=True) + 1e-6)
    got = np.reshape([x['advantage'] for x in rows], total.shape)
    np.testing.assert_allclose(got, want, atol=1e-5)
    if variant == 'dapo':  # kept by accuracy, though all rewards vary
      assert all(0 < x < 1 for x in columns[..., 0].mean(1))


def test_dapo_asks_again_for_groups_that_vary(run, variant):
  for metrics in run.metrics:
    assert ('select/rounds' in metrics) == (variant == 'dapo')
  if variant == 'dapo':
    assert max(x['select/rounds'] for x in run.metrics) > 1
    for update in run.updates:
      live = update.block.mask.any((1, 2))
      assert live.any()
      assert not (update.block.prompts.uid[live] % 2).any()


def test_a_second_step_compiles_nothing(run):
  assert run.compiled[0] == run.compiled[1]
  assert all(x['update/skipped'] == 0 for x in run.metrics)
