"""Writes the embedded model's folder, weights apart: a Hugging Face layout.

The tokenizer is a byte-level BPE with Qwen's pre-tokenisation and special
tokens, trained on the pre-training documents.
"""

from collections.abc import Iterable
import json

from etils import epath
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import trainers

SPECIAL = (
    '<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|object_ref_start|>',
    '<|object_ref_end|>', '<|box_start|>', '<|box_end|>', '<|quad_start|>',
    '<|quad_end|>', '<|vision_start|>', '<|vision_end|>', '<|vision_pad|>',
    '<|image_pad|>', '<|video_pad|>')
# Qwen2's split: contractions, letters with one leading sign, single digits,
# signs with an optional leading space, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """Byte-level BPE with Qwen's split; special tokens come last, as there."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(tokenizers.Regex(SPLIT), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=vocab_size - len(SPECIAL),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False)
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.add_special_tokens(
      [tokenizers.AddedToken(t, special=True, normalized=False)
       for t in SPECIAL])
  return tokenizer


def config(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> dict:
  """config.json of a 1.7M-parameter Qwen2.5-VL."""
  token = tokenizer.token_to_id
  text = {
      'model_type': 'qwen2_5_vl_text', 'vocab_size': vocab_size,
      'hidden_size': 128, 'intermediate_size': 512, 'num_hidden_layers': 4,
      'num_attention_heads': 4, 'num_key_value_heads': 2,
      'hidden_act': 'silu', 'max_position_embeddings': 4096,
      'rms_norm_eps': 1e-6, 'use_sliding_window': False,
      'rope_parameters': {
          'rope_type': 'default', 'rope_theta': 10000.0,
          'mrope_section': [6, 5, 5]},
      'tie_word_embeddings': True, 'use_cache': True, 'dtype': 'bfloat16',
      'bos_token_id': token('<|endoftext|>'),
      'eos_token_id': token('<|im_end|>'),
      'pad_token_id': token('<|endoftext|>')}
  vision = {
      'model_type': 'qwen2_5_vl', 'depth': 4, 'hidden_size': 96,
      'intermediate_size': 256, 'num_heads': 4, 'in_channels': 3,
      'patch_size': 8, 'temporal_patch_size': 2, 'spatial_merge_size': 2,
      'window_size': 32, 'fullatt_block_indexes': [1, 3],
      'out_hidden_size': 128, 'hidden_act': 'silu', 'tokens_per_second': 2}
  return {
      'architectures': ['Qwen2_5_VLForConditionalGeneration'],
      'model_type': 'qwen2_5_vl', 'dtype': 'bfloat16',
      'tie_word_embeddings': True,
      'image_token_id': token('<|image_pad|>'),
      'video_token_id': token('<|video_pad|>'),
      'vision_start_token_id': token('<|vision_start|>'),
      'vision_end_token_id': token('<|vision_end|>'),
      'eos_token_id': token('<|im_end|>'),
      'pad_token_id': token('<|endoftext|>'),
      'text_config': text, 'vision_config': vision}


def _preprocessor() -> dict:
  return {
      'image_processor_type': 'Qwen2VLImageProcessor',
      'processor_class': 'Qwen2_5_VLProcessor',
      'size': {'shortest_edge': 512, 'longest_edge': 16384},
      'patch_size': 8, 'temporal_patch_size': 2, 'merge_size': 2,
      'image_mean': [0.5, 0.5, 0.5], 'image_std': [0.5, 0.5, 0.5],
      'do_rescale': True, 'do_normalize': True, 'do_resize': True,
      'do_convert_rgb': True, 'resample': 3}


def write(
    folder: str, texts: Iterable[str], vocab_size: int) -> dict:
  """Writes every file but the weights; returns config.json's content."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer = train_tokenizer(texts, vocab_size)
  model = config(tokenizer, vocab_size)

  def put(name, content):
    (folder / name).write_text(json.dumps(content, indent=2) + '\n')
  (folder / 'tokenizer.json').write_text(tokenizer.to_str(pretty=False))
  put('tokenizer_config.json', {
      'tokenizer_class': 'Qwen2Tokenizer', 'add_prefix_space': False,
      'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>',
      'bos_token': None, 'unk_token': None, 'model_max_length': 4096,
      'clean_up_tokenization_spaces': False,
      'additional_special_tokens': list(SPECIAL[1:])})
  put('config.json', model)
  put('preprocessor_config.json', _preprocessor())
  put('video_preprocessor_config.json', {
      **_preprocessor(), 'video_processor_type': 'Qwen2VLVideoProcessor'})
  put('generation_config.json', {
      'do_sample': True, 'temperature': 1.0,
      'bos_token_id': model['text_config']['bos_token_id'],
      'eos_token_id': [model['eos_token_id']],
      'pad_token_id': model['pad_token_id']})
  (folder / 'chat_template.jinja').write_text(CHAT_TEMPLATE)
  return model
