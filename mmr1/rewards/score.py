"""Scoring: samples in, reward columns out, nothing swallowed.

A reward is `(Sample, knobs, **kwargs) -> float or None`, or, with an attribute
`group = True`, `([Sample] of one group, knobs, **kwargs) -> [float or None]`.
It declares its range as an attribute, `fn.range = (0.0, 1.0)`, and is a pure
function that may be called from several threads. `fn.perfect`, if there is such
an attribute, is what a right and well-formed completion earns (`mmr1.handover`,
`mmr1.gold`); `fn.no_gold` says why there is no such number.

What can happen to a call, and what it leaves in the columns:
  a float in the range      the float
  None                      nan; `reward/none_frac`
  a time-out                0.0; `reward/timeout_frac` (the answer is to blame)
  the worker ended          0.0; `reward/error_frac`   (the answer is to blame)
  an exception, a value     nan; `reward/error_frac`
  outside of the range
A reward of which every call of a step failed stops the run. Samples of a member
of the mixture that names its rewards are not shown to the others: nan, which
counts nowhere.
"""

import concurrent.futures
import dataclasses
import itertools
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmr1 import records
from mmr1.rewards import checks
from mmr1.rewards import combine
from mmr1.rewards import pool

_EXCERPT = 200  # characters of a sample's text in a message


@dataclasses.dataclass(frozen=True)
class Reward:
  """One column.

  Fields:
    fn: the reward; a module-level function with a `range`.
    kwargs: its keyword arguments.
    weight: in the weighted sum; kept here for the config's sake.
    in_pool: run the whole call in a killable process. For rewards that may
      hang; `math.verify` and what builds on it do so by themselves, and only
      where needed.
    limit_s: seconds per call when `in_pool`.
  """
  fn: Callable[..., Any]
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  weight: float = 1.0
  in_pool: bool = False
  limit_s: float = 10.0


@dataclasses.dataclass(frozen=True)
class Failure:
  """A call that gave no honest value.

  Fields:
    name: the column; index: position of the (first) sample in the step.
    kind: 'timeout' or 'error'.
    message: for a person, with a traceback where there is one.
  """
  name: str
  index: int
  kind: str
  message: str


@dataclasses.dataclass(frozen=True)
class Scored:
  """A step's rewards.

  Fields:
    columns: f64[N, G, K]; nan = no value, 0.0 is a value.
    names: K names, in the order of the columns.
    metrics: reward/<name>/mean over present values (absent if there are none),
      reward/error_frac, reward/timeout_frac, reward/none_frac over all calls.
    failures: every time-out and error, in order.
  """
  columns: np.ndarray
  names: tuple[str, ...]
  metrics: dict[str, float]
  failures: tuple[Failure, ...]

  def named(self) -> dict[str, np.ndarray]:
    """{name: f64[N, G]}."""
    return {name: self.columns[..., i] for i, name in enumerate(self.names)}


class Part(NamedTuple):
  """Rewards of some of a step's prompts.

  Fields:
    columns: f64[n, G, K].
    failures: every time-out and error, and how many samples it was about.
    nones: calls that gave no value.
    asked: of each reward, how many samples it saw.
  """
  columns: np.ndarray
  failures: tuple[tuple[Failure, int], ...]
  nones: int
  asked: tuple[int, ...]


