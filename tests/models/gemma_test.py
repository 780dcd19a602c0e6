"""What config.json says of a Gemma, and its windows over packed rows.

The numbers against transformers are in `text_decoder_test`.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from mmr1 import types
from mmr1.models import gemma
from mmr1.models import gemma_vl

SIZES = dict(
    vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    max_position_embeddings=64, sliding_window=3)


def hf(family='gemma3_text', **changes):
  return {'model_type': family, **SIZES, **changes}


def test_a_silent_config_is_what_transformers_assumes():
  for family in gemma.FAMILIES:
    config = gemma.Config.from_hf({'model_type': family})
    theirs = transformers.AutoConfig.for_model(family)
    assert (config.vocab, config.width, config.mlp_width, config.depth,
            config.heads, config.kv_heads, config.head_width,
            config.max_positions, config.eps, config.tied) == (
                theirs.vocab_size, theirs.hidden_size,
                theirs.intermediate_size, theirs.num_hidden_layers,
                theirs.num_attention_heads, theirs.num_key_value_heads,
                theirs.head_dim, theirs.max_position_embeddings,
                theirs.rms_norm_eps, theirs.tie_word_embeddings)
    if family != 'gemma':
      assert config.query_scale == theirs.query_pre_attn_scalar**-0.5
      assert config.score_cap == theirs.attn_logit_softcapping
      assert config.logit_cap == theirs.final_logit_softcapping
      assert config.window == theirs.sliding_window
      assert config.sliding == tuple(
          kind == 'sliding_attention' for kind in theirs.layer_types)


def test_config_layouts_agree():
  """The hub's keys of Gemma 3 and those that transformers 5 saves."""
  old = hf(num_hidden_layers=4, sliding_window_pattern=3, rope_theta=1e5,
           rope_local_base_freq=500.0,
           rope_scaling=dict(rope_type='linear', factor=8.0))
  new = json.loads(transformers.Gemma3TextConfig(
      **{k: x for k, x in old.items() if k != 'model_type'}).to_json_string())
  assert 'rope_local_base_freq' not in new and 'layer_types' in new
  a, b = map(gemma.Config.from_hf, (old, new))
  assert dataclasses.replace(a, hf='') == dataclasses.replace(b, hf='')
  assert a.sliding == (True, True, False, True) and a.window == 3
  assert (a.theta, a.sliding_theta, a.scaling.factor) == (1e5, 500.0, 8.0)


def test_null_is_no_cap_and_gelu_was_the_tanh():
  config = gemma.Config.from_hf(hf(
      'gemma2', attn_logit_softcapping=None, final_logit_softcapping=7.0))
  assert (config.score_cap, config.logit_cap) == (None, 7.0)
  config = gemma.Config.from_hf(hf('gemma', hidden_act='gelu',
                                   hidden_activation=None))
  assert config.activation == 'gelu'


def test_an_untied_head_is_said():
  assert not gemma.Config.from_hf(hf(tie_word_embeddings=False)).tied


@pytest.mark.parametrize('changes, message', [
    (dict(attention_bias=True), 'attention_bias True is not supported'),
    (dict(use_bidirectional_attention=True), 'use_bidirectional_attention'),
    (dict(hidden_activation='silu'), "hidden_act 'silu'.*gelu_pytorch_tanh"),
    (dict(layer_types=['full_attention']), 'layer_types has 1 layers'),
    (dict(layer_types=['full_attention', 'chunked']), "'chunked'"),
    (dict(sliding_window=0), 'sliding_window 0'),
    (dict(rope_scaling=dict(rope_type='yarn', factor=4.0)), "'yarn'"),
    (dict(rope_scaling=dict(rope_type='linear', factor=0)), 'factor 0'),
    (dict(rope_parameters=dict(sliding_attention=dict(rope_type='linear'))),
     "'linear' of the sliding layers")])
def test_config_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    gemma.Config.from_hf(hf(**changes))


