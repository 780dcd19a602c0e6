"""LLaVA-OneVision's views, maps and clips against transformers."""

import dataclasses
import json
import pickle

import numpy as np
from PIL import Image
import pytest
import torch
from transformers import image_processing_utils
from transformers.models.llava_onevision import modeling_llava_onevision

from mmr1 import records
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.data.codecs import llava_onevision
from tests import llava_onevision as tiny
from tests import measured
from tests import tiles

# Of the released models.
FULL = [(384 * a, 384 * b) for a in range(1, 7) for b in range(1, 7)]


@pytest.fixture(scope='module')
def oracle(tmp_path_factory):
  """Both sides, without a model."""
  return tiny.oracle(tiny.write(tmp_path_factory.mktemp('llava')))


@pytest.fixture(scope='module')
def full(oracle):
  """The codec with the sizes of the released models."""
  return dataclasses.replace(
      oracle.proc.codec, size=384, patch=14, pinpoints=tuple(FULL),
      most_views=9)


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
  """Frames that are not views: their resize is torch's there."""
  frames = tuple(np.asarray(tiles.noise(50, 70, seed)) for seed in range(7))
  image = tiles.noise(70, 41, 9).convert('RGBA')
  image.putalpha(100)
  return [
      records.Example(uid=5, question='<image><video> and <video>', answer='',
                      images=(image,), videos=(
                          records.Video(frames), records.Video(frames[::-1]))),
      records.Example(uid=6, question='', answer='',
                      images=(tiles.noise(95, 81, 6),)),
      records.Example(uid=7, question='', answer='',
                      images=(tiles.noise(1, 400, 7),))]


@pytest.mark.parity
@pytest.mark.parametrize('which', range(7))
def test_m4_ids_and_pixels_equal_transformers(oracle, odd, which):
  example = (tiles.examples(tiny.SIZE) + odd)[which]
  ours, theirs = oracle.encode(example), oracle.inputs(example)
  assert ours.tokens.tolist() == theirs['input_ids'][0].tolist()
  count = len(ours.tokens)
  assert ours.positions.tolist() == [[i] * 3 for i in range(count)]
  measured.record('llava_onevision', 'positions', 0)
  assert ours.taps.shape == ours.weights.shape == (count, 4)
  if not example.images:
    assert len(ours.patches) == 0 and np.all(ours.slot == -1)
    return
  expected = [x.numpy() for x in theirs['pixel_values']]
  if len(example.images) == 1:  # no others: nothing is padded
    assert len(expected) == 1
  expected += [x.numpy() for x in theirs.get('pixel_values_videos', ())]
  expected = np.concatenate(expected)
  images, edge = _images(ours), tiny.SIDE * tiny.PATCH
  assert images.shape == (len(expected), 3, edge, edge)
  np.testing.assert_allclose(
      images, expected[..., :edge, :edge], atol=1e-6, rtol=0)
  off = np.abs(images - expected[..., :edge, :edge]).max()
  measured.record('llava_onevision', 'pixels', off)
  of_media = np.isin(
      ours.tokens, (oracle.proc.codec.image_id, oracle.proc.codec.video_id))
  assert np.array_equal(of_media, ours.slot != -1)
  np.testing.assert_allclose(
      ours.weights.sum(1), (ours.slot >= 0).astype(np.float32), atol=1e-6)


def _images(encoded):
  """The views again, each patch put where its position says."""
  p, edge = tiny.PATCH, tiny.SIDE * tiny.PATCH
  result = np.zeros(
      (encoded.patch_segment.max(), 3, edge, edge), np.float32)
  for x, (row, column), view in zip(
      encoded.patches, encoded.patch_position, encoded.patch_segment):
    result[view - 1, :, row * p:(row + 1) * p, column * p:(column + 1) * p] = (
        x.reshape(3, p, p))
  return result


@pytest.mark.parametrize('old, new', [
    ((27, 27), (14, 14)), ((5, 5), (3, 3)), ((81, 108), (71, 95)),
    ((7, 3), (1, 1)), ((4, 6), (4, 6))])
def test_taps_are_torchs_bilinear(old, new):
  x = np.random.default_rng(0).normal(size=old).astype(np.float32)
  expected = torch.nn.functional.interpolate(
      torch.tensor(x)[None, None], new, mode='bilinear',
      align_corners=False)[0, 0].numpy()
  taps, weights = llava_onevision.shrink(np.arange(x.size).reshape(old), *new)
  got = np.sum(x.ravel()[taps] * weights, -1)
  np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)


