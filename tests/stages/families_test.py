"""A whole run from each family's folder: nothing in a stage knows which."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import forkme
import mmr1
from mmr1 import checkpoint
from mmr1 import log
from mmr1 import trees
from mmr1.data import processor as processor_lib
from mmr1.models import checkpoints
from mmr1.models import gemma
from mmr1.models import gemma_vl
from mmr1.models import internvl
from mmr1.models import llava_onevision
from mmr1.models import qwen_vl
from mmr1.models import text_decoder
from tests import gemma as tiny_gemma
from tests import internvl as tiny_internvl
from tests import llava_onevision as tiny_llava

EMBEDDED = pathlib.Path(checkpoints.__file__).parent.parent / 'assets' / 'tiny'
# Contents are strings here, as text-only models have it: a list would fail.
CHAT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TEXT = dict(
    vocab_size=768, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
    rms_norm_eps=1e-6, hidden_act='silu', tie_word_embeddings=True)
ROPE = dict(rope_type='default', rope_theta=1e4)
MROPE = dict(ROPE, mrope_section=[2, 3, 3])
PATCH = dict(patch_size=8, num_heads=2, depth=2)
GEMMA = dict(head_dim=20, hidden_act='gelu', num_hidden_layers=2,
             sliding_window=8, sliding_window_pattern=2)
# model_type: (code, what config.json has beside TEXT)
FAMILIES = {
    'qwen2': (text_decoder, dict(rope_parameters=ROPE)),
    'qwen3': (text_decoder, dict(rope_parameters=ROPE, head_dim=20)),
    'llama': (text_decoder, dict(rope_parameters=dict(
        rope_type='llama3', rope_theta=1e4, factor=4.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=32))),
    'gemma': (gemma, GEMMA),
    'gemma2': (gemma, GEMMA),
    'gemma3_text': (gemma, GEMMA),
    'gemma3': (gemma_vl, tiny_gemma.config('gemma3')),
    'paligemma': (gemma_vl, tiny_gemma.config('paligemma')),
    'internvl': (internvl, dict(
        text_config=dict(TEXT, model_type='qwen2', rope_parameters=ROPE),
        vision_config=tiny_internvl.VISION)),
    'llava_onevision': (llava_onevision, dict(
        text_config=dict(TEXT, model_type='qwen2', rope_parameters=ROPE),
        vision_config=dict(tiny_llava.VISION, image_size=34, patch_size=8))),
    'qwen2_vl': (qwen_vl, dict(rope_parameters=MROPE, vision_config=dict(
        PATCH, embed_dim=40, mlp_ratio=2, hidden_size=32))),
    'qwen2_5_vl': (qwen_vl, dict(rope_parameters=MROPE, vision_config=dict(
        PATCH, hidden_size=32, intermediate_size=48, out_hidden_size=32,
        window_size=32, fullatt_block_indexes=[1], tokens_per_second=2))),
    'qwen3_vl': (qwen_vl, dict(
        rope_parameters=MROPE, head_dim=16, vision_config=dict(
            PATCH, hidden_size=40, intermediate_size=48, out_hidden_size=32,
            num_position_embeddings=16, deepstack_visual_indexes=[1]))),
}


# Of those whose media are written with other tokens: the tokens, in place of
# the embedded model's, and the files of the folder.
OTHERS = {
    'internvl': (
        {'<|vision_start|>': '<img>', '<|vision_end|>': '</img>',
         '<|image_pad|>': '<IMG_CONTEXT>', '<|video_pad|>': '<video>'},
        {'preprocessor_config.json': tiny_internvl.PREPROCESSOR,
         'video_preprocessor_config.json': tiny_internvl.CLIPS,
         'chat_template.jinja': tiny_internvl.CHAT}),
    'llava_onevision': (
        {'<|image_pad|>': '<image>', '<|video_pad|>': '<video>'},
        {'preprocessor_config.json': tiny_llava.PREPROCESSOR | dict(
            size=dict(height=34, width=34), image_grid_pinpoints=[[34, 34]]),
         'video_preprocessor_config.json': {},
         'chat_template.jinja': tiny_llava.CHAT})}
# The others share their code with one that is run, or with every other test.
RUN_BY_HAND = (
    'qwen2', 'llama', 'gemma', 'gemma2', 'gemma3_text', 'gemma3', 'paligemma',
    'internvl', 'qwen2_5_vl')
# Folders with a tokenizer of their own.
WRITERS = {name: tiny_gemma.write for name in gemma_vl.FAMILIES}


@pytest.fixture(params=[
    pytest.param(name, marks=pytest.mark.slow if name in RUN_BY_HAND else ())
    for name in FAMILIES])
def folder(request, tmp_path):
  """(family, its folder)."""
  return request.param, write(request.param, tmp_path / request.param)


def write(family, path, weights=True):
  """A folder of the family: the embedded model's tokenizer, random weights."""
  code, more = FAMILIES[family]
  if family in WRITERS:
    path.mkdir()
    WRITERS[family](path, family)
  else:
    shutil.copytree(EMBEDDED, path,
                    ignore=shutil.ignore_patterns('*.safetensors'))
    (path / 'config.json').write_text(json.dumps(
        dict(TEXT, model_type=family, **more)))
  if family in processor_lib.TEXT_FAMILIES:
    for name in ('preprocessor_config.json', 'video_preprocessor_config.json'):
      (path / name).unlink()
    (path / 'chat_template.jinja').write_text(CHAT)
  if family in OTHERS:
    tokens, files = OTHERS[family]
    for name in ('tokenizer.json', 'tokenizer_config.json'):
      text = (path / name).read_text()
      for old, new in tokens.items():
        text = text.replace(json.dumps(old), json.dumps(new))
      (path / name).write_text(text)
    for name, x in files.items():
      (path / name).write_text(x if isinstance(x, str) else json.dumps(x))
  if not weights:
    return path
  sizes = checkpoints.read_config(path)
  params = jax.tree_util.tree_map_with_path(  # as in tests.conftest
      lambda path, x: 10 * x if 'embed' in str(path) else x,
      code.init_params(sizes, jax.random.key(0)))
  checkpoints.save(path, code.build(sizes), params)
  return path


