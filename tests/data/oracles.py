"""transformers' own processors of Qwen VLs, and examples for both sides."""

import ast
import contextlib
import inspect
import math
import pathlib

import numpy as np
import pytest
import torch
import transformers
from transformers.image_processing_utils import BatchFeature
from transformers.video_utils import VideoMetadata

from mmr1 import positions
from mmr1 import records
from mmr1.data import template
from tests import measured


def original(family, *names):
  """Functions and methods of a family's video processor, by name.

  Its module cannot be imported without torchvision, so they are taken out of
  its source text.
  """
  path = (pathlib.Path(inspect.getfile(transformers)).parent / 'models' /
          family / f'video_processing_{family}.py')
  found = [node for node in ast.walk(ast.parse(path.read_text()))
           if isinstance(node, ast.FunctionDef) and node.name in names]
  for node in found:
    for argument in ast.walk(node.args):
      if isinstance(argument, ast.arg):
        argument.annotation = None
    node.returns = None
  space = {'torch': torch, 'math': math, 'np': np}
  exec(compile(ast.Module(found, []), str(path), 'exec'), space)
  return tuple(space[name] for name in names)


def _frame_budget(count, height, width, c):
  del count
  return positions.smart_resize(
      height, width, factor=c.patch * c.merge, min_pixels=c.min_pixels,
      max_pixels=c.max_pixels)


def _clip_budget(count, height, width, c):
  smart_resize, = original('qwen3_vl', 'smart_resize')
  return smart_resize(
      count, height, width, temporal_factor=c.temporal,
      factor=c.patch * c.merge, min_pixels=c.min_pixels,
      max_pixels=c.max_pixels)


class VideoProcessor:
  """A family's video processor with torch's antialiased bicubic resize."""
  model_input_names = ['pixel_values_videos', 'video_grid_thw']

  def __init__(self, config, family):
    self.config = config
    self.sample, self.patchify = original(family, 'sample_frames', 'patchify')
    self.resized = _clip_budget if family == 'qwen3_vl' else _frame_budget
    self.merge_size = config.merge
    self.temporal_patch_size = config.temporal
    self.num_frames, self.fps = None, config.fps
    self.rates = ()  # of the clips of the next call
    self.min_frames, self.max_frames = config.min_frames, config.max_frames

  def fetch_videos(self, videos, **kwargs):
    return videos

  def __call__(self, videos, **kwargs):
    patches, grids, metadata = [], [], []
    for clip, rate in zip(videos, self.rates, strict=True):
      info = VideoMetadata(total_num_frames=len(clip), fps=rate)
      info.frames_indices = self.sample(self, info).tolist()
      frames = torch.stack([
          torch.from_numpy(np.array(clip[i])).permute(2, 0, 1)
          for i in info.frames_indices])
      c = self.config
      size = self.resized(len(frames), *frames.shape[-2:], c)
      frames = torch.nn.functional.interpolate(
          frames, size, mode='bicubic', antialias=True).float()
      mean, std = (
          torch.tensor(x).mul(255).view(3, 1, 1) for x in (c.mean, c.std))
      out, *grid = self.patchify(
          self, ((frames - mean) / std)[None], patch_size=c.patch,
          merge_size=c.merge, temporal_patch_size=c.temporal)
      patches.append(out[0])
      grids.append(grid)
      metadata.append(info)
    return BatchFeature(dict(
        pixel_values_videos=torch.cat(patches), video_metadata=metadata,
        video_grid_thw=torch.tensor(grids)))


@contextlib.contextmanager
def opened(cls, proc, family):
  """transformers' own processor of what `proc` has opened."""
  patch = pytest.MonkeyPatch()
  patch.setattr(cls, 'check_argument_for_proper_class', lambda *a: None)
  yield cls(
      image_processor=proc.codec.image_processor, tokenizer=proc.tokenizer,
      video_processor=VideoProcessor(proc.codec.video, family),
      chat_template=proc.tokenizer.chat_template)
  patch.undo()


def chat(example, proc, prefix=''):
  return proc.tokenizer.apply_chat_template(
      template.think_answer(example), tokenize=False,
      add_generation_prompt=True) + prefix


def encoded(hf, example, text):
  """What `hf` makes of an example whose chat is `text`."""
  hf.video_processor.rates = [clip.fps for clip in example.videos]
  clips = [np.stack([np.asarray(f) for f in clip.frames])
           for clip in example.videos]
  return hf(
      text=[text], images=list(example.images) or None, videos=clips or None,
      return_tensors='pt')


