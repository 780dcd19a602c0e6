"""Losses of flow models, f32[N, G] from velocities [N, G, H, W, C].

x_t = (1 - t) x0 + t eps with target eps - x0. Means over dimensions are over
the last three axes. DiffusionNFT: arXiv:2509.16117 and
https://github.com/NVlabs/DiffusionNFT; Edit-R1: arXiv:2510.16888.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
ADVANTAGES = ('all', 'positive', 'negative', 'one', 'binary')
_SMALL = 1e-5


def _dims(x: Array) -> Array:
  """Mean over the last three axes."""
  return x.mean((-3, -2, -1))


def _like(t: Array, x: Array) -> Array:
  return t[..., None, None, None]


def noised(x0: Array, eps: Array, t: Array) -> Array:
  """(1 - t) x0 + t eps, t f32[N, G]."""
  t = _like(t, x0)
  return (1 - t) * x0 + t * eps


def matching(v: Array, x0: Array, eps: Array) -> Array:
  """Flow matching: mean_d (v - (eps - x0))^2."""
  return _dims((v - (eps - x0))**2)


def distance(v: Array, other: Array) -> Array:
  """mean_d (v - other)^2, the KL of DiffusionNFT."""
  return _dims((v - other)**2)


def optimality(advantage: Array, *, clip: float = 5.0,
               use: str = 'all') -> Array:
  """r in [0, 1] of advantages: 1/2 + clip(A, -c, c) / (2 c).

  Args:
    advantage: f32[N, G].
    clip: c.
    use: 'all'; 'positive' or 'negative' ones alone, the others as 0; 'one': 1
      where positive, else 0; 'binary': the sign.

  Raises:
    ValueError: `use` is none of these.
  """
  if use not in ADVANTAGES:
    raise ValueError(f'use: got {use!r}; allowed are {ADVANTAGES}.')
  a = jnp.clip(advantage, -clip, clip)
  a = {'all': a, 'positive': jnp.maximum(a, 0), 'negative': jnp.minimum(a, 0),
       'one': (a > 0).astype(a.dtype), 'binary': jnp.sign(a)}[use]
  return jnp.clip(a / clip / 2 + 0.5, 0, 1)


def nft(v: Array, old: Array, x: Array, t: Array, x0: Array, r: Array, *,
        beta: float = 1.0) -> Array:
  r"""DiffusionNFT's pair of regressions on the forward process.

      v+ = beta v + (1 - beta) old,  v- = (1 + beta) old - beta v
      x0+- = x - t v+-
      w+- = max(mean_d |x0+- - x0|, 1e-5), without gradient
      loss = (r mean_d (x0+ - x0)^2 / w+ + (1 - r) mean_d (x0- - x0)^2 / w-)
             / beta

  At v = old the gradient is (2 r - 1) times that of the regression: 0 for
  r = 1/2, reversed for r = 0.

  Args:
    v, old: of the policy and of the one that sampled, [N, G, H, W, C].
    x, t: where, `noised` pictures and f32[N, G].
    x0: the sampled pictures.
    r: f32[N, G], see `optimality`.
    beta: strength of the implicit guidance is 1 / beta.
  """
  old = jax.lax.stop_gradient(old)

  def branch(u):
    off = x - _like(t, x) * u - x0
    w = jax.lax.stop_gradient(jnp.maximum(_dims(jnp.abs(off)), _SMALL))
    return _dims(off**2) / w
  return (r * branch(beta * v + (1 - beta) * old)
          + (1 - r) * branch((1 + beta) * old - beta * v)) / beta


def gaussian_kl(mean: Array, other: Array, std: Array) -> Array:
  """KL of two Gaussians of one std f32[N, G], mean over dimensions.

  mean_d (mean - other)^2 / (2 std^2), Flow-GRPO (arXiv:2505.05470).
  """
  return _dims((mean - other)**2) / (2 * std**2)


def diffusion_dpo(
    winner: Array, winner_ref: Array, loser: Array, loser_ref: Array, *,
    beta: float = 5000.0) -> Array:
  """-ln sigmoid(-beta / 2 ((m_w - m_l) - (m_w - m_l)_ref)).

  Diffusion-DPO (arXiv:2311.12908, eq. 14) as in DiffusionDPO/train.py of
  https://github.com/CodeGoat24/UnifiedReward.

  Args:
    winner, loser: errors m = mean_d (prediction - target)^2 of both at the
      same t and noise, any shape; `..._ref`: those of the reference.
    beta: for the scale of the errors: 5000 for pictures in latent space.
  """
  inside = (winner - loser) - (winner_ref - loser_ref)
  return -jax.nn.log_sigmoid(-0.5 * beta * inside)
