"""The world of detection: boxes are tight, apart, and of their class."""

import numpy as np
import pytest

from mmr1.data.tasks import detection


def test_boxes_are_tight_and_apart():
  counts = set()
  for i in range(200):
    e = detection.detection(0, 'train', i)
    ink = np.ptp(np.asarray(e.images[0]).astype(int), -1) > 40
    left = ink.copy()
    for l, t, r, b in e.meta['boxes']:
      part = ink[t:b, l:r]
      # Ink on every side of the box; a circle of Pillow may leave one free.
      assert part.any(0).sum() >= r - l - 1 and part.any(1).sum() >= b - t - 1
      assert 6 <= r - l == b - t <= 14
      left[t:b, l:r] = False
    assert not left.any()  # and nowhere else
    counts.add(len(e.meta['boxes']))
    assert len(e.meta['classes']) == len(e.meta['boxes'])
  assert counts == {1, 2, 3, 4}


def test_squares_fill_their_box_and_triangles_half_of_it():
  share = {0: [], 1: [], 2: []}
  for i in range(200):
    e = detection.detection(0, 'train', i, by='kind')
    ink = np.ptp(np.asarray(e.images[0]).astype(int), -1) > 40
    for (l, t, r, b), kind in zip(e.meta['boxes'], e.meta['classes']):
      share[kind].append(ink[t:b, l:r].mean())
  assert np.mean(share[1]) == 1
  assert .7 < np.mean(share[0]) < .9 and .4 < np.mean(share[2]) < .65


def test_colours_are_classes():
  for i in range(50):
    e = detection.detection(0, 'train', i)
    image = np.asarray(e.images[0])
    for (l, t, r, b), colour in zip(e.meta['boxes'], e.meta['classes']):
      assert image[(t + b) // 2, (l + r) // 2].argmax() == colour
    kinds = detection.detection(0, 'train', i, by='kind').meta
    assert kinds['boxes'] == e.meta['boxes']


def test_an_item_is_its_address_and_splits_share_none():
  one, two = (detection.detection(0, 'train', 3) for _ in range(2))
  assert one.meta == two.meta
  seen = lambda split: {str(detection.detection(0, split, i).meta)
                        for i in range(300)}
  assert not seen('train') & seen('eval')


@pytest.mark.parametrize('kwargs', [
    dict(objects=(0, 2)), dict(sides=(2, 8)), dict(sides=(6, 32)),
    dict(objects=(5, 9)),
    dict(by='size')])
def test_wrong_arguments_are_named(kwargs):
  with pytest.raises(ValueError, match='allowed are'):
    detection.detection(0, 'train', 0, **kwargs)
