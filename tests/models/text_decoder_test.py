"""The text-only families against transformers, Gemma's among them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from mmr1 import types
from mmr1.models import checkpoints
from mmr1.models import decoder
from mmr1.models import decoder_weights
from mmr1.models import gemma
from mmr1.models import text_decoder
from tests import measured
from tests.models import passes

VOCAB, T = 100, 5
LENGTHS = (12, 7, 1)
LLAMA3 = dict(rope_type='llama3', rope_theta=1e4, factor=4.0,
              low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=24)
# Heads of 8 to 80 channels, with and without that being width / heads.
CASES = {
    # Seven query heads to one of keys.
    'qwen2': dict(hidden_size=56, num_attention_heads=7,
                  num_key_value_heads=1, tie_word_embeddings=True,
                  rope_parameters=dict(rope_type='default', rope_theta=1e6)),
    'qwen3': dict(hidden_size=40, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=20,
                  tie_word_embeddings=False,
                  rope_parameters=dict(rope_type='default', rope_theta=1e6)),
    'llama': dict(hidden_size=48, num_attention_heads=3,
                  num_key_value_heads=3, head_dim=80,
                  tie_word_embeddings=False, rope_parameters=LLAMA3),
    # Prompts of 12 and 7 tokens are longer than the windows of 4.
    'gemma': dict(hidden_size=48, num_attention_heads=3,
                  num_key_value_heads=1, head_dim=20),
    'gemma2': dict(hidden_size=48, num_attention_heads=4,
                   num_key_value_heads=2, head_dim=12, sliding_window=4,
                   query_pre_attn_scalar=7, attn_logit_softcapping=1.5,
                   final_logit_softcapping=4.0),
    'gemma3_text': dict(hidden_size=40, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=16, sliding_window=4,
                        query_pre_attn_scalar=25, num_hidden_layers=3,
                        layer_types=['sliding_attention', 'full_attention',
                                     'sliding_attention'],
                        rope_parameters=dict(
                            full_attention=dict(
                                rope_type='linear', rope_theta=1e5,
                                factor=4.0),
                            sliding_attention=dict(
                                rope_type='default', rope_theta=1e3))),
}
FAMILIES = tuple(CASES)
# Gemma 3 has all that is Gemma's but caps, and Gemma 2 has those.
WHOLE = [family for family in FAMILIES if family not in ('gemma', 'gemma2')]
TIED = ('qwen2', *gemma.FAMILIES)


@functools.cache
def hf_model(family):
  config = transformers.AutoConfig.for_model(
      family, **dict(
          vocab_size=VOCAB, intermediate_size=44, num_hidden_layers=2,
          rms_norm_eps=1e-5, max_position_embeddings=256, bos_token_id=None,
          eos_token_id=None) | CASES[family])
  config._attn_implementation = 'eager'
  model = passes.randomise(
      transformers.AutoModelForCausalLM.from_config(config), len(family))
  if family in gemma.FAMILIES:  # scaled up again: every layer shall count
    with torch.no_grad():
      model.get_input_embeddings().weight *= 0.2
  return model


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """{family: a folder that transformers saved}."""
  result = {}
  for family in FAMILIES:
    result[family] = tmp_path_factory.mktemp(family)
    hf_model(family).save_pretrained(result[family])
  return result


@pytest.fixture(scope='module')
def models(folders):
  return {family: checkpoints.load(folders[family]) for family in FAMILIES}


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  return [rng.integers(0, VOCAB, n).tolist() for n in LENGTHS]


@pytest.fixture(scope='module')
def batch(rows):
  """Left-padded; whatever is padded holds garbage."""
  p = max(LENGTHS) + 2
  tokens = np.full((len(rows), p), 3, np.int32)
  mask = np.zeros((len(rows), p), bool)
  rope = np.full((len(rows), p, 3), 9, np.int32)
  for i, row in enumerate(rows):
    tokens[i, p - len(row):], mask[i, p - len(row):] = row, True
    rope[i, p - len(row):] = np.arange(len(row))[:, None]
  return types.Prompts(
      tokens=jnp.asarray(tokens), mask=jnp.asarray(mask),
      positions=jnp.asarray(rope), next_position=jnp.asarray(LENGTHS),
      media={}, uid=jnp.arange(len(rows)))


@pytest.fixture(scope='module')
def two(rows):
  """Two completions of every row, ragged: tokens, positions, mask."""
  rng = np.random.default_rng(1)
  shape = (len(rows), 2, T)
  rope = np.asarray(LENGTHS)[:, None, None] + np.arange(T)
  rope = np.repeat(np.broadcast_to(rope, shape)[..., None], 3, -1)
  lengths = np.asarray([[T, 2], [T, 4], [T, 3]])
  return (jnp.asarray(rng.integers(0, VOCAB, shape), jnp.int32),
          jnp.asarray(rope, jnp.int32),
          jnp.asarray(np.arange(T) < lengths[..., None]))


@pytest.fixture(scope='module')
def weight(two):
  return passes.weight_of(two, VOCAB)


@pytest.fixture(scope='module')
def results(models, batch, two, weight):
  """{family: ((loss, logits), gradient)}."""
  return {family: passes.gradient(*models[family], batch, two, weight)
          for family in FAMILIES}


def hf_logits(model, row, extra=()):
  """f32[1 + len(extra), V], from the prompt's last token on."""
  tokens = torch.tensor([[*row, *map(int, extra)]])
  return model(input_ids=tokens).logits[0, len(row) - 1:]


