"""Advantages per token: `(rewards, tokens, *, ...) -> f32[N, G, T]`.

Same socket and same meaning of `rewards` float[N, G, K] (nan: no value) as
`mmr1.advantages`; `tokens` is a `columns.Tokens` with at least the mask.
Computed with jax.numpy; a sample without any value is masked.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import columns
from mmr1 import masked

Array = Any  # a NumPy or a JAX array

HOLES = ('carry', 'reset')


def reinforce_pp(
    rewards: Array,
    tokens: columns.Tokens,
    *,
    gamma: float = 1.0,
    holes: str = 'carry',
    eps: float = 1e-8,
) -> Array:
  """Returns of the token rewards, whitened over all tokens of the batch.

  REINFORCE++ (arXiv:2501.03262). The outcome lies on the last kept token.
  There is no group here: a group without variance has the advantage that the
  batch gives it; only a batch whose returns are all equal is exactly 0.

  Args:
    rewards: float[N, G, K], summed over K.
    tokens: reads mask, and rewards if given.
    gamma: discount, in [0, 1].
    holes: what masked tokens between kept ones (another speaker's turn) do to
      the return: 'carry' it (verl from mid 2026) or 'reset' it to 0.
    eps: added to the variance.

  Returns:
    f32[N, G, T], 0 where masked.
  """
  if holes not in HOLES:
    raise ValueError(f'holes {holes!r} is not one of {HOLES}.')
  reward, mask = _token_rewards(rewards, tokens, 'reinforce_pp')
  returns = discounted(reward, mask, gamma=gamma, carry=holes == 'carry')
  return masked.whiten(returns, mask, eps=eps)


def reinforce_pp_baseline(
    rewards: Array, tokens: columns.Tokens, *, eps: float = 1e-8
) -> Array:
  """R - mean of the group on every token, whitened over the batch's tokens.

  verl `reinforce_plus_plus_baseline`. There a group without variance gets
  -mean / std of the batch's tokens; here it is exactly 0, and still takes
  part in the statistics.

  Args:
    rewards: float[N, G, K], each column centred, then summed.
    tokens: reads mask.
    eps: added to the variance.

  Returns:
    f32[N, G, T], 0 where masked.
  """
  xp, valid, values = columns.split(rewards)
  centred, _ = columns.centre(xp, values, valid)
  flat = xp.all(columns.flat(xp, values, valid, 1), axis=-1, keepdims=True)
  present = xp.any(valid, axis=-1, keepdims=True)
  mask = jnp.asarray(columns.need(tokens, 'mask', 'reinforce_pp_baseline'))
  mask = mask & jnp.asarray(present)
  total = jnp.asarray(xp.sum(centred, axis=-1, keepdims=True))
  white = masked.whiten(jnp.broadcast_to(total, mask.shape), mask, eps=eps)
  return masked.fill(white, mask & ~jnp.asarray(flat))


def remax(rewards: Array, tokens: columns.Tokens) -> Array:
  """Ret_t - reward of the greedy completion (ReMax, arXiv:2310.10505).

  Args:
    rewards: float[N, G, K], summed over K.
    tokens: reads mask, baseline f32[N], and rewards if given.

  Returns:
    f32[N, G, T], 0 where masked.
  """
  reward, mask = _token_rewards(rewards, tokens, 'remax')
  baseline = jnp.asarray(columns.need(tokens, 'baseline', 'remax'))
  returns = discounted(reward, mask, gamma=1.0, carry=True)
  return masked.fill(returns - baseline[:, None, None], mask)


def gae(
    rewards: Array,
    tokens: columns.Tokens,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    eps: float = 1e-8,
) -> Array:
  """Generalised advantage estimation, whitened over all tokens of the batch.

  arXiv:1506.02438, eq. 16; `gae_returns` has the critic's targets.

  Args:
    rewards: float[N, G, K], summed over K; the outcome lies on the last kept
      token.
    tokens: reads mask, values, and rewards if given.
    gamma: discount, in [0, 1].
    lam: lambda, in [0, 1].
    eps: added to the variance.

  Returns:
    f32[N, G, T], 0 where masked.
  """
  raw, _ = gae_returns(rewards, tokens, gamma=gamma, lam=lam)
  _, mask = _token_rewards(rewards, tokens, 'gae')
  return masked.whiten(raw, mask, eps=eps)


def actor_critic(
    rewards: Array,
    tokens: columns.Tokens,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    eps: float = 1e-8,
) -> tuple[Array, dict[str, Array]]:
  """`gae`, and what the term `critic` reads of the block: PPO.

  Arguments as of `gae`.

  Returns:
    f32[N, G, T], and {'values', 'returns'} f32[N, G, T].
  """
  _, returns = gae_returns(rewards, tokens, gamma=gamma, lam=lam)
  return gae(rewards, tokens, gamma=gamma, lam=lam, eps=eps), {
      'values': jnp.asarray(tokens.values), 'returns': returns}


remax.needs = 'baseline'
gae.needs = actor_critic.needs = 'values'


def gae_returns(
    rewards: Array, tokens: columns.Tokens, *, gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[Array, Array]:
  """Raw advantages and returns (raw + V), f32[N, G, T] each, 0 where masked.

  delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1};
  masked tokens are stepped over: their successor's V and A carry on.
  """
  reward, mask = _token_rewards(rewards, tokens, 'gae')
  values = jnp.asarray(columns.need(tokens, 'values', 'gae'))
  values = masked.fill(values, mask)
  raw = _gae(reward, values, mask, gamma, lam)
  return raw, masked.fill(raw + values, mask)


@jax.jit
def _gae(reward, values, mask, gamma, lam) -> Array:
  """What `gae_returns` calls raw; compiled once, not in every step (M28)."""
  def step(carry, inputs):
    following, advantage = carry
    r, v, m = inputs
    new = r + gamma * following - v + gamma * lam * advantage
    carry = jnp.where(m, v, following), jnp.where(m, new, advantage)
    return carry, jnp.where(m, new, 0)

  return _backward(step, 2, (reward, values, mask))


@functools.partial(jax.jit, static_argnames='carry')
def discounted(
    reward: Array, mask: Array, *, gamma: float, carry: bool
) -> Array:
  """Ret_t = r_t + gamma Ret_{t+1} over kept tokens, f32[N, G, T].

  Args:
    reward: f32[N, G, T].
    mask: bool[N, G, T].
    gamma: discount.
    carry: True: masked tokens are stepped over; False: they set the return
      to 0.
  """
  def step(running, inputs):
    r, m = inputs
    new = r + gamma * running[0]
    return (jnp.where(m, new, running[0] if carry else 0),), jnp.where(
        m, new, 0)

  return _backward(step, 1, (masked.fill(reward, mask), mask))


def _backward(
    step: Callable[..., Any], n_carry: int, arrays: tuple[Array, ...]
) -> Array:
  """Scans the last axis from its end; carries start at 0."""
  start = (jnp.zeros(arrays[0].shape[:-1], arrays[0].dtype),) * n_carry
  arrays = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), arrays)
  _, out = jax.lax.scan(step, start, arrays, reverse=True)
  return jnp.moveaxis(out, 0, -1)


def _token_rewards(
    rewards: Array, tokens: columns.Tokens, name: str
) -> tuple[Array, Array]:
  """Outcome on the last kept token plus dense rewards; mask of the valid."""
  xp, valid, values = columns.split(rewards)
  mask = jnp.asarray(columns.need(tokens, 'mask', name))
  mask = mask & jnp.asarray(xp.any(valid, axis=-1, keepdims=True))
  later = jnp.cumsum(mask[..., ::-1], axis=-1)[..., ::-1]
  outcome = jnp.asarray(xp.sum(values, axis=-1, keepdims=True))
  reward = jnp.where(mask & (later == 1), outcome, 0).astype(jnp.float32)
  if tokens.rewards is not None:
    reward = reward + masked.fill(jnp.asarray(tokens.rewards), mask)
  return reward, mask
