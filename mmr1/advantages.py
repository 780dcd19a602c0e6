"""Group advantages: `(rewards, tokens, *, ...) -> float[N, G, 1]`.

rewards: float[N, G, K], columns after weighting and combination; nan means
'this column has no value for this sample', 0.0 is a value. Estimates are made
per column and summed. A missing entry is left out of every mean and spread
and contributes 0; a sample without any value gets 0.

tokens: a `columns.Tokens` for the estimators that look past the reward.

They compute in the array library and precision of `rewards`: NumPy float64 on
the host, where the stage calls them, or JAX arrays. `mmr1.returns` has the
estimators that give every token its own advantage.

A group whose values do not vary, up to rounding, has advantage exactly 0,
decided by its extremes and not by its standard deviation. That includes the
group of one (verl's loops and EasyR1's older code give it its reward).

| code                    | call                                             |
| verl, EasyR1            | grpo(eps=1e-6); Dr. GRPO: dr_grpo()              |
| verl vectorized         | grpo(eps=1e-6, var_floor=1e-6); 0 from mid 2026  |
| TRL                     | grpo(eps=1e-4, std='group', 'batch' or 'none')   |
| TRL normalize_then_sum  | normalize_then_sum(eps=1e-4)                     |
| OpenRLHF                | grpo(eps=1e-9)                                   |
All of them use ddof=1, also where they write `.std()` of torch.
"""

from collections.abc import Sequence
from typing import Any

from mmr1 import columns

Array = Any  # a NumPy or a JAX array

STDS = ('group', 'batch', 'none')


def grpo(
    rewards: Array,
    tokens: columns.Tokens | None = None,
    *,
    std: str = 'group',
    ddof: int = 1,
    eps: float = 1e-6,
    var_floor: float = 0.0,
    leave_one_out: bool = False,
) -> Array:
  """(R - mean) / (sigma + eps), DeepSeekMath (arXiv:2402.03300, sec. 4.1.2).

  Args:
    rewards: float[N, G, K].
    tokens: not read.
    std: sigma of the 'group', of the 'batch' (all samples of a column), or
      'none': no division.
    ddof: divisor n - ddof of the variance; with n <= ddof sigma is 0.
    eps: added to sigma.
    var_floor: the variance is at least this.
    leave_one_out: the mean is that of the other samples of the group.

  Returns:
    float[N, G, 1].
  """
  del tokens
  if std not in STDS:
    raise ValueError(f'std {std!r} is not one of {STDS}.')
  xp, valid, values = columns.split(rewards)
  centred, n = columns.centre(xp, values, valid)
  if leave_one_out:
    centred = centred * (n / xp.maximum(n - 1, 1))
  if std == 'group':
    spread = columns.std(xp, values, valid, 1, ddof, var_floor)
    centred = centred / (spread + eps)
  elif std == 'batch':
    spread = columns.std(xp, values, valid, (0, 1), ddof, var_floor)
    centred = centred / (spread + eps)
  return xp.sum(centred, axis=-1, keepdims=True)


def dr_grpo(rewards: Array, tokens: columns.Tokens | None = None) -> Array:
  """R - mean, Dr. GRPO (arXiv:2503.20783). float[N, G, K] -> [N, G, 1]."""
  return grpo(rewards, tokens, std='none')


def rloo(rewards: Array, tokens: columns.Tokens | None = None) -> Array:
  """R - mean of the others = G / (G - 1) (R - mean) (arXiv:2402.14740)."""
  return grpo(rewards, tokens, std='none', leave_one_out=True)


