"""A tiny LLaVA-OneVision: views of 5 x 5 patches, and pixels left over."""

import functools

from transformers import video_utils
from transformers.models.llava_onevision import processing_llava_onevision
import transformers

from tests import tiles
from tests.models import passes

SIZE, PATCH, SIDE = 33, 6, 5  # 3 pixels are left over
SPECIAL = ('<image>', '<video>')
MEAN = STD = [0.5, 0.5, 0.5]
PINPOINTS = [[SIZE * a, SIZE * b] for a in range(1, 4) for b in range(1, 4)]
ASPECT = 'anyres_max_4'  # so that 3 x 3 views are shrunk
# As the hub's folders have it.
CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', "
    "'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', "
    "'video') %}{{ '<video>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', "
    "'text') %}{{ content['text'] }}{% endfor %}"
    "{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
VISION = dict(
    model_type='siglip_vision_model', hidden_size=32, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=44, image_size=SIZE,
    patch_size=PATCH, vision_use_head=False)
PREPROCESSOR = dict(
    image_processor_type='LlavaOnevisionImageProcessor',
    size=dict(height=SIZE, width=SIZE), image_mean=MEAN, image_std=STD,
    image_grid_pinpoints=PINPOINTS)
CLIPS = dict(size=dict(height=SIZE, width=SIZE), image_mean=MEAN,
             image_std=STD, do_sample_frames=True, num_frames=3)


def sections(tied=False):
  return dict(
      text_config=dict(tiles.TEXT, model_type='qwen2', tie_word_embeddings=tied,
                       rope_parameters=dict(
                           rope_type='default', rope_theta=1e6)),
      vision_config=VISION, image_grid_pinpoints=PINPOINTS,
      vision_aspect_ratio=ASPECT,
      image_token_index=tiles.token(SPECIAL, '<image>'),
      video_token_index=tiles.token(SPECIAL, '<video>'))


def write(folder):
  """A folder without weights."""
  return tiles.write(folder, SPECIAL, CHAT, {
      'preprocessor_config': PREPROCESSOR,
      'video_preprocessor_config': CLIPS,
      'config': dict(model_type='llava_onevision', **sections())})


@functools.cache
def model(tied):
  return passes.randomise(
      transformers.LlavaOnevisionForConditionalGeneration(
          transformers.LlavaOnevisionConfig(
              attn_implementation='eager', **sections(tied))), seed=int(tied))


def oracle(folder, tied=None):
  """Both sides of a folder; `model(tied)` is saved into it."""
  result = tiles.Oracle(
      folder, None if tied is None else model(tied),
      processing_llava_onevision.LlavaOnevisionProcessor,
      tiles.Videos(SIZE, MEAN, STD, sampled), num_image_tokens=SIDE**2,
      vision_feature_select_strategy='full', vision_aspect_ratio=ASPECT)
  if tied is not None:
    model(tied).save_pretrained(folder)
  return result


def sampled(total, rate, frames=3):
  return video_utils.default_sample_indices_fn(
      video_utils.VideoMetadata(total_num_frames=total, fps=rate), frames)
