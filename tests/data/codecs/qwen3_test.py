"""Qwen3-VL's images and videos against transformers."""

import functools
import io
import json

import jax
import numpy as np
import pytest
import transformers
from PIL import Image
from transformers.models.qwen3_vl import modeling_qwen3_vl

from mmr1 import positions
from mmr1 import records
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template
from tests import measured
from tests.data import conftest
from tests.data import oracles

_encode = functools.partial(encode.encode, template=template.think_answer)
MARK = '<|vision_start|><|video_pad|><|vision_end|>'
CASES = ('text', 'image', 'transparent', 'three', 'one row', 'video',
         'long video', 'two videos, one image', 'turns')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = conftest.write_folder(
      tmp_path_factory.mktemp('qwen3_vl'), model_type='qwen3_vl',
      vision_config=dict(patch_size=8))
  settings = json.loads((path / 'preprocessor_config.json').read_text())
  (path / 'preprocessor_config.json').write_text(json.dumps(settings | dict(
      image_mean=[0.5] * 3, image_std=[0.5] * 3)))
  (path / 'video_preprocessor_config.json').write_text(json.dumps(dict(
      size=dict(shortest_edge=32 * 32, longest_edge=5 * 48 * 48), fps=2,
      min_frames=4, max_frames=16)))
  return path


@pytest.fixture(scope='module')
def proc(folder):
  return processor_lib.Processor.open(str(folder))


@pytest.fixture(scope='module')
def v5(folder):
  return processor_lib.Processor.open(str(folder), position_rule='v5')


@pytest.fixture(scope='module')
def oracle(proc):
  with oracles.opened(
      transformers.Qwen3VLProcessor, proc, 'qwen3_vl') as hf:
    yield hf


def case(name, noise):
  if name == 'one row':  # and one column: a cell high, and a cell wide
    return records.Example(
        uid=1, question='<image><image>?',
        images=(noise(9, 250), noise(400, 3)))
  return oracles.cases(noise)[name]


def check(ours, proc, hf, example, text, folder):
  out = oracles.encoded(hf, example, text)
  np.testing.assert_array_equal(ours.tokens, out['input_ids'][0].numpy())
  np.testing.assert_array_equal(ours.positions, oracles.rope_index(
      modeling_qwen3_vl.Qwen3VLModel, folder, **{
          key: out.get(key) for key in (
              'input_ids', 'mm_token_type_ids', 'image_grid_thw',
              'video_grid_thw')}))
  assert ours.next_position == ours.positions.max() + 1
  measured.record('qwen3_vl', 'positions', 0)
  return out


@pytest.mark.parity
@pytest.mark.parametrize('name', CASES)
def test_m4_equals_transformers(name, folder, proc, v5, oracle, noise):
  example = case(name, noise)
  ours = _encode(example, v5, prefix='<think>')
  text = oracles.chat(example, proc, prefix='<think>')
  out = check(ours, proc, oracle, example, text, folder)
  grids = oracles.check_pixels(ours, proc, out, text)
  # No window is ever padded, so that patches lie in file order.
  sizes = np.concatenate([np.zeros((0, 2)), *[
      np.broadcast_to(grid[1:], (int(np.prod(grid)), 2)) for grid in grids]])
  np.testing.assert_array_equal(ours.patch_extent, sizes)


@pytest.mark.parametrize('name', ['video', 'two videos, one image'])
def test_m4_legacy_has_no_pair_around_a_video(name, folder, proc, v5, oracle,
                                              noise):
  """As transformers 5 makes of a chat without it. All else is the same."""
  example = case(name, noise)
  ours = _encode(example, proc)
  text = oracles.chat(example, proc).replace(MARK, '<|video_pad|>')
  check(ours, proc, oracle, example, text, folder)
  other = _encode(example, v5)
  videos = len(example.videos)
  assert len(other.tokens) == len(ours.tokens) + 2 * videos
  np.testing.assert_array_equal(ours.patches, other.patches)