class Scorer:
  """Scores samples by an ordered mapping {name: Reward}.

  Raises (constructor):
    ValueError: no rewards, a reward without a range, unknown keyword
      arguments, or a pooled function that a worker cannot import.
  """

  def __init__(self, rewards: Mapping[str, Reward], *, workers: int = 2):
    if not rewards:
      raise ValueError('no rewards: name at least one')
    if workers < 1:
      raise ValueError(f'workers={workers}: need at least 1')
    for name, reward in rewards.items():
      checks.reward(name, reward)
    self.rewards = dict(rewards)
    self.names = tuple(self.rewards)
    self.weights = {name: r.weight for name, r in self.rewards.items()}
    self._workers = workers

  def score(
      self,
      samples: Sequence[records.Sample],
      n: int,
      g: int,
      knobs: Mapping[str, float],
  ) -> Scored:
    """Calls every reward on every sample.

    Args:
      samples: n * g of them, group after group.
      n: prompts; g: samples per prompt.
      knobs: this step's numbers, handed to each reward.

    Raises:
      ValueError: the samples do not form n groups of g.
      RuntimeError: all calls of one reward failed; with the first traceback.
    """
    part = self.call(samples, n, g, knobs)
    return self.together([(range(n), part)], n, g)

  def call(
      self,
      samples: Sequence[records.Sample],
      n: int,
      g: int,
      knobs: Mapping[str, float],
  ) -> Part:
    """The same of some of a step's prompts, for `together`."""
    if not n:
      return Part(np.full((0, g, len(self.names)), np.nan), (), 0,
                  (0,) * len(self.names))
    _check_groups(samples, n, g)
    columns = np.full((n * g, len(self.names)), np.nan)
    failures, nones, asked = [], 0, [0] * len(self.names)
    threads = concurrent.futures.ThreadPoolExecutor(self._workers)
    try:
      pending = [
          (k, rows, threads.submit(_call, name, reward, part, knobs))
          for k, (name, reward) in enumerate(self.rewards.items())
          for rows, part in _parts(name, reward, samples, g)]
      for k, rows, future in pending:
        values, failure = future.result()
        asked[k] += len(values)
        columns[rows, k] = [
            math.nan if value is None else value for value in values]
        if failure is None:
          nones += values.count(None)
        else:
          failures.append((dataclasses.replace(failure, index=rows[0]),
                           len(values)))
    finally:
      threads.shutdown(cancel_futures=True)
    return Part(columns.reshape(n, g, -1), tuple(failures), nones,
                tuple(asked))

  def together(
      self, parts: Sequence[tuple[Sequence[int], Part]], n: int, g: int,
  ) -> Scored:
    """The scores of a step from those of its parts.

    Args:
      parts: (its prompts, what `call` gave); every prompt is in one.
      n: prompts of the step; g: samples per prompt.

    Raises:
      RuntimeError: all calls of one reward failed; with the first traceback.
    """
    columns = np.full((n, g, len(self.names)), np.nan)
    failures = []
    for rows, part in parts:
      columns[list(rows)] = part.columns
      failures += [
          (dataclasses.replace(
              one, index=rows[one.index // g] * g + one.index % g), size)
          for one, size in part.failures]
    asked = [sum(x) for x in zip(*(part.asked for _, part in parts))]
    self._stop_if_always_failing(failures, asked)
    metrics = self._metrics(
        columns.reshape(n * g, -1), failures,
        sum(part.nones for _, part in parts), max(sum(asked), 1))
    return Scored(columns, self.names, metrics,
                  tuple(failure for failure, _ in failures))

  def _stop_if_always_failing(self, failures, asked: list[int]) -> None:
    for name, calls in zip(self.names, asked):
      errors = [(failure, size) for failure, size in failures
                if failure.name == name]
      first = next((f for f, _ in errors if f.kind == 'error'), None)
      if first is not None and sum(size for _, size in errors) == calls:
        raise RuntimeError(
            f'reward {name!r} failed on all {calls} samples of this step. '
            f'The first failure:\n{first.message}')

  def _metrics(
      self, columns, failures, nones: int, calls: int) -> dict[str, float]:
    metrics = combine.means(columns, self.names)
    for kind in ('error', 'timeout'):
      count = sum(size for failure, size in failures if failure.kind == kind)
      metrics[f'reward/{kind}_frac'] = count / calls
    metrics['reward/none_frac'] = nones / calls
    return metrics


def is_group(fn: Callable[..., Any]) -> bool:
  """True for the group form, `fn([Sample], knobs)`."""
  return hasattr(fn, 'group') and bool(fn.group)


def _parts(name: str, reward: Reward, samples, g: int):
  """(indices of its samples, what one call gets), of samples it judges; one
  without a token is a trace that the data does not have."""
  there = [i for i, sample in enumerate(samples) if sample.tokens and (
      (names := sample.example.member.rewards) is None or name in names)]
  if not is_group(reward.fn):
    return [([i], samples[i]) for i in there]
  groups = itertools.groupby(there, lambda i: i // g)
  return [(rows, tuple(samples[i] for i in rows))
          for rows in (list(group) for _, group in groups)]


def _call(
    name: str, reward: Reward, part, knobs: Mapping[str, float],
) -> tuple[list[float | None], Failure | None]:
  """One call's checked values, one per sample, and what went wrong if any."""
  group = is_group(reward.fn)
  size = len(part) if group else 1
  first = part[0] if group else part
  try:
    if reward.in_pool:
      value = pool.shared().call(
          f'{reward.fn.__module__}:{reward.fn.__name__}', part, dict(knobs),
          limit_s=reward.limit_s, **reward.kwargs)
    else:
      value = reward.fn(part, knobs, **reward.kwargs)
    if group and (not isinstance(value, Sequence) or len(value) != size):
      raise checks.RangeError(
          f'a group reward must return {size} values, got {value!r:.200}')
    values = list(value) if group else [value]
    return [checks.in_range(v, reward.fn.range) for v in values], None
  except pool.TimedOut as error:
    return [0.0] * size, Failure(name, 0, 'timeout', _about(first, error))
  except pool.WorkerDied as error:
    return [0.0] * size, Failure(name, 0, 'error', _about(first, error))
  except Exception:  # counted, shown, and fatal when it always happens
    return [None] * size, Failure(
        name, 0, 'error', _about(first, traceback.format_exc()))


def _about(sample: records.Sample, what: object) -> str:
  return (f'{what}\nSample of example {sample.uid}, slot {sample.slot}: '
          f'{sample.text[:_EXCERPT]!r}')


def _check_groups(samples: Sequence[records.Sample], n: int, g: int) -> None:
  if n < 1 or g < 1 or len(samples) != n * g:
    raise ValueError(
        f'{len(samples)} samples for n={n} groups of g={g}; expected {n * g}')
  for i in range(n):
    uids = {sample.uid for sample in samples[i * g:(i + 1) * g]}
    if len(uids) > 1:
      raise ValueError(
          f'group {i} mixes the examples {sorted(uids)}; samples must come '
          'group after group')