def rope_index(cls, path, **inputs):
  """Positions [p, 3] that a model of `cls` finds for one prompt."""
  model = cls.__new__(cls)
  torch.nn.Module.__init__(model)
  model.config = transformers.AutoConfig.from_pretrained(path)
  return model.get_rope_index(**inputs)[0][:, 0].T.numpy()


def check_pixels(ours, proc, out, text):
  """The patches of an `Encoded` are those of `out`, cell by cell.

  Returns:
    the grids, in order of appearance.
  """
  kinds = {proc.codec.image_id: 'image', proc.codec.video_id: 'video'}
  images, videos = (
      out.get(f'{k}_grid_thw', torch.zeros(0, 3)).int().tolist()
      for k in ('image', 'video'))
  parts = {
      'image': iter(np.split(
          out.get('pixel_values', torch.zeros(0, proc.channels)).numpy(),
          np.cumsum([np.prod(g) for g in images])[:-1].astype(int))),
      'video': iter(np.split(
          out.get('pixel_values_videos',
                  torch.zeros(0, proc.channels)).numpy(),
          np.cumsum([np.prod(g) for g in videos])[:-1].astype(int)))}
  rest = {'image': iter(images), 'video': iter(videos)}
  order = [kinds[i] for i in proc.tokenizer(text)['input_ids'] if i in kinds]
  expected = np.concatenate([
      np.zeros((0, proc.channels)), *[next(parts[k]) for k in order]])
  grids = [tuple(next(rest[k])) for k in order]
  pixels = in_file_order(ours, proc, grids, expected)
  # The same bytes: only the order of the normalisation differs.
  if len(expected):
    assert np.abs(pixels - expected).max() <= 1e-5
    measured.record(proc.family, 'pixels', np.abs(pixels - expected).max())
  if not videos and images:  # images go through transformers' own code
    np.testing.assert_array_equal(pixels, expected.astype(np.float32))
  return grids


def in_file_order(encoded, proc, grids, pixels):
  """Undoes the window order by the slots alone; checks positions, segments.

  Returns the real patches in the order of the placeholder tokens.
  """
  unit = proc.codec.merge ** 2
  slots = encoded.slot[encoded.slot >= 0]
  assert len(set(slots)) == len(slots)
  rows = (slots[:, None] * unit + np.arange(unit)).ravel()
  segments = np.concatenate([np.zeros(0, int), *[
      np.full(h * w, 1 + frame + sum(g[0] for g in grids[:i]))
      for i, (t, h, w) in enumerate(grids) for frame in range(t)]])
  np.testing.assert_array_equal(encoded.patch_segment[rows], segments)
  place = np.concatenate([np.zeros((0, 2), int), *[
      positions.patch_positions(g, proc.codec.merge) for g in grids]])
  np.testing.assert_array_equal(encoded.patch_position[rows], place)
  padded = np.setdiff1d(np.arange(len(encoded.patches)), rows)
  assert not encoded.patch_segment[padded].any()
  assert not encoded.patches[padded].any()
  assert pixels.shape == encoded.patches[rows].shape
  return encoded.patches[rows]


def clip(noise, count, height, width, fps, seed=0):
  return records.Video(frames=tuple(
      noise(height, width, seed + i) for i in range(count)), fps=fps)


def cases(noise):
  one = noise(50, 70)
  three = (noise(16, 90, 1), noise(64, 64, 2), noise(37, 21, 3))
  nine, short = clip(noise, 9, 40, 60, 4.0), clip(noise, 3, 33, 33, 2.0, 20)
  long = clip(noise, 30, 16, 16, 2.0, 40)
  return {
      'text': records.Example(uid=1, question='2+2?'),
      'image': records.Example(
          uid=1, question='<image>What is it?', images=(one,)),
      'transparent': records.Example(
          uid=1, question='<image>?', images=(one.convert('RGBA').rotate(30),)),
      'three': records.Example(
          uid=1, question='<image>a<image>b\n<image> differ?', images=three),
      'video': records.Example(
          uid=1, question='<video>What happens?', videos=(nine,)),
      'long video': records.Example(
          uid=1, question='<video>When?', videos=(long,)),
      'two videos, one image': records.Example(
          uid=1, question='<video>then<image>then<video>?', images=(one,),
          videos=(nine, short)),
      'turns': records.Example(uid=1, images=(one, three[0]), messages=(
          {'role': 'system', 'content': 'Be brief.'},
          {'role': 'user', 'content': 'First <image>.'},
          {'role': 'assistant', 'content': 'Yes.'},
          {'role': 'user', 'content': 'And <image>?'})),
  }
