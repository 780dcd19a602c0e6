"""PAPO (Wang et al., arXiv 2507.06448, ICLR 2026): what only this paper needs.

The image is looked at twice, as it is and with random patches black (the view
`masked`, mmr1/views.py:mask). What the response owes to the picture is the
divergence of both, and training makes it larger.
"""

from collections.abc import Mapping
from typing import Any

import jax

from mmr1 import masked
from mmr1 import types
from mmr1.losses import kl
from mmr1.losses import reading
from mmr1.losses import terms

Array = jax.Array

FORMS = ('code', 'paper')


def perception(
    scores: types.Scores,
    block: types.Block,
    knobs: Mapping[str, Array],
    *,
    view: str = 'masked',
    form: str = 'code',
    difference_clamp: float = 20.0,
    value_clamp: float = 10.0,
    top: float | None = None,
    reduction: Mapping[str, Any] = terms.TOKEN_MEAN,
) -> terms.Term:
  r"""The implicit perception loss: MINUS the KL to the policy that is blind.

      code:   d = log pi_mask - log pi,  k = exp(d) - d - 1
      paper:  r = pi / pi_mask,          k = r - log r - 1

  both >= 0 and 0 where the picture changes nothing. A positive coefficient is
  the paper's gamma. The forms are each other's inverse ratio: the slope of the
  code's in log pi is 1 - exp(d), at most 1; that of the printed one is r - 1,
  without an upper end. Source: section 3.2; `dp_actor.py` of
  https://github.com/MikeWangWZHL/PAPO, whose form is the default.

  Args:
    scores: of the policy; reads logp.
    block: reads mask and the look.
    knobs: not read.
    view: the look. Of the rollout's policy and without gradient by default, as
      in the code (RECOMPUTE_AUG_LOG_PROBS off).
    form: 'code' or 'paper'.
    difference_clamp, value_clamp: bounds of d and k, as in the code.
    top: keep this fraction of each response's tokens, those with the largest
      k, in the sum (off in the paper's runs); None: all.
    reduction: see `reduce.reduce`.
  """
  del knobs
  if form not in FORMS:
    raise ValueError(f'perception: form={form!r} is not one of {FORMS}.')
  block = reading.sampled(block)
  logp = masked.fill(scores.logp, block.mask)
  blind = masked.fill(reading.look(scores, block, view), block.mask)
  x, y = (logp, blind) if form == 'code' else (blind, logp)
  value = kl.k3(x, y, difference_clamp=difference_clamp,
                value_clamp=value_clamp)
  if top is not None:
    value = value * masked.top_fraction(
        jax.lax.stop_gradient(value), block.mask, top)
  return reading.over_block(-value, block, reduction)


def blind_entropy(
    scores: types.Scores,
    block: types.Block,
    knobs: Mapping[str, Array],
    *,
    view: str = 'masked',
    reduction: Mapping[str, Any] = terms.TOKEN_MEAN,
) -> terms.Term:
  """-log pi_mask: the entropy of the blind policy, estimated and minimised.

  The second half of the double entropy. It has a gradient only where the look
  has one (when='update', gradient=True); the authors say so in issue 20.
  """
  del knobs
  block = reading.sampled(block)
  return reading.over_block(
      -masked.fill(reading.look(scores, block, view), block.mask), block,
      reduction)
