"""Objectives of stages of kind `flow`: `(*, ...) -> Objective`.

An objective says at which points the generator is asked, and what the loss is
of what it says there. The stage asks: at each point once under the parameters
that train and, where the objective reads them, under the old and the reference
ones, and averages over the samples that are kept.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from mmr1.flows import solvers
from mmr1.losses import flow
from mmr1.losses import ratio
from mmr1.losses import surrogate
from mmr1.sampling import keys as keys_lib

Array = jax.Array
OLD, REFERENCE = 'old', 'reference'


@flax.struct.dataclass
class Round:
  """What an update sees: N prompts with G pictures each.

  Fields:
    condition: i32[N, L].
    source: f32[N, H, W, C] | None, of the prompts.
    uid: i32[N].
    x0: f32[N, G, H, W, C], pictures that were sampled or are given.
    advantage: f32[N, G].
    keep: f32[N, G], 1 or 0: whether it counts in losses.
    schedule: f32[T + 1], sigmas that it was sampled at.
    latents: f32[N, G, T + 1, H, W, C] | None; logp: f32[N, G, T] | None, of
      the steps, see `solvers.Path`.
  """
  condition: Array
  source: Array | None
  uid: Array
  x0: Array
  advantage: Array
  keep: Array
  schedule: Array
  latents: Array | None = None
  logp: Array | None = None


class Point(NamedTuple):
  """Where the generator is asked: x [N, G, H, W, C] at t f32[N, G], and what
  the loss needs of it."""
  x: Array
  t: Array
  given: Any = None


class Said(NamedTuple):
  """Velocities [N, G, H, W, C] at a point; None: not asked for."""
  now: Array
  old: Array | None = None
  reference: Array | None = None


class Objective(NamedTuple):
  """What a flow stage optimises.

  Fields:
    point: (round, step i32[N, G], keys [N, G]) -> Point; `step` is one of the
      sampler's, another for each point of a sample.
    loss: (Said, Point, Round) -> f32[N, G] and metrics f32[N, G] by name.
    points: T -> how many points an update has of each sample.
    reads: of OLD and REFERENCE those whose velocity it needs.
    sampled: pictures are sampled and rewarded; else they are given.
    trace: it reads latents and log-densities of the sampler's steps.
  """
  point: Callable[[Round, Array, Array], Point]
  loss: Callable[[Said, Point, Round], tuple[Array, Mapping[str, Array]]]
  points: Callable[[int], int]
  reads: tuple[str, ...] = ()
  sampled: bool = True
  trace: bool = False


def matching() -> Objective:
  """Flow matching on given pictures, t uniform in [0, 1]."""
  def point(round_, step, keys):
    del step
    t = keys_lib.uniform(keys, jnp.zeros(keys.shape, jnp.int32))[..., 0]
    return _forward(round_.x0, t, keys)

  def loss(said, point, round_):
    return flow.matching(said.now, round_.x0, point.given), {}
  return Objective(point, loss, lambda steps: 1, sampled=False)


def nft(*, beta: float = 1.0, clip: float = 5.0, use: str = 'all',
        kl: float = 1e-4, fraction: float = 0.99) -> Objective:
  """DiffusionNFT: c l + kl mean_d |v - v_ref|^2, of l see `losses.flow.nft`.

  Args:
    beta: of l.
    clip: c, at which advantages are cut off; it scales the loss too.
    use: which advantages, see `losses.flow.optimality`.
    kl: coefficient of the distance to the reference.
    fraction: of the sampler's steps whose times it trains at, in an order of
      each sample's own.
  """
  def loss(said, point, round_):
    r = flow.optimality(round_.advantage, clip=clip, use=use)
    policy = clip * flow.nft(
        said.now, said.old, point.x, point.t, round_.x0, r, beta=beta)
    away = flow.distance(said.now, said.reference)
    return policy + kl * away, {
        'loss/policy': policy, 'kl': away, 'optimality': r,
        'old/distance': flow.distance(said.now, said.old)}
  return Objective(_at_times, loss, _part(fraction), (OLD, REFERENCE))


def flow_grpo(*, solver: solvers.Solver, clip_range: float = 1e-4,
              clip: float = 5.0, kl: float = 0.0, fraction: float = 0.99,
              ) -> Objective:
  """Flow-GRPO: PPO on the log-densities of the sampler's own steps.

  Args:
    solver: what sampled, given by the stage.
    clip_range: of the ratio; log-densities are means over dimensions, so that
      ratios are close to 1.
    clip: at which advantages are cut off.
    kl: coefficient of the KL of the steps from the reference's.
    fraction: of the sampler's steps that it trains on.
  """
  def point(round_, step, keys):
    del keys
    here, there = (solvers.moved(round_.latents, k) for k in (step, step + 1))
    at = solvers.at(round_.schedule, step)
    return Point(here, at.sigma, (
        at, there, solvers.moved(round_.logp, step)))

  def loss(said, point, round_):
    at, there, old = point.given
    move = lambda v: solver(point.x, v, at, point.x)
    now = move(said.now)
    log_ratio = ratio.bound(solvers.log_prob(there, now, 3) - old, None)
    a = jnp.clip(round_.advantage, -clip, clip)
    policy, low, high = (x[..., 0] for x in surrogate.clip(
        log_ratio[..., None], a[..., None], old[..., None],
        jnp.ones((*log_ratio.shape, 1), bool),
        eps_low=clip_range, eps_high=clip_range))
    metrics = {'loss/policy': policy, 'clip_frac/low': low,
               'clip_frac/high': high, 'ratio/mean': jnp.exp(log_ratio)}
    if not kl:
      return policy, metrics
    away = flow.gaussian_kl(now.mean, move(said.reference).mean, now.std)
    return policy + kl * away, {**metrics, 'kl': away}
  return Objective(point, loss, _part(fraction), (REFERENCE,) if kl else (),
                   trace=True)


def dpo(*, beta: float = 5000.0, fraction: float = 0.99) -> Objective:
  """Diffusion-DPO of the best against the worst of each group, on-line.

  Both share time and noise. A group whose advantages are equal says nothing.

  Args:
    beta: see `losses.flow.diffusion_dpo`.
    fraction: as in `nft`.
  """
  def point(round_, step, keys):  # the first sample's for all of the group
    one = lambda x: jnp.broadcast_to(x[:, :1], x.shape)
    return _at_times(round_, one(step), one(keys))

  def loss(said, point, round_):
    now, ref = (flow.matching(v, round_.x0, point.given)
                for v in (said.now, said.reference))
    best, worst = (jnp.expand_dims(pick(round_.advantage, 1), 1)
                   for pick in (jnp.argmax, jnp.argmin))
    of = lambda x, i: jnp.take_along_axis(x, i, 1)
    differ = of(round_.advantage, best) > of(round_.advantage, worst)
    value = flow.diffusion_dpo(
        of(now, best), of(ref, best), of(now, worst), of(ref, worst),
        beta=beta)
    value = jnp.broadcast_to(jnp.where(differ, value, 0.0), now.shape)
    return value, {'loss/policy': value}
  return Objective(point, loss, _part(fraction), (REFERENCE,))


def _part(fraction: float) -> Callable[[int], int]:
  if not 0 < fraction <= 1:
    raise ValueError(f'fraction: got {fraction}; allowed: above 0, at most 1.')
  return lambda steps: max(1, int(steps * fraction))


def _at_times(round_: Round, step: Array, keys: Array) -> Point:
  """A new noising of the pictures at the times of the sampler's steps."""
  return _forward(round_.x0, round_.schedule[step], keys)


def _forward(x0: Array, t: Array, keys: Array) -> Point:
  eps = noise(keys, jnp.int32(1), x0.shape[2:])
  return Point(flow.noised(x0, eps, t), t, eps)


def noise(keys: Array, position: Array, shape: tuple[int, ...]) -> Array:
  """Normal numbers [N, G, *shape] of samples' keys [N, G] at a position."""
  def one(key):
    return jax.random.normal(jax.random.fold_in(key, position), shape)
  return jax.vmap(jax.vmap(one))(keys)
