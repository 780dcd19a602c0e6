"""Combining reward columns into the one(s) that advantages are made of.

The `combine` socket: `(columns, names, knobs, state, *, weights, ...) ->
(rewards, metrics, state)`: columns f64[N, G, K] with nan for 'no value', their
K names, this step's knobs, and what it kept from the step before; rewards
f64[N, G, K'], {metric name: number} to be logged, and what it keeps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Combined = tuple[np.ndarray, dict[str, float], Any]


def separate(
    columns: np.ndarray,
    names: Sequence[str],
    knobs: Mapping[str, float],
    state: Any,
    *,
    weights: Mapping[str, float],
) -> Combined:
  """The columns of non-zero weight as they are, K' of them.

  For advantages that normalise each reward by itself and are summed, or weigh
  them afterwards (`normalize_then_sum`, GDPO). Other weights than 0 and 1 would
  be lost there, so they are refused.

  Args, Returns, Raises: as `weighted_sum`, with f64[N, G, K'].
  """
  del knobs
  _check(columns, names, weights)
  odd = {name: w for name, w in weights.items() if w not in (0, 1)}
  if odd or not any(weights.values()):
    raise ValueError(
        f'separate: got weights {dict(weights)}; allowed are 0 (logged only) '
        'and 1, one of them at least. Weights of normalised rewards belong to '
        'advantage.kwargs.weights.')
  return columns[..., [weights[name] == 1 for name in names]], {}, state


def weighted_sum(
    columns: np.ndarray,
    names: Sequence[str],
    knobs: Mapping[str, float],
    state: Any,
    *,
    weights: Mapping[str, float],
) -> Combined:
  """sum_k weight_k * column_k over the values that are present.

  A missing value (nan) is left out of its row's sum, 0.0 is a value. A row in
  which every column of non-zero weight is missing is missing (nan).

  Args:
    columns: f64[N, G, K], nan = no value.
    names: K names of the columns.
    knobs: unused.
    state: passed through.
    weights: one finite weight per name; 0 = logged only.

  Returns:
    f64[N, G, 1], no metrics, and the state.

  Raises:
    ValueError: names and weights differ, or shapes do not fit.
  """
  del knobs
  _check(columns, names, weights)
  weight = np.asarray([weights[name] for name in names], np.float64)
  present = ~np.isnan(columns) & (weight != 0)
  total = np.where(present, columns * weight, 0.0).sum(-1, keepdims=True)
  return np.where(present.any(-1, keepdims=True), total, np.nan), {}, state


FORMS = ('hybrid', 'model', 'rule')


def rule_then_model(
    columns: np.ndarray,
    names: Sequence[str],
    knobs: Mapping[str, float],
    state: Any,
    *,
    weights: Mapping[str, float],
    rule: str = 'rule',
    model: str = 'model',
    form: str = 'hybrid',
) -> Combined:
  r"""A rule where it says yes, else a reward model; + the other columns, weighed.

    hybrid  1 if the rule gives 1, else sigma(s)
    model   s
    rule    what the rule gives

  s is the model's score. A problem that the rule says nothing about (nan) has
  sigma(s) in the first form. So an exact match has more than any score can be.
  For s = 1.3 and a wrong answer: .785835. Source: BaseReward
  (arXiv:2509.16127, section 4.3).

  Args:
    columns: f64[N, G, K], nan where there is no value.
    names, knobs, state, weights: as in `weighted_sum`.
    rule, model: names of the two columns, whose weights are not read.
    form: see above.

  Returns:
    f64[N, G, 1]; the mean of sigma(s) as 'reward/<model>/unit'; the state.

  Raises:
    ValueError: no such column or form.
  """
  if form not in FORMS:
    raise ValueError(
        f'rule_then_model: form={form!r}; allowed are {FORMS}.')
  needed = {'hybrid': (rule, model), 'model': (model,), 'rule': (rule,)}[form]
  for name in needed:
    if name not in names:
      raise ValueError(f'rule_then_model: there is no column {name!r}; the '
                       f'columns are {list(names)}.')
  found = {name: columns[..., k] for k, name in enumerate(names)}
  nothing = np.full(columns.shape[:2], np.nan)
  said, matched = found.get(model, nothing), found.get(rule, nothing)
  unit = 1 / (1 + np.exp(-said))
  own = {'hybrid': np.where(matched == 1, 1.0, unit), 'model': said,
         'rule': matched}[form]
  rest = {name: 0.0 if name in (rule, model) else weights[name]
          for name in names}
  more, _, state = weighted_sum(columns, names, knobs, state, weights=rest)
  metrics = {}
  if not np.isnan(unit).all():
    metrics[f'reward/{model}/unit'] = float(np.nanmean(unit))
  return own[..., None] + np.nan_to_num(more), metrics, state


def means(columns: np.ndarray, names: Sequence[str]) -> dict[str, float]:
  """{'reward/<name>/mean': over present values} of columns [..., K]."""
  found = {}
  for k, name in enumerate(names):
    present = columns[..., k][~np.isnan(columns[..., k])]
    if present.size:
      found[f'reward/{name}/mean'] = float(present.mean())
  return found


def _check(columns, names, weights):
  if columns.ndim != 3 or columns.shape[-1] != len(names):
    raise ValueError(
        f'columns have shape {columns.shape}; expected [N, G, {len(names)}] '
        f'for the names {list(names)}')
  if set(weights) != set(names):
    raise ValueError(
        f'weights are for {sorted(weights)}, the columns are {sorted(names)}')
  if not np.isfinite(list(weights.values())).all():
    raise ValueError(f'weights must be finite, got {dict(weights)}')
