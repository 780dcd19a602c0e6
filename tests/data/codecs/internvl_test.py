"""InternVL's tiles and clips against transformers, and their refusals."""

import dataclasses
import json
import pickle

import numpy as np
from PIL import Image
import pytest
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2

from mmr1 import records
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.data.codecs import internvl
from tests import internvl as tiny
from tests import measured
from tests import tiles


@pytest.fixture(scope='module')
def oracle(tmp_path_factory):
  """Both sides, without a model."""
  folder = tiny.write(tmp_path_factory.mktemp('internvl'))
  return tiny.oracle(folder)


@pytest.fixture
def edit(tmp_path):
  """A folder of its own with one JSON file changed."""
  def make(name='config', **changes):
    file = tiny.write(tmp_path) / f'{name}.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(tmp_path)
  return make


@pytest.fixture(scope='module')
def odd():
  """Frames that are not tiles: their resize is torch's there."""
  frames = tuple(np.asarray(tiles.noise(50, 70, seed)) for seed in range(7))
  image = tiles.noise(70, 41, 9).convert('RGBA')
  image.putalpha(100)
  return records.Example(
      uid=5, question='<image><video> and <video>', answer='',
      images=(image,), videos=(records.Video(frames),
                               records.Video(frames[::-1], fps=9.0)))


def test_a_token_of_videos_without_a_row(edit):
  """Released folders have as many rows as tokens before <video>, the last."""
  video = tiles.token(tiny.SPECIAL, '<video>')
  path = edit(text_config=dict(tiny.KINDS['small'][0], vocab_size=video))
  opened = processor_lib.Processor.open(path)
  assert opened.vocab_size == video
  clip = records.Video((np.zeros((9, 9, 3), np.uint8),) * 2)
  got = encode.encode(
      records.Example(uid=0, question='<video>x', videos=(clip,)), opened,
      template=template.plain)
  assert got.tokens.max() < video
  with pytest.raises(ValueError, match='special token <video>'):
    encode.encode_completion('<video>', opened)
  path = edit(text_config=dict(tiny.KINDS['small'][0], vocab_size=video - 1))
  with pytest.raises(ValueError, match=f'vocab_size={video - 1}'):
    processor_lib.Processor.open(path)


@pytest.mark.parity
@pytest.mark.parametrize('which', range(5))
def test_m4_ids_and_pixels_equal_transformers(oracle, odd, which):
  example = [*tiles.examples(tiny.TILE), odd][which]
  ours, theirs = oracle.encode(example), oracle.inputs(example)
  assert ours.tokens.tolist() == theirs['input_ids'][0].tolist()
  count = len(ours.tokens)
  assert ours.positions.tolist() == [[i] * 3 for i in range(count)]
  assert ours.next_position == count
  measured.record('internvl', 'positions', 0)
  if 'pixel_values' not in theirs:
    assert len(ours.patches) == 0 and np.all(ours.slot == -1)
    return
  expected = theirs['pixel_values'].numpy()
  images = _images(ours)
  assert images.shape == expected.shape
  np.testing.assert_allclose(images, expected, atol=1e-6, rtol=0)
  measured.record('internvl', 'pixels', np.abs(images - expected).max())
  cells = ours.slot[ours.slot >= 0]
  assert cells.tolist() == list(range(4 * len(images)))
  assert set(ours.tokens[ours.slot >= 0]) == {oracle.proc.codec.image_id}


def _images(encoded):
  """The tiles again, each patch put where its position says."""
  p = tiny.PATCH
  result = np.zeros(
      (encoded.patch_segment.max(), 3, tiny.TILE, tiny.TILE), np.float32)
  for x, (row, column), tile in zip(
      encoded.patches, encoded.patch_position, encoded.patch_segment):
    result[tile - 1, :, row * p:(row + 1) * p, column * p:(column + 1) * p] = (
        x.reshape(3, p, p))
  return result


def test_patches_of_a_cell_are_neighbours(oracle):
  """Row by row, and the cells too: what the pixel shuffle will see."""
  place = oracle.encode(tiles.examples(tiny.TILE)[1]).patch_position[:16]
  cells = place.reshape(2, 2, 2, 2, 2)  # cell row, column, row, column in it
  for r, c, i, j in np.ndindex(2, 2, 2, 2):
    assert cells[r, c, i, j].tolist() == [2 * r + i, 2 * c + j]