def test_windows_count_a_packed_document_from_the_prompt():
  """Two documents in one row see what they see in rows of their own."""
  config = gemma.Config.from_hf(hf(sliding_window_pattern=2))
  module = gemma.build(config)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: gemma.init_params(config, jax.random.key(0)))
  params = jax.tree.map(
      lambda x: jnp.asarray(rng.normal(size=x.shape) / 3, jnp.float32), shapes)
  mask = jnp.asarray([[False, True, True, True]])
  batch = types.Prompts(
      tokens=jnp.asarray([[9, 4, 5, 6]]), mask=mask,
      positions=jnp.repeat(jnp.asarray([[7, 0, 1, 2]])[..., None], 3, -1),
      next_position=jnp.asarray([3]), media={}, uid=jnp.asarray([0]))
  apart = jnp.asarray([[[11, 12, 13], [21, 22, 23]]])
  after = lambda *x: jnp.repeat(jnp.asarray(x)[..., None] + 3, 3, -1)

  @jax.jit
  def run(params, tokens, positions, segment):
    variables = {'params': params}
    prefix = module.apply(variables, batch, method='prompt_pass')
    return module.apply(
        variables, prefix, mask, tokens, positions,
        jnp.ones(tokens.shape, bool), segment, method='completion_pass')

  expected = run(params, apart, after([[0, 1, 2], [0, 1, 2]]), None)
  got = run(params, apart.reshape(1, 1, 6), after([[0, 1, 2, 0, 1, 2]]),
            jnp.asarray([[[1, 1, 1, 2, 2, 2]]]))
  np.testing.assert_allclose(
      got.reshape(expected.shape), expected, atol=1e-5, rtol=0)


VISION = dict(image_size=32, patch_size=4, hidden_size=24,
              num_attention_heads=2, num_hidden_layers=1)


@pytest.mark.parametrize('family', gemma_vl.FAMILIES)
def test_a_silent_config_with_images(family):
  """Both sections empty; transformers fills them in."""
  config = gemma_vl.Config.from_hf(dict(
      model_type=family, text_config={}, vision_config={},
      mm_tokens_per_image=49, projection_dim=3072))
  theirs = transformers.AutoConfig.for_model(
      family, text_config={}, vision_config={})
  text, vision = theirs.text_config, theirs.vision_config
  assert (config.vocab, config.width, config.mlp_width, config.depth,
          config.heads, config.kv_heads, config.head_width, config.tied) == (
              text.vocab_size, text.hidden_size, text.intermediate_size,
              text.num_hidden_layers, text.num_attention_heads,
              text.num_key_value_heads, text.head_dim,
              theirs.tie_word_embeddings)
  v = config.vision
  assert (v.width, v.mlp_width, v.depth, v.heads, v.image, v.patch, v.eps) == (
      vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers,
      vision.num_attention_heads, vision.image_size, vision.patch_size,
      vision.layer_norm_eps)


def test_the_head_is_tied_at_the_top():
  said = dict(model_type='gemma3', vision_config=VISION, text_config=dict(
      tie_word_embeddings=True), mm_tokens_per_image=16)
  assert gemma_vl.Config.from_hf(said).tied
  assert not gemma_vl.Config.from_hf(said | dict(
      tie_word_embeddings=False)).tied


@pytest.mark.parametrize('family, changes, message', [
    ('gemma3', dict(mm_tokens_per_image=9), 'mm_tokens_per_image 9.*8 patches'),
    ('gemma3', dict(mm_tokens_per_image=15), 'mm_tokens_per_image 15'),
    ('gemma3', dict(text_config=dict(model_type='gemma2')), "'gemma2'"),
    ('gemma3', dict(vision_config=None), '`vision_config` is missing'),
    ('paligemma', dict(text_config=None), '`text_config` is missing'),
    ('gemma3', dict(vision_config=dict(VISION, vision_use_head=True)),
     'vision_use_head True'),
    ('gemma3', dict(vision_config=dict(VISION, image_size=33)),
     'image_size 33 must be a multiple of patch_size 4'),
    ('gemma3', dict(vision_config=dict(VISION, model_type='clip')), "'clip'"),
    ('paligemma', dict(vision_config=dict(VISION, hidden_act='gelu')),
     "hidden_act 'gelu'"),
    ('paligemma', dict(projection_dim=7), 'projection_dim 7 must equal')])
def test_config_errors_with_images(family, changes, message):
  hf = dict(model_type=family, vision_config=VISION, text_config={},
            mm_tokens_per_image=16)
  with pytest.raises(ValueError, match=message):
    gemma_vl.Config.from_hf(hf | changes)