def test_families_are_all_here():
  assert set(FAMILIES) == set(checkpoints.FAMILIES)


def test_m1_m21_two_steps_of_rl(folder, shrink, tmp_path):
  """Text from a file; digits in pictures for those that read them."""
  family, path = folder
  c = shrink(forkme.get_config(), model__path=str(path),
             evaluation__examples=2)
  if family in processor_lib.TEXT_FAMILIES:
    data = tmp_path / 'sums.jsonl'
    data.write_text(''.join(json.dumps(dict(
        problem=f'What is {i} + {i % 7}?', answer=str(i + i % 7))) + '\n'
        for i in range(40)))
    c.data.path = str(data)
  if family in WRITERS:
    c.data.prompt_tokens = 256  # words of these tokenizers are letters
  c.rl.rewards = ('one',)
  c.rewards.one = dict(fn='tests.own:even', weight=1.0, in_pool=False,
                       limit_s=5.0, kwargs=dict())
  c.grpo.steps, c.grpo.prompts_per_step = 2, 4
  c.grpo.samples_per_prompt, c.grpo.max_new_tokens = 4, 8
  c.grpo.optimizer.lr = 1e-2
  frozen = ('visual/.*',)[:family not in processor_lib.TEXT_FAMILIES]
  c.grpo.optimizer.freeze = frozen
  results = mmr1.run(c, tmp_path / 'run', quiet=True)
  rows = [row for row in log.read_rows(tmp_path / 'run' / 'metrics.jsonl')
          if 'loss' in row]
  assert [row['step'] for row in rows] == [1, 2]
  for row in rows:
    assert row['sampler/logp_diff_max'] < 1e-4
    assert row['grad_norm'] > 0 and row['update/skipped'] == 0
    assert np.isfinite(row['loss']) and row['entropy'] > 0
    assert row['reward/std'] > 0
  assert set(results) == {'base', 'grpo'}
  assert results['grpo']['eval/n'] == 2
  # M21: what is frozen did not move, and the rest did.
  before = checkpoints.load(path)[1]
  structs = checkpoints.describe(path, param_dtype='float32')[1]
  after = checkpoint.Checkpoints(tmp_path / 'run', read_only=True).restore(
      'grpo', {'params': {'policy': structs}}, only=('params/policy/.*',))
  after = trees.named(after.tree['params']['policy'])
  same = {name: np.array_equal(leaf, after[name])
          for name, leaf in trees.named(before).items()}
  assert all(equal for name, equal in same.items() if 'visual' in name)
  assert not any(equal for name, equal in same.items()
                 if 'layers' in name and 'kernel' in name)
  assert any('visual' in name for name in same) == bool(frozen)
