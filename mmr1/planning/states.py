"""What trains, as shapes: a TrainState and its numbers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import forward
from mmr1 import optim
from mmr1 import training
from mmr1 import trees
from mmr1 import types
from mmr1.models import partition
from mmr1.planning import shapes as shapes_lib

Struct = shapes_lib.Struct


def of(policy: forward.Policy, section: Any, params: Any,
       updates: int) -> tuple[Any, optim.Optimizer]:
  """A TrainState of shapes, and its optimiser."""
  optimizer = training.make_optimizer(section, params, updates)
  trainable, _ = trees.partition(params, optimizer.mask)
  state = jax.eval_shape(lambda: types.TrainState(
      step=jnp.int32(0), params={'policy': _zeros(params)},
      opt={'policy': optimizer.tx.init(_zeros(trainable))},
      aux={'guard': optim.init_guard()}))
  return shapes_lib.placed(state, policy.layout.state(state)), optimizer


def only_read(policy: forward.Policy, params: Any) -> Any:
  """Parameters that do not train, in the dtype that multiplies."""
  return jax.tree.map(
      lambda x, cast: Struct(x.shape, cast.dtype, sharding=x.sharding), params,
      jax.eval_shape(functools.partial(
          partition.cast, dtype=policy.module.config.compute_dtype), params))


def _zeros(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def knobs(names: Any) -> dict[str, Struct]:
  """Traced numbers."""
  return {name: Struct((), jnp.float32) for name in names}
