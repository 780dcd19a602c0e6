"""A tiny InternVL: 4 x 4 patches a tile, 2 x 2 cells, up to 6 tiles."""

import functools

import torch
import transformers
from transformers.models.internvl import processing_internvl

from tests import tiles
from tests.models import passes

TILE, PATCH = 32, 8
SPECIAL = ('<img>', '</img>', '<IMG_CONTEXT>', '<video>')
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# As the hub's folders have it.
CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}")
VISION = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=44, image_size=[TILE, TILE], patch_size=[PATCH, PATCH])
PREPROCESSOR = dict(
    image_processor_type='GotOcr2ImageProcessor',
    size=dict(height=TILE, width=TILE), image_mean=MEAN, image_std=STD,
    min_patches=1, max_patches=6, crop_to_patches=False)
CLIPS = dict(size=dict(height=TILE, width=TILE), image_mean=MEAN,
             image_std=STD, do_sample_frames=True, num_frames=3)
# (text_config, vision_config, tied): InternVL3's small ones; the 6B tower.
KINDS = {
    'small': (dict(tiles.TEXT, model_type='qwen2', rope_parameters=dict(
        rope_type='dynamic', factor=2.0, rope_theta=1e6)),
        dict(VISION, attention_bias=True), True),
    'large': (dict(tiles.TEXT, model_type='llama', head_dim=12),
              dict(VISION, norm_type='rms_norm', use_qk_norm=True,
                   use_mean_pooling=False), False)}


def write(folder, **config):
  """A folder without weights."""
  text, vision, tied = KINDS['small']
  return tiles.write(folder, SPECIAL, CHAT, {
      'preprocessor_config': PREPROCESSOR,
      'video_preprocessor_config': CLIPS,
      'config': dict(
          model_type='internvl', text_config=text, vision_config=vision,
          image_token_id=tiles.token(SPECIAL, '<IMG_CONTEXT>'),
          image_seq_length=4, tie_word_embeddings=tied) | config},
      names=dict(start_image_token='<img>', end_image_token='</img>',
                 context_image_token='<IMG_CONTEXT>', video_token='<video>'))


@functools.cache
def model(kind):
  text, vision, tied = KINDS[kind]
  result = transformers.InternVLForConditionalGeneration(
      transformers.InternVLConfig(
          text_config=text, vision_config=vision,
          image_token_id=tiles.token(SPECIAL, '<IMG_CONTEXT>'),
          image_seq_length=4, tie_word_embeddings=tied,
          attn_implementation='eager'))
  passes.randomise(result, seed=len(kind))
  with torch.no_grad():
    for name, x in result.named_parameters():
      if 'lambda' in name:
        x += 1  # as much as the other branch
  return result


def oracle(folder, kind=None):
  """Both sides of a folder; `model(kind)` is saved into it."""
  result = tiles.Oracle(
      folder, kind and model(kind), processing_internvl.InternVLProcessor,
      tiles.Videos(TILE, MEAN, STD, sampled), image_seq_length=4)
  if kind:
    model(kind).save_pretrained(folder)
  return result


def sampled(total, rate, frames=3):
  """The indices that transformers takes, in its own arithmetic."""
  del rate
  shift = total / frames / 2
  return torch.arange(shift, total, total / frames).int().tolist()
