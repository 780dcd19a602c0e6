"""Tests of the questions about a scene, worked by hand on one scene."""

import pytest

from mmr1.data.tasks import scenes

SCENE = (
    {'kind': 'circle', 'colour': 'red', 'row': 1, 'column': 2},
    {'kind': 'circle', 'colour': 'blue', 'row': 3, 'column': 1},
    {'kind': 'square', 'colour': 'red', 'row': 3, 'column': 4})


def test_solve_by_hand():
  red, circle = ('red', None), (None, 'circle')
  blue_circle, red_square = ('blue', 'circle'), ('red', 'square')
  square = (None, 'square')
  # Two red objects, two circles, one square; costs 2 * 3 + 1 * 5 = 11.
  for form, query, answer in (
      ('count_colour', {'a': red}, '2'), ('count_kind', {'a': square}, '1'),
      ('count_both', {'a': blue_circle}, '1'),
      ('colour_of', {'a': square}, 'red'),
      ('kind_of', {'a': ('blue', None)}, 'circle'),
      ('compare', {'a': red, 'b': circle}, 'no'),
      ('compare', {'a': red, 'b': square}, 'yes'),
      ('total', {'a': circle, 'b': square}, '3'),
      ('difference', {'a': circle, 'b': square}, '1'),
      ('cost', {'a': circle, 'b': square, 'prices': (3, 5)}, '11'),
      ('relation', {'a': blue_circle, 'b': red_square,
                    'relation': 'left of'}, 'yes'),
      ('relation', {'a': blue_circle, 'b': ('red', 'circle'),
                    'relation': 'above'}, 'no')):
    assert scenes.solve(SCENE, form, query) == answer


@pytest.mark.parametrize('form, query, answer, facts, inferences', [
    # Two red objects: one circle and one square.
    ('count_colour', {'a': ('red', None)}, '2',
     ('red circle 1', 'red square 1'), ('1+1=2',)),
    # One square: nothing to add.
    ('count_kind', {'a': (None, 'square')}, '1', ('red square 1',), ()),
    ('count_kind', {'a': (None, 'cross')}, '0', ('cross 0',), ()),
    ('colour_of', {'a': (None, 'square')}, 'red', ('square red',), ()),
    ('kind_of', {'a': ('blue', None)}, 'circle', ('blue circle',), ()),
    ('compare', {'a': ('red', None), 'b': (None, 'circle')}, 'no',
     ('red 2', 'circle 2'), ('2=2 no',)),
    ('relation', {'a': ('red', 'square'), 'b': ('red', 'circle'),
                  'relation': 'below'}, 'yes',
     ('red square row 3', 'red circle row 1'), ('3>1 yes',)),
    # Two circles at 3 and one square at 5.
    ('cost', {'a': (None, 'circle'), 'b': (None, 'square'),
              'prices': (3, 5)}, '11',
     ('circle 2', 'square 1'), ('2*3=6', '1*5=5', '6+5=11')),
])
def test_reason_by_hand(form, query, answer, facts, inferences):
  assert scenes.solve(SCENE, form, query) == answer
  assert scenes.reason(SCENE, form, query, answer) == (
      facts, facts + inferences)


def test_an_unknown_form_is_named():
  with pytest.raises(ValueError, match='sizes'):
    scenes.solve(SCENE, 'sizes', {'a': ('red', None), 'b': ('red', None)})
