"""RECAP (arXiv 2510.21978, ACL Findings 2026): what only it needs.

While a model learns to reason, data of other abilities is replayed, and every
objective (a reward of a source, or its SFT loss) is weighed anew at each step:
what has converged loses weight, what falls back or is noisy gains it.
"""

from collections.abc import Collection, Mapping, Sequence
import types
from typing import Any

import numpy as np

from mmr1 import advantages
from mmr1 import columns as columns_lib
from mmr1.rewards import combine

FORMS = ('code', 'paper', 'none')
_TINY = 1e-15
_HUGE = 1e30  # a softmax of it is settled; its sums are still finite

History = Mapping[str, Sequence[float]]


def pushed(history: History, values: Mapping[str, float],
           window: int) -> dict[str, list[float]]:
  """The history with this step's values, of the last 2 `window` at most.

  Plain lists of floats, oldest first, to be kept in a checkpoint.

  Args:
    history: {objective: its values}; not changed.
    values: of the objectives of this step; new ones begin here.
    window: W, steps.

  Raises:
    ValueError: window below 1, or a value that is not finite.
  """
  if window < 1:
    raise ValueError(f'RECAP: got window={window}; it must be at least 1.')
  if not np.isfinite(list(values.values())).all():
    raise ValueError(f'RECAP: values must be finite, got {dict(values)}.')
  kept = {name: list(past) for name, past in history.items()}
  for name, value in values.items():
    kept[name] = [*kept.get(name, ()), float(value)][-2 * int(window):]
  return kept


def signals(past: Sequence[float], falling: bool) -> tuple[float, float]:
  """(convergence c, instability i) of one objective.

      c = F / S   of a reward, S / F of a loss; 1 with fewer than 2 values
      i = std / |mean|   of both halves together, ddof 0

  F and S are the sums of the older and the newer half (of an odd number of
  values the oldest is left out). c < 1 where the objective gets better.
  1e-15 is added to denominators, as in the code. Sums below 0, which the code
  does not expect, count as 0, and the mean by its size, so that no sign flips
  [ours].

  Args:
    past: its values, oldest first.
    falling: lower is better.
  """
  half = len(past) // 2
  values = np.asarray(past[-2 * half:], np.float64)
  i = values.std() / (abs(values.mean()) + _TINY)
  if not half:
    return 1.0, min(float(i), _HUGE)
  old, new = (max(float(part.sum()), 0.0)
              for part in (values[:half], values[half:]))
  top, bottom = (new, old) if falling else (old, new)
  return min(top / (bottom + _TINY), _HUGE), min(float(i), _HUGE)


def objective_weights(
    history: History,
    *,
    falling: Collection[str] = (),
    temperature: float = 5.0,
    alpha: float = 0.5,
    form: str = 'code',
) -> dict[str, float]:
  """The weight of each objective seen so far; they sum to their number K.

      code    K (alpha softmax(c / T) + (1 - alpha) softmax(i / T))
      paper   K softmax((c + i) / T)
      none    1: the baseline with fixed weights

  See `signals`. Source: `src/open_r1/trainers/mixed_trainer.py` of
  https://github.com/VietHoang1512/recap and section 4. The code divides F by S
  for losses too in a step of rewards, and the other way round; here every
  objective has its own orientation.

  Args:
    history: {objective: its values}.
    falling: objectives that are losses: lower is better.
    temperature: T, above 0.
    alpha: of the code's form, 0 to 1; `alpha=-1` of its config is
      1 - step / steps, a linear hook on `combine/alpha`.
    form: of FORMS.

  Raises:
    ValueError: an unknown form, or a number out of range.
  """
  if form not in FORMS:
    raise ValueError(f'RECAP: got form={form!r}; allowed are {FORMS}.')
  if not temperature > 0 or not 0 <= alpha <= 1:
    raise ValueError(
        f'RECAP: got temperature={temperature}, alpha={alpha}; allowed: above '
        '0, and 0 to 1.')
  if not history:
    return {}
  c, i = np.transpose([
      signals(past, name in falling) for name, past in history.items()])
  if form == 'code':
    share = alpha * _softmax(c / temperature) + (1 - alpha) * _softmax(
        i / temperature)
  elif form == 'paper':
    share = _softmax((c + i) / temperature)
  else:
    share = np.full(len(history), 1 / len(history))
  return dict(zip(history, map(float, len(history) * share)))