def test_a_video_by_hand(proc, noise):
  # 9 frames at 4 Hz: 2.25 s, 4 frames at 2 Hz, from the first to the last: 0,
  # 2.67, 5.33, 8 -> 0, 3, 5, 8. Patches of two: (0 + 3) / 2 / 4 = 0.375 s,
  # printed 0.4, and 6.5 / 4 = 1.625, printed 1.6. Four frames of 40 x 60
  # round to 32 x 64 (2.5 to even, 3.75 up): 8192 pixels, within the budget of
  # 1024 to 11520. 2 x 4 cells a patch.
  clip = oracles.clip(noise, 9, 40, 60, 4.0)
  example = records.Example(uid=0, question='<video>?', videos=(clip,))
  out = encode.encode(example, proc, template=template.plain)
  text = proc.tokenizer.decode(out.tokens)
  pads = '<|vision_start|>' + 8 * '<|video_pad|>' + '<|vision_end|>'
  assert f'<0.4 seconds>{pads}<1.6 seconds>{pads}?' in text
  # Rows and columns start anew at every frame; its time is one position.
  cells = out.positions[out.slot >= 0].reshape(2, 8, 3)
  for frame in cells:
    start = frame[0, 0]
    assert (frame[:, 0] == start).all()
    assert (frame[:, 1] - start).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (frame[:, 2] - start).tolist() == [0, 1, 2, 3] * 2
  # Text goes on after the wider side: 4 columns.
  after = out.positions[np.flatnonzero(out.slot >= 0)[7] + 1]
  assert after.tolist() == [cells[0, 0, 0] + 4] * 3
  assert sorted(set(out.patch_segment)) == [1, 2]
  assert out.patch_extent.tolist() == [[4, 8]] * 64


@pytest.mark.parametrize('name', CASES)
def test_m5_length_without_pixels(name, proc, noise, monkeypatch):
  example = case(name, noise)
  expected = len(_encode(example, proc).tokens)

  def lazy(image):
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    return Image.open(io.BytesIO(buffer.getvalue()))

  def forbidden(self):
    raise AssertionError('pixels were decoded')

  example = records.Example(
      uid=1, question=example.question, messages=example.messages,
      images=tuple(map(lazy, example.images)), videos=tuple(
          records.Video(tuple(map(lazy, clip.frames)), clip.fps)
          for clip in example.videos))
  monkeypatch.setattr('PIL.ImageFile.ImageFile.load', forbidden)
  assert encode.prompt_length(
      example, proc, template=template.think_answer) == expected


def test_m6_text_and_images_are_one_program(proc):
  """The tree and the shapes of a batch do not depend on what is in it."""
  rows = [_encode(records.Example(uid=1, question=question, images=images),
                  proc)
          for question, images in (
              ('2+2?', ()), ('<image>?', (Image.new('RGB', (32, 32)),)))]
  assert rows[0].patch_extent.shape == (0, 2)
  a, b = (jax.tree.map(lambda x: (x.shape, x.dtype), collate.collate(
      [row], prompt_length=160, patches=16)) for row in rows)
  assert a == b
  media = collate.collate(rows, prompt_length=160, patches=32).media['vision']
  assert media.extent[1, :16].tolist() == [[4, 4]] * 16
  assert not media.extent[0].any() and not media.extent[1, 16:].any()


def test_what_is_not_said_is_as_transformers_has_it(folder, tmp_path):
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  (tmp_path / 'video_preprocessor_config.json').unlink()
  settings = json.loads((tmp_path / 'preprocessor_config.json').read_text())
  (tmp_path / 'preprocessor_config.json').write_text(
      json.dumps(settings | dict(patch_size=16)))
  config = json.loads((tmp_path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(
      json.dumps(config | dict(vision_config={})))
  codec = processor_lib.Processor.open(str(tmp_path)).codec
  assert (codec.patch, codec.merge, codec.temporal) == (16, 2, 2)
  assert codec.window_patches == codec.unit == 4
  assert (codec.video.min_pixels, codec.video.max_pixels) == (
      128 * 32**2, 768 * 32**2)
  assert (codec.video.min_frames, codec.video.max_frames) == (4, 768)
  assert codec.video.frame_cells is None
  # The images' budget is the fixture's, 4096 pixels: 32 x 64.
  assert codec.image_grid(480, 640) == (1, 2, 4)


def test_m4_positions_do_not_depend_on_the_rule(proc, v5, noise):
  """A frame is never longer than wide: the two rules agree on its end."""
  example = case('long video', noise)
  out = _encode(example, proc)
  spans = [grid for clip in example.videos
           for grid in proc.codec.video_span(clip).grids]
  for rule in positions.RULES:
    again, following = positions.rope_index(
        out.tokens, spans, image_id=proc.codec.image_id,
        video_id=proc.codec.video_id, merge=2, tokens_per_second=1.0,
        rule=rule)
    np.testing.assert_array_equal(again, out.positions)
    assert following == out.next_position
