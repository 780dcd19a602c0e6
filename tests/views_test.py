"""Changed images of prompts: blocks, flips, rotation, colours, noise."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from mmr1 import pixels as pixels_lib
from mmr1 import records
from mmr1 import types
from mmr1 import views
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import template
from tests import tiles

TINY = pathlib.Path(__file__).parent.parent / 'mmr1' / 'assets' / 'tiny'
S = 192
STILL = dict(flip_h=0., flip_v=0., degrees=0., brightness=0., contrast=0.,
             noise=0.)
HALF = pixels_lib.Pixels(mean=(.5,) * 3, std=(.5,) * 3, patch=2, frames=1)


@functools.cache
def proc():
  return processor_lib.Processor.open(str(TINY))


def kind():
  return proc().codec.pixels_of_patch


def media_of(*rows, s=S):
  """Media of rows, each the images or videos of a prompt."""
  examples = []
  for i, row in enumerate(rows):
    images = tuple(x for x in row if isinstance(x, Image.Image))
    videos = tuple(x for x in row if not isinstance(x, Image.Image))
    examples.append(records.Example(
        uid=i, question='<image>' * len(images) + '<video>' * len(videos),
        images=images, videos=videos))
  made = [encode.encode(x, proc(), template=template.plain) for x in examples]
  return collate.collate(made, prompt_length=300, patches=s).media['vision']


def picture(media, row=0, segment=1, pixels=None):
  """Pixels [frames, height, width, channels] of a frame."""
  pixels = pixels or kind()
  here = np.asarray(media.segment)[row] == segment
  values = pixels.to_pixels(np.asarray(media.patches)[row][here])
  place, p = np.asarray(media.position)[row][here], pixels.patch
  result = np.full((pixels.frames, *((place.max(0) + 1) * p), 3), np.nan)
  for (r, c), value in zip(place, values):
    result[:, r * p:(r + 1) * p, c * p:(c + 1) * p] = value
  assert not np.any(np.isnan(result))
  return result


@functools.cache
def compiled(name, **static):
  """A view of that name; its numbers are traced, so one compilation does."""
  def run(media, keys, numbers):
    return getattr(views, name)(media, keys, pixels=kind(), **static, **numbers)
  return jax.jit(run)


def perturbed(media, keys, **numbers):
  return compiled('perturb')(media, keys, STILL | numbers)


def masked(media, keys, black, size=None):
  return compiled('mask', size=size)(media, keys, dict(black=black))


def keys_of(*numbers):
  return jax.vmap(jax.random.key)(jnp.array(numbers))


def drawn(key):
  """What a row draws, as numbers in [-1, 1): angle, brightness, contrast."""
  return 2 * np.asarray(
      jax.random.uniform(jax.random.split(key)[0], (5,)))[2:] - 1


@pytest.fixture(scope='module')
def media():
  """Two rows: a wide image; a high one and a clip. Both fit their grids."""
  clip = records.Video(tuple(
      np.asarray(tiles.noise(32, 16, seed)) for seed in range(4)))
  return media_of([tiles.noise(48, 80, 1)], [tiles.noise(64, 32, 2), clip])


def test_only_patches_change_and_padding_does_not(media):
  media = media.replace(patches=np.where(
      np.asarray(media.segment)[..., None] > 0, media.patches, 7))
  keys = keys_of(1, 2)
  for name, got in (('same', views.same(media, keys, pixels=kind())),
                    ('mask', masked(media, keys, .5)),
                    ('perturb', perturbed(media, keys, noise=.3))):
    changed = np.any(got.patches != media.patches, -1)
    assert not np.any(changed[media.segment == 0])
    assert np.any(changed[media.segment > 0]) == (name != 'same')
    assert got.patches.dtype == jnp.float32
    for field in dataclasses.fields(types.Media):
      if field.name != 'patches':
        np.testing.assert_array_equal(
            getattr(got, field.name), getattr(media, field.name))


def test_nothing_is_done_at_zero(media):
  keys = keys_of(3, 4)
  np.testing.assert_array_equal(masked(media, keys, 0.).patches, media.patches)
  np.testing.assert_allclose(
      perturbed(media, keys).patches, media.patches, atol=1e-6)


@pytest.mark.parametrize('size', [None, 5])
def test_all_black_is_the_encoded_black_image(size):
  image = tiles.noise(48, 80)
  media, black = media_of([image]), media_of([Image.new('RGB', image.size)])
  np.testing.assert_allclose(
      masked(media, keys_of(1), 1., size).patches, black.patches, atol=1e-6)


def test_the_share_of_black_patches():
  n, side = 4, 50
  place = np.stack(np.meshgrid(*[np.arange(side)] * 2, indexing='ij'), -1)
  media = types.Media(
      patches=np.ones((n, side**2, 12), np.float32),
      position=np.tile(place.reshape(1, -1, 2), (n, 1, 1)).astype(np.int32),
      segment=np.ones((n, side**2), np.int32), slot=np.zeros((n, 1), np.int32))
  got = views.mask(media, keys_of(*range(n)), pixels=HALF)
  black = np.all(got.patches == -1, -1)
  assert np.array_equal(~black, np.all(got.patches == 1, -1))
  assert abs(black.mean() - .6) < .02
  # Independent of their neighbours and of the other rows.
  black = black.reshape(n, side, side) - black.mean()
  for axis in range(3):
    assert abs(np.mean(black * np.roll(black, 1, axis))) < .01


@pytest.mark.parametrize('size', [4, 5, 8, 14, 16, 40])
def test_blocks_of_any_size_are_whole(size):
  """Of patches of 8 pixels: smaller, larger, and across their edges."""
  media = media_of([Image.new('RGB', (80, 48), 'white')] * 2)
  got = masked(media, keys_of(5), .5, size)
  pictures = np.stack([picture(got, 0, segment) for segment in (1, 2)])
  np.testing.assert_array_equal(pictures[:, 0], pictures[:, 1])  # copies
  assert np.any(pictures[0] != pictures[1])  # other coins
  whole = pictures[:, 0, :, :, 0]
  rows, columns = -(-48 // size), -(-80 // size)
  corners = whole[:, ::size, ::size]
  assert corners.shape == (2, rows, columns) and set(corners.flat) == {0., 1.}
  expected = corners.repeat(size, 1).repeat(size, 2)[:, :48, :80]
  np.testing.assert_array_equal(pictures, np.broadcast_to(
      expected[:, None, :, :, None], pictures.shape))
  if rows * columns > 50:
    assert abs(corners.mean() - .5) < .15


def test_a_group_has_one_view():
  image = tiles.noise(48, 80, 1)
  media = media_of([image], [image], [image])
  keys = keys_of(7, 7, 8)
  for got in (masked(media, keys, .6),
              perturbed(media, keys, flip_h=.5, degrees=9., noise=.4)):
    np.testing.assert_array_equal(got.patches[0], got.patches[1])
    assert np.any(got.patches[0] != got.patches[2])


def rearranged(media, order):
  """Its patches in another order."""
  return media.replace(**{name: np.asarray(getattr(media, name))[:, order]
                          for name in ('patches', 'position', 'segment')})


@pytest.mark.parametrize('view', [
    functools.partial(masked, black=.6),
    functools.partial(masked, black=.6, size=5),
    functools.partial(perturbed, flip_h=.5, flip_v=.5, degrees=10.,
                      brightness=.15, contrast=.15, noise=.4)],
                         ids=['mask', 'mask by pixels', 'perturb'])
def test_a_row_depends_on_its_key_and_media_alone(media, view):
  keys = keys_of(11, 12)
  expected = np.asarray(view(media, keys).patches)
  turned = view(jax.tree.map(lambda x: x[::-1], media), keys[::-1])
  np.testing.assert_array_equal(turned.patches[::-1], expected)
  # In company; more padding; patches of a row in another order.
  alone = view(jax.tree.map(lambda x: x[1:], media), keys[1:])
  np.testing.assert_allclose(alone.patches, expected[1:], atol=1e-6)
  longer = jax.tree.map(
      lambda x: np.pad(x, [(0, 0), (0, 64)] + [(0, 0)] * (x.ndim - 2)),
      media.replace(slot=None))
  got = view(longer, keys).patches
  np.testing.assert_allclose(got[:, :S], expected, atol=1e-6)
  assert not np.any(got[:, S:])
  order = np.random.default_rng(0).permutation(S)
  got = view(rearranged(media, order), keys).patches
  np.testing.assert_allclose(got, expected[:, order], atol=1e-6)


@pytest.mark.parametrize('numbers, turn', [
    (dict(flip_h=1.), Image.Transpose.FLIP_LEFT_RIGHT),
    (dict(flip_v=1.), Image.Transpose.FLIP_TOP_BOTTOM),
    (dict(flip_h=1., flip_v=1.), Image.Transpose.ROTATE_180)])
def test_a_flip_is_the_flipped_image_encoded(numbers, turn):
  images = tiles.noise(48, 80, 1), tiles.noise(64, 16, 2)
  got = perturbed(media_of(images), keys_of(1), **numbers)
  expected = media_of([image.transpose(turn) for image in images])
  np.testing.assert_allclose(got.patches, expected.patches, atol=1e-6)


def test_flips_happen_as_often_as_they_should():
  n, image = 200, Image.new('RGB', (32, 16))
  image.putpixel((3, 2), (255, 255, 255))
  one = media_of([image], s=16)
  media = jax.tree.map(lambda x: np.repeat(x, n, 0), one)
  got = perturbed(media, keys_of(*range(n)), flip_h=.25, flip_v=.5)
  found = [tuple(np.argwhere(picture(got, i)[0, :, :, 0] > .5)[0])
           for i in range(n)]
  counts = {at: found.count(at) / n for at in set(found)}
  assert set(counts) == {(2, 3), (2, 28), (13, 3), (13, 28)}
  assert abs(counts[2, 28] + counts[13, 28] - .25) < .1
  assert abs(counts[13, 3] + counts[13, 28] - .5) < .1


@pytest.mark.parametrize('seed, limit', [(1, 10.), (2, 45.), (3, 170.)])
def test_a_rotation_is_scipys(seed, limit):
  media = media_of([tiles.noise(48, 80, seed), tiles.noise(48, 48, 9)])
  got = perturbed(media, keys_of(seed), degrees=limit)
  angle = limit * drawn(jax.random.key(seed))[0]
  assert 1 < abs(angle) < limit
  for segment in (1, 2):
    before, after = picture(media, 0, segment), picture(got, 0, segment)
    np.testing.assert_array_equal(after[0], after[1])
    # Black outside, blended at the edge.
    expected = ndimage.rotate(before[0], angle, reshape=False, order=1,
                              mode='grid-constant')
    np.testing.assert_allclose(after[0], expected, atol=1e-4)


def test_a_rotation_is_counterclockwise_as_in_pil():
  image = tiles.noise(48, 80, 1)
  got = perturbed(media_of([image]), keys_of(1), degrees=20.)
  angle = 20 * drawn(jax.random.key(1))[0]
  expected = np.asarray(
      image.rotate(angle, Image.Resampling.BILINEAR)) / 255
  inside = np.asarray(Image.new('L', image.size, 255).rotate(angle)) > 0
  inside = ndimage.binary_erosion(inside, iterations=2)
  # PIL's weights have few bits, and its pixels are whole numbers.
  np.testing.assert_allclose(
      picture(got)[0][inside], expected[inside], atol=2 / 255)
  assert not np.any(picture(got)[0][[0, 0, -1, -1], [0, -1, 0, -1]])


def test_all_frames_of_a_row_move_alike(media):
  """The still image and both frames of the clip, the same angle and flip."""
  got = perturbed(media, keys_of(1, 2), flip_h=1., degrees=30.)
  angle = 30 * drawn(jax.random.key(2))[0]
  for segment in (1, 2, 3):
    for before, after in zip(picture(media, 1, segment),
                             picture(got, 1, segment)):
      np.testing.assert_allclose(after, ndimage.rotate(
          before[:, ::-1], angle, reshape=False, order=1,
          mode='grid-constant'), atol=1e-4)


def test_brightness_and_contrast_as_torchvision_does_it(media):
  """Large enough for every clip to matter; frames have their own mean."""
  keys = keys_of(3, 5)
  got = perturbed(media, keys, brightness=.9, contrast=.8)
  for row, segment in ((0, 1), (1, 1), (1, 2), (1, 3)):
    _, light, sharp = drawn(keys[row])
    for before, after in zip(picture(media, row, segment),
                             picture(got, row, segment)):
      expected = np.clip(before * (1 + .9 * light), 0, 1)
      mean = (expected @ [.299, .587, .114]).mean()
      factor = 1 + .8 * sharp
      expected = np.clip(factor * expected + (1 - factor) * mean, 0, 1)
      np.testing.assert_allclose(after, expected, atol=1e-5)


def test_a_factor_is_never_negative(media):
  got = perturbed(media, keys_of(*range(2)), brightness=50.)
  lights = [drawn(jax.random.key(i))[1] for i in range(2)]
  assert min(lights) < -.02
  for row, light in enumerate(lights):
    if light < -.02:
      np.testing.assert_allclose(picture(got, row), 0, atol=1e-6)


def test_noise_is_normal_and_independent():
  grey = Image.new('RGB', (112, 64), (128, 128, 128))
  media = media_of([grey], [grey, Image.new('RGB', (16, 32), (128,) * 3)])
  got = perturbed(media, keys_of(1, 2), noise=.1)
  one, two = (picture(got, row)[0] - 128 / 255 for row in range(2))
  np.testing.assert_array_equal(*picture(got, 0))  # copies stay copies
  for x in (one, two):
    count = x.size  # 21504
    assert abs(x.mean()) < 4 * .1 / count**.5
    assert abs(x.std() / .1 - 1) < 4 / (2 * count)**.5
    assert abs(np.mean(x**4) / .1**4 - 3) < .3
    for other in (np.roll(x, 1, 0), np.roll(x, 1, 1), np.roll(x, 1, 2),
                  np.roll(x, 8, 0), np.roll(x, 8, 1)):
      assert abs(np.mean(x * other)) < 5 * .01 / count**.5
  assert abs(np.mean(one * two)) < 5 * .01 / one.size**.5
  small = picture(got, 1, 2)[0] - 128 / 255
  assert abs(np.corrcoef(two[:32, :16].ravel(), small.ravel())[0, 1]) < .15


def test_pixels_stay_between_black_and_white(media):
  got = compiled('perturb')(media, keys_of(1, 2), {})  # the paper's numbers
  for row, segment in ((0, 1), (1, 1), (1, 2), (1, 3)):
    x = picture(got, row, segment)
    assert x.min() > -1e-6 and x.max() < 1 + 1e-6
    assert np.mean(x < 1e-6) > .02 and np.mean(x > 1 - 1e-6) > .02


def test_a_frame_with_holes_reads_them_as_black():
  media = media_of([Image.new('RGB', (64, 48), 'white')])
  hole = np.asarray(media.position)[0].tolist().index([2, 3])
  media = media.replace(segment=np.asarray(media.segment) * (
      np.arange(S) != hole))
  got = perturbed(media, keys_of(1), flip_h=1.)
  place = np.asarray(media.position)[0]
  black = np.all(kind().to_pixels(np.asarray(got.patches[0])) < 1e-6,
                 (1, 2, 3, 4))
  real = np.asarray(media.segment)[0] > 0
  # Where it is flipped to; nothing of a neighbour goes there.
  assert place[black & real].tolist() == [[2, 4]]


def test_plain_keys_do_as_well(media):
  keys = keys_of(1, 2)
  for view in (functools.partial(masked, black=.6),
               functools.partial(perturbed, noise=.4)):
    np.testing.assert_array_equal(
        view(media, jax.random.key_data(keys)).patches,
        view(media, keys).patches)


def test_refusals(media):
  keys = keys_of(1, 2)
  with pytest.raises(ValueError, match='size=0'):
    views.mask(media, keys, pixels=kind(), size=0)
  with pytest.raises(ValueError, match='384 values, expected 12'):
    views.mask(media, keys, pixels=HALF)
  with pytest.raises(ValueError, match='384 values, expected 12'):
    views.perturb(media, keys, pixels=HALF)
  grey = dataclasses.replace(HALF, mean=(.5,), std=(.5,))
  with pytest.raises(ValueError, match='1 channels'):
    views.perturb(media, keys, pixels=grey)
