"""What the host decides about a step's completions, from one rollout or more.

A rollout is judged by itself; where `select` dropped groups of it, good groups
of a later one take their places, until the step is full (`Filled.with_next`).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import records
from mmr1 import types
from mmr1.rewards import combine
from mmr1.rewards import score as score_lib


class Judged(NamedTuple):
  """One rollout.

  Fields:
    samples: of this host's rows, group after group.
    scored: columns, names, metrics; of rewards and probes.
    rewards: f64[N, G, K'], combined; nan: no value.
    advantage: f32[N, G, 1 or T].
    keep: bool[N, G], or int[N, G]: how often each trains.
    counts: what select dropped, by name.
    more: how many groups select wants besides; True: for every place in which
      nothing is kept.
    extra: {name: f32[N, G, T]}, what the advantage hands to terms.
    says: what combine says, by name: of every rollout so far.
  """
  samples: list[records.Sample]
  scored: score_lib.Scored
  rewards: np.ndarray
  advantage: np.ndarray
  keep: np.ndarray
  counts: Mapping[str, float]
  more: bool | int = False
  extra: Mapping[str, np.ndarray] = {}
  says: tuple[Mapping[str, float], ...] = ()

  @property
  def good(self) -> np.ndarray:
    """bool[N], groups of which something is kept."""
    return self.keep.any(1)

  @property
  def wanted(self) -> int:
    """How many groups of a later rollout have a place here."""
    free = int((~self.good).sum())
    return free if self.every else min(int(self.more), free)

  @property
  def every(self) -> bool:
    """Whether `more` is True and no number."""
    return isinstance(self.more, (bool, np.bool_)) and bool(self.more)

  @property
  def said(self) -> dict[str, float]:
    """What combine says, as the mean over the rollouts of which it says it."""
    names = {name: None for says in self.says for name in says}
    return {name: float(np.mean([
        says[name] for says in self.says if name in says])) for name in names}


class Arrays(NamedTuple):
  """A rollout's arrays on the host: bool, int [N, G, ...].

  Fields:
    spoken: bool[N, G, T], tokens that were sampled or are an expert's.
    lengths: i64[N, G], how many; done: bool[N, G], ended by eos.
    whole: i64[N, G], all tokens, those that were inserted included.
    cut: bool[N, G], ended by the cap, or an episode by one of its limits.
    branch: i32[N], number of the view that the row was sampled from.
    expert: bool[N, G], traces of the data.
    baseline: f64[N], rewards of greedy completions; nan: not made.
    turn: i8[N, G, T], the assistant's turn that a token is of; -1: of none.
    turn_rewards: f64[N, G, K], by an environment; zeros without.
  """
  spoken: np.ndarray
  lengths: np.ndarray
  done: np.ndarray
  whole: np.ndarray
  cut: np.ndarray
  branch: np.ndarray
  expert: np.ndarray
  baseline: np.ndarray
  turn: np.ndarray
  turn_rewards: np.ndarray


@dataclasses.dataclass(frozen=True)
class Filled:
  """A step's completions.

  Fields:
    rollout, looks: on the devices.
    arrays, judged: on the host.
    rounds: rollouts so far.
  """
  rollout: types.Rollout
  looks: Mapping[str, types.Seen]
  arrays: Arrays
  judged: Judged
  rounds: int = 1

  @property
  def short(self) -> bool:
    """Whether another rollout would have a place here."""
    return self.judged.wanted > 0

  def with_next(self, other: 'Filled') -> 'Filled':
    """Good groups of a later rollout in the places of dropped ones."""
    free = np.flatnonzero(~self.judged.good)
    found = np.flatnonzero(other.judged.good)[:self.judged.wanted]
    source = np.arange(len(self.judged.keep))
    source[free[:len(found)]] = found
    take = np.zeros(len(source), bool)
    take[free[:len(found)]] = True
    version = self.rollout.version
    rollout, looks = _taken(
        (self.rollout.replace(version=None), dict(self.looks)),
        (other.rollout.replace(version=None), dict(other.looks)),
        source, take)
    return Filled(
        rollout.replace(version=version), looks,
        Arrays(*(_mixed(a, b, source, take)
                 for a, b in zip(self.arrays, other.arrays))),
        _judged(self.judged, other.judged, source, take, self.rounds),
        self.rounds + 1)


@jax.jit
def _taken(old: Any, new: Any, source: jax.Array, take: jax.Array) -> Any:
  def one(a, b):
    wide = take.reshape((-1,) + (1,) * (a.ndim - 1))
    return jnp.where(wide, b[source], a)
  return jax.tree.map(one, old, new)


def _mixed(a: np.ndarray, b: np.ndarray, source: np.ndarray,
           take: np.ndarray) -> np.ndarray:
  return np.where(take.reshape((-1,) + (1,) * (a.ndim - 1)), b[source], a)


def _judged(a: Judged, b: Judged, source: np.ndarray, take: np.ndarray,
            rounds: int) -> Judged:
  columns = _mixed(a.scored.columns, b.scored.columns, source, take)
  place = {int(source[row]): int(row) for row in np.flatnonzero(take)}
  samples = [s for s in a.samples if not take[s.group]] + [
      dataclasses.replace(s, group=place[s.group]) for s in b.samples
      if s.group in place]
  # What failed is counted over all calls; means are of what is trained on.
  metrics = {
      name: (a.scored.metrics.get(name, 0.0) * rounds
             + b.scored.metrics.get(name, 0.0)) / (rounds + 1)
      for name in {**a.scored.metrics, **b.scored.metrics}}
  metrics |= combine.means(columns, a.scored.names)
  counts = {name: a.counts.get(name, 0) + b.counts.get(name, 0)
            for name in {**a.counts, **b.counts}}
  keep = _mixed(a.keep, b.keep, source, take)
  more = (bool(b.more) and not keep.any(1).all() if a.every
          else a.wanted - int(take.sum()))
  return Judged(
      sorted(samples, key=lambda s: (s.group, s.slot)),
      dataclasses.replace(
          a.scored, columns=columns, metrics=metrics,
          failures=a.scored.failures + b.scored.failures),
      _mixed(a.rewards, b.rewards, source, take),
      _mixed(a.advantage, b.advantage, source, take),
      keep, counts, more, says=a.says + b.says)


def replace(filled: Filled, **fields: Any) -> Filled:
  """With other fields of `judged`, of the same completions."""
  return dataclasses.replace(filled, judged=filled.judged._replace(**fields))