@pytest.mark.parity
@pytest.mark.parametrize('family', FAMILIES)
def test_m3_logits_equal_transformers(rows, two, results, family):
  """Each row alone and unpadded there; in one left-padded batch here."""
  tokens, _, mask = map(np.asarray, two)
  logits = np.asarray(results[family][0][1])
  for n, row in enumerate(rows):
    for g in range(2):
      length = mask[n, g].sum()
      with torch.no_grad():
        expected = hf_logits(
            hf_model(family), row, tokens[n, g, :length]).numpy()
      assert np.abs(expected).max() > 1
      measured.logits(family, 0, logits[n, g, :length + 1], expected)


@pytest.mark.parity
@pytest.mark.parametrize('family', FAMILIES)
def test_gradients_equal_torch(rows, models, two, weight, results, family):
  model = hf_model(family)
  model.zero_grad()
  tokens, _, mask = map(np.asarray, two)
  for n, row in enumerate(rows):
    for g in range(2):
      length = mask[n, g].sum()
      out = hf_logits(model, row, tokens[n, g, :length])
      torch.sum(
          out * torch.tensor(np.asarray(weight[n, g, :length + 1]))).backward()
  measured.record(family, 'gradient', passes.check_gradients(
      decoder_weights, models[family][0].config, model, results[family][1]))


@pytest.mark.parity
@pytest.mark.parametrize('family', FAMILIES)
def test_m1_greedy_tokens_equal_generate(rows, models, batch, family):
  """64 of them, by single steps with a cache on both sides."""
  got = np.asarray(passes.greedy(*models[family], batch, 64))
  for n, row in enumerate(rows):
    expected = hf_model(family).generate(
        input_ids=torch.tensor([row]),
        attention_mask=torch.ones(1, len(row), dtype=torch.long),
        max_new_tokens=64, do_sample=False, pad_token_id=0)
    assert got[n].tolist() == expected[0, len(row):].tolist()
  assert len(set(got.ravel().tolist())) > 3
  measured.record(family, 'greedy', got.shape[1])


@pytest.mark.parametrize('family', WHOLE)
def test_scan_and_remat_change_nothing(models, batch, two, weight, results,
                                       family):
  module, params = models[family]
  module = decoder.LanguageModel(dataclasses.replace(
      module.config, layers='scan', remat='layer', query_chunk=4))
  (value, _), grads = passes.gradient(module, params, batch, two, weight)
  np.testing.assert_allclose(value, results[family][0][0], rtol=1e-5)
  expected = passes.leaves(results[family][1])
  for path, got in passes.leaves(grads).items():
    scale = np.abs(expected[path]).max()
    np.testing.assert_allclose(got, expected[path], atol=1e-5 * scale, rtol=0,
                               err_msg=path)


@pytest.mark.parity
@pytest.mark.parametrize('family', FAMILIES)
def test_m20_saved_folder_opens_in_transformers(models, rows, tmp_path,
                                                family):
  module, params = models[family]
  checkpoints.save(tmp_path, module, params)
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path, output_loading_info=True, attn_implementation='eager')
  assert not report['missing_keys'] and not report['unexpected_keys']
  with torch.no_grad():
    np.testing.assert_array_equal(
        hf_logits(model.eval(), rows[0]), hf_logits(hf_model(family), rows[0]))
  passes.check_equal(checkpoints.load(tmp_path)[1], params)
  measured.record(family, 'export', 0)


