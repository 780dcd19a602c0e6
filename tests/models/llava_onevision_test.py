"""LLaVA-OneVision against transformers: maps of features, the projector."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import torch
import transformers

from mmr1 import records
from mmr1 import trees
from mmr1.models import checkpoints
from mmr1.models import llava_onevision
from mmr1.models import lora
from tests import llava_onevision as tiny
from tests import measured
from tests import tiles
from tests.models import passes

T, P, S = 5, 184, 10 * 25
ROWS = 6


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  return {tied: tmp_path_factory.mktemp('llava') for tied in (True, False)}


@pytest.fixture(scope='module')
def oracles(folders):
  return {tied: tiny.oracle(tiny.write(folder), tied)
          for tied, folder in folders.items()}


@pytest.fixture(scope='module')
def models(oracles, folders):
  return {tied: checkpoints.load(folders[tied]) for tied in oracles}


@pytest.fixture(scope='module')
def rows():
  """One is shrunk, one has no row in its map."""
  return tiles.examples(tiny.SIZE) + [
      records.Example(uid=4, question='<image>', answer='',
                      images=(tiles.noise(95, 81, 6),)),
      records.Example(uid=5, question='<image>', answer='',
                      images=(tiles.noise(1, 400, 7),))]


@pytest.fixture(scope='module')
def batch(oracles, rows):
  return oracles[False].prompts(rows, p=P, s=S)


@pytest.fixture(scope='module')
def two(batch):
  return tiles.completions(batch, 2, T)


@pytest.fixture(scope='module')
def weight(two):
  return passes.weight_of(two, tiles.VOCAB)


@pytest.fixture(scope='module')
def reference(models, batch, two, weight):
  return passes.gradient(*models[False], batch, two, weight)


@pytest.fixture(scope='module')
def logits(reference):
  return np.asarray(reference[0][1])


@pytest.mark.parity
def test_m3_m4_logits_and_gradients_equal_transformers(
    oracles, rows, models, two, weight, reference):
  """Each row alone and unpadded there; in one padded batch here."""
  oracle, module = oracles[False], models[False][0]
  (_, got), grads = reference
  oracle.model.zero_grad(set_to_none=False)
  tokens, _, mask = map(np.asarray, two)
  for n, row in enumerate(rows):
    for g in range(2):
      length = mask[n, g].sum()
      expected = oracle.logits(row, tokens[n, g, :length])
      torch.sum(expected * torch.tensor(
          np.asarray(weight[n, g, :length + 1]))).backward()
      expected = expected.detach().numpy()
      assert np.abs(expected).max() > 1
      kind = n if n < 4 else 1  # the last two are images
      measured.logits('llava_onevision', kind, got[n, g, :length + 1], expected)
  encoder = 'visual/encoder'
  for parameter in (
      oracle.model.model.vision_tower.post_layernorm.parameters()):
    assert parameter.grad is None  # the features are those before it
    parameter.grad = torch.zeros_like(parameter)
  measured.record('llava_onevision', 'gradient', passes.check_gradients(
      llava_onevision, module.config, oracle.model, grads,
      zero=(f'{encoder}/norm/weight', f'{encoder}/norm/bias',
            f'{encoder}/blocks/k/bias')))


@pytest.mark.parity
def test_m1_greedy_tokens_equal_generate(oracles, rows, models, batch):
  got = np.asarray(passes.greedy(*models[False], batch, 64))
  for n, row in enumerate(rows):
    inputs = oracles[False].inputs(row)
    expected = oracles[False].model.generate(
        **inputs, max_new_tokens=64, do_sample=False, pad_token_id=0)
    assert got[n].tolist() == (
        expected[0, inputs['input_ids'].shape[1]:].tolist())
    assert len(set(got[n].tolist())) > 3
  measured.record('llava_onevision', 'greedy', got.shape[1])


def test_scan_and_remat_change_nothing(models, batch, two, weight, reference):
  module, params = models[False]
  module = llava_onevision.build(dataclasses.replace(
      module.config, layers='scan', remat='layer', query_chunk=16))
  (value, _), grads = passes.gradient(module, params, batch, two, weight)
  np.testing.assert_allclose(value, reference[0][0], rtol=1e-5)
  expected = passes.leaves(reference[1])
  for path, got in passes.leaves(grads).items():
    scale = max(1, np.abs(expected[path]).max())
    np.testing.assert_allclose(got, expected[path], atol=1e-5 * scale, rtol=0,
                               err_msg=path)


def test_m3_order_and_padding_contents_change_nothing(
    models, batch, two, weight, logits):
  order = jnp.asarray([2, 0, 5, 3, 1, 4])
  again, some = jax.tree.map(lambda x: x[order], (batch, two))
  vision = again.media['vision']
  cell = vision.slot[..., None] >= 0
  again = again.replace(media={'vision': vision.replace(
      patches=jnp.where(
          (vision.segment == 0)[..., None], 5.0, vision.patches),
      taps=jnp.where(cell, vision.taps, 3),
      weights=jnp.where(cell, vision.weights, 7.0))})
  (_, got), _ = passes.gradient(*models[False], again, some, weight)
  keep = passes.real(some)
  np.testing.assert_allclose(np.asarray(got)[keep], logits[order][keep],
                             atol=1e-5, rtol=0)


def test_m6_all_text(oracles, rows, models, two, weight, logits):
  """Media that is all padding: the tower's gradient is 0, not NaN."""
  text = oracles[False].prompts(rows[:1] * ROWS, p=P, s=S)
  (_, got), grads = passes.gradient(*models[False], text, two, weight)
  np.testing.assert_allclose(np.asarray(got)[0, :, 0], logits[0, :, 0],
                             atol=1e-5, rtol=0)
  for path, x in passes.leaves(grads).items():
    assert np.all(np.isfinite(x)), path
    assert np.all(x == 0) == path.startswith('visual/'), path


