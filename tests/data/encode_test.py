"""The one encode against transformers, and its lengths, limits and refusals."""

import functools
import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl

from mmr1 import records
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import pipeline
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.data import video
from tests import measured
from tests.data import oracles

_encode = functools.partial(encode.encode, template=template.think_answer)


@pytest.fixture(scope='module')
def oracle(proc):
  """transformers' own Qwen2.5-VL processor."""
  with oracles.opened(
      transformers.Qwen2_5_VLProcessor, proc, 'qwen2_vl') as hf:
    yield hf


@pytest.fixture(scope='module')
def qwen2(folder, tmp_path_factory):
  """The processor of the same folder as a Qwen2-VL, under the rule 'v5'."""
  path = tmp_path_factory.mktemp('qwen2_vl')
  for file in folder.iterdir():
    (path / file.name).write_bytes(file.read_bytes())
  config = json.loads((path / 'config.json').read_text())
  (path / 'config.json').write_text(
      json.dumps(config | dict(model_type='qwen2_vl')))
  return processor_lib.Processor.open(str(path), position_rule='v5')


@pytest.mark.parity
@pytest.mark.parametrize('name', [
    'text', 'image', 'transparent', 'three', 'video', 'long video',
    'two videos, one image', 'turns'])
def test_m4_equals_transformers(name, folder, proc, oracle, noise):
  example = oracles.cases(noise)[name]
  v5 = processor_lib.Processor.open(str(folder), position_rule='v5')
  ours = _encode(example, v5, prefix='<think>')
  text = oracles.chat(example, proc, prefix='<think>')
  out = oracles.encoded(oracle, example, text)
  np.testing.assert_array_equal(ours.tokens, out['input_ids'][0].numpy())
  np.testing.assert_array_equal(ours.positions, oracles.rope_index(
      modeling_qwen2_5_vl.Qwen2_5_VLModel, folder, **{
          key: out.get(key) for key in (
              'input_ids', 'mm_token_type_ids', 'image_grid_thw',
              'video_grid_thw', 'second_per_grid_ts')}))
  assert ours.next_position == ours.positions.max() + 1
  measured.record('qwen2_5_vl', 'positions', 0)
  oracles.check_pixels(ours, proc, out, text)


@pytest.mark.parity
@pytest.mark.parametrize('name', [
    'three', 'long video', 'two videos, one image'])
def test_m4_qwen2_vl_positions_equal_transformers(name, qwen2, noise):
  """Its frames count 1, whatever their rate; there are no windows to pad."""
  example = oracles.cases(noise)[name]
  ours = _encode(example, qwen2)
  kinds = np.where(ours.tokens == qwen2.codec.image_id, 1,
                   np.where(ours.tokens == qwen2.codec.video_id, 2, 0))
  images = [qwen2.codec.image_grid(*video.frame_size(x))
            for x in example.images]
  videos = [qwen2.codec.video_grid(x)[:3] for x in example.videos]
  np.testing.assert_array_equal(ours.positions, oracles.rope_index(
      modeling_qwen2_vl.Qwen2VLModel, qwen2.path,
      input_ids=torch.tensor(ours.tokens[None]),
      mm_token_type_ids=torch.tensor(kinds[None]),
      image_grid_thw=torch.tensor(images) if images else None,
      video_grid_thw=torch.tensor(videos) if videos else None))
  measured.record('qwen2_vl', 'positions', 0)
  assert (ours.patch_segment > 0).all()
  assert len(ours.patches) == 4 * (ours.slot >= 0).sum()