def reweighted(
    columns: np.ndarray,
    names: Sequence[str],
    knobs: Mapping[str, float],
    state: Any,
    *,
    weights: Mapping[str, float],
    falling: Sequence[str] = (),
    losses: Mapping[str, float] = types.MappingProxyType({}),
    window: int = 10,
    temperature: float = 5.0,
    alpha: float = 0.5,
    form: str = 'code',
) -> combine.Combined:
  """sum_k w_k weight_k r_k, with the w of `objective_weights`.

  An objective is a column of non-zero weight; columns of different sources are
  different objectives. Those with a value in this step (not all nan) get the
  mean of their values into their history, before the weights are made. K counts
  the objectives seen so far.

  Args:
    columns: f64[N, G, K], nan where there is no value or no such source.
    names: K names.
    knobs: unused.
    state: {'history': {name: floats}}; {} at first.
    weights: one per name: 1 as in the paper, 0 logged only. c and i do not
      depend on the scale of a reward.
    falling: names of columns of which less is better.
    losses: {column of a loss of demonstrations: its fixed weight}. Falling, and
      objectives whatever `weights` says. A row with a value there is worth
      w_k weight_k itself: how much its loss counts, see `mixed`.
    window, temperature, alpha, form: as of `pushed`, `objective_weights`.

  Returns:
    f64[N, G, 1], 'reward/<name>/weight' of the objectives of this step, and the
    state with their values.

  Raises:
    ValueError: a name in `falling` or `losses` that is no column; as
      `objective_weights`.
  """
  for key, given in (('falling', falling), ('losses', losses)):
    unknown = sorted(set(given) - set(names))
    if unknown:
      raise ValueError(f'RECAP: {key} names {unknown}; the columns are '
                       f'{list(names)}.')
  weights = {**weights, **losses}
  seen = {}
  for k, name in enumerate(names):
    values = columns[..., k][~np.isnan(columns[..., k])]
    if values.size and weights.get(name):
      seen[name] = float(values.mean())
  history = pushed(state.get('history', {}), seen, window)
  found = objective_weights(
      history, falling={*falling, *losses}, temperature=temperature,
      alpha=alpha, form=form)
  # Of a loss the row's worth is the weight alone.
  paid = np.where([name in losses for name in names] & ~np.isnan(columns),
                  1.0, columns)
  total, says, _ = combine.weighted_sum(
      paid, names, knobs, None, weights={
          name: weight * found.get(name, 1.0)
          for name, weight in weights.items()})
  return total, {**says, **{
      f'reward/{name}/weight': found[name] for name in seen}}, {
          **state, 'history': history}


def mixed(
    rewards: np.ndarray,
    tokens: columns_lib.Tokens,
    *,
    std: str = 'group',
    ddof: int = 1,
    eps: float = 1e-4,
) -> np.ndarray:
  """GRPO's advantage of samples; of demonstrations what `reweighted` gave them.

  With `terms.imitation` a demonstration's loss is then w_source times its
  negative log-likelihood, as in the code; it is in no group.

  Args:
    rewards: float[N, G, 1].
    tokens: reads expert bool[N, G].
    std, ddof, eps: see `advantages.grpo`. std='none': without scale_rewards.
  """
  expert = columns_lib.need(tokens, 'expert', 'mixed')[..., None]
  own = advantages.grpo(
      np.where(expert, np.nan, rewards), std=std, ddof=ddof, eps=eps)
  return np.where(expert, np.nan_to_num(rewards), own)


def _softmax(x: np.ndarray) -> np.ndarray:
  x = np.exp(x - x.max())
  return x / x.sum()
