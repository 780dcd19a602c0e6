"""Which Hugging Face tensor is which parameter of Qwen3-VL.

The table of the other Qwen VLs; its files have the nested names that
transformers 5 gives to all of them.
"""

import re

from mmr1.models import qwen_vl_config
from mmr1.models import qwen_vl_weights
from mmr1.models import weights


def canonical(name: str) -> str | None:
  """The hub's name of a tensor, see `qwen_vl_weights.canonical`."""
  name = qwen_vl_weights.canonical(name)
  return None if name is None else _nested(name)


def _nested(name: str) -> str:
  name = re.sub(r'^model\.', 'model.language_model.', name)
  return re.sub(r'^visual\.', 'model.visual.', name)


def table(config: qwen_vl_config.Config) -> tuple[weights.Weight, ...]:
  """One row per parameter leaf, for loading and saving alike."""
  return tuple(row._replace(name=_nested(row.name))
               for row in qwen_vl_weights.table(config))


def tied(config: qwen_vl_config.Config) -> dict[str, str]:
  """See `decoder_weights.tied`."""
  return {_nested(name): _nested(other)
          for name, other in qwen_vl_weights.tied(config).items()}
