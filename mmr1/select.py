"""Which completions train: the `select` socket. NumPy only.

`(columns, advantage, meta, state, rng, *, ...) -> (keep, counts, more, state)`

  columns: {name: float[N, G]}, rewards by name, nan where there is no value;
    'overall' is what `combine` made of them, if no reward has that name.
  advantage: float[N, G, 1 or T].
  meta: {name: array}, 'truncated' bool[N, G], 'spoken' bool[N, G, T] (tokens
    that were sampled or are an expert's), 'expert' bool[N, G], 'branch' i[N].
  state: {name: value}, carried between steps and checkpointed; not mutated.
  rng: np.random.Generator of this step and round, for random choices.
  keep: bool[N, G], False takes a completion out of every term; or int[N, G],
    how often it is in every sum and count, as if it were repeated.
  counts: {metric name: int}, what was dropped and why.
  more: True says that fewer groups are kept than wanted, which are all; an int,
    how many are missing. A stage then makes another rollout, of which as many
    good groups take places of those in which nothing is kept, `rounds` times at
    most; a step that stays short is trained on and counted as 'select/short'.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Columns = Mapping[str, np.ndarray]
State = Mapping[str, Any]
Selection = tuple[np.ndarray, dict[str, int], bool | int, State]


def keep_all(
    columns: Columns, advantage: np.ndarray, meta: Columns, state: State,
    rng: np.random.Generator,
) -> Selection:
  """Keeps every completion."""
  del columns, meta, rng
  return np.ones(advantage.shape[:2], bool), {}, False, state


def drop_zero_std(
    columns: Columns, advantage: np.ndarray, meta: Columns, state: State,
    rng: np.random.Generator, *, column: str,
    low: float | None = None, high: float | None = None,
    groups: int | None = None,
) -> Selection:
  """Drops groups in which `column` does not vary: DAPO's dynamic sampling.

  arXiv:2503.14476, eq. 11. EasyR1's form also asks low < mean < high (0.01,
  0.99). With `groups`, at most that many are kept, the surplus, latest first,
  is dropped. How many are missing is reported as `more`: with `rounds` above 1
  the stage resamples until there are as many (verl 10 rounds, EasyR1 20).

  Args:
    columns, advantage, meta, state, rng: see the module.
    column: the reward that must vary, for example the accuracy.
    low, high: bounds on the mean of the column in its group; None: no bound.
    groups: number of groups wanted; None: all of the batch.

  Returns:
    See the module. A group without any value counts as not varying.

  Raises:
    ValueError: unknown column, or groups < 1.
  """
  del advantage, meta, rng
  if column not in columns:
    raise ValueError(
        f'select column {column!r} is not among the rewards '
        f'{sorted(columns)}.')
  if groups is not None and groups < 1:
    raise ValueError(
        f'groups must be at least 1, got {groups}; None means no target.')
  value = np.asarray(columns[column])
  if not np.issubdtype(value.dtype, np.floating):
    value = value.astype(np.float64)
  valid = ~np.isnan(value)
  top = np.where(valid, value, -np.inf).max(axis=1)
  bottom = np.where(valid, value, np.inf).min(axis=1)
  # The same slack for rounding as in the advantage.
  slack = 4 * np.finfo(value.dtype).eps * np.maximum(
      np.abs(top), np.abs(bottom))
  varies = (top > bottom) & (top - bottom > slack)
  mean = np.where(valid, value, 0).sum(1) / np.maximum(valid.sum(1), 1)
  inside = np.ones_like(varies)
  if low is not None:
    inside &= mean > low
  if high is not None:
    inside &= mean < high
  good = varies & inside
  rank = np.cumsum(good)
  kept = good if groups is None else good & (rank <= groups)
  counts = {
      'select/zero_std_groups': int((~varies).sum()),
      'select/out_of_range_groups': int((varies & ~inside).sum()),
      'select/surplus_groups': int((good & ~kept).sum()),
  }
  more = (not good.all() if groups is None
          else max(groups - int(good.sum()), 0))
  keep = np.broadcast_to(kept[:, None], value.shape).copy()
  return keep, counts, more, state


def drop_truncated(
    columns: Columns, advantage: np.ndarray, meta: Columns, state: State,
    rng: np.random.Generator,
) -> Selection:
  """Drops completions cut by the length cap: DAPO's overlong filtering.

  TRL `mask_truncated_completions`. Their rewards stay in the statistics of
  the group. Reads meta['truncated'].
  """
  del columns, rng
  keep = ~np.asarray(meta['truncated'], bool)
  if keep.shape != advantage.shape[:2]:
    raise ValueError(
        f"meta['truncated'] has shape {keep.shape}, the advantage "
        f'{advantage.shape}; the first two axes must agree.')
  return keep, {'select/truncated_rows': int((~keep).sum())}, False, state


def drop_saturated(
    columns: Columns, advantage: np.ndarray, meta: Columns, state: State,
    rng: np.random.Generator, *, column: str = 'overall', mean: float = 0.9,
    std: float = 0.05, either: bool = True, ban: bool = True,
) -> Selection:
  """Drops groups that have nothing left to learn: high and without spread.

  Edit-R1 (arXiv:2510.16888, sec. 3.3) drops a group whose mean is above
  `mean` and whose standard deviation (ddof 0) is below `std`; its code
  (train_nft_*.py of https://github.com/PKU-YuanGroup/UniWorld-V2) one of which
  `either` holds, and bans the prompts of those of which both do.

  Args:
    columns, advantage, meta, state, rng: see the module; reads meta['uid'],
      i[N]. state['banned'] lists prompts that are not to be sampled again.
    column: what is compared.
    mean, std: bounds.
    either: the code's form; else the paper's.
    ban: whether prompts are banned.

  Returns:
    See the module.
  """
  del advantage, rng
  value = np.asarray(columns[column], np.float64)
  centre, spread = np.nanmean(value, 1), np.nanstd(value, 1)
  both = (centre > mean) & (spread < std)
  drop = (centre >= mean) | (spread <= std) if either else both
  banned = list(state.get('banned', ()))
  if ban:
    new = [int(uid) for uid in np.asarray(meta['uid'])[both]]
    banned += [uid for uid in new if uid not in banned]
  keep = np.broadcast_to(~drop[:, None], value.shape).copy()
  counts = {'select/saturated_groups': int(drop.sum()),
            'select/banned': len(banned)}
  return keep, counts, False, {**state, 'banned': banned} if ban else state