def test_m5_maps_equal_transformers(full):
  """Every kind of size: features that are their own number, put together."""
  rng = np.random.default_rng(0)
  sizes = np.exp(rng.uniform(0, 8.5, (40, 2))).astype(int).tolist()
  model = modeling_llava_onevision.LlavaOnevisionModel
  for height, width in [*sizes, (480, 640), (1080, 1920), (1, 3), (400, 1)]:
    best = image_processing_utils.select_best_resolution((height, width), FULL)
    rows, columns = best[0] // 384, best[1] // 384
    assert llava_onevision.views(height, width, FULL, 384) == (rows, columns)
    x = rng.normal(size=(1 + rows * columns, 729, 2)).astype(np.float32)

    class Sizes:  # what `pack_image_features` reads of the model
      class config:
        image_grid_pinpoints = FULL

        class vision_config:
          image_size, patch_size = 384, 14

    (packed,), _ = model.pack_image_features(
        Sizes, [torch.tensor(x)], [(height, width)],
        image_newline=torch.full((2,), 9.0), vision_aspect_ratio='anyres_max_9')
    taps, weights = full.image_map(height, width)
    found = np.sum(
        x.reshape(-1, 2)[taps] * weights[..., None], -2, dtype=np.float32)
    found = np.concatenate(
        [found, np.full((len(found), 1, 2), 9, np.float32)], 1)
    got = np.concatenate([x[0], found.reshape(-1, 2)])
    np.testing.assert_allclose(got, packed.numpy(), atol=1e-5, rtol=0)
    assert full.image_spans([(height, width)])[0].runs == (len(packed),)


@pytest.mark.parametrize('size, views, shape, tokens', [
    ((480, 640), (2, 2), (40, 54), 2929),
    ((1080, 1920), (3, 5), (60, 108), 7269),
    ((384, 384), (1, 1), (27, 27), 1485)])
def test_tokens_by_hand(full, size, views, shape, tokens):
  """384 x 384: 729 of the whole, 27 rows of 27 and an end."""
  assert llava_onevision.views(*size, FULL, 384) == views
  assert full.map_shape(*size) == shape
  assert full.image_spans([size])[0].runs == (tokens,)
  assert full.image_spans([size] * 3) == full.image_spans([(9, 9)] * 3)
  assert full.image_spans([size] * 3)[1].runs == (730,)
  clip = records.Video(tuple([None] * 5))
  assert full.video_span(clip).runs == (3 * 196 + 1,)


def test_where_the_ends_are(oracle, odd):
  """After each row of the map; after each of several images; after a clip."""
  ours = oracle.encode(odd[1])
  rows, columns = oracle.proc.codec.map_shape(95, 81)
  inside = np.flatnonzero(ours.slot != -1)
  ends = np.flatnonzero(ours.slot == -2) - inside[0] - 25
  assert ends.tolist() == [
      (i + 1) * (columns + 1) - 1 for i in range(rows)]
  several = oracle.encode(tiles.examples(tiny.SIZE)[2])
  kinds = several.slot[several.slot != -1] == -2
  assert np.flatnonzero(kinds).tolist() == [25, 51, 77]
  clip = oracle.encode(tiles.examples(tiny.SIZE)[3])
  of_clip = clip.slot[clip.tokens == oracle.proc.codec.video_id]
  assert np.flatnonzero(of_clip == -2).tolist() == [3 * 9]


def test_m5_prompt_length_decodes_nothing(oracle, tmp_path):
  tiles.noise(30, 100).save(tmp_path / 'a.png')
  image = Image.open(tmp_path / 'a.png')
  example = dataclasses.replace(
      tiles.examples(tiny.SIZE)[3], images=(image,))
  length = encode.prompt_length(
      example, oracle.proc, template=template.plain)
  assert image._im is None  # opened, not loaded
  assert length == len(oracle.encode(example).tokens)


def test_options_and_pickling(edit):
  """Resolutions of 2 to 4 views are left."""
  opened = processor_lib.Processor.open(
      edit(), min_pixels=2000, max_pixels=5000, video_max_frames=2)
  for p in (opened, pickle.loads(pickle.dumps(opened))):
    assert p.pixels == (2 * 33**2, 4 * 33**2)
    assert len(p.codec.pinpoints) == 5
    assert p.codec.clips.most == 2
    assert (p.window_patches, p.channels) == (25, 108)
    assert p.banned == (259, 260)
    encoded = encode.encode(
        records.Example(uid=0, question='', answer='',
                        images=(tiles.noise(99, 99),)),
        p, template=template.plain)
    assert encoded.patch_segment.max() == 5  # 4 and the whole


@pytest.mark.parametrize('name, change, options, message', [
    ('config', {}, {'max_pixels': 900}, 'max_pixels=900.*only .1089, 2178'),
    ('config', {'vision_aspect_ratio': 'pad'}, {}, "vision_aspect_ratio='pad'"),
    ('config', {'image_token_index': 5}, {}, '<image> is .*belong to diff'),
    ('config', {'image_grid_pinpoints': [[33, 33]]}, {}, 'not the same'),
    ('preprocessor_config', {'size': {'height': 64, 'width': 64}}, {},
     'the tower reads 33 x 33'),
    ('preprocessor_config', {'size': {'shortest_edge': 33}}, {},
     'the tower reads 33 x 33')])
def test_what_is_refused(edit, name, change, options, message):
  with pytest.raises(ValueError, match=message):
    processor_lib.Processor.open(edit(name, **change), **options)


def test_an_empty_image_is_named(oracle):
  with pytest.raises(ValueError, match='0 x 3 pixels: it is empty'):
    oracle.proc.codec.image_spans([(0, 3)])
