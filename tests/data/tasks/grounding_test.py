"""Boxes of drawn objects, found again in the pixels."""

import numpy as np
import pytest

from mmr1.data.tasks import grounding
from mmr1.rewards import answer


def found(example):
  """Edges of what is red in the picture, when only the square is."""
  red, green, blue = np.moveaxis(np.asarray(example.images[0], int), -1, 0)
  rows, columns = np.nonzero((red > 180) & (green < 90) & (blue < 90))
  return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_the_box_is_where_the_square_is():
  sides = set()
  for i in range(200):
    example = grounding.grounding(1, 'train', i, objects=(1, 1))
    box = example.meta['box']
    assert found(example) == box
    assert example.answer == str(list(box)).replace(' ', '')
    assert 'red square' in example.question and example.uid == i
    assert answer.unusable(example) == '' and answer.match(
        example.answer, example)
    assert not answer.match('[0,0,1,1]', example)
    sides.add((box[2] - box[0], box[3] - box[1]))
  assert {w for w, h in sides} == set(range(8, 17)) and all(
      w == h for w, h in sides)


def test_it_is_drawn_alone_and_others_are_not_it():
  one = grounding.grounding(1, 'train', 7, uid_offset=3)
  two = grounding.grounding(1, 'train', 7, uid_offset=3)
  assert one.images[0].tobytes() == two.images[0].tobytes() and one.uid == 10
  counts = {grounding.grounding(1, 'eval', i, objects=(2, 5)).meta['caption']
            for i in range(60)}
  assert counts == {
      f'{n} shapes on a light background' for n in (2, 3, 4, 5)}


@pytest.mark.parametrize('kw, said', [
    (dict(objects=(0, 2)), 'objects=.0, 2.'), (dict(grid=(1, 4)), 'grid=.1, 4'),
    (dict(colour='pink'), "colour='pink'"), (dict(kind='star'), "kind='star'")])
def test_what_cannot_be_is_refused(kw, said):
  with pytest.raises(ValueError, match=said):
    grounding.grounding(0, 'train', 0, **kw)
