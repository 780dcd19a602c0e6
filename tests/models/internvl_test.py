"""InternVL against transformers: the tower, the projector, the head."""

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

from mmr1 import trees
from mmr1.models import checkpoints
from mmr1.models import internvl
from mmr1.models import internvl_weights
from mmr1.models import lora
from tests import internvl as tiny
from tests import measured
from tests import tiles
from tests.models import passes

T, P, S = 5, 160, 22 * 16


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """{kind: (folder, both sides of it)}; the model is saved into the folder."""
  folders = {kind: tiny.write(tmp_path_factory.mktemp(kind))
             for kind in tiny.KINDS}
  return {kind: (folder, tiny.oracle(folder, kind))
          for kind, folder in folders.items()}


@pytest.fixture(scope='module')
def folders(saved):
  return {kind: folder for kind, (folder, _) in saved.items()}


@pytest.fixture(scope='module')
def oracles(saved):
  return {kind: oracle for kind, (_, oracle) in saved.items()}


@pytest.fixture(scope='module')
def models(oracles, folders):
  return {kind: checkpoints.load(folders[kind]) for kind in oracles}


@pytest.fixture(scope='module')
def rows():
  return tiles.examples(tiny.TILE)


@pytest.fixture(scope='module')
def batch(oracles, rows):
  return oracles['small'].prompts(rows, p=P, s=S)


@pytest.fixture(scope='module')
def two(batch):
  return tiles.completions(batch, 2, T)


@pytest.fixture(scope='module')
def weight(two):
  return passes.weight_of(two, tiles.VOCAB)


@pytest.fixture(scope='module')
def reference(models, batch, two, weight):
  return {kind: passes.gradient(*models[kind], batch, two, weight)
          for kind in models}


@pytest.fixture(scope='module')
def logits(reference):
  return np.asarray(reference['small'][0][1])


@pytest.mark.parity
@pytest.mark.parametrize('kind', tiny.KINDS)
def test_m3_m4_logits_and_gradients_equal_transformers(
    oracles, rows, models, two, weight, reference, kind):
  """Each row alone and unpadded there; in one padded batch here."""
  oracle, (module, _) = oracles[kind], models[kind]
  (_, got), grads = reference[kind]
  oracle.model.zero_grad()
  tokens, _, mask = map(np.asarray, two)
  for n, row in enumerate(rows):
    for g in range(2):
      length = mask[n, g].sum()
      expected = oracle.logits(row, tokens[n, g, :length])
      torch.sum(expected * torch.tensor(
          np.asarray(weight[n, g, :length + 1]))).backward()
      expected = expected.detach().numpy()
      assert np.abs(expected).max() > 1
      measured.logits('internvl', n, got[n, g, :length + 1], expected)
  measured.record('internvl', 'gradient', passes.check_gradients(
      internvl_weights, module.config, oracle.model, grads,
      zero=('visual/blocks/k/bias',) if kind == 'small' else ()))


@pytest.mark.parity
def test_m1_greedy_tokens_equal_generate(oracles, rows, models, batch):
  got = np.asarray(passes.greedy(*models['large'], batch, 64))
  for n, row in enumerate(rows):
    inputs = oracles['large'].inputs(row)
    expected = oracles['large'].model.generate(
        **inputs, max_new_tokens=64, do_sample=False, pad_token_id=0)
    assert got[n].tolist() == (
        expected[0, inputs['input_ids'].shape[1]:].tolist())
    assert len(set(got[n].tolist())) > 3
  measured.record('internvl', 'greedy', got.shape[1])


def test_scan_and_remat_change_nothing(models, batch, two, weight, reference):
  """With two chunks of queries a tile, too."""
  module, params = models['small']
  module = internvl.build(dataclasses.replace(
      module.config, layers='scan', remat='layer', query_chunk=16))
  (value, _), grads = passes.gradient(module, params, batch, two, weight)
  np.testing.assert_allclose(value, reference['small'][0][0], rtol=1e-5)
  expected = passes.leaves(reference['small'][1])
  for path, got in passes.leaves(grads).items():
    scale = max(1, np.abs(expected[path]).max())
    np.testing.assert_allclose(got, expected[path], atol=1e-5 * scale, rtol=0,
                               err_msg=path)


def test_m3_order_and_padding_contents_change_nothing(
    models, batch, two, weight, logits):
  order = jnp.asarray([2, 0, 3, 1])
  again, some = jax.tree.map(lambda x: x[order], (batch, two))
  vision = again.media['vision']
  again = again.replace(media={'vision': vision.replace(patches=jnp.where(
      (vision.segment == 0)[..., None], 5.0, vision.patches))})
  (_, got), _ = passes.gradient(*models['small'], again, some, weight)
  keep = passes.real(some)
  np.testing.assert_allclose(np.asarray(got)[keep], logits[order][keep],
                             atol=1e-5, rtol=0)


