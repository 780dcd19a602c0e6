"""What is made of ratio and advantage: the second axis of an objective.

Every surrogate is `(log_ratio, advantage, logp, mask, *, ...)` with

  log_ratio: f32[N, G, T] or f32[N, G, 1] (one a row), bounded, see `ratio`.
  advantage: f32[N, G, T] or f32[N, G, 1], without gradient.
  logp: f32[N, G, T], 0 where masked.
  mask: bool[N, G, T]; only surrogates that pool over a row read it.

and returns (loss, low, high): the value to minimise, f32[N, G, T or 1], and
two bool arrays of that shape: where the ratio left the trust region at its
lower end under a negative advantage, and at its upper end under a positive
one. Numbers may be Python floats or traced scalars.
"""

import jax
import jax.numpy as jnp

from mmr1 import masked

Array = jax.Array
Surrogate = tuple[Array, Array, Array]


def clip(
    log_ratio: Array, advantage: Array, logp: Array, mask: Array, *,
    eps_low: float = 0.2, eps_high: float = 0.2,
    dual_clip: float | None = None, delta: float | None = None,
) -> Surrogate:
  """max(-A r, -A clip(r, 1 - eps_low, 1 + eps_high)), PPO's pessimistic bound.

  PPO (arXiv:1707.06347, eq. 7); unequal ends as in DAPO (arXiv:2503.14476);
  dual_clip c > 1 caps the loss at -A c where A < 0 (arXiv:1912.09729, eq. 5);
  delta caps r itself in the unclipped branch (INTELLECT-2, arXiv:2505.07291).

  Defaults elsewhere: verl .2/.2 and c = 3, EasyR1 .2/.3, DAPO .2/.28, TRL
  .2/.2 without c. With the sequence ratio GSPO uses 3e-4 / 4e-4.
  """
  del logp, mask
  r = jnp.exp(log_ratio)
  free = r if delta is None else jnp.minimum(r, delta)
  loss = jnp.maximum(
      -advantage * free,
      -advantage * jnp.clip(r, 1 - eps_low, 1 + eps_high))
  if dual_clip is not None:
    loss = jnp.where(
        advantage < 0, jnp.minimum(-advantage * dual_clip, loss), loss)
  return loss, *_outside(r, advantage, 1 - eps_low, 1 + eps_high)


def cispo(
    log_ratio: Array, advantage: Array, logp: Array, mask: Array, *,
    ratio_low: float = 0.0, ratio_high: float = 5.0,
) -> Surrogate:
  """-sg(clip(r, ratio_low, ratio_high)) A logp; clipping keeps the gradient.

  CISPO (MiniMax-M1, arXiv:2506.13585, eq. 4). The bounds are those of the
  ratio itself: TRL's form is (0, epsilon_high), verl's is
  (1 - eps_low, 1 + eps_high).
  """
  del mask
  r = jax.lax.stop_gradient(jnp.exp(log_ratio))
  loss = -jnp.clip(r, ratio_low, ratio_high) * advantage * logp
  return loss, *_outside(r, advantage, ratio_low, ratio_high)


def sapo(
    log_ratio: Array, advantage: Array, logp: Array, mask: Array, *,
    tau_pos: float = 1.0, tau_neg: float = 1.05,
) -> Surrogate:
  """-A (4 / tau) sigmoid(tau (r - 1)), tau by the sign of A: a soft clip.

  SAPO (arXiv:2511.20347). Its slope at r = 1 is that of -A r. Nothing is
  ever clipped: both indicators are False.
  """
  del logp, mask
  tau = jnp.where(advantage > 0, tau_pos, tau_neg)
  gate = jax.nn.sigmoid(tau * (jnp.exp(log_ratio) - 1)) * 4 / tau
  return _unclipped(-gate * advantage)


def none(
    log_ratio: Array, advantage: Array, logp: Array, mask: Array
) -> Surrogate:
  """-A logp: REINFORCE, and the loss of GPG (arXiv:2504.02546). No ratio."""
  del log_ratio, mask
  return _unclipped(-advantage * logp)


def linear(
    log_ratio: Array, advantage: Array, logp: Array, mask: Array
) -> Surrogate:
  """-A r without any clipping (KL-Cov's base, arXiv:2505.22617)."""
  del logp, mask
  return _unclipped(-advantage * jnp.exp(log_ratio))


def geo_mean(
    log_ratio: Array, advantage: Array, logp: Array, mask: Array, *,
    eps_low: float = 0.4, eps_high: float = 0.4,
) -> Surrogate:
  """-mean(A) exp(mean_t d'_t), one value a row (GMPO, arXiv:2507.20673).

  d' is the token log-ratio clipped to [-eps_low, eps_high] on the side that
  the sign of A makes pessimistic; the clip is in log space. Takes the ratio
  of level 'token'; belongs with reduce mode 'seq_mean' (verl: rows='all').
  """
  del logp
  log_ratio = jnp.broadcast_to(log_ratio, mask.shape)
  sign = jnp.sign(advantage)
  inside = jnp.clip(log_ratio, -eps_low, eps_high)
  pessimistic = sign * jnp.minimum(sign * log_ratio, sign * inside)
  r = jnp.exp(masked.mean(pessimistic, mask, -1, keepdims=True))
  pooled = masked.mean(
      jnp.broadcast_to(advantage, mask.shape), mask, -1, keepdims=True)
  low, high = _outside(log_ratio, advantage, -eps_low, eps_high)
  return jnp.broadcast_to(-pooled * r, mask.shape), low, high


def _outside(
    x: Array, advantage: Array, low: float, high: float
) -> tuple[Array, Array]:
  return (x < low) & (advantage < 0), (x > high) & (advantage > 0)


def _unclipped(loss: Array) -> Surrogate:
  never = jnp.zeros(loss.shape, bool)
  return loss, never, never
