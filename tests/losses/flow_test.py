"""Losses of flow models, worked by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import flow_objectives
from mmr1.flows import solvers
from mmr1.losses import flow
from mmr1.losses import surrogate


def picture(value):
  """[1, 1, 1, 1, D]."""
  return jnp.reshape(jnp.float32(value), (1, 1, 1, 1, -1))


def number(value):
  return jnp.float32([[value]])


def five(v, old, x0, eps, t, advantage, beta=1.0):
  """5 x the loss, a number, and its gradient by v."""
  x0, t = picture(x0), number(t)
  x = flow.noised(x0, picture(eps), t)
  r = flow.optimality(number(advantage))
  loss = lambda v: 5 * flow.nft(
      v, picture(old), x, t, x0, r, beta=beta)[0, 0]
  value, gradient = jax.value_and_grad(loss)(picture(v))
  return float(value), np.asarray(gradient).ravel()


# x0 = 1, eps = -.5, t = .6: x = .4 - .3 = .1. beta = 1: v+ = -1.4, x0+ = .94;
# v- = -1.0, x0- = .7: branches .06 and .3, each divided by its own error.
@pytest.mark.parametrize('advantage, beta, loss, gradient', [
    (2, 1.0, .66, 2.4),    # r = .7: 5 (.7 x .06 + .3 x .3)
    (0, 1.0, .90, 0.0),    # r = .5: the branches' gradients cancel
    (-7, 1.0, 1.5, -6.0),  # r = 0, as from -5 on
    # v+ = -1.22, v- = -1.18: 5 (.7 x .168 + .3 x .192) / .1; the same gradient
    (2, 0.1, 8.76, 2.4)])
def test_nft_of_one_number(advantage, beta, loss, gradient):
  value, by_v = five(-1.4, -1.2, 1, -.5, .6, advantage, beta)
  assert value == pytest.approx(loss, abs=1e-5)
  assert by_v[0] == pytest.approx(gradient, abs=1e-4)


def test_nft_and_its_distance_to_the_reference():
  # .66 + 1e-4 (-1.4 + 1.1)^2 = .660009.
  value, _ = five(-1.4, -1.2, 1, -.5, .6, 2)
  away = flow.distance(picture(-1.4), picture(-1.1))
  assert value + 1e-4 * float(away[0, 0]) == pytest.approx(.660009, abs=1e-5)


def test_nft_of_two_numbers():
  # x = [.75, -.375]; x0+ = [1, -1.025], x0- = [.9, -.825]; w = .0125, .1375;
  # branches .0003125 / .0125 = .025 and .0203125 / .1375 = .147727; r = .65.
  value, _ = five([-.5, 1.3], [-.4, 1.1], [1, -1], [.5, .25], .5, 1.5)
  assert value == pytest.approx(.339773, abs=1e-5)


def test_a_branch_on_its_target_is_not_divided_by_nothing():
  # v+ = eps - x0 exactly: its error is 0 and w is 1e-5; no nan.
  value, gradient = five(-1.5, -1.2, 1, -.5, .6, 5)
  assert value == 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize('advantage', [-5., -2., 0., 3., 5.])
def test_at_the_old_policy_the_gradient_is_2_r_minus_1_times_the_regressions(
    advantage):
  """Check 1: 0 for r = 1/2, reversed for r = 0."""
  rng = np.random.default_rng(0)
  old, x0, eps = rng.normal(size=(3, 4))
  r = float(flow.optimality(number(advantage))[0, 0])
  _, gradient = five(old, old, x0, eps, .4, advantage)
  # x0+ - x0 = t (target - v); w its mean size; d/dv of 5 mean (x0+ - x0)^2 / w.
  off = .4 * (eps - x0 - old)
  regression = 5 * 2 * off * -.4 / 4 / np.abs(off).mean()
  np.testing.assert_allclose(gradient, (2 * r - 1) * regression, atol=1e-4)


def test_optimality_and_its_modes():
  a = jnp.float32([[-7, -1, 0, 2, 9]])
  want = {'all': [0, .4, .5, .7, 1], 'positive': [.5, .5, .5, .7, 1],
          'negative': [0, .4, .5, .5, .5], 'one': [.5, .5, .5, .6, .6],
          'binary': [.4, .4, .5, .6, .6]}
  assert set(want) == set(flow.ADVANTAGES)
  for use, values in want.items():
    np.testing.assert_allclose(
        flow.optimality(a, use=use)[0], values, atol=1e-6)
  with pytest.raises(ValueError, match="'some'"):
    flow.optimality(a, use='some')


def test_global_and_local_deviation():
  # Groups [.2, .4, .6] and [.9, .92, .94]: the deviation of all is .284722;
  # +-.2 / .284822 and +-.02 / .284822. By its own group the second counts as
  # much as the first: noise is amplified.
  rewards = np.array([[.2, .4, .6], [.9, .92, .94]])[..., None]
  batch = advantages.grpo(rewards, std='batch', ddof=0, eps=1e-4)[..., 0]
  np.testing.assert_allclose(
      batch, [[-.702193, 0, .702193], [-.070219, 0, .070219]], atol=1e-6)
  group = advantages.grpo(rewards, std='group', ddof=0, eps=1e-4)[..., 0]
  np.testing.assert_allclose(
      group, [[-1.224, 0, 1.224], [-1.217, 0, 1.217]], atol=1e-3)


def test_flow_grpos_loss_and_kl():
  # Ratio 1.005573, A = 1.2, clipped at 1.0001: -1.20012. The means of the step
  # of `solvers_test` for v = [.25, -.6] and [.1, -.3] differ by .311250 x
  # [-.15, .3] = ...: KL = mean / (2 x .3675) = .007414.
  ratio = jnp.log(jnp.float32([[[1.005573]]]))
  loss, _, high = surrogate.clip(
      ratio, number(1.2)[..., None], ratio, jnp.ones((1, 1, 1), bool),
      eps_low=1e-4, eps_high=1e-4)
  assert float(loss.squeeze()) == pytest.approx(-1.20012, abs=1e-6)
  assert bool(high.squeeze())
  by_v = (1 + 1.47 * .25 / 1.5) * -.25
  means = [picture(by_v * np.array(v)) for v in ([.25, -.6], [.1, -.3])]
  kl = flow.gaussian_kl(*means, number(.606218))
  assert float(kl[0, 0]) == pytest.approx(.007414, abs=1e-6)


@pytest.mark.parametrize('beta, loss', [
    (500, .598139), (2000, .371101), (5000, .126928)])
def test_diffusion_dpo(beta, loss):
  # (.1010 - .1205) - (.1013 - .1200) = -.0008; -ln sigmoid(beta .0004).
  got = flow.diffusion_dpo(
      jnp.float32(.1010), jnp.float32(.1013), jnp.float32(.1205),
      jnp.float32(.1200), beta=beta)
  assert float(got) == pytest.approx(loss, abs=2e-5)


def test_diffusion_dpo_begins_at_ln_2():
  one, two = jnp.float32(.3), jnp.float32(.2)
  assert float(flow.diffusion_dpo(one, one, two, two)) == pytest.approx(
      np.log(2))


def test_m8_far_apart_is_finite():
  """Errors and densities of steps that differ by 1e4, on either side."""
  one = jnp.float32(1e4)
  for args in ((one, 0 * one, 0 * one, one), (0 * one, one, one, 0 * one)):
    value, slope = jax.value_and_grad(flow.diffusion_dpo)(*args, beta=5000.)
    assert np.isfinite(value) and np.isfinite(slope)
  objective = flow_objectives.flow_grpo(
      solver=functools.partial(solvers.flow_sde, eta=.7), kl=.1)
  shape = (2, 3, 2, 2, 1)
  x = jnp.ones(shape)
  for sign in (1, -1):
    round_ = flow_objectives.Round(
        condition=None, source=None, uid=None, x0=x,
        advantage=jnp.float32([[1, -1, 0]] * 2), keep=jnp.ones(shape[:2]),
        schedule=solvers.sigmas(4), latents=jnp.ones((2, 3, 5, 2, 2, 1)),
        logp=jnp.full((2, 3, 4), sign * 1e4))
    point = objective.point(round_, jnp.ones(shape[:2], jnp.int32), None)

    def loss(v):
      each, metrics = objective.loss(
          flow_objectives.Said(v, reference=0 * x), point, round_)
      return each.sum(), metrics
    (value, metrics), slope = jax.value_and_grad(loss, has_aux=True)(.1 * x)
    assert np.isfinite(value) and np.isfinite(slope).all()
    assert all(np.isfinite(x).all() for x in metrics.values())


def test_matching_is_0_at_the_target():
  x0, eps = picture([1., -1]), picture([.5, .25])
  assert float(flow.matching(eps - x0, x0, eps)[0, 0]) == 0
  assert float(flow.matching(0 * x0, x0, eps)[0, 0]) == pytest.approx(
      (.25 + 1.5625) / 2)
