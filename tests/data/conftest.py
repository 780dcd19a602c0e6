"""A tiny Qwen2.5-VL folder for the tests of the data pipeline."""

import json

import numpy as np
import pytest
import tokenizers
from PIL import Image
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

SPECIAL = (
    '<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|vision_start|>',
    '<|vision_end|>', '<|vision_pad|>', '<|image_pad|>', '<|video_pad|>')
# The chat template that Qwen2-VL and Qwen2.5-VL ship, whitespace included.
CHAT = (
    "{% set image_count = namespace(value=0) %}"
    "{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content "
    "or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

# As text-only models have it: contents must be strings.
TEXT_CHAT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def write_folder(folder, **config):
  """Writes config, byte-level tokenizer, pixels and chat template."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {c: i for i, c in enumerate(alphabet)}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(
      [tokenizers.AddedToken(t, special=True) for t in SPECIAL])
  tokenizer.save(str(folder / 'tokenizer.json'))
  first = len(alphabet)
  ids = {token: first + i for i, token in enumerate(SPECIAL)}
  _json(folder / 'tokenizer_config.json', dict(
      tokenizer_class='PreTrainedTokenizerFast', pad_token='<|endoftext|>',
      eos_token='<|im_end|>', chat_template=CHAT, model_max_length=4096))
  _json(folder / 'config.json', dict(
      model_type='qwen2_5_vl', vocab_size=320,
      bos_token_id=first, eos_token_id=ids['<|im_end|>'],
      image_token_id=ids['<|image_pad|>'], video_token_id=ids['<|video_pad|>'],
      vision_start_token_id=ids['<|vision_start|>'],
      vision_end_token_id=ids['<|vision_end|>'],
      vision_config=dict(
          patch_size=8, spatial_merge_size=2, temporal_patch_size=2,
          window_size=32, tokens_per_second=2)) | config)
  _json(folder / 'preprocessor_config.json', dict(
      image_processor_type='Qwen2VLImageProcessor', min_pixels=16 * 16,
      max_pixels=64 * 64, patch_size=8, temporal_patch_size=2, merge_size=2,
      image_mean=[0.48145466, 0.4578275, 0.40821073],
      image_std=[0.26862954, 0.26130258, 0.27577711]))
  _json(folder / 'video_preprocessor_config.json', dict(
      min_pixels=16 * 16, max_pixels=48 * 48, fps=2, min_frames=4,
      max_frames=16))
  return folder


def _json(path, value):
  path.write_text(json.dumps(value))


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp('checkpoint'))


@pytest.fixture(scope='session')
def proc(folder):
  from mmr1.data import processor
  return processor.Processor.open(str(folder))


@pytest.fixture(scope='session')
def text_folder(folder, tmp_path_factory):
  """A text-only model with that tokenizer, vision tokens and all."""
  result = tmp_path_factory.mktemp('text')
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (result / name).write_bytes((folder / name).read_bytes())
  settings = json.loads((result / 'tokenizer_config.json').read_text())
  _json(result / 'tokenizer_config.json', settings | dict(
      chat_template=TEXT_CHAT))
  _json(result / 'config.json', dict(model_type='qwen3', vocab_size=320))
  return result


@pytest.fixture(scope='session')
def text_proc(text_folder):
  from mmr1.data import processor
  return processor.Processor.open(str(text_folder))


@pytest.fixture
def noise():
  """(height, width, seed) -> a PIL image of smooth noise."""
  def make(height, width, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(small).resize((width, height))
  return make
