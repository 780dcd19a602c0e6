"""Columns that are made of what a look says of each token: the `probe` socket.

A probe is `(Sample, values f32[T], *, ...) -> float or None`, on the host, of
the log-probs that a look (`mmr1.looks`) gives to the tokens of a completion, or
of its entropies there. Its column stands beside those of the rewards, for
`combine` to read by name.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from mmr1 import arrays
from mmr1 import records
from mmr1 import sockets
from mmr1 import types
from mmr1.rewards import combine
from mmr1.rewards import score as score_lib


def columns(
    probes: Mapping[str, sockets.Probe], samples: Sequence[records.Sample],
    rows: Sequence[int], looks: Mapping[tuple[str, str], np.ndarray],
    knobs: Mapping[str, float]) -> np.ndarray:
  """f64[n, G, K] of this host's samples, group after group; nan: no value.

  Args:
    probes: K of them, by name.
    samples: of the rows, each with its `pieces`.
    rows: the groups' places in the batch.
    looks: {(view, what a probe reads): f32[N, G, T]}.
    knobs: those of the step before.
  """
  values = [[probe.fn(s, looks[probe.view, probe.reads][s.group, s.slot],
                      knobs=knobs) for probe in probes.values()]
            for s in samples]
  made = np.asarray([[np.nan if x is None else x for x in row]
                     for row in values], np.float64)
  return made.reshape(len(rows), -1, len(probes))


def read(probes: Mapping[str, sockets.Probe], looks: Mapping[str, types.Seen],
         ) -> dict[tuple[str, str], np.ndarray]:
  """What they read of the looks, on every host. A collective for each array."""
  asked = dict.fromkeys((x.view, x.reads) for x in probes.values())
  return {(view, reads): arrays.fetch(getattr(looks[view], reads))
          for view, reads in asked}


def beside(scored: score_lib.Scored, names: tuple[str, ...],
           values: np.ndarray) -> score_lib.Scored:
  """The scores with more columns f64[N, G, K]."""
  return dataclasses.replace(
      scored, columns=np.concatenate([scored.columns, values], axis=-1),
      names=scored.names + names,
      metrics={**scored.metrics, **combine.means(values, names)})
