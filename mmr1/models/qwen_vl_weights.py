"""Which Hugging Face tensor is which parameter of a Qwen VL."""

import re

from mmr1.models import decoder_weights
from mmr1.models import qwen_vl_config
from mmr1.models import weights

# Parameter path -> tensor name.
_BLOCK = {
    'norm1/weight': 'norm1.weight',
    'norm2/weight': 'norm2.weight',
    'qkv': 'attn.qkv',
    'proj': 'attn.proj',
}
_LAYER_NORMS = {'norm1/bias': 'norm1.bias', 'norm2/bias': 'norm2.bias'}
_MLPS = {  # of the blocks, by `VisionConfig.mlp`
    'swiglu': {'mlp/gate': 'mlp.gate_proj', 'mlp/up': 'mlp.up_proj',
               'mlp/down': 'mlp.down_proj'},
    'quick_gelu': {**_LAYER_NORMS, 'mlp/fc1': 'mlp.fc1', 'mlp/fc2': 'mlp.fc2'},
    'gelu': {**_LAYER_NORMS, 'mlp/fc1': 'mlp.linear_fc1',
             'mlp/fc2': 'mlp.linear_fc2'},
}
_OLD_MERGER = {'norm': 'ln_q', 'fc1': 'mlp.0', 'fc2': 'mlp.2'}
_MERGERS = {  # by the same
    'swiglu': _OLD_MERGER, 'quick_gelu': _OLD_MERGER,
    'gelu': {'norm': 'norm', 'fc1': 'linear_fc1', 'fc2': 'linear_fc2'},
}
# (part of a parameter's path, what it was in earlier versions of this code)
OLDER = (('visual/merger/', 'visual/merger_'),)
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
  rows = [weights.Weight(
      'visual/patch_embed/kernel', 'visual.patch_embed.proj.weight',
      file_shape=(v.width, v.channels, v.temporal_patch, v.patch, v.patch))]
  if v.patch_bias:
    rows.append(weights.Weight(
        'visual/patch_embed/bias', 'visual.patch_embed.proj.bias'))
  if v.table:
    rows.append(weights.Weight('visual/positions', 'visual.pos_embed.weight'))
  rows += _merger(v, 'visual/merger', 'visual.merger')
  for k in range(len(v.deepstack)):
    rows += _merger(v, f'visual/deepstack_{k}',
                    f'visual.deepstack_merger_list.{k}')
  for ours, theirs in (_BLOCK | _MLPS[v.mlp]).items():
    rows += decoder_weights.linear(
        f'visual/blocks/{ours}', f'visual.blocks.{{}}.{theirs}', bias=True,
        layers=v.depth)
  return (*rows, *decoder_weights.table(config))


def _merger(v: qwen_vl_config.VisionConfig, path: str,
            name: str) -> list[weights.Weight]:
  names, rows = _MERGERS[v.mlp], []
  for leaf in ('weight',) if v.mlp == 'swiglu' else ('weight', 'bias'):
    rows.append(weights.Weight(
        f'{path}/norm/{leaf}', f"{name}.{names['norm']}.{leaf}"))
  for layer in ('fc1', 'fc2'):
    rows += decoder_weights.linear(
        f'{path}/{layer}', f'{name}.{names[layer]}', bias=True)
  return rows
