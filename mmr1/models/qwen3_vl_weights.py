"""Which Hugging Face tensor is which parameter of Qwen3-VL.

The table of the other Qwen VLs; in its files tensors have the names that
transformers gives them in memory.
"""

from mmr1.models import qwen_vl_config
from mmr1.models import qwen_vl_weights
from mmr1.models import weights


def canonical(name: str) -> str | None:
  """The hub's name of a tensor, see `qwen_vl_weights.canonical`."""
  name = qwen_vl_weights.canonical(name)
  return None if name is None else qwen_vl_weights.in_memory(name)


def in_memory(name: str) -> str:
  """The name in a model of transformers: that of the table."""
  return name


def table(config: qwen_vl_config.Config) -> tuple[weights.Weight, ...]:
  """One row per parameter leaf, for loading and saving alike."""
  return tuple(row._replace(name=qwen_vl_weights.in_memory(row.name))
               for row in qwen_vl_weights.table(config))


def tied(config: qwen_vl_config.Config) -> dict[str, str]:
  """See `decoder_weights.tied`."""
  return {qwen_vl_weights.in_memory(name): qwen_vl_weights.in_memory(other)
          for name, other in qwen_vl_weights.tied(config).items()}
