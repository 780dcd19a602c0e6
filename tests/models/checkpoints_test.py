"""Loading and saving Hugging Face folders."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import torch
import transformers

from mmr1.data import processor
from mmr1.models import checkpoints


def leaves(tree):
  return {'/'.join(k.key for k in path): x
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def same(a, b):
  a, b = leaves(a), leaves(b)
  assert set(a) == set(b)
  for path, x in a.items():
    np.testing.assert_array_equal(x, b[path], err_msg=path)


@pytest.fixture(scope='module')
def loaded(folders):
  return {tied: checkpoints.load(folders[tied]) for tied in (True, False)}


@pytest.fixture
def copy(folders, tmp_path):
  """A function: the tied folder with its tensors changed."""
  def make(change=lambda x: x, tied=True):
    tensors = safetensors_numpy.load_file(folders[tied] / 'model.safetensors')
    safetensors_numpy.save_file(
        change(tensors), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(
        (folders[tied] / 'config.json').read_text())
    return tmp_path
  return make


def test_leaves_by_hand(folders, loaded):
  """A linear layer is transposed, a convolution flattened, layers stacked."""
  tensors = safetensors_numpy.load_file(folders[False] / 'model.safetensors')
  params = loaded[False][1]
  np.testing.assert_array_equal(
      params['language']['layers']['mlp']['down']['kernel'][2],
      tensors['model.layers.2.mlp.down_proj.weight'].T)
  np.testing.assert_array_equal(
      params['visual']['patch_embed']['kernel'],
      tensors['visual.patch_embed.proj.weight'].reshape(32, 96).T)
  np.testing.assert_array_equal(
      params['language']['head'], tensors['lm_head.weight'])
  assert 'head' not in loaded[True][1]['language']


@pytest.mark.parametrize('tied', [True, False])
def test_m20_saved_folder_opens_in_transformers(oracle, loaded, tmp_path,
                                                tied):
  module, params = loaded[tied]
  checkpoints.save(tmp_path, module, params)
  assert sorted(x.name for x in tmp_path.iterdir()) == [
      'config.json', 'model.safetensors']
  model, report = (
      transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
          tmp_path, output_loading_info=True, attn_implementation='eager'))
  assert not report['missing_keys'] and not report['unexpected_keys']
  row = oracle.row(3, (24, 40), 4)
  with torch.no_grad():
    expected = oracle.logits(oracle.model(tied), row)
    np.testing.assert_array_equal(oracle.logits(model.eval(), row), expected)
  same(checkpoints.load(tmp_path)[1], params)


def test_bfloat16_both_ways(oracle, loaded, tmp_path):
  module, params = loaded[True]
  checkpoints.save(tmp_path, module, params, dtype='bfloat16')
  assert json.loads((tmp_path / 'config.json').read_text())['dtype'] == (
      'bfloat16')
  model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
      tmp_path)
  assert model.dtype == torch.bfloat16
  rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
  same(checkpoints.load(tmp_path, param_dtype='bfloat16')[1], rounded)
  wide = checkpoints.load(tmp_path)[1]
  same(wide, jax.tree.map(lambda x: x.astype(np.float32), rounded))
  assert leaves(wide)['language/embed'].dtype == np.float32
  model.save_pretrained(tmp_path / 'theirs')  # bfloat16 written by torch
  same(checkpoints.load(tmp_path / 'theirs')[1], wide)


def test_shards(oracle, loaded, tmp_path):
  oracle.model(False).save_pretrained(tmp_path, max_shard_size='100KB')
  assert not (tmp_path / 'model.safetensors').exists()
  same(checkpoints.load(tmp_path)[1], loaded[False][1])
  shard = sorted(tmp_path.glob('*.safetensors'))[1]
  shard.unlink()
  with pytest.raises(ValueError, match=f'{shard.name} is missing'):
    checkpoints.load(tmp_path)


def test_names_of_transformers_5(copy, loaded):
  def rename(tensors):
    result = {}
    for name, x in tensors.items():
      name = name.replace('visual.', 'model.visual.')
      if not name.startswith(('model.visual.', 'lm_head.')):
        name = name.replace('model.', 'model.language_model.')
      result[name] = x
    result['model.visual.rotary_emb.inv_freq'] = np.zeros(2, np.float32)
    return result
  same(checkpoints.load(copy(rename, tied=False))[1], loaded[False][1])


def test_everything_wrong_is_listed_at_once(copy):
  def spoil(tensors):
    del tensors['model.norm.weight']
    del tensors['visual.blocks.1.attn.qkv.bias']
    tensors['model.layers.2.bias'] = np.zeros(3, np.float32)
    name = 'model.layers.1.self_attn.k_proj.weight'
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    return tensors
  with pytest.raises(ValueError) as error:
    checkpoints.load(copy(spoil))
  text = str(error.value)
  assert 'missing (2)' in text and 'model.norm.weight' in text
  assert 'visual.blocks.1.attn.qkv.bias' in text
  assert 'unknown (1): model.layers.2.bias' in text
  assert 'k_proj.weight [48, 24], not [24, 48]' in text


def test_tied_head_in_the_file(copy, loaded):
  def repeat(tensors):
    return {**tensors, 'lm_head.weight': tensors['model.embed_tokens.weight']}

  def differ(tensors):
    return {**tensors,
            'lm_head.weight': tensors['model.embed_tokens.weight'] + 1}

  same(checkpoints.load(copy(repeat))[1], loaded[True][1])
  with pytest.raises(ValueError, match='tensors differ'):
    checkpoints.load(copy(differ))


def test_folder_errors(copy, tmp_path):
  with pytest.raises(ValueError, match='does not exist'):
    checkpoints.load(tmp_path / 'nowhere')
  folder = copy()
  weights = folder / 'model.safetensors'
  whole = weights.read_bytes()
  weights.write_bytes(whole[:-10])
  with pytest.raises(ValueError, match='truncated'):
    checkpoints.load(folder)
  weights.write_text('version https://git-lfs.github.com/spec/v1')
  with pytest.raises(ValueError, match='not a safetensors file'):
    checkpoints.load(folder)
  weights.unlink()
  with pytest.raises(ValueError, match='neither model.safetensors nor'):
    checkpoints.load(folder)
  (folder / 'config.json').write_text('{"model_type": "bert"}')
  with pytest.raises(ValueError, match="'bert'.*supported") as error:
    checkpoints.load(folder)
  for family in checkpoints.FAMILIES:
    assert repr(family) in str(error.value)


@pytest.mark.parametrize('name', ['int32', 'fp32'])
def test_m22_parameters_are_floats(folders, name):
  """As int32 every weight below 1 would silently be 0."""
  with pytest.raises(ValueError, match=f"param_dtype='{name}': allowed"):
    checkpoints.load(folders[True], param_dtype=name)


def test_save_refuses_a_strange_tree(loaded, tmp_path):
  module, params = loaded[True]
  with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
    checkpoints.save(tmp_path, module, {**params, 'extra': np.zeros(2)})
  assert not list(tmp_path.iterdir())


def test_every_family_has_a_processor():
  assert checkpoints.FAMILIES == tuple(sorted(processor.FAMILIES))