def normalize_then_sum(
    rewards: Array,
    tokens: columns.Tokens | None = None,
    *,
    weights: Sequence[float] | None = None,
    ddof: int = 1,
    eps: float = 1e-4,
) -> Array:
  """Each column by its group, the weighted sum by the batch: GDPO.

  z_k = (r_k - mean_gk) / (sigma_gk + eps), R = sum_k w_k z_k,
  A = (R - mean R) / (std R + eps) over all samples (arXiv:2601.05242; TRL
  `multi_objective_aggregation`). A group in which no column varies stays
  exactly 0. Weights belong here: dividing by sigma undoes earlier ones.

  Args:
    rewards: float[N, G, K], unweighted.
    tokens: not read.
    weights: K numbers; None: ones.
    ddof: of both standard deviations.
    eps: added to both.

  Returns:
    float[N, G, 1].
  """
  del tokens
  xp, valid, values = columns.split(rewards)
  if weights is not None and len(weights) != values.shape[-1]:
    raise ValueError(
        f'{len(weights)} weights for {values.shape[-1]} reward columns.')
  centred, _ = columns.centre(xp, values, valid)
  z = centred / (columns.std(xp, values, valid, 1, ddof) + eps)
  if weights is not None:
    z = z * xp.asarray(weights, dtype=z.dtype)
  total = xp.sum(z, axis=-1, keepdims=True)
  present = xp.any(valid, axis=-1, keepdims=True)
  flat = xp.all(columns.flat(xp, values, valid, 1), axis=-1, keepdims=True)
  n = xp.maximum(xp.sum(present), 1)
  mean = xp.sum(xp.where(present, total, 0)) / n
  spread = columns.std(xp, total, present, (0, 1), ddof)
  return xp.where(present & ~flat, (total - mean) / (spread + eps), 0)


def opo(rewards: Array, tokens: columns.Tokens) -> Array:
  """R - sum(length R) / sum(length) by group (OPO, arXiv:2505.23585).

  Args:
    rewards: float[N, G, K].
    tokens: reads lengths int[N, G].

  Returns:
    float[N, G, 1].
  """
  xp, valid, values = columns.split(rewards)
  lengths = xp.asarray(
      columns.need(tokens, 'lengths', 'opo'), dtype=values.dtype)
  weight = xp.where(valid, lengths[..., None], 0)
  baseline = xp.sum(weight * values, axis=1, keepdims=True) / xp.maximum(
      xp.sum(weight, axis=1, keepdims=True), 1)
  keep = valid & ~columns.flat(xp, values, valid, 1)
  return xp.sum(
      xp.where(keep, values - baseline, 0), axis=-1, keepdims=True)


def pass_at_k(
    rewards: Array,
    tokens: columns.Tokens | None = None,
    *,
    std: str = 'group',
    ddof: int = 1,
    eps: float = 1e-6,
) -> Array:
  """Only the best of a group: (r_max - r_second) / (sigma + eps), others 0.

  verl `grpo_passk` (arXiv:2503.19595). A tie for the best gives all 0; so
  does a group with fewer than two values.

  Args:
    rewards: float[N, G, K].
    tokens: not read.
    std: 'group' or 'none' (no division).
    ddof, eps: as in `grpo`.

  Returns:
    float[N, G, 1].
  """
  del tokens
  if std not in ('group', 'none'):
    raise ValueError(f"std {std!r} is not one of ('group', 'none').")
  xp, valid, values = columns.split(rewards)
  known = xp.where(valid, values, -xp.inf)
  best = xp.argmax(known, axis=1)
  first = xp.arange(known.shape[1])[:, None] == best[:, None, :]
  top = xp.max(known, axis=1, keepdims=True)
  second = xp.max(xp.where(first, -xp.inf, known), axis=1, keepdims=True)
  keep = first & (second > -xp.inf) & ~columns.flat(xp, values, valid, 1)
  gain = xp.where(keep, top, 0) - xp.where(keep, second, 0)
  if std == 'group':
    gain = gain / (columns.std(xp, values, valid, 1, ddof) + eps)
  return xp.sum(gain, axis=-1, keepdims=True)


def gpg(rewards: Array, tokens: columns.Tokens | None = None) -> Array:
  """alpha (R - mean), alpha = samples / samples with R != 0 in the batch.

  GPG (arXiv:2504.02546; verl). float[N, G, K] -> float[N, G, 1].
  """
  del tokens
  xp, valid, values = columns.split(rewards)
  centred, _ = columns.centre(xp, values, valid)
  n = xp.sum(valid, axis=(0, 1))
  alive = xp.sum(valid & (values != 0), axis=(0, 1))
  return xp.sum(
      centred * (n / xp.maximum(alive, 1)), axis=-1, keepdims=True)
