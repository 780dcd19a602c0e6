"""What a checkpoint holds: arrays by name, and JSON about them."""

from collections.abc import Callable, Iterable, Mapping
import json
from typing import Any

import jax
import numpy as np

from mmr1 import trees

_BESIDES = 'position/'  # in the names of arrays that are not of the tree


def arrays(tree: Any, only: Iterable[str],
           besides: Mapping[str, Any]) -> dict[str, Any]:
  """{name: array} of the leaves of a tree that patterns choose, and of others.

  Those whole on every device are NumPy: Orbax would let each device write a
  slice, and compile a program for every shape to cut it (M17). They are copies:
  training goes on, and gives its buffers up, while they are written.
  """
  chosen = trees.named(trees.select(tree, only, 'checkpoint.only'))
  kept = {name: leaf for name, leaf in trees.named(tree).items()
          if chosen[name]}
  kept |= {_BESIDES + name: leaf for name, leaf in besides.items()}
  # Orbax refuses arrays without values; there is nothing to keep of them.
  return {name: _on_host(leaf) for name, leaf in kept.items() if leaf.size}


def _on_host(leaf: Any) -> Any:
  if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
    return np.array(leaf)
  return leaf


def record(extra: Mapping[str, Any], metric: float | None,
           kept: Mapping[str, Any]) -> dict[str, Any]:
  """The JSON beside the arrays `kept`.

  Raises:
    ValueError: `extra` is no JSON.
  """
  made = {'extra': dict(extra), 'metric': metric, 'arrays': {
      name: [str(x.dtype), list(x.shape)] for name, x in kept.items()}}
  try:
    same = json.loads(json.dumps(made, allow_nan=False)) == _listed(made)
  except (TypeError, ValueError) as error:
    raise ValueError(f'checkpoint: extra is not JSON: {error}.') from error
  if not same:
    raise ValueError('checkpoint: extra changes when written as JSON (keys '
                     f'must be strings): {made}.')
  return made


def _listed(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _listed(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_listed(item) for item in value]
  return value


def besides(
    made: Mapping[str, Any], where: Callable[[Any], Any] | None,
) -> dict[str, jax.ShapeDtypeStruct]:
  """{name: shape} of the arrays besides the tree; none without a `where`.

  Args:
    made: from `record`.
    where: shape -> sharding.
  """
  if where is None:
    return {}
  shapes = {name: jax.ShapeDtypeStruct(shape, dtype)
            for name, (dtype, shape) in made['arrays'].items()
            if name.startswith(_BESIDES)}
  return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x))
          for name, x in shapes.items()}


def named_besides(read: Mapping[str, Any]) -> dict[str, Any]:
  """Arrays besides the tree, by the names that `arrays` was given."""
  return {name.removeprefix(_BESIDES): x for name, x in read.items()
          if name.startswith(_BESIDES)}
