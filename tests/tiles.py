"""Tiny checkpoints of families that cut images into tiles, on both sides.

A folder has a byte-level tokenizer, what a family's codec reads and, once
transformers saved a model into it, weights. Prompts are made here by the one
encode and there by the family's own processor.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
import torch
from transformers.image_processing_utils import BatchFeature

from mmr1 import records
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template

VOCAB = 320
TURNS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
TEXT = dict(
    vocab_size=VOCAB, hidden_size=48, intermediate_size=80,
    num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, rms_norm_eps=1e-6, bos_token_id=None,
    eos_token_id=None)


def write(folder, special, chat, files, names=None):
  """A folder: tokenizer, chat template and JSON files.

  Args:
    folder: where.
    special: tokens that stand for media; the bytes, padding and turns are
      before them.
    chat: chat template.
    files: {name: contents}; 'config' may name tokens, they become ids.
    names: {attribute of the tokenizer: special token}.
  """
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokenizer = tokenizers.Tokenizer(models.BPE(
      vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([
      tokenizers.AddedToken(t, special=True) for t in (*TURNS, *special)])
  tokenizer.save(str(folder / 'tokenizer.json'))
  files = {'tokenizer_config': dict(
      tokenizer_class='PreTrainedTokenizerFast', pad_token='<|endoftext|>',
      eos_token='<|im_end|>', chat_template=chat, model_max_length=4096,
      extra_special_tokens=names or {}), **files}
  for name, contents in files.items():
    (folder / f'{name}.json').write_text(json.dumps(contents))
  return folder


def token(special, name):
  """The id that `write` gives it."""
  return 256 + len(TURNS) + special.index(name)


def noise(height, width, seed=0):
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (7, 9, 3), np.uint8)
  return Image.fromarray(small).resize((width, height))


def examples(tile):
  """Text; an image; three of other shapes; a clip and an image."""
  clip = records.Video(
      tuple(noise(tile, tile, seed) for seed in range(5)), fps=2.0)
  return [
      records.Example(uid=0, question='Add 2 and 3.', answer='5'),
      records.Example(uid=1, question='a<image>b', answer='',
                      images=(noise(40, 56, 1),)),
      records.Example(uid=2, question='<image>?<image><image> c', answer='',
                      images=(noise(1, 50, 2), noise(200, 30, 3),
                              noise(33, 33, 4))),
      records.Example(uid=3, question='<video>then <image>', answer='',
                      images=(noise(20, 90, 5),), videos=(clip,))]


class Videos:
  """What a family's video processor makes of clips, without torchvision.

  Attributes:
    tile: side of the frames.
    mean, std: of pixels.
    sample: number of frames, rate -> indices.
    rate: of the clips.
  """
  model_input_names = ['pixel_values_videos']

  def __init__(self, tile, mean, std, sample, rate=2.0):
    self.tile, self.sample, self.rate = tile, sample, rate
    self.mean, self.std = mean, std

  def fetch_videos(self, videos, **kw):
    return videos

  def __call__(self, videos, **kw):
    made = []
    for clip in videos:
      frames = torch.stack([
          torch.from_numpy(np.array(clip[i])).permute(2, 0, 1)
          for i in self.sample(len(clip), self.rate)])
      frames = torch.nn.functional.interpolate(
          frames, (self.tile, self.tile), mode='bicubic', antialias=True)
      mean, std = (torch.tensor(x).mul(255).view(3, 1, 1)
                   for x in (self.mean, self.std))
      made.append((frames.float() - mean) / std)
    return BatchFeature(dict(pixel_values_videos=torch.stack(made)))


class Oracle:
  """A family in transformers, and its inputs on both sides.

  Attributes:
    proc: our processor of the folder.
    model: the torch model.
    theirs: its processor in transformers.
  """

  def __init__(self, folder, model, cls, videos, **kw):
    self.proc = processor_lib.Processor.open(str(folder))
    self.model = model
    patch = pytest.MonkeyPatch()
    patch.setattr(cls, 'check_argument_for_proper_class', lambda *a: None)
    self.theirs = cls(
        image_processor=self.proc.codec.image_processor,
        tokenizer=self.proc.tokenizer, video_processor=videos, **kw)
    patch.undo()

  def encode(self, example):
    return encode.encode(example, self.proc, template=template.plain)

  def prompts(self, rows, *, p, s):
    """`types.Prompts` of examples."""
    batch = collate.collate(
        [self.encode(row) for row in rows], prompt_length=p, patches=s)
    return jax.tree.map(jnp.asarray, batch)

  def inputs(self, example, extra=()):
    """Keyword arguments of transformers for one prompt + `extra`."""
    text = self.proc.tokenizer.apply_chat_template(
        template.plain(example), tokenize=False, add_generation_prompt=True)
    media = {}
    if example.images:
      media['images'] = [list(example.images)]
    if example.videos:
      media['videos'] = [list(x.frames) for x in example.videos]
    out = dict(self.theirs(text=[text], return_tensors='pt', **media))
    out['input_ids'] = torch.cat([
        out['input_ids'], torch.tensor(np.asarray(extra)[None]).long()], 1)
    out['attention_mask'] = torch.ones_like(out['input_ids'])
    for name in ('mm_token_type_ids', 'token_type_ids', 'num_patches'):
      out.pop(name, None)
    return out

  def logits(self, example, extra=(), model=None):
    """f32[1 + len(extra), V], from the prompt's last token on."""
    inputs = self.inputs(example, extra)
    logits = (model or self.model)(**inputs).logits[0]
    return logits[-1 - len(extra):]


def completions(batch, g, t, seed=0):
  """Random tokens i32[N, G, T] of ragged lengths, positions and mask."""
  rng = np.random.default_rng(seed)
  n = batch.tokens.shape[0]
  tokens = rng.integers(0, 250, (n, g, t)).astype(np.int32)
  lengths = rng.integers(max(1, t // 2), t + 1, (n, g, 1))
  lengths[:, 0] = t
  place = np.asarray(batch.next_position)[:, None, None] + np.arange(t)
  place = np.repeat(np.broadcast_to(place, (n, g, t))[..., None], 3, -1)
  return (jnp.asarray(tokens), jnp.asarray(place, jnp.int32),
          jnp.asarray(np.arange(t) < lengths))
