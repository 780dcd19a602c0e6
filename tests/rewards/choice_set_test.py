"""Choices with several right letters."""

import pytest

from mmr1.rewards import answer
from mmr1.rewards import choice_set

CHOICES = ('red', '30 cm', 'Dr. Smith', 'salt, pepper')


@pytest.mark.parametrize('gold, said, choices, want', [
    ('A,B', 'A,B', None, True), ('A,B', 'B, A', None, True),
    ('A,B', '(b), a.', None, True), ('A,B', '$A$,$B$', None, True),
    ('A,B', 'A', None, False), ('A,B', 'A,B,C', None, False),
    ('A,B', 'A,C', None, False), ('A,B', '', None, False),
    ('A,B', ' , ', None, False), ('A,B', 'AB', None, False),
    # In a set nothing is there twice.
    ('A,B', 'A,A', None, False), ('A,B', 'A,B,B', None, True),
    ('A,B', 'A,B,', None, True),
    # One letter is a set of one.
    ('A', 'A', None, True), ('A', 'a)', None, True), ('A', 'A,B', None, False),
    ('B', 'B: here, there', None, True), ('A,B', 'B: here, there', None, False),
    # By the texts of choices; one has a comma in it.
    ('A,B', 'red, 30 cm', CHOICES, True), ('A,B', 'B,red', CHOICES, True),
    ('D', 'salt, pepper', CHOICES, True),
    ('D', 'D. salt, pepper', CHOICES, True),
    ('A,B', 'A,Z', CHOICES, False),
    # Open words.
    ('salt, oil', 'Oil, salt', None, True), ('salt, oil', 'salt', None, False)])
def test_same_set(gold, said, choices, want):
  assert choice_set.equal(gold, said, choices) is want


@pytest.mark.parametrize('said, want', [
    ('A,B', True), ('B,A', True), ('A,A', True), ('B,B', True), ('A', False),
    ('A,B,B', False), ('A,C', False), ('A,B,', False)])
def test_the_released_form_compares_lengths(said, want):
  assert choice_set.equal('A,B', said, None, form='released') is want


def test_what_is_wrong_is_said():
  with pytest.raises(ValueError, match="form='length'.*'set', 'released'"):
    choice_set.equal('A', 'A', None, form='length')
  with pytest.raises(ValueError, match='names no choice'):
    choice_set.equal(' , ', 'A', None)


@pytest.mark.parametrize('gold, choices, fault', [
    ('A,C', None, ''), ('C', None, ''), ('A,C', CHOICES, ''),
    ('red, salt', CHOICES, 'salt'), ('red, 30 cm', CHOICES, ''),
    ('A,Z', CHOICES, 'z'), ('oil, C', None, 'oil'), (' , ', None, "''")])
def test_the_matcher_takes_what_is_declared(make, gold, choices, fault):
  meta = {'choices': choices} if choices else {}
  one = make('', gold, answer_type='choices', **meta).example
  assert (fault in answer.unusable(one)) if fault else not answer.unusable(one)
  if not fault and ',' in gold:
    assert answer.match('C, A' if 'C' in gold else 'B, A', one) is True
    for wrong in ('A', 'A,B,C,D', 'A,A', '', None):
      assert answer.match(wrong, one) is False
    # Without it the gold answer is one letter, a number or a text.
    if choices:
      assert answer.unusable(make('', gold, **meta).example)


def test_hostile_texts_are_wrong():
  for said in ('A,' * 10**6, ',' * 10**6, 'A' * 10**6, 'A,B' + ' ' * 10**6):
    assert choice_set.equal('A,B', said, CHOICES) is False


def test_the_reward(make, tagged):
  assert choice_set.letters(make(tagged('B, A'), gold='A,B'), {}) == 1
  assert choice_set.letters(make(tagged('A, A'), gold='A,B'), {}) == 0
  assert choice_set.letters(
      make(tagged('A, A'), gold='A,B'), {}, form='released') == 1
  assert choice_set.letters(make('A,B', gold='A,B'), {}) == 0
  assert choice_set.letters(
      make('A,B', gold='A,B'), {}, strict=False) == 1
  assert choice_set.letters(
      make(tagged('red, B'), gold='A,B', choices=CHOICES), {}) == 1
  assert choice_set.letters(make(tagged('A'), gold=None), {}) is None