def test_m6_all_text(oracles, rows, models, two, weight, logits):
  """Media that is all padding: the tower's gradient is 0, not NaN."""
  text = oracles['small'].prompts(rows[:1] * 4, p=P, s=S)
  (_, got), grads = passes.gradient(*models['small'], text, two, weight)
  np.testing.assert_allclose(np.asarray(got)[0, :, 0], logits[0, :, 0],
                             atol=1e-5, rtol=0)
  for path, x in passes.leaves(grads).items():
    assert np.all(np.isfinite(x)), path
    assert np.all(x == 0) == path.startswith('visual/'), path


@pytest.mark.parity
@pytest.mark.parametrize('kind', tiny.KINDS)
def test_m20_saved_folder_opens_in_transformers(oracles, models, rows,
                                                tmp_path, kind):
  module, params = models[kind]
  checkpoints.save(tmp_path, module, params)
  model, report = (
      transformers.InternVLForConditionalGeneration.from_pretrained(
          tmp_path, output_loading_info=True, attn_implementation='eager'))
  assert not report['missing_keys'] and not report['unexpected_keys']
  with torch.no_grad():
    np.testing.assert_array_equal(
        oracles[kind].logits(rows[1], model=model.eval()),
        oracles[kind].logits(rows[1]))
  passes.check_equal(checkpoints.load(tmp_path)[1], params)
  measured.record('internvl', 'export', 0)


def test_m20_the_files_say_whether_there_is_a_head(folders, models, tmp_path):
  """config.json claims a tie by default; names are those in memory, too."""
  hf = json.loads((folders['large'] / 'config.json').read_text())
  del hf['tie_word_embeddings']
  (tmp_path / 'config.json').write_text(json.dumps(hf))
  assert checkpoints.read_config(tmp_path).tied  # nothing else is there
  tensors = safetensors_numpy.load_file(folders['large'] / 'model.safetensors')
  tensors = {
      name.replace('vision_tower.', 'model.vision_tower.')
      .replace('multi_modal', 'model.multi_modal')
      .replace('language_model.lm_head', 'lm_head')
      .replace('language_model.model.', 'model.language_model.'): x
      for name, x in tensors.items()}
  safetensors_numpy.save_file(tensors, tmp_path / 'model.safetensors')
  module, params = checkpoints.load(tmp_path)
  assert not module.config.tied
  assert json.loads(module.config.hf)['tie_word_embeddings'] is False
  again = passes.leaves(params)
  for path, x in passes.leaves(models['large'][1]).items():
    np.testing.assert_array_equal(again[path], x, err_msg=path)


@pytest.mark.slow
def test_the_tower_takes_adapters(models, batch, two, logits):
  """Its linear layers and the projector's; new ones change nothing."""
  module, params = models['small']
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
  module, params = models['small']
  module = internvl.build(dataclasses.replace(
      module.config, compute_dtype='bfloat16'))
  params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
  got = np.asarray(passes.forward(module, params, batch, *two))
  _, most = passes.check_bfloat16(got, logits, two)
  measured.record('internvl', 'bf16', most)


@pytest.mark.parametrize('section, change, message', [
    (None, {'vision_feature_layer': -2}, 'vision_feature_layer -2'),
    (None, {'downsample_ratio': 0.4}, 'one over a whole number'),
    (None, {'vision_config': None}, '`vision_config` is missing'),
    ('text_config', {'model_type': 'phi3'}, "'phi3' is not supported"),
    ('vision_config', {'image_size': [32, 48]}, 'must be squares'),
    ('vision_config', {'patch_size': 7}, 'whole cells'),
    ('vision_config', {'use_mask_token': True}, 'use_mask_token'),
    ('vision_config', {'norm_type': 'none'}, "'rms_norm'"),
    ('vision_config', {'num_attention_heads': 3}, 'multiple')])
def test_config_errors(folders, models, section, change, message):
  hf = json.loads((folders['small'] / 'config.json').read_text())
  (hf[section] if section else hf).update(change)
  with pytest.raises(ValueError, match=message):
    internvl.Config.from_hf(hf)


def test_part_of_a_tile_is_an_error(models, batch):
  module, params = models['small']
  vision = batch.media['vision']
  short = jax.tree.map(lambda x: x[:, :-4], vision).replace(slot=vision.slot)
  with pytest.raises(ValueError, match='multiple of the 16 of one tile'):
    jax.eval_shape(lambda: module.apply(
        {'params': params}, batch.replace(media={'vision': short})))


def test_config_by_hand(folders):
  """What the table of weights does not show."""
  vision = checkpoints.read_config(folders['small']).vision
  assert (vision.layer_scale, vision.eps) == (0.1, 1e-6)
  assert (vision.window_patches, vision.patch_values) == (16, 192)


def test_heads_of_one_number_have_their_usual_names(folders):
  """Beside the language model, as TRL and transformers have them."""
  config = checkpoints.read_config(
      folders['large'], scalars=('value', 'reward'))
  names = {row.path: row.name for row in internvl_weights.table(config)}
  assert names['scalars/value/kernel'] == 'v_head.summary.weight'
  assert names['scalars/reward/kernel'] == 'score.weight'
  assert names['language/head'] == 'language_model.lm_head.weight'