@pytest.mark.parity
@pytest.mark.parametrize('family', [
    family if family in WHOLE else pytest.param(family, marks=pytest.mark.slow)
    for family in FAMILIES])
def test_bfloat16_is_near_float32(models, batch, two, results, family):
  module, params = models[family]
  module = decoder.LanguageModel(dataclasses.replace(
      module.config, compute_dtype='bfloat16'))
  params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
  got = np.asarray(passes.forward(module, params, batch, *two))
  _, most = passes.check_bfloat16(
      got, np.asarray(results[family][0][1]), two)
  measured.record(family, 'bf16', most)


@pytest.mark.parametrize('family', FAMILIES)
def test_media_are_refused(models, batch, family):
  module, params = models[family]
  with pytest.raises(ValueError, match=r"\['vision'\].*reads text only"):
    module.apply({'params': params}, batch.replace(media={'vision': None}))


@pytest.mark.parametrize('family', FAMILIES)
def test_random_parameters(models, family):
  module, loaded = models[family]
  params = {
      '/'.join(key.key for key in path): x
      for path, x in jax.tree_util.tree_leaves_with_path(jax.eval_shape(
          lambda: decoder.init_params(module, jax.random.key(0))))}
  assert {k: x.shape for k, x in params.items()} == {
      k: x.shape for k, x in passes.leaves(loaded).items()}
  assert ('language/layers/q/bias' in params) == (family == 'qwen2')
  assert ('language/layers/q_norm/weight' in params) == (
      family in ('qwen3', 'gemma3_text'))
  assert ('language/head' in params) == (family not in TIED)


def hf_json(folders, family, **changes):
  return json.loads((folders[family] / 'config.json').read_text()) | changes


def test_config_layouts_agree(folders):
  """The hub's rope_scaling beside rope_theta, and rope_parameters."""
  new = hf_json(folders, 'llama')
  old = {k: x for k, x in new.items() if k != 'rope_parameters'}
  old |= {'rope_theta': 1e4, 'rope_scaling': {
      k: x for k, x in LLAMA3.items() if k != 'rope_theta'}}
  a, b = map(text_decoder.Config.from_hf, (new, old))
  assert dataclasses.replace(a, hf='') == dataclasses.replace(b, hf='')
  assert a.scaling.factor == 4 and a.head_width == 80


def test_null_and_absent_fields_are_the_defaults(folders):
  hf = hf_json(folders, 'llama', head_dim=None, num_key_value_heads=None,
               num_attention_heads=6)
  config = text_decoder.Config.from_hf(hf)
  assert (config.head_width, config.kv_heads) == (8, 6)
  hf = hf_json(folders, 'qwen3')
  del hf['head_dim']
  assert text_decoder.Config.from_hf(hf).head_width == 128


@pytest.mark.parametrize('family, changes, message', [
    ('qwen2', dict(use_sliding_window=True), 'sliding window'),
    ('qwen3', dict(layer_types=['full_attention', 'sliding_attention']),
     'sliding_attention'),
    ('qwen2', dict(hidden_size=50), 'multiple'),
    ('qwen3', dict(head_dim=7), 'head_dim 7 must be even'),
    ('llama', dict(num_key_value_heads=2), 'multiple'),
    ('qwen3', dict(rope_parameters=dict(rope_type='yarn', rope_theta=1e6)),
     "'yarn' is not supported for model_type 'qwen3'"),
    ('llama', dict(rope_parameters=dict(rope_type='llama3', factor=8.0)),
     'without.*original_max_position_embeddings'),
    ('llama', dict(rope_parameters={**LLAMA3, 'low_freq_factor': 5.0}),
     'low_freq_factor 5.0'),
    ('llama', dict(mlp_bias=True), 'mlp_bias True'),
    ('qwen3', dict(attention_bias=True), 'attention_bias True')])
def test_config_errors(folders, family, changes, message):
  with pytest.raises(ValueError, match=message):
    text_decoder.Config.from_hf(hf_json(folders, family, **changes))
