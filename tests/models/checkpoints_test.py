"""Loading and saving Hugging Face folders."""

import dataclasses
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


def test_a_folder_that_is_no_model(copy, tmp_path):
  with pytest.raises(ValueError, match='does not exist'):
    checkpoints.load(tmp_path / 'nowhere')
  folder = copy()
  (folder / 'model.safetensors').unlink()
  with pytest.raises(ValueError, match='neither model.safetensors nor'):
    checkpoints.load(folder)
  (folder / 'config.json').write_text('{"model_type": "llam')
  with pytest.raises(ValueError, match='config.json: not JSON.*again'):
    checkpoints.load(folder)
  (folder / 'config.json').write_text('{"model_type": "bert"}')
  with pytest.raises(ValueError, match="'bert'.*supported") as error:
    checkpoints.load(folder)
  for family in checkpoints.FAMILIES:
    assert repr(family) in str(error.value)


def test_config_of_another_family(copy, oracle):
  """One that is not known, and one whose tensors are others."""
  folder = copy()
  (folder / 'config.json').write_text('{"model_type": "mamba"}')
  with pytest.raises(ValueError) as error:
    checkpoints.load(folder)
  assert f'{folder}/config.json' in str(error.value)
  assert "'mamba' is not supported" in str(error.value)
  assert "'qwen2_5_vl'" in str(error.value)

  def text_only(tensors):
    return {name.replace('visual.blocks.', 'vision_tower.layers.'): x
            for name, x in tensors.items()}
  with pytest.raises(ValueError) as error:
    checkpoints.load(copy(text_only))
  text = str(error.value)
  assert str(folder) in text and 'config.json of the same model?' in text
  assert 'missing (' in text and 'visual.blocks.0.norm1.weight' in text
  assert 'vision_tower.layers.0.attn.proj.bias in model.safetensors' in text


@pytest.mark.parametrize('kind', [np.int8, np.int64, np.bool_])
def test_wrong_dtype(copy, kind):
  name = 'model.layers.1.mlp.up_proj.weight'

  def change(tensors):
    # What is not a parameter may be anything.
    tensors['visual.rotary_emb.inv_freq'] = np.zeros(2, kind)
    return {**tensors, name: tensors[name].astype(kind)}
  code = {np.int8: 'I8', np.int64: 'I64', np.bool_: 'BOOL'}[kind]
  with pytest.raises(ValueError) as error:
    checkpoints.load(copy(change))
  text = str(error.value)
  assert f'{name} {code} in model.safetensors' in text
  assert "'BF16', 'F16', 'F32', 'F64'" in text and 'quantised?' in text
  assert 'inv_freq' not in text


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('kind', [
    np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_weight_that_is_no_number(oracle, loaded, tmp_path, kind, value):
  """Named with its file and its place; the largest numbers are numbers."""
  name = 'model.layers.2.mlp.down_proj.weight'
  params = jax.tree.map(np.array, loaded[True][1])
  kernel = params['language']['layers']['mlp']['down']['kernel']
  kernel[2, 7, 40] = ml_dtypes.finfo(kind).max if kind != np.float64 else 1e38
  checkpoints.save(tmp_path, loaded[True][0], params)
  file = tmp_path / 'model.safetensors'
  tensors = {k: x.astype(kind) for k, x
             in safetensors_numpy.load_file(file).items()}
  safetensors_numpy.save_file(tensors, file)
  checkpoints.load(tmp_path)
  tensors[name][40, 7] = value
  safetensors_numpy.save_file(tensors, file)
  with pytest.raises(ValueError) as error:
    checkpoints.load(tmp_path)
  text = str(error.value)
  assert f'{file}: tensor {name!r} has nan or inf' in text
  assert '[40, 7] of [48, 80]' in text and 'diverged' in text


def test_a_parameter_under_two_names(copy):
  with pytest.raises(ValueError, match='same parameter under two names'):
    checkpoints.load(copy(lambda x: {
        **x, 'model.visual.merger.ln_q.weight':
        x['visual.merger.ln_q.weight']}))


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


def test_m20_it_is_not_saved_with_nan(loaded, tmp_path):
  """It could not be read again."""
  module, params = loaded[True]
  params = jax.tree.map(np.array, params)
  params['language']['norm']['weight'][3] = np.nan
  with pytest.raises(ValueError, match="'model.norm.weight' has nan"):
    checkpoints.save(tmp_path, module, params)
  with pytest.raises(ValueError):
    checkpoints.load(tmp_path)


@pytest.mark.parametrize('before, after', [
    (None, 40_000), (40_000, None), (40_000, 90_000), (90_000, 40_000)])
def test_m20_nothing_of_an_earlier_save_stays(
    loaded, tmp_path, before, after):
  """From shards to one file, to fewer and to more shards."""
  module, params = loaded[False]
  size = lambda most: {} if most is None else dict(max_shard_bytes=most)
  other = jax.tree.map(lambda x: x + 1, params)
  (tmp_path / 'tokenizer.json').write_text('stays')
  (tmp_path / '.model.safetensors.partial').write_text('left by a kill')
  checkpoints.save(tmp_path, module, other, **size(before))
  checkpoints.save(tmp_path, module, params, **size(after))
  same(checkpoints.load(tmp_path)[1], params)
  names = {file.name for file in tmp_path.iterdir()}
  expected = {'tokenizer.json', 'config.json'}
  if after is None:
    expected.add('model.safetensors')
  else:
    index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
    expected |= {'model.safetensors.index.json',
                 *index['weight_map'].values()}
  assert names == expected


def test_a_config_without_dtype_gets_one(folders, loaded, tmp_path):
  hf = json.loads((folders[True] / 'config.json').read_text())
  del hf['dtype']
  module = loaded[True][0]
  module = module.clone(config=dataclasses.replace(
      module.config, hf=json.dumps(hf)))
  checkpoints.save(tmp_path, module, loaded[True][1], dtype='bfloat16')
  assert json.loads((tmp_path / 'config.json').read_text())['dtype'] == (
      'bfloat16')


def test_describe_is_load_without_weights(folders, loaded, tmp_path):
  (tmp_path / 'config.json').write_text(
      (folders[False] / 'config.json').read_text())
  module, structs = checkpoints.describe(tmp_path, param_dtype='bfloat16')
  assert module == loaded[False][0]
  found = leaves(structs)
  assert {path: x.shape for path, x in found.items()} == {
      path: x.shape for path, x in leaves(loaded[False][1]).items()}
  assert {x.dtype for x in found.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_every_family_has_a_processor():
  assert checkpoints.FAMILIES == tuple(sorted(processor.FAMILIES))
