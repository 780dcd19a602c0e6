"""Solvers of a flow from noise (sigma = 1) to pictures (sigma = 0).

x_sigma = (1 - sigma) x0 + sigma eps, velocity v = d x / d sigma = eps - x0; the
picture that a velocity means is x - sigma v, the guess.

A solver is `(x, v, at, before, *, ...) -> Move`: one step. Deterministic ones
have no `std`; stochastic ones draw x' = mean + std z, and the log-density of
the step is that of a Gaussian, mean over dimensions:

  log p(x') = mean_d[-(x' - mean)^2 / (2 std^2) - ln std - ln(2 pi) / 2]
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
_SMALL = 1e-6  # keeps logarithms finite where their result is not taken


class At(NamedTuple):
  """Where a step is, f32 and bool of shape [] or like a batch.

  Fields:
    sigma, next: of this point and the one that the step leads to.
    before: of the one before; of the first step: its own.
    second: sigma of the schedule's second point.
    edge: whether the step is the schedule's first or last.
  """
  sigma: Array
  next: Array
  before: Array
  second: Array
  edge: Array


class Move(NamedTuple):
  """Where a step leads: `mean`, like x, and `std` of the noise | None."""
  mean: Array
  std: Array | None = None


Solver = Callable[[Array, Array, At, Array], Move]


def sigmas(steps: int) -> Array:
  """f32[steps + 1], 1 to 0 in equal steps."""
  return jnp.linspace(1.0, 0.0, steps + 1, dtype=jnp.float32)


def at(schedule: Array, k: Array) -> At:
  """Of steps k, i32 of any shape, f32[T + 1] being the schedule."""
  last = schedule.shape[0] - 2
  return At(schedule[k], schedule[k + 1], schedule[jnp.maximum(k - 1, 0)],
            schedule[1], (k == 0) | (k == last))


def wide(value: Array, x: Array) -> Array:
  """[...] with axes at its end, to go with x [..., H, W, C]."""
  return jnp.reshape(value, jnp.shape(value) + (1,) * (
      x.ndim - jnp.ndim(value))) if jnp.ndim(value) else value


def guess(x: Array, v: Array, sigma: Array) -> Array:
  """The picture that a velocity means: x - sigma v."""
  return x - wide(sigma, x) * v


def euler(x: Array, v: Array, at: At, before: Array) -> Move:
  """x + (sigma' - sigma) v."""
  del before
  return Move(x + wide(at.next - at.sigma, x) * v)


def dpm2(x: Array, v: Array, at: At, before: Array) -> Move:
  """DPM-Solver++ of second order with two steps (arXiv:2211.01095).

  With m = x - sigma v, alpha = 1 - sigma, lambda = ln alpha - ln sigma,
  h = lambda' - lambda, r = (lambda - lambda_before) / h:

      D = (m - m_before) / r,  0 where sigma_before = 1
      x' = sigma' / sigma x - alpha' (exp(-h) - 1) (m + D / 2)

  The first and the last step are Euler's. Source: `dpm2` of
  flow_grpo/diffusers_patch/solver.py, https://github.com/NVlabs/DiffusionNFT.

  Args:
    x, v, at: see the module.
    before: like x, the guess of the step before; not read in the first.
  """
  m = guess(x, v, at.sigma)
  lam = lambda s: jnp.log(jnp.maximum(1 - s, _SMALL)) - jnp.log(
      jnp.maximum(s, _SMALL))
  h = lam(at.next) - lam(at.sigma)
  r = (lam(at.sigma) - lam(at.before)) / h
  r = jnp.where(at.edge | (r == 0), 1.0, r)
  whole = (at.before >= 1) | at.edge
  d = jnp.where(wide(whole, x), 0.0, (m - before) / wide(r, x))
  ratio = jnp.where(at.edge, 0.0, at.next / jnp.maximum(at.sigma, _SMALL))
  decay = jnp.where(at.edge, 0.0, (1 - at.next) * jnp.expm1(-h))
  moved = wide(ratio, x) * x - wide(decay, x) * (m + 0.5 * d)
  return Move(jnp.where(
      wide(at.edge, x), euler(x, v, at, before).mean, moved))


def flow_sde(x: Array, v: Array, at: At, before: Array, *,
             eta: float = 0.7) -> Move:
  """Flow-GRPO's stochastic step (arXiv:2505.05470, eq. 9).

  With dt = sigma' - sigma < 0 and s = eta sqrt(sigma / (1 - sigma)):

      mean = x (1 + s^2 dt / (2 sigma)) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt
      std = s sqrt(-dt)

  In s, sigma = 1 is replaced by the schedule's second inside 1 - sigma, as in
  the authors' code.
  """
  del before
  dt = at.next - at.sigma
  below = 1 - jnp.where(at.sigma >= 1, at.second, at.sigma)
  s2 = eta**2 * at.sigma / below
  by_x = 1 + s2 * dt / (2 * at.sigma)
  by_v = (1 + s2 * (1 - at.sigma) / (2 * at.sigma)) * dt
  return Move(wide(by_x, x) * x + wide(by_v, x) * v, jnp.sqrt(-s2 * dt))


def dance_sde(x: Array, v: Array, at: At, before: Array, *,
              eta: float = 0.3) -> Move:
  """DanceGRPO's stochastic step (arXiv:2505.07818).

      score = -(x - (1 - sigma) x0) / sigma^2, x0 the guess
      mean = x + v dt - eta^2 score dt / 2,  std = eta sqrt(-dt)

  The released code leaves out the constants of the log-density; their sum is
  the same for all samples of a step and cancels in every ratio.
  """
  del before
  dt = at.next - at.sigma
  score = -(x - wide(1 - at.sigma, x) * guess(x, v, at.sigma)) / wide(
      at.sigma**2, x)
  mean = x + wide(dt, x) * v - wide(0.5 * eta**2 * dt, x) * score
  return Move(mean, eta * jnp.sqrt(-dt))


def log_prob(x: Array, move: Move, dims: int) -> Array:
  """f32[...], log-density of x, mean over its last `dims` axes."""
  std = wide(move.std, x)
  value = -(x - move.mean)**2 / (2 * std**2) - jnp.log(std) - (
      0.5 * math.log(2 * math.pi))
  return value.mean(tuple(range(-dims, 0)))


class Path(NamedTuple):
  """What `solve` returns.

  Fields:
    x0: [N, G, H, W, C], the pictures.
    latents: [N, G, T + 1, H, W, C], noise first | None: not asked for.
    guesses: [N, G, T, H, W, C] of each step's velocity | None.
    logp: f32[N, G, T] | None: not asked for, or nothing was drawn.
  """
  x0: Array
  latents: Array | None = None
  guesses: Array | None = None
  logp: Array | None = None


def solve(
    velocity: Callable[[Array, Array], Array],
    noise: Callable[[Array], Array],
    schedule: Array,
    solver: Solver,
    *,
    trace: bool = False,
) -> Path:
  """From noise to pictures.

  Args:
    velocity: (x [N, G, H, W, C], sigma f32[]) -> [N, G, H, W, C].
    noise: (i32[]) -> [N, G, H, W, C], normal; of 0 the start (scaled by the
      schedule's first sigma it need not be: schedules start at noise), of k + 1
      what step k draws.
    schedule: f32[T + 1], descending.
    solver: one step.
    trace: keep what came on the way.
  """
  def step(carry, k):
    x, before = carry
    here = at(schedule, k)
    v = velocity(x, here.sigma)
    move = solver(x, v, here, before)
    new, logp = move.mean, None
    if move.std is not None:
      new = move.mean + move.std * noise(k + 1)
      logp = log_prob(new, move, 3) if trace else None
    now = guess(x, v, here.sigma)
    return (new, now), ((new, now, logp) if trace else None)

  first = noise(jnp.int32(0))
  (x, _), seen = jax.lax.scan(
      step, (first, jnp.zeros_like(first)), jnp.arange(len(schedule) - 1))
  if not trace:
    return Path(x)
  latents, guesses, logp = seen
  front = lambda x: None if x is None else jnp.moveaxis(x, 0, 2)
  latents = jnp.concatenate([first[None], latents])
  return Path(x, front(latents), front(guesses), front(logp))


def moved(tree: Any, index: Array) -> Any:
  """Of arrays [N, G, T, ...] those at i32[N, G] of T."""
  def one(x):
    where = index.reshape(index.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, where, 2)[:, :, 0]
  return jax.tree.map(one, tree)
