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
