"""Values of patches and pixels of images, in every family."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from mmr1 import pixels as pixels_lib
from mmr1 import records
from mmr1.data import processor as processor_lib
from tests import gemma
from tests import internvl
from tests import llava_onevision
from tests import tiles
from tests.data import conftest

TINY = pathlib.Path(__file__).parent.parent / 'mmr1' / 'assets' / 'tiny'
FAMILIES = ('tiny', 'qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'internvl',
            'llava_onevision', 'gemma3', 'paligemma')
SMALL = pixels_lib.Pixels(mean=(.5, .4, .3), std=(.2, .3, .25), patch=2,
                          frames=2)


def write(folder, family):
  if family == 'tiny':
    return TINY
  if family in ('gemma3', 'paligemma'):
    return gemma.write(folder, family)
  if family == 'internvl':
    return internvl.write(folder)
  if family == 'llava_onevision':
    return llava_onevision.write(folder)
  config = json.loads(
      (conftest.write_folder(folder) / 'config.json').read_text())
  return conftest.write_folder(
      folder, model_type=family, vision_config=config['vision_config'])


@pytest.fixture(scope='module', params=FAMILIES)
def codec(request, tmp_path_factory):
  folder = write(tmp_path_factory.mktemp(request.param), request.param)
  return processor_lib.Processor.open(str(folder)).codec


def first_frame(codec, made):
  """Pixels [frames, height, width, channels] of segment 1."""
  values = codec.pixels_of_patch.to_pixels(made.patches)
  place = made.position[made.segment == 1]
  frames, p, _, channels = values.shape[1:]
  height, width = (place.max(0) + 1) * p
  result = np.full((frames, height, width, channels), np.nan)
  for (row, column), value in zip(place, values[made.segment == 1]):
    result[:, row * p:(row + 1) * p, column * p:(column + 1) * p] = value
  return result


def test_black_is_zero_in_every_family(codec):
  made, = codec.image_pixels([Image.new('RGB', (32, 32))])
  pixels = codec.pixels_of_patch
  assert pixels.values == codec.channels and pixels.channels == 3
  real = made.patches[made.segment > 0]
  np.testing.assert_allclose(pixels.to_pixels(real), 0, atol=1e-6)
  zeros = np.zeros_like(pixels.to_pixels(real))
  np.testing.assert_allclose(pixels.to_patches(zeros), real, atol=1e-6)
  np.testing.assert_array_equal(pixels.join(zeros + pixels.black),
                                pixels.to_patches(zeros))


def test_patches_are_the_resized_image_in_every_family(codec):
  image = tiles.noise(40, 40, 3)  # so small that no family cuts it
  made, = codec.image_pixels([image])
  got = first_frame(codec, made)
  # Pixels that make no whole patch are left out, so the image may be larger.
  side = getattr(codec, 'size', got.shape[1])
  resized = image.resize((side, side), codec.image_processor.resample)
  expected = np.asarray(resized)[:got.shape[1], :got.shape[2]] / 255
  for frame in got:  # copies of the still image
    # A rounding of the other bicubic kernel is 1 of 255.
    np.testing.assert_allclose(frame, expected, atol=1.01 / 255)
    assert np.mean(np.abs(frame - expected)) < .1 / 255
  pixels = codec.pixels_of_patch
  back = pixels.to_patches(pixels.to_pixels(made.patches))
  np.testing.assert_allclose(back, made.patches, atol=1e-6)


def test_frames_of_a_clip_are_told_apart(codec):
  if not codec.video_mark:
    pytest.skip('reads no videos')
  clip = records.Video(tuple(
      np.full((32, 32, 3), level, np.uint8) for level in range(10, 60, 10)))
  made = codec.video_pixels(clip)
  got = first_frame(codec, made)
  assert len(got) == codec.pixels_of_patch.frames
  levels = [round(255 * float(frame.mean())) for frame in got]
  assert levels == sorted(set(levels)) and levels[0] >= 10


@pytest.mark.parametrize('order', [
    ('channel', 'frame', 'row', 'column'),
    ('row', 'column', 'channel', 'frame'),
    ('frame', 'column', 'channel', 'row')])
def test_any_order_there_and_back_with_numpy_and_jax(order):
  pixels = dataclasses.replace(SMALL, order=order)
  # Every value is its own number.
  values = np.arange(2 * 3 * pixels.values, dtype=np.float32)
  patches = values.reshape(2, 3, pixels.values)
  split = pixels.split(patches)
  assert split.shape == (2, 3, 2, 2, 2, 3)
  np.testing.assert_array_equal(pixels.join(split), patches)
  at = dict(frame=1, row=0, column=1, channel=2)
  sizes = dict(frame=2, row=2, column=2, channel=3)
  index = np.ravel_multi_index(
      [at[x] for x in order], [sizes[x] for x in order])
  assert split[1, 2, 1, 0, 1, 2] == patches[1, 2, index]
  made = jax.jit(pixels.to_pixels)(jnp.asarray(patches))
  assert made.dtype == jnp.float32 == pixels.to_pixels(patches).dtype
  np.testing.assert_allclose(made, pixels.to_pixels(patches), rtol=1e-6)
  np.testing.assert_allclose(
      jax.jit(pixels.to_patches)(made), patches, rtol=1e-5, atol=1e-5)


def test_may_be_a_static_argument():
  assert hash(SMALL) == hash(dataclasses.replace(SMALL))
  black = jax.jit(lambda pixels: jnp.asarray(pixels.black), static_argnums=0)
  np.testing.assert_allclose(black(SMALL), [-2.5, -4 / 3, -1.2], rtol=1e-6)


@pytest.mark.parametrize('changes, words', [
    (dict(std=(.2, 0, .2)), 'above 0'), (dict(mean=(.5,)), 'each channel'),
    (dict(patch=0), 'patch=0'), (dict(frames=0), 'frames=0'),
    (dict(order=('row', 'column', 'channel')), 'no order')])
def test_refuses_wrong_fields(changes, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(SMALL, **changes)


def test_refuses_wrong_shapes():
  with pytest.raises(ValueError, match='25 values, expected 24'):
    SMALL.to_pixels(np.zeros((3, 25), np.float32))
  with pytest.raises(ValueError, match='expected .2, 2, 2, 3.'):
    SMALL.to_patches(np.zeros((1, 2, 2, 3), np.float32))


@pytest.mark.parametrize('name, changes, words', [
    ('preprocessor_config', dict(do_normalize=False), 'do_normalize'),
    ('preprocessor_config', dict(rescale_factor=1 / 127.5), '1/255'),
    ('video_preprocessor_config', dict(image_mean=[.1] * 3), 'of videos')])
def test_refuses_other_normalisations(tmp_path, name, changes, words):
  file = conftest.write_folder(tmp_path) / f'{name}.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))
  opened = processor_lib.Processor.open(str(tmp_path)).codec
  with pytest.raises(ValueError, match=words):
    opened.pixels_of_patch  # pylint: disable=pointless-statement