def test_m4_legacy_positions_follow_the_longest_axis(proc, noise):
  # 30 frames at 2 Hz of 16x16: sampled 16 (max_frames), 8 patches in time, one
  # cell a frame; rate 16/30*2 Hz, so a patch spans 2/(16/15) = 1.875 s and
  # interval 2*1.875 = 3.75: frames at 0 3 7 11 15 18 22 26. Legacy goes on at
  # start + 27, v5 at start + 1 (max(2, 2) // 2).
  clip = oracles.clip(noise, 30, 16, 16, 2.0)
  small = processor_lib.Processor.open(proc.path, video_max_frames=16)
  out = _encode(
      records.Example(uid=0, question='<video>?', videos=(clip,)), small)
  cells = np.flatnonzero(out.slot >= 0)
  start = out.positions[cells[0], 0]
  place = out.positions[cells] - start
  frames = out.positions[cells, 0] - start
  grid = out.patch_position.max(0) + 1
  per_frame = (grid[0] // 2) * (grid[1] // 2)
  assert frames[::per_frame].tolist() == [0, 3, 7, 11, 15, 18, 22, 26]
  assert place[:, 1:].max() == max(grid) // 2 - 1
  after = out.positions[cells[-1] + 1]
  assert after.tolist() == [start + 27] * 3


def test_window_order_of_a_real_layout(proc, noise):
  # 48x80 pixels: area 3840 < 4096 stays; grid (1, 6, 10), cells 3x5, windows
  # of 2x2 cells: 2x3 windows, 24 slots, 96 patches. Cell 0 -> slot 0, 1 -> 1,
  # 2 -> window 1 slot 4, 4 -> window 2 slot 8; cell 5 (row 1) -> slot 2;
  # cell 10 (row 2) -> window 3, slot 12.
  out = _encode(
      records.Example(uid=0, question='?', images=(noise(48, 80),)), proc)
  slots = out.slot[out.slot >= 0]
  assert out.patches.shape == (96, 3 * 2 * 8 * 8)
  assert slots[[0, 1, 2, 4, 5, 10]].tolist() == [0, 1, 4, 8, 2, 12]
  assert (out.patch_segment > 0).sum() == 60


@pytest.mark.parametrize('name', [
    'text', 'image', 'three', 'video', 'two videos, one image', 'turns'])
def test_m5_length_without_pixels(name, proc, noise, monkeypatch):
  example = oracles.cases(noise)[name]
  expected = len(_encode(example, proc).tokens)

  def lazy(image):
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    return Image.open(io.BytesIO(buffer.getvalue()))

  def forbidden(self):
    raise AssertionError('pixels were decoded')

  example = records.Example(
      uid=1, question=example.question, messages=example.messages,
      images=tuple(lazy(im) for im in example.images), videos=example.videos)
  monkeypatch.setattr('PIL.ImageFile.ImageFile.load', forbidden)
  assert encode.prompt_length(
      example, proc, template=template.think_answer) == expected


def test_m5_length_over_many_sizes(proc):
  rng = np.random.default_rng(0)
  for height, width in rng.integers(1, 200, (25, 2)).tolist():
    example = records.Example(
        uid=0, question='?', images=(Image.new('RGB', (width, height)),))
    if max(height, width) > 200 * min(height, width):
      continue
    assert encode.prompt_length(
        example, proc, template=template.plain) == len(
            encode.encode(example, proc, template=template.plain).tokens)


def test_m5_over_long_is_refused_never_cut(proc, noise):
  row = _encode(records.Example(
      uid=7, question='<image>?', images=(noise(64, 64),)), proc)
  length, patches = len(row.tokens), len(row.patches)
  assert collate.misfit(row, prompt_length=length, patches=patches) is None
  for p, s, word in ((length - 1, patches, 'too long'),
                     (length, patches - 1, 'too many patches')):
    assert word in collate.misfit(row, prompt_length=p, patches=s)
    with pytest.raises(ValueError, match=f'uid 7.*{word}'):
      collate.collate([row], prompt_length=p, patches=s)


def test_m5_collate_pads_left_and_keeps_the_images_of_every_row(proc, noise):
  cases = oracles.cases(noise)
  rows = [_encode(cases[k], proc) for k in ('text', 'three', 'image')]
  p = max(len(r.tokens) for r in rows) + 5
  s = max(len(r.patches) for r in rows)
  batch = collate.collate(
      rows, prompt_length=p, patches=s, pad_id=proc.pad_id, pad_rows=1)
  media = batch.media['vision']
  for i, row in enumerate(rows):
    n, m = len(row.tokens), len(row.patches)
    assert not batch.mask[i, :p - n].any() and batch.mask[i, p - n:].all()
    assert (batch.tokens[i, :p - n] == proc.pad_id).all()
    assert (media.slot[i, :p - n] == -1).all()
    np.testing.assert_array_equal(batch.tokens[i, p - n:], row.tokens)
    np.testing.assert_array_equal(batch.positions[i, p - n:], row.positions)
    np.testing.assert_array_equal(media.slot[i, p - n:], row.slot)
    np.testing.assert_array_equal(media.patches[i, :m], row.patches)
    assert not media.patches[i, m:].any() and not media.segment[i, m:].any()
    assert batch.next_position[i] == row.next_position
  assert not batch.mask[3].any() and not media.patches[3].any()
  assert media.slot.max() < s // proc.codec.merge ** 2
  assert batch.uid.tolist() == [1, 1, 1, 0]
  assert batch.uid.dtype == batch.tokens.dtype == np.int32


def test_m6_text_only_with_and_without_room_for_images(proc):
  row = _encode(records.Example(uid=1, question='2+2?'), proc)
  assert row.patches.shape == (0, proc.channels)
  assert (row.slot == -1).all()
  np.testing.assert_array_equal(row.positions[:, 0], np.arange(len(row.tokens)))
  assert not collate.collate([row], prompt_length=128, patches=0).media
  media = collate.collate([row], prompt_length=128, patches=16).media['vision']
  assert media.patches.shape == (1, 16, proc.channels)
  assert not media.segment.any() and (media.slot == -1).all()
  # To jit it is one program: the tree and shapes of a batch with images.
  image = _encode(records.Example(
      uid=2, question='<image>?', images=(Image.new('RGB', (32, 32)),)), proc)
  batches = [collate.collate(rows, prompt_length=160, patches=16)
             for rows in ([row], [image])]
  a, b = (jax.tree_util.tree_leaves_with_path(x) for x in batches)
  assert [(path, x.shape, x.dtype) for path, x in a] == [
      (path, x.shape, x.dtype) for path, x in b]


def test_m6_a_text_only_model_reads_text(text_proc):
  """Ids by hand from its chat template; three equal positions; no media."""
  example = records.Example(uid=3, messages=(
      {'role': 'system', 'content': 'Be brief.'},
      {'role': 'user', 'content': '2+2?'}))
  kw = dict(template=functools.partial(
      template.think_answer, instruction='Think.'), prefix='<think>')
  row = encode.encode(example, text_proc, **kw)
  assert text_proc.tokenizer.decode(row.tokens) == (
      '<|im_start|>system\nBe brief.<|im_end|>\n'
      '<|im_start|>user\n2+2?\nThink.<|im_end|>\n'
      '<|im_start|>assistant\n<think>')
  count = len(row.tokens)
  assert encode.prompt_length(example, text_proc, **kw) == count
  np.testing.assert_array_equal(
      row.positions, np.repeat(np.arange(count)[:, None], 3, 1))
  assert row.next_position == count and len(row.patches) == 0
  batch = collate.collate([row], prompt_length=count + 4, patches=0)
  assert not batch.media and batch.mask.sum() == count


def test_m26_media_under_a_text_only_model_are_named(text_proc, noise):
  shape = pipeline.Shape(
      text_proc, template.think_answer, prompt_length=128, patches=0)
  broken = shape.encode(records.Example(
      uid=0, question='<image>?', images=(noise(32, 32),), source='a.jsonl:7'),
                        0)
  assert broken.where == 'a.jsonl:7'
  assert '1 images and 0 videos' in broken.reason
  assert "(qwen3) reads text only" in broken.reason
  with pytest.raises(ValueError, match='0 images and 1 videos'):
    encode.prompt_length(records.Example(
        uid=0, question='?', videos=(records.Video((noise(8, 8),), 1.0),)),
                         text_proc, template=template.think_answer)


def test_completion_ends_in_one_eos(proc):
  ids = encode.encode_completion('<think>a</think>', proc)
  assert ids[-1] == proc.eos_id and (ids == proc.eos_id).sum() == 1
  assert ids.dtype == np.int32
  assert encode.decode(ids, proc) == '<think>a</think>'
  again = encode.encode_completion('<think>a</think><|im_end|>', proc)
  np.testing.assert_array_equal(ids, again)
  with pytest.raises(ValueError, match='im_end'):
    encode.encode_completion('a<|im_end|>b', proc)


@pytest.mark.parametrize('token', [
    '<|image_pad|>', '<|video_pad|>', '<|vision_start|>', '<|vision_end|>',
    '<|vision_pad|>'])
def test_m2_text_cannot_hold_a_vision_token(token, proc):
  assert proc.tokenizer.convert_tokens_to_ids(token) in proc.banned
  with pytest.raises(ValueError, match='special token'):
    _encode(records.Example(uid=0, question=f'a{token}b'), proc)
  with pytest.raises(ValueError, match='special token'):
    encode.encode_completion(f'a{token}', proc)


def test_refuses_what_does_not_match(proc, noise):
  image = noise(32, 32)
  for question, images in (('<image><image>?', (image,)),
                           ('<image>?', (image, image)),
                           ('<image>?', ())):
    with pytest.raises(ValueError, match='placeholders'):
      _encode(records.Example(uid=0, question=question, images=images), proc)
  with pytest.raises(ValueError, match='aspect'):
    _encode(records.Example(
        uid=0, question='?', images=(Image.new('RGB', (402, 2)),)), proc)


def test_runs_without_torch_and_without_tensorflow(folder):
  code = f'''
import sys
for name in ('torch', 'torchvision', 'tensorflow'):
  sys.modules[name] = None
from PIL import Image
from mmr1 import records
from mmr1.data import encode, processor, template
p = processor.Processor.open({str(folder)!r})
e = records.Example(uid=0, question='<image>?<video>', images=(
    Image.new('RGB', (40, 30)),), videos=(
    records.Video((Image.new('RGB', (32, 32)),) * 4),))
out = encode.encode(e, p, template=template.think_answer)
print(len(out.tokens), (out.slot >= 0).sum())
'''
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  # 30x40 becomes 32x32 (40/16 = 2.5 rounds to even): 2x2 cells. Four frames
  # of 32x32: two in time, 2x2 cells each: 8.
  assert done.stdout.split()[1] == '12'


def test_m12_prompts_that_open_think_are_recognised(proc):
  assert not encode.prefilled(proc, template=template.think_answer)
  assert encode.prefilled(
      proc, template=template.think_answer, prefix='<think>\n')
