"""Several processes that run one config together: hosts.

Each has devices of its own, loads and scores the prompts of its own rows, and
tells the others what all have to decide on. `start` comes before anything else
of jax; the rest works for one host too, at no cost.
"""

from collections.abc import Callable
import os
import pickle
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

# Of the environment. The first is host 0's address, host:port; or 'auto', where
# jax finds the others by itself (TPU slices).
COORDINATOR, COUNT, INDEX = 'MMR1_COORDINATOR', 'MMR1_HOSTS', 'MMR1_HOST'
# Clusters that jax recognises: all of a set must be there.
_CLUSTERS = (('SLURM_JOB_ID', 'SLURM_NTASKS', 'SLURM_PROCID'),
             ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'))
_SIZES = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
_JOIN_S = 300
_SILENT_S = 60  # a host that is silent for so long ends the others


def start() -> None:
  """Joins the other hosts, if the environment says that there are any.

  Raises:
    ValueError: the environment is not complete.
  """
  given = os.environ.get(COORDINATOR)
  kw = dict(initialization_timeout=_JOIN_S,
            heartbeat_timeout_seconds=_SILENT_S)
  if given == 'auto' or given is None and _cluster():
    jax.distributed.initialize(**kw)
  elif given is not None:
    try:
      count, index = (int(os.environ[name]) for name in (COUNT, INDEX))
    except (KeyError, ValueError):
      raise ValueError(
          f'hosts: {COORDINATOR}={given} needs {COUNT}, how many there are, and '
          f'{INDEX}, which one this is, from 0; got '
          f'{[os.environ.get(name) for name in (COUNT, INDEX)]}.') from None
    if not 0 <= index < count or ':' not in given:
      raise ValueError(
          f'hosts: got {COORDINATOR}={given}, {COUNT}={count}, {INDEX}={index}; '
          'allowed: <address>:<port>, and 0 <= host < hosts.')
    if count > 1:
      jax.distributed.initialize(given, count, index, **kw)


def _cluster() -> bool:
  """Whether a cluster's environment has several processes."""
  return any(all(name in os.environ for name in names) for names in _CLUSTERS
             ) and any(int(os.environ.get(name, 1)) > 1 for name in _SIZES)


def count() -> int:
  return jax.process_count()


def index() -> int:
  return jax.process_index()


def gather(value: Any) -> list[Any]:
  """What each host has, by host: any picklable value. A collective."""
  if count() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[:data.size] = data
  rows = multihost_utils.process_allgather(padded)
  return [pickle.loads(row[:size].tobytes())
          for row, size in zip(rows, sizes.tolist())]


def attempt(fn: Callable[[], Any], otherwise: Any) -> tuple[Any, str | None]:
  """(fn(), None), or (`otherwise`, what went wrong) for `share` to raise.

  Alone nothing is caught: others would wait for this host, and there are none.
  """
  if count() == 1:
    return fn(), None
  try:
    return fn(), None
  except (ValueError, RuntimeError, OSError) as error:
    return otherwise, f'{type(error).__name__}: {error}'


def share(value: Any, error: str | None = None) -> list[Any]:
  """`gather`, in which an error of one host is raised by all.

  Raises:
    ValueError: what went wrong, and where.
  """
  every = gather((value, error))
  for host, (_, said) in enumerate(every):
    if said is not None:
      raise ValueError(f'host {host} of {count()}: {said}')
  return [value for value, _ in every]


def lost(error: Exception) -> ValueError | None:
  """What to say if the error means that another host has gone; else None."""
  said = str(error)
  if count() == 1 or not re.search(
      'gloo|onnection (reset|closed|refused)|ocket|heartbeat|peer', said):
    return None
  return ValueError(
      f'host {index()} of {count()}: another host has gone '
      f'({said.splitlines()[0][:200]}). What was saved is whole: start all '
      'hosts again with the same command.')


def same(text: str, what: str, differ: Callable[[str, str], str]) -> None:
  """Refuses to go on where hosts do not have the same text.

  Args:
    text: of this host.
    what: it is, for the message.
    differ: (host 0's, another's) -> what differs, in words.

  Raises:
    ValueError: on all of them.
  """
  texts = gather(text)
  for host, other in enumerate(texts):
    if other != texts[0]:
      raise ValueError(
          f'hosts: {what} of host {host} is not that of host 0:\n'
          f'{differ(texts[0], other)}\nStart all hosts with the same command.')
