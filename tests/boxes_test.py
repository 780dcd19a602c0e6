"""Boxes in their frames, and what each family's numbers mean (M14)."""

import math

import pytest

from mmr1 import boxes
from mmr1.data import processor as processor_lib
from tests.stages import families_test

Box, Size = boxes.Box, boxes.Size
IMAGE = Size(60, 80)


def test_convert_by_hand():
  # Half of 80 wide is 500 thousandths, .5, and 32 of 64 pixels seen; a third
  # of 60 high is 333.3 thousandths, and 16 of 48.
  box = Box(40, 20, 80, 60, 'original')
  kw = dict(image=IMAGE, seen=Size(48, 64))
  for frame, expected in (
      ('thousand', (500, 1000 / 3, 1000, 1000)), ('unit', (.5, 1 / 3, 1, 1)),
      ('seen', (32, 16, 64, 48)), ('original', box[:4])):
    got = boxes.convert(box, frame, **kw)
    assert got[:4] == pytest.approx(expected) and got.frame == frame
    assert boxes.convert(got, 'original', **kw)[:4] == pytest.approx(box[:4])


def test_iou_by_hand():
  # Two of 10 x 10 that share 5 x 5: 25 / (100 + 100 - 25) = 1/7; the second
  # one in thousandths of 80 x 60: 62.5 and 187.5 across, 83.3 and 250 down.
  a = Box(0, 0, 10, 10, 'original')
  for b in (Box(5, 5, 15, 15, 'original'),
            Box(62.5, 250 / 3, 187.5, 250, 'thousand')):
    assert boxes.iou(a, b, image=IMAGE) == pytest.approx(1 / 7)
    assert boxes.iou(b, a, image=IMAGE) == pytest.approx(1 / 7)
  assert boxes.iou(a, a, image=IMAGE) == 1
  assert boxes.iou(a, Box(10, 0, 20, 10, 'original'), image=IMAGE) == 0


@pytest.mark.parametrize('edges', [
    (10, 0, 0, 10), (0, 10, 10, 0), (3, 3, 3, 9), (math.nan, 0, 10, 10),
    (0, 0, math.inf, 10), (-math.inf, -math.inf, math.inf, math.inf)])
def test_m11_boxes_without_an_area_earn_nothing(edges):
  """Not even against themselves: an answer cannot win by being broken."""
  a = Box(*edges, 'original')
  for b in (a, Box(0, 0, 10, 10, 'original')):
    assert boxes.iou(a, b, image=IMAGE) == boxes.iou(b, a, image=IMAGE) == 0


def test_errors_name_the_frames():
  with pytest.raises(ValueError, match="'pixels': allowed are .*'thousand'"):
    boxes.convert(Box(0, 0, 1, 1, 'pixels'), 'unit', image=IMAGE)
  with pytest.raises(ValueError, match='the `seen` of the codec'):
    boxes.convert(Box(0, 0, 1, 1, 'seen'), 'unit', image=IMAGE)


def codec(family, folder, **options):
  path = families_test.write(family, folder / family, weights=False)
  return processor_lib.Processor.open(str(path), **options).codec


@pytest.mark.parametrize('family', ['qwen2_vl', 'qwen2_5_vl', 'qwen3_vl',
                                    'internvl'])
@pytest.mark.parametrize('size', [(60, 80), (31, 200), (64, 64)])
def test_m14_the_overlap_is_the_same_under_any_resize(family, size, tmp_path):
  """A model that sees the image at several sizes points at the same thing."""
  image, found, misread = Size(*size), [], []
  gold = Box(.25 * image.width, .1 * image.height, .75 * image.width,
             .6 * image.height, 'original')
  # What it points at: a little off, as parts of what it sees.
  parts = (.3, .1, .75, .7)
  for k, most in enumerate((1024, 2048, 4096)):
    folder = tmp_path / str(k)
    folder.mkdir()
    one = codec(family, folder, **(
        {} if family == 'internvl' else dict(max_pixels=most, min_pixels=256)))
    if one.box_frame == 'seen':
      seen = one.seen(*image)
      sides = seen.width, seen.height
    else:
      seen, sides = None, (1000, 1000)
    answer = Box(parts[0] * sides[0], parts[1] * sides[1],
                 parts[2] * sides[0], parts[3] * sides[1], one.box_frame)
    found.append(boxes.iou(answer, gold, image=image, seen=seen))
    misread.append(boxes.iou(
        answer._replace(frame='original'), gold, image=image, seen=seen))
  # .45 x .5 shared, of .45 x .6 and .5 x .5: .225 / (.27 + .25 - .225).
  assert found == pytest.approx([.225 / .295] * 3)
  assert min(misread) < .7


def test_m14_what_is_seen_is_what_the_tower_gets(tmp_path):
  one = codec('qwen2_5_vl', tmp_path, max_pixels=2048)
  for height, width in ((60, 80), (31, 200), (5, 9)):
    rows, columns = one.image_grid(height, width)[1:]
    assert one.seen(height, width) == (rows * one.patch, columns * one.patch)


def test_m14_an_image_in_pieces_has_no_size_as_seen(tmp_path):
  with pytest.raises(ValueError, match='no one size'):
    codec('internvl', tmp_path).seen(60, 80)
