"""Solvers: trajectories worked by hand, densities, and what a path records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.flows import solvers


def picture(value):
  """[1, 1, 1, 1, D] of a number or D numbers."""
  return jnp.reshape(jnp.float32(value), (1, 1, 1, 1, -1))


def path(solver, schedule, x=1.0):
  """Every x on the way of v(x) = x / 2 - .3, without noise."""
  result = solvers.solve(
      lambda x, sigma: 0.5 * x - 0.3, lambda k: picture(x),
      jnp.float32(schedule), solver, trace=True)
  return np.asarray(result.latents).ravel(), result


def at(sigma, following, before=1.0, second=0.75, edge=False):
  return solvers.At(*map(jnp.float32, (sigma, following, before, second)),
                    jnp.bool_(edge))


def test_eulers_trajectory():
  # 1 + (-.25)(.2) = .95; .95 - .25 (.175) = .90625; ...; .834473.
  got, _ = path(solvers.euler, [1, .75, .5, .25, 0])
  np.testing.assert_allclose(
      got, [1, .95, .90625, .867969, .834473], atol=1e-6)


@pytest.mark.parametrize('schedule, want', [
    ([1, .75, .5, .25, 0], [1, .95, .90625, .870703, .836865]),
    ([.9, .7, .5, .25, 0], [1, .96, .925255, .887821, .851843])])
def test_dpm2s_trajectories(schedule, want):
  # In the first schedule sigma_before = 1 in the second step: D = 0 there.
  # Without it (the second schedule) D counts; first and last step are Euler's.
  np.testing.assert_allclose(path(solvers.dpm2, schedule)[0], want, atol=1e-6)


def test_dpm2_is_more_exact_than_euler_in_as_many_steps():
  # v = eps - x0 of one picture x0 = .3: with the exact velocity of a Gaussian
  # x ~ (1 - s) N(.3, .2^2) + s N(0, 1) the flow is known.
  mean, std = 0.3, 0.2

  def velocity(x, s):
    var = ((1 - s) * std)**2 + s**2
    x0 = mean + (1 - s) * std**2 / var * (x - (1 - s) * mean)
    eps = s / var * (x - (1 - s) * mean)
    return eps - x0
  ends = {}
  for name in ('euler', 'dpm2'):
    for steps in (16, 512):
      ends[name, steps] = float(solvers.solve(
          velocity, lambda k: picture(0.7), solvers.sigmas(steps),
          getattr(solvers, name)).x0[0, 0, 0, 0, 0])
  # Quantiles are kept: .3 + .2 x .7.
  assert abs(ends['euler', 512] - 0.44) < 1e-3
  assert 3 * abs(ends['dpm2', 16] - 0.44) < abs(ends['euler', 16] - 0.44)


def test_flow_grpos_step():
  # sigma .75 -> .5, eta .7: s = .7 sqrt(.75 / .25) = 1.212436, dt = -.25;
  # mean = 1 (1 - .25 s^2 / 1.5) + .2 (1 + s^2 .25 / 1.5)(-.25) = .69275,
  # std = s / 2 = .606218, log p(1) = -.546861. Euler would give .95.
  x, v = picture(1.0), picture(0.2)
  move = solvers.flow_sde(x, v, at(.75, .5), x, eta=0.7)
  assert float(move.mean.squeeze()) == pytest.approx(.69275, abs=1e-6)
  assert float(move.std) == pytest.approx(.606218, abs=1e-6)
  assert float(solvers.log_prob(x, move, 3).squeeze()) == pytest.approx(
      -.546861, abs=1e-6)
  assert float(solvers.euler(x, v, at(.75, .5), x).mean.squeeze()) == (
      pytest.approx(.95))


def test_flow_grpos_ratio_over_two_dimensions():
  x, there = picture([1, 0]), picture([1, .3])
  logp = [float(solvers.log_prob(there, solvers.flow_sde(
      x, picture(v), at(.75, .5), x, eta=.7), 3).squeeze())
          for v in ([.2, -.4], [.25, -.6])]
  np.testing.assert_allclose(logp, [-.503595, -.498037], atol=1e-6)
  assert np.exp(logp[1] - logp[0]) == pytest.approx(1.005573, abs=1e-5)


def test_at_noise_the_second_sigma_stands_in():
  # sigma = 1: s = .7 sqrt(1 / (1 - .75)) = 1.4.
  x = picture(1.0)
  move = solvers.flow_sde(x, x, at(1, .75, edge=True), x, eta=.7)
  assert float(move.std) == pytest.approx(1.4 * .5)


def test_dancegrpos_step():
  # x0 = 1 - .75 (.2) = .85; score = -(1 - .25 (.85)) / .5625 = -1.4; mean = 1
  # - .25 (.2) - .5 (.09) (-1.4) (-.25) = .93425; std = .3 / 2.
  x, v = picture(1.0), picture(0.2)
  move = solvers.dance_sde(x, v, at(.75, .5), x, eta=.3)
  assert float(move.mean.squeeze()) == pytest.approx(.93425, abs=1e-6)
  assert float(move.std) == pytest.approx(.15)


@pytest.mark.parametrize('solver', [solvers.flow_sde, solvers.dance_sde])
def test_without_noise_stochastic_steps_are_eulers(solver):
  x, v = picture([1.0, -2.0]), picture([0.2, 0.4])
  here = at(.75, .5)
  np.testing.assert_allclose(
      solver(x, v, here, x, eta=1e-6).mean,
      solvers.euler(x, v, here, x).mean, atol=1e-6)


def test_a_path_records_its_steps():
  """Latents, guesses and densities are those of the steps themselves."""
  keys = jax.random.split(jax.random.key(0), 5)
  noise = lambda k: jax.random.normal(keys[k], (2, 3, 4, 4, 1))
  schedule = solvers.sigmas(4)
  velocity = lambda x, s: 0.5 * x - s
  made = solvers.solve(
      velocity, noise, schedule, solvers.flow_sde, trace=True)
  assert made.latents.shape == (2, 3, 5, 4, 4, 1)
  np.testing.assert_array_equal(made.latents[:, :, 0], noise(0))
  np.testing.assert_array_equal(made.latents[:, :, -1], made.x0)
  for k in range(4):
    x, here = made.latents[:, :, k], solvers.at(schedule, jnp.int32(k))
    v = velocity(x, here.sigma)
    np.testing.assert_allclose(
        made.guesses[:, :, k], x - here.sigma * v, atol=1e-6)
    move = solvers.flow_sde(x, v, here, x)
    np.testing.assert_allclose(
        made.latents[:, :, k + 1], move.mean + move.std * noise(k + 1),
        atol=1e-5)
    np.testing.assert_allclose(
        made.logp[:, :, k], solvers.log_prob(
            made.latents[:, :, k + 1], move, 3), atol=1e-4)
  # Asking for less changes nothing of the pictures.
  bare = solvers.solve(velocity, noise, schedule, solvers.flow_sde)
  np.testing.assert_allclose(bare.x0, made.x0, atol=1e-5)
  assert bare.latents is None and bare.logp is None


def test_steps_of_samples_are_picked_one_by_one():
  x = jnp.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
  index = jnp.int32([[0, 2], [1, 1]])
  got = solvers.moved((x, None), index)[0]
  np.testing.assert_array_equal(
      got, [[x[0, 0, 0], x[0, 1, 2]], [x[1, 0, 1], x[1, 1, 1]]])