@pytest.mark.parametrize('least, most', [(1, 12), (2, 7), (1, 1), (4, 4)])
def test_m5_tiles_from_the_size_alone_equal_transformers(least, most):
  rng = np.random.default_rng(0)
  sizes = np.exp(rng.uniform(0, 8.5, (300, 2))).astype(int).tolist()
  sizes += [(448 * a, 448 * b) for a in range(1, 5) for b in range(1, 5)]
  for height, width in sizes:
    expected = image_processing_pil_got_ocr2.get_optimal_tiled_canvas(
        (height, width), (448, 448), least, most)
    assert internvl.arrangement(
        height, width, tile=448, least=least, most=most) == expected


@pytest.mark.parametrize('size, shape', [
    ((480, 640), (4, 3)), ((448, 448), (1, 1)), ((900, 900), (2, 2)),
    ((1080, 1920), (4, 2)), ((1344, 1344), (3, 3)), ((1, 5000), (12, 1))])
def test_tiles_by_hand(size, shape):
  """1080 x 1920 is 1.78: 4 x 2 and 2 x 1 are nearest, equally; 8 tiles are
  1.6 M pixels, below twice the image's 2.1 M."""
  assert internvl.arrangement(*size, tile=448, least=1, most=12) == shape


def test_m5_prompt_length_decodes_nothing(oracle, tmp_path):
  tiles.noise(30, 100).save(tmp_path / 'a.png')
  image = Image.open(tmp_path / 'a.png')
  example = dataclasses.replace(
      tiles.examples(tiny.TILE)[3], images=(image,))
  length = encode.prompt_length(
      example, oracle.proc, template=template.plain)
  assert image._im is None  # opened, not loaded
  assert length == len(oracle.encode(example).tokens)


def test_options_and_pickling(edit):
  """Areas are whole tiles; 1024 pixels each."""
  opened = processor_lib.Processor.open(
      edit(), min_pixels=1100, max_pixels=5000, video_fps=1.0,
      video_max_frames=8)
  for p in (opened, pickle.loads(pickle.dumps(opened))):
    assert (p.codec.min_tiles, p.codec.max_tiles) == (2, 4)
    assert p.pixels == (2048, 4096)
    assert (p.codec.clips.fps, p.codec.clips.frames) == (1.0, None)
    assert p.codec.clips.most == 8
    assert p.codec.tiles(32, 32) == 5  # 4 and the whole
    assert (p.window_patches, p.channels) == (16, 192)
    ids = {name: tiles.token(tiny.SPECIAL, name) for name in tiny.SPECIAL}
    assert p.banned == tuple(sorted(ids.values()))
    assert p.codec.image_id == ids['<IMG_CONTEXT>']


def test_an_empty_image_is_named(oracle):
  with pytest.raises(ValueError, match='0 x 3 pixels: it is empty'):
    oracle.proc.codec.tiles(0, 3)


@pytest.mark.parametrize('name, change, options, message', [
    ('config', {}, {'max_pixels': 900}, '1 to 0 tiles.*max_pixels=900'),
    ('config', {}, {'min_pixels': 9000}, '9 to 6 tiles'),
    ('config', {'image_seq_length': 256}, {}, '256 but a tile .* has 4 cells'),
    ('config', {'image_token_id': 5}, {}, '<IMG_CONTEXT> is .*belong to diff'),
    ('config', {}, {'video_fps': 0.0}, 'video_fps=0.0'),
    ('preprocessor_config', {'size': {'height': 64, 'width': 64}}, {},
     'the tower reads 32 x 32'),
    ('video_preprocessor_config', {'size': {'height': 64, 'width': 64}}, {},
     'video_preprocessor_config.json: size .* reads 32 x 32')])
def test_what_is_refused(edit, name, change, options, message):
  with pytest.raises(ValueError, match=message):
    processor_lib.Processor.open(edit(name, **change), **options)


def test_m2_media_tokens_in_a_text_are_refused(oracle):
  for token in tiny.SPECIAL:
    if token == '<video>':
      continue  # the template's own mark; it asks for a clip
    with pytest.raises(ValueError, match='special token'):
      oracle.encode(records.Example(
          uid=1, question=f'a {token} b', answer=''))
