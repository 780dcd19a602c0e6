"""What sft and rl share: where a stage starts, and its jitted update."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import context
from mmr1 import forward
from mmr1 import optim
from mmr1 import sharding
from mmr1 import trees
from mmr1 import types
from mmr1 import update

Array = jax.Array
CARRIED = ('optimizer',)


def check(section: Any, stage: str, config: Any) -> None:
  """Refuses what can be seen to be wrong before anything runs."""
  for key in ('steps', 'checkpoint_every', 'samples_every',
              'keep_checkpoints', 'max_bad_updates', 'max_new_tokens'):
    if section[key] < 1:
      raise ValueError(
          f'{stage}.{key}: got {section[key]}; allowed: at least 1.')
  if section.eval_every < 0:
    raise ValueError(f'{stage}.eval_every: got {section.eval_every}; allowed: '
                     '0 (only at the end) or more.')
  for item in section.carry:
    if item not in CARRIED:
      raise ValueError(f'{stage}.carry: got {item!r}; allowed are {CARRIED}.')
  section.restore_best  # read in the loop
  section.optimizer.as_dict()
  context.check_init(section.init, stage, config)


class Start(NamedTuple):
  """Where a stage starts.

  Fields:
    state: TrainState with its own buffers.
    optimizer: see `optim.make`.
    mask: trainable leaves of the parameters.
  """
  state: types.TrainState
  optimizer: optim.Optimizer
  mask: Any


def start(
    ctx: context.Context, stage: str, section: Any, updates: int,
) -> Start:
  """Parameters of `init`, a new optimiser or the carried one.

  Args:
    ctx: the run.
    stage: its name, for the printed table.
    section: the stage's section.
    updates: optimiser updates in the stage.
  """
  params = sharding.everywhere(ctx.params(section.init))
  optimizer = optim.make(section.optimizer, params, updates)
  trainable, _ = trees.partition(params, optimizer.mask)
  opt = optimizer.tx.init(trainable)
  if 'optimizer' in section.carry:
    # The moments pass on; warm-up and decay are those of this stage.
    opt = optim.restart_schedule(ctx.optimizer_state(section.init, opt))
  state = types.TrainState(
      step=jnp.int32(0), params={'policy': params}, opt={'policy': opt},
      aux={'guard': optim.init_guard()})
  _show(ctx, stage, tuple(optim.table(params, optimizer.mask)))
  state = sharding.everywhere(state)
  return Start(state, optimizer, optimizer.mask)


def _show(ctx: context.Context, stage: str, rows: tuple[Any, ...]) -> None:
  """The table of what trains; one line where it is that of the stage before."""
  if rows != ctx.trains:
    ctx.trains = rows
    ctx.logger.table(rows, ('module', 'trainable', 'total'),
                     f'{stage}: what trains')
  else:
    ctx.logger.note(f'{stage}: {rows[-1][1]} parameters train, as before')


def make_update(
    policy: forward.Policy,
    optimizer: optim.Optimizer,
    terms: tuple[update.Term, ...],
    *,
    chunks: int,
):
  """A jitted (state, batch, knobs, ref_params) -> (state, metrics).

  The state is donated. Frozen parameters are not differentiated (M21); a
  non-finite update is skipped and counted (M8).
  """
  def apply(state, batch, knobs, ref_params):
    params = state.params['policy']
    trainable, frozen = trees.partition(params, optimizer.mask)
    grads, metrics = update.gradient(
        policy, trainable, lambda t: trees.merge(t, frozen), batch, terms,
        knobs, ref_params=ref_params, chunks=chunks)
    trainable, opt, guard, more = optim.guarded_update(
        optimizer, grads, metrics['loss'], state.opt['policy'], trainable,
        state.aux['guard'])
    state = state.replace(
        step=state.step + 1,
        params={**state.params, 'policy': trees.merge(trainable, frozen)},
        opt={**state.opt, 'policy': opt},
        aux={**state.aux, 'guard': guard})
    return state, metrics | more
  return jax.jit(apply, donate_argnums=0)


def traced(knobs: Mapping[str, float]) -> dict[str, Array]:
  """Knobs as f32[] arrays: a Python float would be weakly typed."""
  return {name: jnp.float32(value) for name, value in knobs.items()}


def combine(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The metrics of a step's updates as one row.

  Updates that were skipped as not finite are left out, unless all were: they
  changed nothing, and their nan would hide the others.

    'update/skipped'  how many were skipped
    'update/...'      the largest; of skips in a row the longest run
    'sampler/...'     that of the first update: sampler and trainer agree only
                      while they have the same parameters
    '.../max'         the largest
    the rest          the mean over updates
  """
  if len(seen) == 1:
    return dict(seen[0])
  # On the host: small programs over several CPU devices, one after the other,
  # can wait for each other for ever.
  seen = jax.device_get(list(seen))
  used = [row for row in seen if not row['update/skipped']] or seen
  result = {}
  for name, first in seen[0].items():
    every = [row[name] for row in seen]
    if name == 'update/skipped':
      result[name] = np.sum(every)
    elif name.startswith('update/'):
      result[name] = np.max(every)
    elif name.startswith('sampler/'):
      result[name] = first
    else:
      pool = np.max if name.endswith('/max') else np.mean
      result[name] = pool([row[name] for row in used])
  return result
