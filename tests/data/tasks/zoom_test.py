"""The world in which some digits are too small to be seen."""

import numpy as np
import pytest

from mmr1.data.tasks import zoom


@pytest.mark.parametrize('regions, columns', [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_rows_lie_apart_and_are_all_there_is(regions, columns):
  places = set()
  for i in range(40):
    item = zoom.zoom(0, 'train', i, small=1.0, regions=regions, columns=columns)
    pixels = np.asarray(item.images[0]).astype(int)
    boxes = item.meta['regions']
    assert len(boxes) == regions and len({*boxes}) == regions
    for x0, y0, x1, y1 in boxes:
      places.add((x0, y0))
      assert pixels[y0:y1, x0:x1].min() < 120  # ink
      pixels[y0:y1, x0:x1] = 255
    assert pixels.min() > 200
    values = [int(x) for x in item.meta['facts'][0][7:].split(',')]
    assert len(values) == 2 * regions and item.answer == str(sum(values))
  assert len(places) == 2 * columns


def test_shares_splits_and_addresses():
  items = [zoom.zoom(0, 'train', i, small=.25) for i in range(200)]
  assert .15 < np.mean([x.meta['needs_zoom'] for x in items]) < .35
  again = zoom.zoom(0, 'train', 7, small=.25)
  np.testing.assert_array_equal(
      np.asarray(again.images[0]), np.asarray(items[7].images[0]))
  assert not np.array_equal(np.asarray(again.images[0]), np.asarray(
      zoom.zoom(0, 'eval', 7, small=.25).images[0]))
  for kwargs in (dict(scale=1), dict(small=2), dict(regions=3),
                 dict(columns=0), dict(forms=('no',))):
    with pytest.raises(ValueError, match='zoom'):
      zoom.zoom(0, 'train', 0, **kwargs)
