"""Which Hugging Face tensor is which parameter of Qwen2.5-VL."""

import re

from mmr1.models import qwen2_5_vl_config
from mmr1.models import weights

_BLOCK = {  # of the vision tower: parameter path -> tensor name
    'norm1/weight': 'norm1.weight',
    'norm2/weight': 'norm2.weight',
    'qkv': 'attn.qkv',
    'proj': 'attn.proj',
    'mlp/gate': 'mlp.gate_proj',
    'mlp/up': 'mlp.up_proj',
    'mlp/down': 'mlp.down_proj',
}
_LAYER = {  # of the language model; those with a bias first
    'q': 'self_attn.q_proj',
    'k': 'self_attn.k_proj',
    'v': 'self_attn.v_proj',
    'o': 'self_attn.o_proj',
    'mlp/gate': 'mlp.gate_proj',
    'mlp/up': 'mlp.up_proj',
    'mlp/down': 'mlp.down_proj',
    'input_norm/weight': 'input_layernorm.weight',
    'post_norm/weight': 'post_attention_layernorm.weight',
}
_TEXT_BIAS = ('q', 'k', 'v')
_IGNORED = re.compile(r'rotary_emb\.inv_freq$')


def canonical(name: str) -> str | None:
  """The hub's name of a tensor, whichever layout the file has.

  transformers 5 keeps `model.visual.*` and `model.language_model.*` in memory
  where the hub files have `visual.*` and `model.*`. None: not a parameter.
  """
  if _IGNORED.search(name):
    return None
  name = re.sub(r'^model\.visual\.', 'visual.', name)
  return re.sub(r'^model\.language_model\.', 'model.', name)


def table(config: qwen2_5_vl_config.Config) -> tuple[weights.Weight, ...]:
  """One row per parameter leaf, for loading and saving alike."""
  v = config.vision
  rows = [
      weights.Weight(
          'visual/patch_embed/kernel', 'visual.patch_embed.proj.weight',
          file_shape=(v.width, v.channels, v.temporal_patch, v.patch,
                      v.patch)),
      weights.Weight('visual/merger_norm/weight', 'visual.merger.ln_q.weight'),
      *_linear('visual/merger_fc1', 'visual.merger.mlp.0', bias=True),
      *_linear('visual/merger_fc2', 'visual.merger.mlp.2', bias=True),
      weights.Weight('language/embed', 'model.embed_tokens.weight'),
      weights.Weight('language/norm/weight', 'model.norm.weight'),
  ]
  if not config.tied:
    rows.append(weights.Weight('language/head', 'lm_head.weight'))
  for ours, theirs in _BLOCK.items():
    rows += _linear(f'visual/blocks/{ours}', f'visual.blocks.{{}}.{theirs}',
                    bias=True, layers=v.depth)
  for ours, theirs in _LAYER.items():
    rows += _linear(f'language/layers/{ours}', f'model.layers.{{}}.{theirs}',
                    bias=ours in _TEXT_BIAS, layers=config.depth)
  return tuple(rows)


def _linear(path, name, *, bias, layers=0):
  if path.endswith('/weight'):  # a norm
    return [weights.Weight(path, name, layers=layers)]
  rows = [weights.Weight(f'{path}/kernel', f'{name}.weight', layers=layers)]
  if bias:
    rows.append(weights.Weight(f'{path}/bias', f'{name}.bias', layers=layers))
  return rows


def tied(config: qwen2_5_vl_config.Config) -> dict[str, str]:
  """Tensors a file may repeat: {name: name of the one it must equal}."""
  return ({'lm_head.weight': 'model.embed_tokens.weight'} if config.tied
          else {})
