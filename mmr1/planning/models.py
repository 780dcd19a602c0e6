"""Models as shapes, where they will be."""

from collections.abc import Mapping
import pathlib
from typing import Any

from etils import epath

from mmr1 import forward
from mmr1 import sharding
from mmr1.models import checkpoints
from mmr1.planning import shapes as shapes_lib

_SHAPES = pathlib.Path(__file__).parent.parent / 'assets' / 'shapes'


def open_at(config: Any, layout: sharding.Layout, folder: str, scale: str,
            key: str, heads: Mapping[str, Any]) -> tuple[forward.Policy, Any]:
  """A model and its parameters' shapes.

  From config.json in its folder; where there is none, from the published sizes
  of a scale.

  Args:
    config: reads model.
    layout: of the mesh.
    folder: of the checkpoint; scale: name of its sizes.
    key: of the config, that names the folder.
    heads: of one number, see `context.heads_of`.

  Raises:
    ValueError: neither is there; heads that do not divide over the mesh.
  """
  model, path = config.model, epath.Path(folder)
  if not (path / 'config.json').exists():
    path = _SHAPES / scale
    if not path.exists():
      raise ValueError(
          f'plan: there is no config.json in {key}={folder!r}, and '
          f'the sizes of {scale!r} are not known. Set '
          f'--config.{key} to a folder with the config.json of the model.')
  module, shapes = checkpoints.describe(
      path, param_dtype=model.param_dtype, compute_dtype=model.compute_dtype,
      layers=model.layers, remat=model.remat, precision=model.precision,
      attention=model.attention, partition=layout.partition, **heads)
  sharding.check(layout, module.config)
  policy = forward.Policy(
      module, banned=_placeholders(module.config), eos_id=0, pad_id=0,
      head_chunk=model.head_chunk, layout=layout)
  return policy, shapes_lib.placed(shapes, layout.parameters(shapes))


def _placeholders(config: Any) -> tuple[int, ...]:
  """As many ids as a family bans; which ones does not matter for a plan."""
  return tuple(range(1, 5)) if hasattr(config, 'vision') else ()
