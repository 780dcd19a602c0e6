"""What plans know of each family's vision tower: its media and operations.

Letters as in `mmr1.types`.
"""

from typing import Any, NamedTuple

from mmr1.data.codecs import llava_onevision as llava_codec
from mmr1.models import gemma_vl
from mmr1.models import internvl
from mmr1.models import llava_onevision
from mmr1.models import qwen_vl_config


class _Work(NamedTuple):
  """Of a tower that reads S patches.

  Fields:
    tokens: that its layers read.
    seen: tokens that each of them sees, summed over the layers.
    matrices: of an MLP.
    projector: operations between the layers and the prompt.
  """
  tokens: float
  seen: float
  matrices: int
  projector: float


def operations(config: Any, patches: int) -> float:
  """Of one forward pass over the patches of one row.

  Args:
    config: of a model of a family with a tower.
    patches: S.
  """
  v, work = config.vision, _OF[type(config)](config, patches)
  layers = 2 * v.depth * v.width * (
      4 * v.width + work.matrices * v.mlp_width)
  embed = 2 * patches * v.patch_values * v.width
  scores = 4 * v.width * work.seen * work.tokens
  return work.tokens * layers + embed + scores + work.projector


def extent(config: Any) -> bool:
  """Whether the tower reads `types.Media.extent`."""
  return isinstance(config, qwen_vl_config.Config) and bool(config.vision.table)


def taps(config: Any) -> int:
  """A of `types.Media.taps`; 0: there are none."""
  return (llava_codec.TAPS if isinstance(config, llava_onevision.Config)
          else 0)


def _qwen(c: qwen_vl_config.Config, patches: int) -> _Work:
  v = c.vision
  cell = v.width * v.merge**2
  merger = 2 * patches / v.merge**2 * cell * (cell + v.out_width)
  full = len(v.full_layers) if v.windows else v.depth
  return _Work(
      patches, full * patches + (v.depth - full) * v.window_patches,
      3 if v.mlp == 'swiglu' else 2, merger * (1 + len(v.deepstack)))


def _internvl(c: internvl.Config, patches: int) -> _Work:
  """Each tile has a class token, which becomes no cell."""
  v = c.vision
  tile, cell = 1 + v.window_patches, v.width * v.merge**2
  return _Work(
      patches / v.window_patches * tile, v.depth * tile, 2,
      2 * patches / v.merge**2 * c.width * (cell + c.width))


def _gemma(c: gemma_vl.Config, patches: int) -> _Work:
  v = c.vision
  return _Work(patches, v.depth * v.window_patches, 2,
               2 * patches / v.cell**2 * v.width * c.width)


def _llava_onevision(c: llava_onevision.Config, patches: int) -> _Work:
  v = c.vision
  return _Work(patches, v.depth * v.window_patches, 2,
               2 * patches * c.width * (v.width + c.width))


_OF = {qwen_vl_config.Config: _qwen, internvl.Config: _internvl,
       gemma_vl.Config: _gemma, llava_onevision.Config: _llava_onevision}
