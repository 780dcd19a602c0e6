"""IoU of the box of an answer, by hand."""

import dataclasses

from PIL import Image
import pytest

from mmr1 import records
from mmr1.rewards import answer
from mmr1.rewards import format as format_reward
from mmr1.rewards import grounding


def sample(text, box=(0, 0, 10, 10), **meta):
  example = records.Example(
      uid=0, answer='', images=(Image.new('RGB', (40, 20)),),
      meta={'answer_type': 'box', **({} if box is None else {'box': box}),
            **meta})
  return records.Sample(
      text=text, tokens=(), kinds=(), length=1, truncated=False,
      example=example, uid=0, group=0, slot=0)


def iou(said, form='exact', **kw):
  return grounding.iou(sample(f'<answer>{said}</answer>', **kw), {}, form=form)


@pytest.mark.parametrize('form', grounding.FORMS)
def test_by_hand(form):
  """inter 25, union 100 + 100 - 25; halves; nothing in common."""
  assert iou('[5, 5, 15, 15]', form) == pytest.approx(25 / 175)
  assert iou('{"bbox_2d": [0,0,10,10]}', form) == 1
  assert iou('(0, 0, 10, 5)', form) == .5
  assert iou('[10, 0, 20, 10]', form) == 0
  assert iou('[2.5, 0, 10, 10]', form) == .75


def test_one_pixel_in_common_is_none_in_the_released_form():
  assert iou('[9, 0, 19, 10]') == pytest.approx(10 / 190)
  assert iou('[9, 0, 19, 10]', 'released') == 0
  assert iou('[8, 0, 18, 10]', 'released') == pytest.approx(20 / 180)


def test_m14_numbers_are_in_the_familys_frame():
  """An image of 40x20, seen at 80x40: the same box is twice as large there."""
  seen = dict(box_frame='seen', seen=(40, 80))
  assert iou('[0, 0, 20, 20]', **seen) == 1
  assert iou('[10, 10, 30, 30]', **seen) == pytest.approx(25 / 175)
  assert iou('[0, 0, 250, 500]', box_frame='thousand') == 1


@pytest.mark.parametrize('said', [
    '', 'nothing', '[1, 2, 3]', '[10, 10, 0, 0]', '[0,0,10,10] [0,0,10,10]',
    '[0, 0, 1e9, 1]', '[nan, 0, 1, 1]', '[0, 0, 9999999999, 1]', '[0,0,0,0]'])
def test_m11_no_box_or_several_earn_nothing(said):
  for form in grounding.FORMS:
    assert iou(said, form) == 0


def test_without_tags_or_without_a_box():
  assert grounding.iou(sample('[0, 0, 10, 10]'), {}) == 0
  assert grounding.iou(sample('[0, 0, 10, 10]'), {}, strict=False) == 1
  assert grounding.iou(sample('<answer>7</answer>', box=None), {}) is None
  with pytest.raises(ValueError, match=r'box=\(1, 2\)'):
    iou('[0,0,1,1]', box=(1, 2))
  with pytest.raises(ValueError, match="form='loose'"):
    iou('[0,0,1,1]', 'loose')


def test_the_matcher_asks_for_half():
  example = sample('').example
  assert answer.match('[0, 0, 10, 5]', example)
  assert not answer.match('[0, 0, 10, 4.9]', example)
  assert not answer.match(None, example)
  assert 'box=(1, 0, 0, 1)' in answer.unusable(
      dataclasses.replace(example, meta={**example.meta, 'box': (1, 0, 0, 1)}))


@pytest.mark.parametrize('text, want', [
    ('<answer>7</answer>', 1), (' <answer>\n7 </answer>\n', 1),
    ('7', 0), ('<answer></answer>', 0), ('It is <answer>7</answer>', 0),
    ('<answer>7</answer> yes', 0), ('<answer>7', 0),
    ('<answer>7</answer><answer>7</answer>', 0),
    ('<think>a</think><answer>7</answer>', 0),
    ('<answer><answer>7</answer></answer>', 0),
    ('<answer><think>a</think>7</answer>', 0)])
def test_an_answer_alone(text, want):
  assert format_reward.answer_alone(sample(text), {}) == want
