"""Opening images and clips: orientation, depth, what messages say."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from transformers import image_utils

from mmr1.data import media


def _bytes(picture, form, **kw):
  buffer = io.BytesIO()
  picture.save(buffer, form, **kw)
  return buffer.getvalue()


def _turned(orientation, form):
  """24 x 16 pixels, the left half red, the right blue, and an EXIF tag."""
  picture = Image.new('RGB', (24, 16), (255, 0, 0))
  picture.paste((0, 0, 255), (12, 0, 24, 16))
  exif = picture.getexif()
  exif[0x112] = orientation
  return _bytes(picture, form, exif=exif)


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_m4_exif_orientation_as_transformers(orientation, form):
  data = _turned(orientation, form)
  expected = image_utils.load_image(Image.open(io.BytesIO(data)))
  got = media.image(data, '')
  np.testing.assert_array_equal(got.convert('RGB'), expected)
  # 5 to 8 lay the picture on its side; by hand, 6 is a quarter turn
  # clockwise: what was left is on top.
  assert got.size == ((16, 24) if orientation > 4 else (24, 16))
  if orientation == 6:
    red, _, blue = np.asarray(got.convert('RGB'), int)[3, 8]
    assert red > 200 and blue < 60


def test_m5_size_by_the_header_is_that_of_the_pixels(monkeypatch):
  for form in ('JPEG', 'PNG', 'WEBP', 'TIFF'):
    for orientation in (1, 3, 8):
      data = _turned(orientation, form)
      assert media.image(data, '', load=False).size == (
          media.image(data, '').size)
  plain = [_bytes(Image.new('RGB', (24, 16)), form)
           for form in ('JPEG', 'PNG', 'WEBP')] + [_turned(1, 'JPEG')]

  def forbidden(self):
    raise AssertionError('pixels were decoded')
  monkeypatch.setattr('PIL.ImageFile.ImageFile.load', forbidden)
  for data in plain:
    assert media.image(data, '', load=False).size == (24, 16)


def test_gray_of_16_bits_keeps_its_shades():
  """Full scale is 65535 = 255 x 257; converting alone would cut at 255."""
  deep = np.asarray([[0, 257, 25700, 65535]] * 16, np.uint16)
  for data in (_bytes(Image.fromarray(deep), 'PNG'),
               _bytes(Image.fromarray(deep), 'TIFF'), Image.fromarray(deep)):
    got = media.image(data, '')
    assert got.mode == 'L' and np.asarray(got)[3].tolist() == [0, 1, 100, 255]


@pytest.mark.parametrize('load', [True, False])
def test_m26_32_bits_are_refused_not_cut(load):
  for kind in (np.float32, np.int32):
    data = _bytes(Image.fromarray(np.full((16, 16), 70_000, kind)), 'TIFF')
    with pytest.raises(media.RecordError, match='wrong type: .*32 bits'):
      media.image(data, '', load=load)


def test_m23_base64_stays_out_of_messages():
  """Without `data:`, as many files have it, it reads like a long path."""
  text = base64.b64encode(np.random.default_rng(0).bytes(3000)).decode()
  for call in (media.image, media.clip):
    with pytest.raises(media.RecordError) as error:
      call(text, '/folder')
    assert len(str(error.value)) < 700 and text[:40] in str(error.value)


def test_clip_of_a_data_url():
  frames = [Image.new('RGB', (16, 16), (60 * i, 0, 0)) for i in range(3)]
  data = _bytes(
      frames[0], 'GIF', save_all=True, append_images=frames[1:], duration=100)
  url = f'data:image/gif;base64,{base64.b64encode(data).decode()}'
  clip = media.clip(url, '')
  assert len(clip.frames) == 3 and clip.fps == pytest.approx(10)
  np.testing.assert_array_equal(
      clip.frames[2].convert('RGB'), np.asarray(frames[2]))
