"""What checkpoints of one base are fused by: coefficients of task vectors.

  tau_t = theta_t - theta_0           what parent t learnt after the base
  theta = theta_0 + sum_t lambda_t tau_t

lambda_t is a number for every decoder layer. A rule says which: a function
(measured, *, kwargs) -> {parent: f64[L]}. Layers are counted from 1, as in the
papers. NumPy on the host, one tensor at a time.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_PIECE = 1 << 16  # products that are summed in float32
PRIORS = ('exponential', 'linear', 'none')
NORMS = ('sum_over_layers', 'max_to_one')
Coefficients = dict[str, np.ndarray]


class Measured(NamedTuple):
  """What a rule reads.

  Fields:
    norms: {parent: f64[L]}, ||tau_t(l)||^2 over all that is fused of layer l.
    share: f64[L], attention to the image in each layer, 0 .. 1; None: not
      measured.
  """
  norms: Mapping[str, np.ndarray]
  share: np.ndarray | None = None


def gram(base: np.ndarray, parents: Sequence[np.ndarray]) -> np.ndarray:
  """f64[P, P], inner products of the task vectors parent - base of a tensor.

  Of any dtypes: differences and products in float32, a piece at a time.
  """
  flat = [x.reshape(-1) for x in (base, *parents)]
  total = np.zeros((len(parents), len(parents)))
  for i in range(0, flat[0].size, _PIECE):
    start, *rest = (x[i:i + _PIECE].astype(np.float32) for x in flat)
    tau = np.stack(rest) - start
    total += tau @ tau.T
  return total


def fuse(base: np.ndarray, parents: Mapping[str, np.ndarray],
         coefficients: Mapping[str, float]) -> np.ndarray:
  """base + sum of coefficient x (parent - base), in float32.

  Without any coefficient above or below 0 the base as it is; with a single
  one of exactly 1 that parent, to the bit.
  """
  used = {name: c for name, c in coefficients.items() if c}
  if not used:
    return base
  if [*used.values()] == [1.0]:
    return parents[next(iter(used))]
  start = base.astype(np.float32)
  result = start.copy()
  for name, c in used.items():
    difference = parents[name].astype(np.float32)
    difference -= start
    difference *= np.float32(c)
    result += difference
  return result


# Rules.


def closed_form(
    measured: Measured, *, prior: str = 'none', of: str = 'vision',
    alpha: float | None = None, prior_norm: str = 'sum_over_layers',
) -> Coefficients:
  """The minimiser of the layer's loss gap to its parents, to second order.

    lambda_t(l) = w_t(l) ||tau_t(l)||^2 / sum_s w_s(l) ||tau_s(l)||^2

  (https://arxiv.org/abs/2505.16151, eq. 15). They sum to 1 in every layer; in
  one without any weighted norm all are 0, and the base stays.

  Args:
    measured: share is read by the exponential prior without an alpha.
    prior: 'none', w_t = 1, of any number of parents (eq. 13); else one of
      PRIORS, see `visual_prior`, of two.
    of: the parent whose prior it is; the other has 1 minus it.
    alpha: decay of the exponential prior; None: fitted to the share.
    prior_norm: see `visual_prior`.

  Raises:
    ValueError: an unknown prior; a prior with other than two parents.
  """
  norms = {name: np.asarray(x, np.float64) for name, x in
           measured.norms.items()}
  if prior not in PRIORS:
    raise ValueError(f'closed_form: got prior={prior!r}; allowed: {PRIORS}.')
  if prior != 'none':
    if len(norms) != 2 or of not in norms:
      raise ValueError(
          f'closed_form: prior={prior!r} is of {of!r} and one other parent; '
          f"there are {sorted(norms)}. Set `of`, or prior='none'.")
    w = visual_prior(prior, len(norms[of]), alpha=alpha, share=measured.share,
                     norm=prior_norm)
    norms = {name: (w if name == of else 1 - w) * x
             for name, x in norms.items()}
  total = sum(norms.values())
  return {name: np.divide(x, total, out=np.zeros_like(total), where=total > 0)
          for name, x in norms.items()}


def whole_model(measured: Measured) -> Coefficients:
  """One coefficient a parent, by the norm of its whole task vector.

    lambda_t = ||tau_t||^2 / sum_s ||tau_s||^2

  (MetaGPT, https://arxiv.org/abs/2406.11385, eq. 15.)
  """
  whole = {name: np.sum(x) for name, x in measured.norms.items()}
  total = sum(whole.values())
  return {name: np.full(len(x), whole[name] / total if total else 0.0)
          for name, x in measured.norms.items()}


def fixed(measured: Measured, *, fraction: float = 0.3) -> Coefficients:
  """Task arithmetic: `fraction` of every task vector.

  (https://arxiv.org/abs/2212.04089.)
  """
  return {name: np.full(len(x), float(fraction))
          for name, x in measured.norms.items()}


def interpolation(
    measured: Measured, *, weights: Mapping[str, float] | None = None,
) -> Coefficients:
  """A weighted mean of the parents; the base drops out of it.

  Args:
    measured: the parents.
    weights: {parent: number}, which sum to 1; None: all the same.

  Raises:
    ValueError: weights of other parents, or of another sum.
  """
  names = [*measured.norms]
  weights = dict(weights) if weights else dict.fromkeys(names, 1 / len(names))
  if {*weights} != {*names} or abs(sum(weights.values()) - 1) > 1e-6:
    raise ValueError(
        f'interpolation: got weights={weights}; needed is a number for each of '
        f'{sorted(names)}, with a sum of 1.')
  return {name: np.full(len(x), float(weights[name]))
          for name, x in measured.norms.items()}


# The prior.


def fit_decay(share: np.ndarray) -> float:
  """alpha of share(l) ~ A exp(-alpha l): least squares of ln share on l.

  Below 0 where deeper layers look more at the image.

  Raises:
    ValueError: fewer than two layers, or one that does not look at all.
  """
  share = np.asarray(share, np.float64)
  if len(share) < 2 or not np.all(share > 0):
    raise ValueError(
        f'fit_decay: got attention shares {np.round(share, 6).tolist()}; '
        'needed are two layers or more, all above 0. Do the prompts that were '
        'measured have images?')
  l = np.arange(1, len(share) + 1) - (len(share) + 1) / 2
  y = np.log(share)
  return -float(np.sum(l * (y - y.mean())) / np.sum(l * l))


def visual_prior(
    form: str, layers: int, *, alpha: float | None = None,
    share: np.ndarray | None = None, norm: str = 'sum_over_layers',
) -> np.ndarray:
  """f64[L], how much of each layer is for seeing.

  Args:
    form: 'exponential', exp(-alpha l), or 'linear', L + 1 - l.
    layers: L.
    alpha: None: fitted to `share`.
    share: see `fit_decay`.
    norm: 'sum_over_layers' (the paper as written: of the order of 1 / L), or
      'max_to_one', 1 in the layer that sees most.

  Raises:
    ValueError: an unknown norm; an alpha that neither is given nor can be
      fitted.
  """
  if norm not in NORMS:
    raise ValueError(f'visual_prior: got norm={norm!r}; allowed: {NORMS}.')
  l = np.arange(1, layers + 1)
  if form == 'linear':
    w = layers + 1.0 - l
  else:
    if alpha is None and share is None:
      raise ValueError(
          'visual_prior: the exponential prior needs the share of attention, '
          'which was not measured, or an alpha. Set share.examples above 0, or '
          'alpha.')
    exponent = -(fit_decay(share) if alpha is None else alpha) * l
    w = np.exp(exponent - exponent.max())
  return w / (w.sum() if norm == 'sum_over_layers' else w.max())
