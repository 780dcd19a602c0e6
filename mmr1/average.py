"""The slow copy of what trains: an exponential moving average."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import arrays
from mmr1 import sharding
from mmr1 import training
from mmr1 import trees
from mmr1 import types

Tree = Any
NAME = 'ema'  # in `TrainState.slow`


class Average:
  """ema <- decay * ema + (1 - decay) * params, after every so many updates.

  It starts as the parameters of the stage. Only what trains has one, which is
  float32: what an update adds, 1 - decay of a difference, bfloat16 rounds away.
  It is in checkpoints.
  """

  def __init__(self, section: Any, memory: str):
    """What the section `ema` of a stage asks for.

    Args:
      section: decay in [0, 1), None: no average; every: updates between.
      memory: where it waits, 'device' or 'host'.
    """
    self._decay, self._every = section.decay, section.every
    self._hold, self._fetch = (arrays.in_host, arrays.on_device) if (
        memory == 'host') else (lambda x: x, lambda x: x)

  def begin(self, start: training.Start,
            layout: sharding.Layout) -> training.Start:
    """The start of a stage, with the average in its state."""
    if self._decay is None:
      return start
    state = start.state
    part, _ = trees.partition(state.params['policy'], start.mask)
    self._mask = start.mask
    return start._replace(state=state.replace(
        slow={**state.slow, NAME: self._hold(layout.own(
            trees.cast(part, jnp.float32)))}))

  def reader(self, layout: sharding.Layout, *,
             whole: bool) -> Callable[[types.TrainState], Tree]:
    """(state) -> all parameters, as the policy has them: of what trains the
    average.

    `whole`: in buffers of its own, to be read while an update gives up the
    state's; else what does not train is the state's.
    """
    own = layout.own if whole else (lambda tree: tree)

    def read(state):
      now, rest = trees.partition(state.params['policy'], self._mask)
      slow = jax.tree.map(lambda x, like: x.astype(like.dtype),
                          self._fetch(state.slow[NAME]), now)
      return own(trees.merge(slow, rest))
    return read

  def after(
      self, train_step: Callable[..., Any], state: types.TrainState,
      batch: types.Batch, knobs: Mapping[str, jax.Array], ref: Any,
      done: int) -> tuple[types.TrainState, Mapping[str, Any]]:
    """An update and, where it is due, the average after it.

    The update does not see the average, which may be in another memory.
    `done`: updates of the stage, this one included.
    """
    slow = state.slow
    state, metrics = train_step(state.replace(slow={}), batch, knobs, ref)
    if self._decay is not None and done % self._every == 0:
      part, _ = trees.partition(state.params['policy'], self._mask)
      slow = {**slow, NAME: self._hold(_moved(
          self._fetch(slow[NAME]), part, jnp.float32(self._decay)))}
    return state.replace(slow=slow), metrics


def check(section: Any, stage: str) -> None:
  """Refuses an average that cannot be.

  Raises:
    ValueError: decay or every out of range; a reference that is not there.
  """
  ema = section.ema
  if ema.decay is not None and not 0 <= ema.decay < 1:
    raise ValueError(
        f'{stage}.ema.decay: got {ema.decay}; allowed: 0 (the parameters '
        'themselves) to below 1, or None for no average.')
  if ema.every < 1:
    raise ValueError(f'{stage}.ema.every: got {ema.every}; allowed: at least '
                     '1 update.')
  if section.reference == NAME and ema.decay is None:
    raise ValueError(f"{stage}.reference: 'ema', and {stage}.ema.decay is "
                     'None: there is no average. Set it, as in 0.995.')


@functools.partial(jax.jit, donate_argnums=0)
def _moved(slow: Tree, now: Tree, decay: jax.Array) -> Tree:
  return jax.tree.map(
      lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype),
      slow, now)
