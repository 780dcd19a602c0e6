"""VOGUE by hand: divergences, both readings' bonuses, the choice of a branch,
its schedule; what the config says. Steps are in vogue_steps_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import columns
from mmr1 import types
from mmr1.losses import divergence
from mmr1.losses import terms
from mmr1.papers import vogue
from tests.losses import blocks
from tests.papers import runs

P, Q = np.log([.7, .2, .1]), np.log([.4, .4, .2])
U, H_P, H_Q = .187914, .801819, 1.054920
# A group whose advantages are its rewards: their mean is 0, their variance
# (1.44 + .64 + .0025 + .0025 + 0 + .16) / 5 = .449, and eps fills its root up
# to 1.
A = np.asarray([1.2, -.8, .05, -.05, 0, -.4])
EPS = 1 - .449**.5


def tokens(pair, entropy, logp=None, look=None, *, view='raw', seed=0, **kw):
  """Of rows [N, 6, 1] whose values are those of their row."""
  def wide(x):
    return None if x is None else np.broadcast_to(
        np.reshape(x, (-1, 1, 1)), (np.size(x), len(A), 1))
  seen = types.Seen(logp=wide(look), pair=wide(pair), entropy=wide(entropy))
  rows = wide(next(x for x in (pair, look) if x is not None))
  return columns.Tokens(**{**dict(
      mask=np.ones(rows.shape, bool), logp=wide(logp), looks={view: seen},
      rng=np.random.default_rng(seed)), **kw})


def rewards(n):
  return np.tile(A[:, None], (n, 1, 1))


def test_divergences_by_hand():
  # .7 ln(.7/.4) + .2 ln(.2/.4) + .1 ln(.1/.2) = .391731 - .138629 - .069315;
  # .4 ln(.4/.7) + .4 ln(.4/.2) + .2 ln(.2/.1) = -.223846 + .277259 + .138629.
  assert divergence.kl(P, Q) == pytest.approx(.183787, abs=1e-6)
  assert divergence.kl(Q, P) == pytest.approx(.192042, abs=1e-6)
  assert divergence.reverse_kl(P, Q) == pytest.approx(.192042, abs=1e-6)
  assert divergence.symmetric_kl(P, Q) == pytest.approx(U, abs=1e-6)
  # Swapping the branches changes nothing, which a KL does not promise.
  assert divergence.symmetric_kl(P, Q) == divergence.symmetric_kl(Q, P)
  for fn in (divergence.kl, divergence.reverse_kl, divergence.symmetric_kl):
    assert fn(P, P) == 0
  # One row of tokens; an id that neither may choose has 0 in both.
  both = divergence.symmetric_kl(*(
      jnp.asarray([[*p, 0.0], [*P, 0.0]]) for p in (Q, P)))
  # 0 is probability 1 in both, so no difference.
  np.testing.assert_allclose(
      both, [divergence.symmetric_kl(Q, P), 0], atol=1e-7)


def test_algorithm_1_by_hand():
  """Caps |A| / 2; on the raw row u is 0.

    raw    .4 H(P) = .320727:  1.2 + .320727;  -.8 + .320727;  .05 + .025
    noisy  .4 H(Q) = .421968:  1.2 + .421968 + .187914;
           -.8: the cap .4 and .187914;  .05 + .025 + .025;
           -.4: the cap .2 and .187914
  """
  got = vogue.uncertainty(rewards(2), tokens([0, U], [H_P, H_Q]), eps=EPS)
  assert got.dtype == np.float32 and got.shape == (2, 6, 1)
  np.testing.assert_allclose(got[..., 0], [
      [1.520727, -.479273, .075, -.025, 0, -.2],
      [1.809882, -.212086, .1, 0, 0, -.012086]], atol=2e-6)
  # Each coefficient and each cap by itself, on the noisy row.
  def noisy(**kw):
    return vogue.uncertainty(
        rewards(1), tokens([U], [H_Q]), eps=EPS, **kw)[0, :, 0]
  np.testing.assert_allclose(
      noisy(alpha_visual=2.0)[:2], [1.997796, -.024173], atol=2e-6)
  np.testing.assert_allclose(  # .8 / 8 = .1
      noisy(beta_visual=8.0)[:2], [1.2 + .421968 + .15, -.3], atol=2e-6)
  np.testing.assert_allclose(
      noisy(alpha_entropy=.2)[:2], [1.598898, -.401102], atol=2e-6)
  np.testing.assert_allclose(
      noisy(beta_entropy=4.0)[:2], [1.2 + .3 + U, -.8 + .2 + U], atol=2e-6)


def test_the_released_code_by_hand():
  """p = .7, q = .4: u = .3 (ln .7 - ln .4) / 2 = .083942; -q ln q = .366516 and
  -p ln p = .249672, times .4: .146607 and .099869.

    noisy  1.2 + .083942 = 1.283942, + .146607;
           .05: the cap .025, and then half of .075
    raw    1.2 + .099869
  """
  def step(**kw):
    given = tokens(None, None, [np.log(.7)], [np.log(.4)], view='noisy')
    return vogue.uncertainty_of_samples(
        rewards(1), given, eps=EPS, **kw)[0, :, 0]
  np.testing.assert_allclose(
      step(), [1.430549, -.569451, .1125, -.0125, 0, -.169452], atol=2e-6)
  np.testing.assert_allclose(
      step(noisy_frac=0.0), [1.299869, -.700131, .075, -.025, 0, -.300131],
      atol=2e-6)
  # The switch of the code: the visual bonus is taken off.
  np.testing.assert_allclose(
      step(sign=-1.0), [1.262664, -.737336, .0375, -.0375, 0, -.337336],
      atol=2e-6)
  # Without the first bonus the second cap is that of A itself.
  np.testing.assert_allclose(
      step(alpha_visual=0.0)[:3], [1.346607, -.653393, .075], atol=2e-6)


@pytest.mark.parametrize('seed', range(4))
def test_signs_never_flip_and_flat_groups_stay_zero(seed):
  rng = np.random.default_rng(seed)
  n, g, t = 6, 5, 7
  r = rng.normal(size=(n, g, 1))
  r[0] = 0.1 + 0.2  # does not vary
  mask = rng.random((n, g, t)) < .8
  logp, look = -5 * rng.random((2, n, g, t))
  seen = types.Seen(logp=look, pair=9 * rng.random((n, g, t)),
                    entropy=5 * rng.random((n, g, t)))
  given = columns.Tokens(mask=mask, logp=logp, looks={'v': seen},
                         rng=np.random.default_rng(0))
  plain = np.broadcast_to(advantages.grpo(r), mask.shape)
  whole = vogue.uncertainty(r, given, view='v')
  for got in (whole, vogue.uncertainty_of_samples(r, given, view='v')):
    assert not got[0].any() and not got[~mask].any()
    assert (got * plain >= 0).all()
    gain = (got - plain)[mask]
    assert (gain >= -1e-6).all() and (gain > .01).any()
    assert (gain <= 1.25 * np.abs(plain[mask]) + 1e-6).all()
  assert (whole - plain <= np.abs(plain) + 1e-6)[mask].all()


def test_both_alphas_at_0_are_grpo_to_the_bit():
  given = tokens([U, U], [H_P, H_Q], [-1., -2.], [-2., -.5], view='v')
  r = np.random.default_rng(0).normal(size=(2, 6, 1))
  plain = advantages.grpo(r, eps=1e-6).astype(np.float32)
  none = dict(view='v', alpha_visual=0.0, alpha_entropy=0.0)
  np.testing.assert_array_equal(vogue.uncertainty(r, given, **none), plain)
  for frac in (0.0, 1.0):
    np.testing.assert_array_equal(vogue.uncertainty_of_samples(
        r, given, noisy_frac=frac, **none), plain)
    assert (vogue.uncertainty_of_samples(
        r, given, noisy_frac=frac, view='v') != plain).any()


def test_an_augmentation_that_changes_nothing_gives_both_branches_the_same():
  given = tokens([0, 0], [H_P, H_P])
  got = vogue.uncertainty(rewards(2), given, eps=EPS)
  np.testing.assert_array_equal(got[0], got[1])
  # It is the entropy's bonus alone, which stays (p = 0: every row is raw).
  np.testing.assert_array_equal(
      got, vogue.uncertainty(rewards(2), given, eps=EPS, alpha_visual=0.0))
  assert (got[0, :, 0] != A.astype(np.float32)).any()


def test_one_draw_of_the_released_code_is_for_the_whole_step():
  def step(seed, frac):
    given = tokens(None, None, [np.log(.7)] * 3, [np.log(.4)] * 3, view='v',
                   seed=seed)
    got = vogue.uncertainty_of_samples(
        rewards(3), given, view='v', noisy_frac=frac, eps=EPS)[:, 0, 0]
    assert len(set(got.tolist())) == 1
    return got[0] > 1.4  # 1.430549 or 1.299869
  # Of 400 steps 120 +- 9 are noisy.
  assert 90 < sum(step(seed, .3) for seed in range(400)) < 150
  assert not any(step(seed, 0.0) for seed in range(9))
  assert all(step(seed, 1.0) for seed in range(9))


def test_what_a_look_lacks_is_named():
  with pytest.raises(ValueError, match="'raw' has no divergence.*symmetric_kl"):
    vogue.uncertainty(rewards(1), tokens(None, None, look=[-1.]))
  with pytest.raises(ValueError, match="reads the view 'raw'.*'noisy'"):
    vogue.uncertainty(rewards(1), tokens([U], [H_Q], view='noisy'))


def test_no_gradient_goes_through_a_bonus():
  """d loss / d logp is -A_t / count, as if u and H were given numbers; they
  are made on the host, where no gradient can follow."""
  scores, block = blocks.block(shape=(2, 6, 3), lengths=np.full((2, 6), 3))

  def advantage(logp):
    return vogue.uncertainty_of_samples(rewards(2), columns.Tokens(
        mask=np.asarray(block.mask), logp=logp, rng=np.random.default_rng(),
        looks={'noisy': types.Seen(logp=logp - 1)}), eps=EPS)

  def loss(logp, shaped):
    total, count = terms.policy(scores.replace(logp=logp), block.replace(
        advantage=jnp.asarray(shaped), old=None), {})
    return total / count
  shaped = advantage(scores.logp)
  assert len(np.unique(shaped[0, 0])) == 3  # of its own for every token
  np.testing.assert_allclose(
      jax.grad(loss)(scores.logp, shaped), -shaped / 36, atol=1e-7)
  with pytest.raises(jax.errors.TracerArrayConversionError):
    jax.grad(lambda logp: loss(logp, advantage(logp)))(scores.logp)


# Which branch is trained on.


def chosen(n, g, seed=0, branch=None, **kw):
  branch = np.arange(2 * n) % 2 if branch is None else np.asarray(branch)
  keep, counts, more, state = vogue.branch(
      {}, np.zeros((len(branch), g, 1)), {'branch': branch}, {'a': 1},
      np.random.default_rng(seed), **kw)
  assert keep.dtype == bool and not more and state == {'a': 1}
  return keep, counts['select/noisy_frac']


def test_one_of_every_pair_is_kept():
  keep, share = chosen(200, 50, noisy_frac=.3)
  assert (keep[::2] ^ keep[1::2]).all()
  # 10,000 draws: .3 +- .005.
  assert share == keep[1::2].mean() and abs(share - .3) < .02
  # The two responses of an index are drawn by themselves, in a group too.
  assert keep[1].any() and not keep[1].all()
  assert abs(np.corrcoef(keep[1::2, 0], keep[1::2, 1])[0, 1]) < .3
  for frac in (0.0, 1.0):
    keep, share = chosen(4, 5, noisy_frac=frac)
    assert share == frac and (keep[1::2] == frac).all()
  assert chosen(4, 5)[1] == 1  # where the paper begins


def test_one_draw_for_a_step():
  shares = [chosen(3, 4, seed, noisy_frac=.3, draw='step')[1]
            for seed in range(400)]
  assert set(shares) == {0.0, 1.0} and abs(np.mean(shares) - .3) < .08
  keep, _ = chosen(3, 4, draw='step')
  assert keep[1::2].all() and not keep[::2].any()


@pytest.mark.parametrize('kw, said', [
    (dict(draw='token'), "draw='token' is not one of"),
    (dict(branch=[0, 0, 0, 0]), r'two branches.*rows of \[0\]'),
    (dict(branch=[0, 0, 1, 1]), 'two branches'),
    (dict(branch=[1, 0]), 'two branches'),
    (dict(branch=[0, 1, 2, 0, 1, 2]), r'two branches.*\[0, 1, 2\]'),
    (dict(branch=[0, 1, 0]), 'two branches')])
def test_rows_that_are_no_pairs_are_refused(kw, said):
  with pytest.raises(ValueError, match=said):
    chosen(2, 3, **kw)


# The config.


@pytest.mark.parametrize('arg, knob', [
    ('qwen2_5_vl_7b', 'select/noisy_frac'),
    ('qwen2_5_vl_7b,code', 'advantage/noisy_frac')])
def test_the_chance_falls_from_1_to_0_over_200_steps(arg, knob):
  _, plans = runs.commanded('vogue', (), arg)
  plan = plans['vogue']
  assert plan.knobs[knob] == 1
  for step, wanted in ((0, 1), (50, .75), (100, .5), (200, 0), (250, 0)):
    knobs, _ = plan.hooks['anneal'](plan.knobs, {}, {}, {}, step)
    assert knobs == {**plan.knobs, knob: pytest.approx(wanted)}
  # What it moves is what chooses: at the end everything is raw.
  if arg.endswith('code'):
    got = plan.advantage(
        rewards(1), tokens(None, None, [np.log(.7)], [np.log(.4)],
                           view='noisy'), eps=EPS, knobs=knobs)
    assert got[0, 0, 0] == pytest.approx(1.299869, abs=2e-6)
  else:
    keep, *_ = plan.select({}, np.zeros((2, 5, 1)), {'branch': np.arange(2)},
                           {}, np.random.default_rng(), knobs=knobs)
    assert keep[0].all() and not keep[1].any()


def test_the_chance_falls_over_the_steps_that_there_are():
  """Half of 50 steps: one half."""
  _, plans = runs.commanded('vogue', ('--config.vogue.steps=50',))
  plan = plans['vogue']
  knobs, _ = plan.hooks['anneal'](plan.knobs, {}, {}, {}, 25)
  assert knobs['select/noisy_frac'] == pytest.approx(0.5)


@pytest.mark.parametrize('arg', ['qwen2_5_vl_7b', 'qwen2_5_vl_7b,code'])
def test_the_papers_numbers_at_7b(arg):
  final, plans = runs.commanded('vogue', (), arg)
  stage, plan = final.vogue, plans['vogue']
  code = arg.endswith('code')
  assert final.stages == ('vogue',)
  # .9 accuracy + .1 format: [1, .1, 1, 0, .1] has mean .44 and variance
  # (.3136 + .1156 + .3136 + .1936 + .1156) / 4 = .263: .56 / .512835.
  both = np.asarray([[[1, 1], [0, 1], [1, 1], [0, 0], [0, 1]]], float)
  combined, _, _ = plan.combine(
      both, ('result', 'format'), {}, {}, weights=plan.weights)
  np.testing.assert_allclose(combined[0, :, 0], [1, .1, 1, 0, .1])
  np.testing.assert_allclose(
      advantages.grpo(combined, ddof=1, eps=1e-6)[0, :, 0],
      [1.091966, -.662980, 1.091966, -.857974, -.662980], atol=1e-6)
  given = stage.advantage.kwargs.as_dict()
  bonus = dict(alpha_visual=1.0, beta_visual=2.0, alpha_entropy=.4,
               beta_entropy=2.0, ddof=1, eps=1e-6)
  assert bonus.items() <= given.items()
  assert final.views.noisy.kwargs.as_dict() == dict(
      flip_h=.5, flip_v=.5, degrees=10.0, brightness=.15, contrast=.15,
      noise=.2 if code else .4)
  assert stage.branches == (() if code else ('raw', 'noisy'))
  if not code:
    assert final.views.raw.divergence == 'symmetric_kl'
    assert stage.select.kwargs.as_dict() == dict(
        noisy_frac=1.0, draw='response')
  assert (stage.prompts_per_step, stage.samples_per_prompt) == (256, 5)
  assert stage.prompts_per_step // stage.minibatches_per_step == 128
  assert stage.epochs_per_step == 1 and stage.old == 'recompute'
  assert (stage.steps, stage.max_new_tokens) == (200, 2048)
  assert (stage.temperature, stage.top_p, stage.top_k) == (1.0, 1.0, 0)
  assert stage.policy.kwargs.as_dict() == dict(
      eps_low=.2, eps_high=.3, dual_clip=3.0)
  assert (stage.policy.surrogate, stage.policy.reduce) == ('clip', 'token_mean')
  assert stage.kl.coefficient == 0 and not plan.objective.reference
  assert stage.optimizer.lr == 1e-6 and stage.optimizer.weight_decay == 1e-2
  assert (stage.optimizer.clip_norm, stage.optimizer.lr_decay) == (
      1.0, 'constant')
  assert final.data.prompt_tokens == 2048
  assert (final.data.min_pixels, final.data.max_pixels) == (262_144, 4_194_304)
  assert final.rewards.format.fn == 'format.think_boxed'
  assert stage.optimizer.freeze == () and not stage.lora.rank


def test_a_flag_turns_the_sign_of_the_codes_bonus():
  for flags, want in (((), 1.0), (
      ['--config.rl.advantage.kwargs.sign=-1.0'], -1.0)):
    final, _ = runs.commanded('vogue', flags, 'code')
    assert final.vogue.advantage.kwargs.sign == want


def test_the_ablations_change_what_they_say():
  every = [runs.commanded('vogue', given)
           for given in runs.ablations('vogue')]
  finals, plans = zip(*((final, plan['vogue']) for final, plan in every))
  assert len(finals) == 6
  r, given = rewards(1), tokens([U], [H_Q])
  first = [plan.advantage(r, given, eps=EPS)[0, 0, 0] for plan in plans]
  # Without u: 1.2 + .421968; without H: 1.2 + .187914.
  np.testing.assert_allclose(
      first, [1.621968, 1.387914] + [1.809882] * 4, atol=2e-6)
  looks = [final.views.raw.divergence for final in finals]
  assert looks == ['symmetric_kl'] * 2 + ['reverse_kl'] + ['symmetric_kl'] * 3
  assert [final.views.noisy.kwargs.noise for final in finals] == (
      [.4] * 3 + [.2] + [.4] * 2)
  # A fixed chance: no hook, and half of the responses at every step.
  assert [tuple(plan.hooks) for plan in plans] == (
      [('anneal',)] * 4 + [()] + [('anneal',)])
  keeps = [plan.select({}, np.zeros((400, 8, 1)),
                       {'branch': np.arange(400) % 2}, {},
                       np.random.default_rng(0), knobs={
                           **plan.knobs, 'select/noisy_frac': 0.5}
                       if plan.hooks else plan.knobs)[0] for plan in plans]
  assert abs(keeps[4][1::2].mean() - .5) < .05
  # One draw per step: all or nothing.
  assert keeps[5][1::2].all() or not keeps[5][1::2].any()
  assert not keeps[3][1::2].all() and keeps[3][1::2].any()
