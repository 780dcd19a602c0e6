"""Images of Gemma 3 and PaliGemma.

Every image is resized to one square, whatever its shape, and is a fixed number
of tokens: one for a cell of patches (Gemma 3) or for each (PaliGemma). Pan and
scan (crops beside the image, off in Gemma 3's folders) is not supported.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from mmr1.data import checks
from mmr1.data.codecs import base

# What transformers assumes where config.json is silent; tokens of Gemma 3.
_IMAGE_SIZE, _PATCH_SIZE, _TOKENS = 224, 16, 256
START, SOFT, END = '<start_of_image>', '<image_soft_token>', '<end_of_image>'
IMAGE = '<image>'
# PaliGemma's folders have no chat template. It reads images, bos, a text and a
# line's end, and answers until eos; a dialogue repeats text and answer.
PALIGEMMA_CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% endif %}"
    "{% endfor %}{% endfor %}{{ bos_token }}"
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ eos_token if message['role'] == 'assistant' else '\n' }}"
    "{% endfor %}")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Codec(base.Codec):
  """See `base.Codec`.

  Fields:
    image_processor: a `transformers` PIL image processor.
    text: of an image in the chat, its cells one placeholder.
    size, patch: pixels per side of an image and of a patch.
    cell: patches per side of a cell.
  """
  image_processor: Any = dataclasses.field(repr=False)
  text: str
  size: int
  patch: int
  cell: int

  @property
  def pixels_of_patch(self):
    return base.pixels_of_patch(self.image_processor, self.patch)

  def image_span(self, height, width):
    del height, width  # resized to one size
    return base.Span(self.text, (self.window_patches // self.unit,))

  def image_pixels(self, images):
    # The folders say null where they mean that alpha and palettes are dropped.
    pixels = self.image_processor(
        images=list(images), do_convert_rgb=True,
        return_tensors='np')['pixel_values']
    expected = (len(images), 3, self.size, self.size)
    if pixels.shape != expected:
      raise ValueError(
          f'the image processor made pixels {pixels.shape}, expected '
          f'{expected}: preprocessor_config.json resizes in another way.')
    return [self.layout(np.asarray(x, np.float32)) for x in pixels]

  def layout(self, pixels: np.ndarray) -> base.Pixels:
    """Pixels f32[3, size, size] -> patches, cell by cell."""
    cells, k, p = self.size // self.patch // self.cell, self.cell, self.patch
    # Channel, (cell, patch, pixel) down, (cell, patch, pixel) across.
    x = pixels.reshape(3, cells, k, p, cells, k, p)
    patches = x.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, self.channels)
    place = np.stack(np.meshgrid(
        *[np.arange(cells * k)] * 2, indexing='ij'), -1)
    place = place.reshape(cells, k, cells, k, 2).swapaxes(1, 2)
    return base.Pixels(
        patches=patches, position=place.reshape(-1, 2).astype(np.int32),
        segment=np.ones(len(patches), np.int32),
        slot=np.arange(cells**2, dtype=np.int32))


def open_codec(
    folder: str, path: str, config: Any, tokenizer: Any,
    options: base.Options) -> Codec:
  """Reads the families' part of a checkpoint folder, see `qwen.open_codec`.

  Raises:
    ValueError: something is missing, contradictory or not supported.
  """
  family, vision = config['model_type'], config.get('vision_config', {})
  size = vision.get('image_size') or _IMAGE_SIZE
  patch = vision.get('patch_size') or _PATCH_SIZE
  cell, text, ids = 1, IMAGE, {'image_id': (IMAGE, 'image_token_index')}
  if family == 'gemma3':
    cell = size // patch // math.isqrt(
        config.get('mm_tokens_per_image', _TOKENS))
    text = f'\n\n{START}{SOFT}{END}\n\n'
    ids = {'image_id': (SOFT, 'image_token_index'),
           'image_start_id': (START, 'boi_token_index'),
           'image_end_id': (END, 'eoi_token_index')}
  ids = checks.tokens(tokenizer, config, path, ids)
  if options.min_pixels is not None or options.max_pixels is not None:
    raise ValueError(
        f'data.min_pixels={options.min_pixels}, data.max_pixels='
        f'{options.max_pixels}: {family!r} resizes every image to {size} x '
        f'{size} pixels. Leave both unset (None).')
  return Codec(
      image_mark=START if family == 'gemma3' else IMAGE, video_mark='',
      image_id=ids['image_id'], video_id=-1,
      banned=tuple(sorted(ids.values())), channels=3 * patch**2,
      unit=cell**2, window_patches=(size // patch)**2, min_pixels=size**2,
      max_pixels=size**2, image_processor=_image_processor(folder, path, size),
      text=text, size=size, patch=patch, cell=cell)


def _image_processor(folder, path, size):
  import transformers  # costs a second: only when a folder is opened
  result = transformers.AutoImageProcessor.from_pretrained(
      folder, backend='pil')
  made = dict(result.size)
  if (made.get('height'), made.get('width')) != (size, size):
    raise ValueError(
        f'{path}: size {made} in preprocessor_config.json, but image_size '
        f'{size} in config.json.')
  if vars(result).get('do_pan_and_scan'):
    raise ValueError(
        f'{path}: do_pan_and_scan true in preprocessor_config.json is not '
        'supported; set it to false.')
  return result