@pytest.mark.parity
@pytest.mark.parametrize('tied', [True, False])
def test_m20_saved_folder_opens_in_transformers(oracles, models, rows,
                                                tmp_path, tied):
  module, params = models[tied]
  assert module.config.tied == tied
  checkpoints.save(tmp_path, module, params)
  model, report = (
      transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(
          tmp_path, output_loading_info=True, attn_implementation='eager'))
  assert not report['missing_keys'] and not report['unexpected_keys']
  with torch.no_grad():
    np.testing.assert_array_equal(
        oracles[tied].logits(rows[1], model=model.eval()),
        oracles[tied].logits(rows[1]))
  passes.check_equal(checkpoints.load(tmp_path)[1], params)
  measured.record('llava_onevision', 'export', 0)


def test_names_of_transformers_5(folders, models, tmp_path):
  tensors = safetensors_numpy.load_file(folders[False] / 'model.safetensors')
  tensors = {
      'lm_head.weight' if 'lm_head' in name else
      'model.' + name.replace('language_model.model.', 'language_model.'): x
      for name, x in tensors.items()}
  safetensors_numpy.save_file(tensors, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text(
      (folders[False] / 'config.json').read_text())
  passes.check_equal(checkpoints.load(tmp_path)[1], models[False][1])


@pytest.mark.slow
def test_the_tower_takes_adapters(models, batch, two, logits):
  """Its linear layers and the projector's; new ones change nothing."""
  module, params = models[False]
  params = lora.inject(params, jax.random.key(0), rank=2, alpha=4.0,
                       targets=('visual/.*',))
  names = trees.named(params)
  adapted = [x for x in names if x.endswith('lora_b')]
  assert len(adapted) == 6 + 1 + 2  # of a block, of patches, the projector's
  (_, got), grads = passes.gradient(
      module, params, batch, two, passes.weight_of(two, tiles.VOCAB))
  np.testing.assert_allclose(got, logits, atol=1e-5, rtol=0)
  grads = passes.leaves(grads)
  for name in adapted:
    assert np.abs(grads[name]).max() > 1e-3, name


@pytest.mark.parity
@pytest.mark.slow
def test_bfloat16_is_near_float32(models, batch, two, logits):
  module, params = models[False]
  module = llava_onevision.build(dataclasses.replace(
      module.config, compute_dtype='bfloat16'))
  params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
  got = np.asarray(passes.forward(module, params, batch, *two))
  _, most = passes.check_bfloat16(got, logits, two)
  measured.record('llava_onevision', 'bf16', most)


@pytest.mark.parametrize('section, change, message', [
    (None, {'vision_feature_layer': -2}, 'vision_feature_layer -2'),
    (None, {'vision_feature_select_strategy': 'default'}, "only 'full'"),
    (None, {'vision_config': None}, '`vision_config` is missing'),
    ('text_config', {'model_type': 'phi3'}, "'phi3' is not supported"),
    ('vision_config', {'model_type': 'clip_vision_model'}, 'siglip_vision')])
def test_config_errors(folders, models, section, change, message):
  hf = json.loads((folders[False] / 'config.json').read_text())
  (hf[section] if section else hf).update(change)
  with pytest.raises(ValueError, match=message):
    llava_onevision.Config.from_hf(hf)


def test_pixels_left_over(models):
  """33 pixels are 5 patches of 6 and 3 that the encoder does not see."""
  vision = models[False][0].config.vision
  assert (vision.side, vision.window_patches, vision.image) == (5, 25, 30)
