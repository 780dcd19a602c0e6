"""VOGUE, later DUPL (arXiv 2510.01444): what only this paper needs.

The picture is a random variable: a raw and a noisy branch of every prompt. How
much the noise moves the next token, and how undecided the policy is anyway,
are bonuses on the advantage, each capped by a part of it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmr1 import advantages
from mmr1 import columns
from mmr1 import select

DRAWS = ('response', 'step')


def uncertainty(
    rewards: np.ndarray,
    tokens: columns.Tokens,
    *,
    view: str = 'raw',
    alpha_visual: float = 1.0,
    beta_visual: float = 2.0,
    alpha_entropy: float = 0.4,
    beta_entropy: float = 2.0,
    ddof: int = 1,
    eps: float = 1e-6,
) -> np.ndarray:
  r"""Both bonuses on the advantage of each group (Algorithm 1).

      A     = (R - mean) / (std + eps)                    of its own branch
      A_t   = A + min(|A| / beta_entropy, alpha_entropy H_t)
                + min(|A| / beta_visual, alpha_visual u_t)
      u_t   = (KL(p || q) + KL(q || p)) / 2               eq. 1

  p, q: the next token after the raw picture and after the one the row was
  sampled from; on rows of the raw branch they are the same and u_t is 0, as
  the paper has it. H_t: entropy of the row's own distribution. With both betas
  at 2 the bonuses are at most |A|: signs never flip, and a group without
  variance stays exactly 0. None of it has a gradient.

  Args:
    rewards: float[N, G, K].
    tokens: reads mask, and the look: its pair u and entropy H, f32[N, G, T].
    view: a look at the raw picture with divergence='symmetric_kl'. The paper's
      ablation KL(p || q) is 'reverse_kl': a look is the second distribution.
    alpha_visual, beta_visual: alpha_p, beta_p.
    alpha_entropy, beta_entropy: alpha_o, beta_o.
    ddof, eps: of the standard deviation.

  Returns:
    f32[N, G, T], 0 where masked.
  """
  seen = columns.look(tokens, view, 'uncertainty')
  if seen.pair is None:
    raise ValueError(
        f"uncertainty: the view {view!r} has no divergence; set views.{view}."
        "divergence to 'symmetric_kl'.")
  base = advantages.grpo(rewards, tokens, ddof=ddof, eps=eps)
  size = np.abs(base)
  bonus = (np.minimum(size / beta_entropy, alpha_entropy * seen.entropy)
           + np.minimum(size / beta_visual, alpha_visual * seen.pair))
  return np.where(tokens.mask, base + bonus, 0).astype(np.float32)


def uncertainty_of_samples(
    rewards: np.ndarray,
    tokens: columns.Tokens,
    *,
    view: str = 'noisy',
    noisy_frac: float = 1.0,
    alpha_visual: float = 1.0,
    beta_visual: float = 2.0,
    alpha_entropy: float = 0.4,
    beta_entropy: float = 2.0,
    sign: float = 1.0,
    ddof: int = 1,
    eps: float = 1e-6,
) -> np.ndarray:
  r"""The released code's reading: one group, bonuses from sampled tokens.

  Every response is of the raw picture; the noisy branch is a pass over the
  same tokens. With p, q the probabilities of the token after both pictures:

      u_t = (p - q)(log p - log q) / 2,   H_t = -pi log pi

  With probability `noisy_frac`, once per step, the step is of the noisy
  branch: A' = A + sign min(|A| / beta_visual, alpha_visual u_t) and pi = q;
  else A' = A and pi = p. Then A' + min(|A'| / beta_entropy, alpha_entropy H_t).
  Source: `core_algos.py` of https://github.com/ruiiu/DUPL.

  Args:
    rewards: float[N, G, K].
    tokens: reads mask, logp, rng and the look's logp, f32[N, G, T].
    view: the look at the noisy picture.
    noisy_frac: 1 - step / steps in the paper; a hook moves it.
    sign: of the visual bonus; -1 late in training is a switch of the code.
    alpha_visual, beta_visual, alpha_entropy, beta_entropy, ddof, eps: as in
      `uncertainty`.

  Returns:
    f32[N, G, T], 0 where masked.
  """
  seen = columns.look(tokens, view, 'uncertainty_of_samples')
  raw, noisy = np.asarray(tokens.logp), np.asarray(seen.logp)
  chosen = raw
  result = advantages.grpo(rewards, tokens, ddof=ddof, eps=eps)
  if tokens.rng.random() < noisy_frac:
    chosen = noisy
    visual = 0.5 * (np.exp(raw) - np.exp(noisy)) * (raw - noisy)
    result = result + sign * np.minimum(
        np.abs(result) / beta_visual, alpha_visual * visual)
  entropy = -np.exp(chosen) * chosen
  result = result + np.minimum(
      np.abs(result) / beta_entropy, alpha_entropy * entropy)
  return np.where(tokens.mask, result, 0).astype(np.float32)


def branch(
    columns_: Mapping[str, np.ndarray],
    advantage: np.ndarray,
    meta: Mapping[str, np.ndarray],
    state: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    noisy_frac: float = 1.0,
    draw: str = 'response',
) -> select.Selection:
  """Of every pair of a raw and a noisy response one is trained on.

  z ~ Bernoulli(noisy_frac) chooses the noisy one: for each index of the two
  groups (Algorithm 1), or once for the step (the paper's text).

  Args:
    columns_: not read.
    advantage: f32[2 N, G, T]; rows 2n and 2n + 1 are both branches of prompt n.
    meta: reads 'branch', 0 for raw and 1 for noisy rows.
    state, rng: see `mmr1.select`.
    noisy_frac: p_noi(s) = max(0, 1 - s / steps) in the paper; a hook moves it.
    draw: 'response' or 'step'.

  Raises:
    ValueError: unknown draw, or rows that are not pairs.
  """
  del columns_
  if draw not in DRAWS:
    raise ValueError(f'branch: draw={draw!r} is not one of {DRAWS}.')
  rows, g = advantage.shape[:2]
  made = np.asarray(meta['branch']).tolist()
  if rows % 2 or made != [0, 1] * (rows // 2):
    raise ValueError('branch: a stage with two branches, raw and noisy, is '
                     f'needed; got rows of {sorted({*made})}.')
  size = (rows // 2, g) if draw == 'response' else (1, 1)
  noisy = np.broadcast_to(rng.random(size) < noisy_frac, (rows // 2, g))
  keep = np.stack([~noisy, noisy], 1).reshape(rows, g)
  return keep, {'select/noisy_frac': float(noisy.mean())}, False, dict(state)
