"""Qwen2-VL against transformers: the tower is what is new."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from mmr1.models import checkpoints
from mmr1.models import qwen2_vl
from mmr1.models import qwen_vl_weights
from tests.models import passes

T = 5


@pytest.fixture(scope='module')
def oracle(oracle_qwen2):
  return oracle_qwen2


@pytest.fixture(scope='module')
def rows(oracle):
  """Text, one image, three images of different sizes, video + image."""
  return [
      oracle.row(9, seed=1),
      oracle.row(3, (32, 40), 4, seed=2),
      oracle.row(2, (24, 24), 1, (17, 50), 2, (64, 8), 3, seed=3),
      # Longer than it is wide, so that the rate of its frames would show.
      oracle.row(2, (4, 4, 4, 1.5), 2, (20, 20), 4, seed=4)]


@pytest.fixture(scope='module')
def folders(oracle, tmp_path_factory):
  result = {}
  for tied in (True, False):
    result[tied] = tmp_path_factory.mktemp('qwen2_vl')
    oracle.model(tied).save_pretrained(result[tied])
  return result


@pytest.fixture(scope='module')
def models(folders):
  return {tied: checkpoints.load(folders[tied]) for tied in (True, False)}


@pytest.fixture(scope='module')
def batch(oracle, rows):
  """Every row padded: more tokens and patch slots than the longest needs."""
  return oracle.prompts(rows, p=64, s=180)


@pytest.fixture(scope='module')
def two(oracle, batch):
  return oracle.completions(batch, 2, T)


@pytest.fixture(scope='module')
def weight(two):
  return passes.weight_of(two, 200)


@pytest.fixture(scope='module')
def reference(models, batch, two, weight):
  return passes.gradient(*models[False], batch, two, weight)


@pytest.fixture(scope='module')
def logits(reference):
  return np.asarray(reference[0][1])


def test_m3_m4_logits_equal_transformers(oracle, rows, two, logits):
  """Each row alone and unpadded there; in one padded batch here."""
  tokens, _, mask = map(np.asarray, two)
  for n, row in enumerate(rows):
    for g in range(2):
      length = mask[n, g].sum()
      with torch.no_grad():
        expected = oracle.logits(
            oracle.model(False), row, tokens[n, g, :length]).numpy()
      assert np.abs(expected).max() > 1
      np.testing.assert_allclose(
          logits[n, g, :length + 1], expected, atol=1e-4, rtol=0)


def test_gradients_equal_torch(oracle, rows, models, two, weight, reference):
  model = oracle.model(False)
  model.zero_grad()
  tokens, _, mask = map(np.asarray, two)
  for n, row in enumerate(rows):
    for g in range(2):
      length = mask[n, g].sum()
      out = oracle.logits(model, row, tokens[n, g, :length])
      torch.sum(
          out * torch.tensor(np.asarray(weight[n, g, :length + 1]))).backward()
  passes.check_gradients(
      qwen_vl_weights, models[False][0].config, model, reference[1])


@pytest.mark.parametrize('tied', [True, False])
def test_m1_m4_greedy_tokens_equal_generate(oracle, rows, models, tied):
  """32 of them; transformers finds the positions by its own rule, v5."""
  batch = oracle.prompts(rows, p=64, s=180, rule='v5')
  got = np.asarray(passes.greedy(*models[tied], batch, 32))
  for n, row in enumerate(rows):
    inputs = oracle.inputs(row)
    del inputs['position_ids']
    model = oracle.model(tied)
    model.model.rope_deltas = None
    expected = model.generate(
        **inputs, attention_mask=torch.ones_like(inputs['input_ids']),
        max_new_tokens=32, do_sample=False, pad_token_id=0)
    assert got[n].tolist() == expected[0, len(row.tokens):].tolist()
    assert tied or len(set(got[n].tolist())) > 3


def test_scan_and_remat_change_nothing(models, batch, two, weight, reference):
  module, params = models[False]
  module = qwen2_vl.build(dataclasses.replace(
      module.config, layers='scan', remat='layer', query_chunk=50))
  (value, _), grads = passes.gradient(module, params, batch, two, weight)
  np.testing.assert_allclose(value, reference[0][0], rtol=1e-5)
  expected = passes.leaves(reference[1])
  for path, got in passes.leaves(grads).items():
    scale = np.abs(expected[path]).max()
    np.testing.assert_allclose(got, expected[path], atol=1e-5 * scale, rtol=0,
                               err_msg=path)


def test_m6_all_text(oracle, rows, models, two, weight, logits):
  """Media that is all padding: the tower's gradient is 0, not NaN."""
  text = oracle.prompts(rows[:1] * 4, p=64, s=180)
  (_, got), grads = passes.gradient(*models[False], text, two, weight)
  np.testing.assert_allclose(np.asarray(got)[0, :, 0], logits[0, :, 0],
                             atol=1e-5, rtol=0)
  for path, x in passes.leaves(grads).items():
    assert np.all(np.isfinite(x)), path
    assert np.all(x == 0) == path.startswith('visual/'), path


