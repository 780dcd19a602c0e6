"""VPPO (arXiv 2510.09285, ICLR 2026): what only this paper needs.

Tokens that look at the picture carry the gradient, and responses that look at
it more carry more of it. Both follow from one number per token, how much its
probability changes when patches of the picture are black.
"""

import jax
import jax.numpy as jnp

from mmr1 import masked
from mmr1 import types
from mmr1.losses import kl
from mmr1.losses import reading

Array = jax.Array

FORMS = ('code', 'paper')


def dependency(block: types.Block, *, view: str, form: str) -> Array:
  """S_t, how much a token depends on the picture, f32[N, G, T], 0 where masked.

  code: exp(d) - d - 1 with d = clip(log pi(picture black) - log pi, +-20) of
  the sampled token, at most 10. paper (eq. 4): KL(pi(.|I) || pi(.|I black))
  over the vocabulary; the look needs divergence='kl'. Both of the policy that
  made the rollout.

  Raises:
    ValueError: unknown form, or a look without what the form reads.
  """
  if form not in FORMS:
    raise ValueError(f'token_perception: form={form!r} is not one of {FORMS}.')
  if form == 'paper':
    if f'pair/{view}' not in block.extra:
      raise ValueError(
          f"token_perception: form='paper' reads a divergence over the "
          f"vocabulary; set views.{view}.divergence to 'kl'.")
    return masked.fill(block.extra[f'pair/{view}'], block.mask)
  own = masked.fill(reading.own(block), block.mask)
  blind = masked.fill(block.extra[f'view/{view}'], block.mask)
  return masked.fill(kl.k3(own, blind), block.mask)


def token_perception(
    scores: types.Scores | None,
    block: types.Block,
    key: Array,
    *,
    view: str = 'masked',
    form: str = 'code',
    keep: float = 0.4,
    low: float = 0.9,
) -> Array:
  r"""The weight of a token: whether it is kept x the factor of its response.

  Token-level gradient filtering: of a response of n tokens the ceil(keep n)
  with the largest S_t are kept; the mean of the loss still counts all of them.

  Trajectory-level advantage shaping: s_i = mean_t S_t, over the minibatch
      n_i = (s_i - min s) / (max s - min s)
      high = low + (1 - low) / (mean n + 1e-8)
      alpha_i = low + n_i (high - low),    so that the mean of alpha is 1;
  1 where max s - min s <= 1e-6. The clipped loss is homogeneous in the
  advantage, so that a weight alpha > 0 on the loss is alpha on the advantage.

  Source: sections 3.2 and 3.3; https://github.com/huaixuheqing/VPPO-RL. The
  code takes minimum and maximum over a device and the mean over a micro-batch;
  here all are of the whole minibatch [ours].

  Args:
    scores: not read.
    block: one whole minibatch; reads mask, old, the look.
    key: not used.
    view: the look, of the rollout's policy.
    form: see `dependency`.
    keep: the paper's k; 1: no filtering.
    low: beta_min; 1: no shaping.
  """
  del scores, key
  block = reading.sampled(block)
  mask = block.mask
  depends = dependency(block, view=view, form=form)
  live = mask.any(-1, keepdims=True)
  mean = masked.mean(depends, mask, -1, keepdims=True)
  bottom, top = -masked.max(-mean, live), masked.max(mean, live)
  wide = top - bottom > 1e-6
  place = jnp.clip((mean - bottom) / jnp.where(wide, top - bottom, 1), 0, 1)
  high = low + (1 - low) / (masked.mean(place, live) + 1e-8)
  alpha = jnp.where(wide, low + place * (high - low), 1.0)
  return alpha * masked.top_fraction(depends, mask, keep)


token_perception.reads_scores = False
