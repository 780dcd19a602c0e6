"""Which Hugging Face tensor is which parameter of Qwen2-VL and Qwen2.5-VL."""

import re

from mmr1.models import decoder_weights
from mmr1.models import qwen_vl_config
from mmr1.models import weights

_BLOCK = {  # of the vision tower: parameter path -> tensor name
    'norm1/weight': 'norm1.weight',
    'norm2/weight': 'norm2.weight',
    'qkv': 'attn.qkv',
    'proj': 'attn.proj',
}
_GATED = {  # Qwen2.5-VL
    'mlp/gate': 'mlp.gate_proj',
    'mlp/up': 'mlp.up_proj',
    'mlp/down': 'mlp.down_proj',
}
_PLAIN = {  # Qwen2-VL; its norms have biases too
    'norm1/bias': 'norm1.bias',
    'norm2/bias': 'norm2.bias',
    'mlp/fc1': 'mlp.fc1',
    'mlp/fc2': 'mlp.fc2',
}
tied = decoder_weights.tied


def canonical(name: str) -> str | None:
  """The hub's name of a tensor, whichever layout the file has.

  transformers 5 keeps `model.visual.*` and `model.language_model.*` in memory
  where the hub files have `visual.*` and `model.*`. None: not a parameter.
  """
  name = re.sub(r'^model\.visual\.', 'visual.', name)
  return decoder_weights.canonical(
      re.sub(r'^model\.language_model\.', 'model.', name))


def in_memory(name: str) -> str:
  """The name in a model of transformers 5; the inverse of `canonical`."""
  name = re.sub(r'^model\.', 'model.language_model.', name)
  return re.sub(r'^visual\.', 'model.visual.', name)


def table(config: qwen_vl_config.Config) -> tuple[weights.Weight, ...]:
  """One row per parameter leaf, for loading and saving alike."""
  v = config.vision
  rows = [
      weights.Weight(
          'visual/patch_embed/kernel', 'visual.patch_embed.proj.weight',
          file_shape=(v.width, v.channels, v.temporal_patch, v.patch,
                      v.patch)),
      weights.Weight('visual/merger_norm/weight', 'visual.merger.ln_q.weight'),
  ]
  if not v.gated:
    rows.append(weights.Weight(
        'visual/merger_norm/bias', 'visual.merger.ln_q.bias'))
  for ours, theirs in (('merger_fc1', 'mlp.0'), ('merger_fc2', 'mlp.2')):
    rows += decoder_weights.linear(
        f'visual/{ours}', f'visual.merger.{theirs}', bias=True)
  for ours, theirs in (_BLOCK | (_GATED if v.gated else _PLAIN)).items():
    rows += decoder_weights.linear(
        f'visual/blocks/{ours}', f'visual.blocks.{{}}.{theirs}', bias=True,
        layers=v.depth)
  return (*rows, *decoder_weights.table(config))