@pytest.mark.parametrize('tied', [True, False])
def test_m20_saved_folder_opens_in_transformers(oracle, models, rows, tmp_path,
                                                tied):
  module, params = models[tied]
  checkpoints.save(tmp_path, module, params)
  model, report = (
      transformers.Qwen2VLForConditionalGeneration.from_pretrained(
          tmp_path, output_loading_info=True, attn_implementation='eager'))
  assert not report['missing_keys'] and not report['unexpected_keys']
  with torch.no_grad():
    np.testing.assert_array_equal(
        oracle.logits(model.eval(), rows[1]),
        oracle.logits(oracle.model(tied), rows[1]))
  again = passes.leaves(checkpoints.load(tmp_path)[1])
  assert set(again) == set(passes.leaves(params))
  for path, x in passes.leaves(params).items():
    np.testing.assert_array_equal(again[path], x, err_msg=path)


def test_bfloat16_is_near_float32(models, batch, two, logits):
  module, params = models[False]
  module = qwen2_vl.build(dataclasses.replace(
      module.config, compute_dtype='bfloat16'))
  params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
  got = np.asarray(passes.forward(module, params, batch, *two))
  passes.check_bfloat16(got, logits, two)


def test_config_layouts_agree(folders):
  """The hub's flat config.json with rope_scaling, and transformers 5's."""
  nested = json.loads((folders[True] / 'config.json').read_text())
  flat = {**nested, **nested['text_config']}
  del flat['text_config'], flat['rope_parameters']
  flat |= {
      'model_type': 'qwen2_vl', 'rope_theta': 1e6,
      'rope_scaling': {'type': 'mrope', 'mrope_section': [1, 1, 2]}}
  a, b = map(qwen2_vl.Config.from_hf, (nested, flat))
  assert dataclasses.replace(a, hf='') == dataclasses.replace(b, hf='')
  assert (a.head_width, a.vision.window_patches, a.tied) == (8, 4, True)
  assert (a.vision.width, a.vision.mlp_width, a.vision.out_width) == (
      40, 80, 56)


@pytest.mark.parametrize('section, change, message', [
    ('text_config', {'rope_parameters': {
        'mrope_section': [2, 2, 3], 'rope_theta': 1e6}}, 'half the head'),
    ('vision_config', {'hidden_size': 40}, 'own width is .*embed_dim'),
    ('vision_config', {'hidden_act': 'gelu'}, 'quick_gelu'),
    ('vision_config', {'embed_dim': 44}, 'multiple of 4 x num_heads')])
def test_config_errors(folders, section, change, message):
  hf = json.loads((folders[True] / 'config.json').read_text())
  hf[section] |= change
  with pytest.raises(ValueError, match=message):
    qwen2_vl.Config.from_hf(hf)


def test_random_parameters(models):
  module, loaded = models[False]
  params = passes.leaves(
      qwen2_vl.init_params(module.config, jax.random.key(0)))
  assert {k: x.shape for k, x in params.items()} == {
      k: x.shape for k, x in passes.leaves(loaded).items()}
  assert np.all(params['visual/merger_norm/weight'] == 1)
  assert np.all(params['visual/blocks/norm1/bias'] == 0)
