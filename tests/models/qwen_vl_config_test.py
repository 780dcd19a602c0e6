"""Reading the config.json of a Qwen VL."""

import dataclasses
import json

import pytest

from mmr1.models import qwen_vl_config

Config = qwen_vl_config.Config


def hf_json(saved, family, **changes):
  """Its config.json; `changes` of `text_config` or `vision_config`."""
  hf = json.loads((saved(family, True) / 'config.json').read_text())
  for section, change in changes.items():
    hf[section] |= change
  return hf


@pytest.mark.parametrize('family', qwen_vl_config.FAMILIES)
def test_config_layouts_agree(saved, family):
  """The hub's flat config.json with rope_scaling, and transformers 5's."""
  nested = hf_json(saved, family)
  flat = {**nested, **nested['text_config'], 'model_type': family}
  rope = flat.pop('rope_parameters')
  del flat['text_config']
  flat |= {'rope_theta': rope['rope_theta'], 'rope_scaling': {
      'type': 'mrope', 'mrope_section': rope['mrope_section']}}
  a, b = map(Config.from_hf, (nested, flat))
  assert dataclasses.replace(a, hf='') == dataclasses.replace(b, hf='')
  assert a.tied


def test_sizes_of_each_family(saved):
  """By hand from the configs of the fixtures."""
  two, better, three = (
      Config.from_hf(hf_json(saved, family))
      for family in ('qwen2_vl', 'qwen2_5_vl', 'qwen3_vl'))
  v = two.vision
  assert (v.width, v.mlp_width, v.out_width, v.mlp) == (
      40, 80, 56, 'quick_gelu')
  assert (two.head_width, v.window_patches, v.windows, v.table) == (
      8, 4, False, 0)
  v = better.vision
  assert (better.head_width, v.window_patches, v.windows) == (12, 36, True)
  assert (v.full_layers, v.mlp, v.patch_bias) == ((1,), 'swiglu', False)
  v = three.vision
  assert (three.head_width, three.qk_norm, three.qkv_bias) == (80, True, False)
  assert (three.sections, three.section_order) == (
      (16, 12, 12), 'interleaved')
  assert (v.table, v.deepstack, v.patch_bias, v.windows) == (
      5, (0, 2), True, False)


def test_what_is_absent_is_as_transformers_has_it():
  """Of the 8B model: its config.json says no more than this of its sizes."""
  config = Config.from_hf(dict(
      model_type='qwen3_vl', text_config=dict(
          num_hidden_layers=36, num_key_value_heads=8, intermediate_size=12288,
          head_dim=None, rope_scaling=dict(mrope_interleaved=True)),
      vision_config=dict(out_hidden_size=4096)))
  assert (config.depth, config.head_width, config.theta) == (36, 128, 5e5)
  assert config.sections == (24, 20, 20)
  v = config.vision
  assert (v.depth, v.width, v.heads, v.mlp_width) == (27, 1152, 16, 4304)
  assert (v.patch, v.table, v.deepstack) == (16, 48, (8, 16, 24))
  assert not config.tied


@pytest.mark.parametrize('family, section, change, message', [
    ('qwen2_5_vl', 'text_config', {'use_sliding_window': True},
     'sliding window'),
    ('qwen2_5_vl', 'text_config', {'hidden_size': 50}, 'multiple'),
    ('qwen2_5_vl', 'text_config', {'rope_parameters': {
        'rope_type': 'yarn', 'rope_theta': 1e6}}, "'yarn' is not supported"),
    ('qwen2_5_vl', 'text_config', {'rope_parameters': {
        'mrope_section': [2, 2, 3], 'rope_theta': 1e6}}, 'half the head'),
    ('qwen2_5_vl', 'vision_config', {'out_hidden_size': 7},
     'out_hidden_size 7'),
    ('qwen2_5_vl', 'vision_config', {'window_size': 4}, 'no merged cell'),
    ('qwen2_vl', 'text_config', {'rope_parameters': {
        'mrope_section': [2, 2, 3], 'rope_theta': 1e6}}, 'half the head'),
    ('qwen2_vl', 'vision_config', {'hidden_size': 40},
     'own width is .*embed_dim'),
    ('qwen2_vl', 'vision_config', {'hidden_act': 'gelu'}, 'quick_gelu'),
    ('qwen2_vl', 'vision_config', {'embed_dim': 44},
     'multiple of 4 x num_heads'),
    ('qwen3_vl', 'text_config', {'attention_bias': True},
     'attention_bias True'),
    ('qwen3_vl', 'text_config', {'rope_parameters': {
        'rope_theta': 1e6, 'mrope_interleaved': False}},
     'mrope_interleaved False'),
    ('qwen3_vl', 'text_config', {'num_hidden_layers': 1},
     'more than the 1 layers'),
    ('qwen3_vl', 'vision_config', {'hidden_act': 'silu'}, 'gelu_pytorch_tanh'),
    ('qwen3_vl', 'vision_config', {'num_position_embeddings': 24},
     '24 must be a square'),
    ('qwen3_vl', 'vision_config', {'deepstack_visual_indexes': [2, 0]},
     r'\[2, 0\] must ascend'),
    ('qwen3_vl', 'vision_config', {'deepstack_visual_indexes': [3]},
     'layers of the tower, 0 to 2')])
def test_config_errors(saved, family, section, change, message):
  with pytest.raises(ValueError, match=message):
    Config.from_hf(hf_json(saved, family, **{section: change}))


def test_run_time_choices(saved):
  with pytest.raises(ValueError, match="layers='loop'"):
    Config.from_hf(hf_json(saved, 'qwen3_vl'), layers='loop')


def test_a_model_without_its_tower(saved):
  hf = hf_json(saved, 'qwen3_vl')
  del hf['vision_config']
  with pytest.raises(ValueError, match='`vision_config` is missing'):
    Config.from_hf(hf)
