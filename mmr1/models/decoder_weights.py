"""Which Hugging Face tensor is which parameter of a language decoder.

The table of the text families; those with a vision tower add its rows.
"""

import re

from mmr1.models import decoder_config
from mmr1.models import scalar_heads
from mmr1.models import weights

_LAYER = {  # parameter path -> tensor name
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
_QK_NORM = {
    'q_norm/weight': 'self_attn.q_norm.weight',
    'k_norm/weight': 'self_attn.k_norm.weight',
}
# With norms after attention and MLP 'post_attention_layernorm' is the former's.
_OUT_NORMS = {
    'attention_out_norm/weight': 'post_attention_layernorm.weight',
    'post_norm/weight': 'pre_feedforward_layernorm.weight',
    'mlp_out_norm/weight': 'post_feedforward_layernorm.weight',
}
_IGNORED = re.compile(r'rotary_emb\.inv_freq$')


def canonical(name: str) -> str | None:
  """The hub's name of a tensor; None: not a parameter."""
  return None if _IGNORED.search(name) else name


def in_memory(name: str) -> str:
  """The name in a model of transformers of a tensor that the table names."""
  return name


def table(config: decoder_config.Config) -> tuple[weights.Weight, ...]:
  """One row per parameter leaf, for loading and saving alike."""
  rows = [
      weights.Weight('language/embed', 'model.embed_tokens.weight'),
      weights.Weight('language/norm/weight', 'model.norm.weight'),
  ]
  if not config.tied:
    rows.append(weights.Weight('language/head', 'lm_head.weight'))
  names = (_LAYER | (_QK_NORM if config.qk_norm else {})
           | (_OUT_NORMS if config.out_norms else {}))
  for ours, theirs in names.items():
    rows += linear(
        f'language/layers/{ours}', f'model.layers.{{}}.{theirs}',
        bias=config.qkv_bias and ours in ('q', 'k', 'v'), layers=config.depth)
  for head in config.scalars:
    form = scalar_heads.form(head, config.reward_head)
    rows += [weights.Weight(f'scalars/{ours}', theirs, optional=True)
             for ours, theirs in scalar_heads.files(head, form).items()]
  return tuple(rows)


def linear(path: str, name: str, *, bias: bool,
           layers: int = 0) -> list[weights.Weight]:
  """Rows of a linear layer, or of a lone tensor if `path` names a leaf.

  Args:
    path: of the layer; one that ends in '/weight' or '/bias' is a norm's leaf.
    name: of the layer's tensors, without '.weight'; a leaf's in full.
    bias: whether the layer has one.
    layers: see `weights.Weight`.
  """
  if path.endswith(('/weight', '/bias')):
    return [weights.Weight(path, name, layers=layers)]
  rows = [weights.Weight(f'{path}/kernel', f'{name}.weight', layers=layers)]
  if bias:
    rows.append(weights.Weight(f'{path}/bias', f'{name}.bias', layers=layers))
  return rows


def tied(config: decoder_config.Config) -> dict[str, str]:
  """Tensors a file may repeat: {name: name of the one it must equal}."""
  return ({'lm_head.weight': 'model.embed_tokens.weight'} if config.tied
          else {})


# A decoder inside a larger model of transformers. The hub's files have it as
# `language_model`, head and all; in memory it is `model.language_model`, and
# the head beside `model`. Heads of one number stay where they are.
NESTED_HEAD = 'language_model.lm_head.weight'


def nested_canonical(name: str) -> str | None:
  """As `canonical`, of any tensor of a larger model.

  transformers 5 keeps all but the head in `model.*`; the hub's files do not.
  """
  name = re.sub(r'^model\.language_model\.', 'language_model.model.', name)
  name = re.sub(r'^model\.', '', name)
  return canonical(re.sub(r'^lm_head\.', 'language_model.lm_head.', name))


def nested_in_memory(name: str) -> str:
  """As `in_memory`, of any tensor of a larger model; undoes the former."""
  if name.startswith('language_model.lm_head.'):
    return name.removeprefix('language_model.')
  name = re.sub(r'^language_model\.model\.', 'language_model.', name)
  return f'model.{name}'


def nested_table(config: decoder_config.Config) -> tuple[weights.Weight, ...]:
  """As `table`, of a decoder inside a larger model."""
  return tuple(row._replace(name=_nested(row.name)) for row in table(config))


def nested_tied(config: decoder_config.Config) -> dict[str, str]:
  """As `tied`, of a decoder inside a larger model."""
  return {_nested(a): _nested(b) for a, b in tied(config).items()}


def _nested(name: str) -> str:
  return re.sub(r'^(model|lm_head)\.', r'language_model.\1.', name)
