"""Which Hugging Face tensor is which parameter of InternVL (hf layout)."""

from mmr1.models import decoder_weights
from mmr1.models import internvl
from mmr1.models import weights

_BLOCK = {  # of the tower: parameter path -> tensor name
    'q': 'attention.q_proj',
    'k': 'attention.k_proj',
    'v': 'attention.v_proj',
    'proj': 'attention.projection_layer',
    'fc1': 'mlp.fc1',
    'fc2': 'mlp.fc2',
    'norm1/weight': 'layernorm_before.weight',
    'norm2/weight': 'layernorm_after.weight',
}
_BIASES = {
    'norm1/bias': 'layernorm_before.bias',
    'norm2/bias': 'layernorm_after.bias',
}
_QK_NORM = {
    'q_norm/weight': 'attention.q_norm.weight',
    'k_norm/weight': 'attention.k_norm.weight',
}
_SCALES = {'scale1': 'lambda_1', 'scale2': 'lambda_2'}
_TOWER = 'vision_tower'
_PROJECTOR = 'multi_modal_projector'
HEAD = decoder_weights.NESTED_HEAD
tied = decoder_weights.nested_tied
canonical = decoder_weights.nested_canonical
in_memory = decoder_weights.nested_in_memory


def table(config: internvl.Config) -> tuple[weights.Weight, ...]:
  """One row per parameter leaf, for loading and saving alike."""
  v = config.vision
  embed = f'{_TOWER}.embeddings'
  rows = [
      weights.Weight('visual/cls', f'{embed}.cls_token'),
      weights.Weight(
          'visual/patch_embed/kernel',
          f'{embed}.patch_embeddings.projection.weight',
          file_shape=(v.width, v.channels, v.patch, v.patch)),
      weights.Weight('visual/patch_embed/bias',
                     f'{embed}.patch_embeddings.projection.bias')]
  if v.places:
    rows.append(weights.Weight(
        'visual/positions', f'{embed}.position_embeddings'))
  norms = {'projector_norm': f'{_PROJECTOR}.layer_norm'}
  if v.final_norm:
    norms['norm'] = f'{_TOWER}.layernorm'
  for ours, theirs in norms.items():
    rows += [weights.Weight(f'visual/{ours}/{x}', f'{theirs}.{x}')
             for x in ('weight', 'bias')]
  for ours, theirs in (('projector_fc1', 'linear_1'),
                       ('projector_fc2', 'linear_2')):
    rows += decoder_weights.linear(
        f'visual/{ours}', f'{_PROJECTOR}.{theirs}', bias=True)
  names = (_BLOCK | ({} if v.rms else _BIASES)
           | (_QK_NORM if v.qk_norm else {}))
  layer = f'{_TOWER}.encoder.layer.{{}}'
  for ours, theirs in names.items():
    rows += decoder_weights.linear(
        f'visual/blocks/{ours}', f'{layer}.{theirs}',
        bias=v.qkv_bias or ours not in ('q', 'k', 'v'), layers=v.depth)
  rows += [weights.Weight(f'visual/blocks/{ours}', f'{layer}.{theirs}',
                          layers=v.depth) for ours, theirs in _SCALES.items()]
  return (*rows, *decoder_weights.nested_table(config))
