"""Tests of the geometry task: labels are read back from the pixels.

Answers are recomputed from the digits in the picture and the words of the
question with formulas written here.
"""

import collections
import hashlib
import itertools
import re

import numpy as np
import pytest

from mmr1.data.tasks import draw
from mmr1.data.tasks import geometry

N = 1000


@pytest.fixture(scope='module')
def drawn():
  return [geometry.geometry(3, 'train', i) for i in range(N)]


def _crop(mask):
  ys, xs = np.nonzero(mask)
  return mask[ys.min():ys.max() + 1, xs.min():xs.max() + 1]


GLYPHS = {
    _crop(draw.bitmap(char)).tobytes(): char for char in draw.FONT}


def _digits(image):
  """{(row, column): digit} of the dark glyphs in a picture."""
  pixels = np.asarray(image).astype(int)
  dark = pixels.max(axis=2) < 60
  lines = pixels.max(axis=2) - pixels.min(axis=2) > 80
  found = {}
  for row, column in itertools.product(range(4), range(4)):
    cell = np.s_[16 * row:16 * row + 16, 16 * column:16 * column + 16]
    if dark[cell].any():
      assert not lines[cell].any(), 'a line runs through a label'
      found[row, column] = GLYPHS[_crop(dark[cell]).tobytes()]
  return found


def _asks_angle(question):
  return re.search(r'\bangles?\b', question) is not None


def _numbers(example):
  """The numbers shown, in the order in which the facts list them."""
  digits = _digits(example.images[0])
  if _asks_angle(example.question):
    # Two-digit numbers in the left and right half, on different rows.
    return [int(''.join(digits.pop(key) for key in sorted(digits)
                        if key[1] // 2 == half)) for half in (0, 1)]
  if 'rectangle' in example.question:
    # The horizontal side is labelled above or below, in row 0 or 3.
    keys = sorted(digits, key=lambda key: key[0] not in (0, 3))
  elif len(digits) > 1 and len({column for _, column in digits}) < len(digits):
    keys = sorted(digits)  # labels below each other
  else:
    keys = sorted(digits, key=lambda key: key[1])
  return [int(digits[key]) for key in keys]


def _formula(question, numbers):
  question = question.removeprefix('<image>').split(' (A) ')[0]
  given = re.findall(r'\d+', question)
  if given:  # one side and the perimeter
    return int(given[0]) // 2 - numbers[0]
  if 'square' in question:
    numbers = numbers * 2
  if 'area' in question:
    return numbers[0] * numbers[1]
  if 'perimeter' in question or 'outline' in question:
    return numbers[0] + numbers[1] + numbers[0] + numbers[1]
  if _asks_angle(question):
    return 180 - numbers[0] - numbers[1]
  return sum(numbers)


def test_answers_follow_from_the_digits_in_the_picture(drawn):
  for example in drawn:
    numbers = _numbers(example)
    assert sorted(numbers) == sorted(example.meta['scene']['values'])
    assert example.answer == str(_formula(example.question, numbers))


def test_facts_list_the_labels_in_reading_order(drawn):
  for example in drawn:
    form = example.meta['form']
    if form in ('segment', 'path'):
      continue  # below
    listed = [int(n) for n in re.findall(r'\d+', example.meta['facts'][0])]
    assert listed == _numbers(example), example.question


def test_facts_of_paths_follow_the_line(drawn):
  # Along the figure from its left end, or from its top end if both ends are
  # on the same side; every label belongs to the nearest part of the line.
  for example in drawn:
    scene = example.meta['scene']
    if scene['figure'] != 'path':
      continue
    line, = scene['lines']
    digits = _digits(example.images[0])
    def nearest(p, q):
      x, y = (p[0] + q[0]) / 2, (p[1] + q[1]) / 2
      return min(digits, key=lambda key: (
          (key[1] * 16 + 8 - x) ** 2 + (key[0] * 16 + 8 - y) ** 2))
    along = [int(digits[nearest(p, q)]) for p, q in zip(line, line[1:])]
    if line[0][0] > line[-1][0] or (
        line[0][0] == line[-1][0] and line[0][1] > line[-1][1]):
      along = along[::-1]
    assert tuple(along) == scene['values']
    assert example.meta['facts'] == (
        'parts ' + ','.join(map(str, along)),)


def test_facts_of_segments_go_left_to_right_or_down(drawn):
  for example in drawn:
    if example.meta['form'] != 'segment':
      continue
    digits = _digits(example.images[0])
    (r0, c0), (r1, c1) = digits
    assert r0 == r1 or c0 == c1
    first, second = (digits[key] for key in sorted(digits))
    assert example.meta['facts'] == (f'parts {first},{second}',)
    # The cells of two labels never touch: '3 5' is not read as 35.
    assert abs(r0 - r1) + abs(c0 - c1) >= 2


def test_answers_follow_from_the_facts(drawn):
  for example in drawn:
    fact, = example.meta['facts']
    numbers = [int(n) for n in re.findall(r'\d+', fact)]
    assert example.answer == str(_formula(example.question, numbers))
    assert example.answer == geometry.solve(
        example.meta['scene'], example.meta['form'], example.meta['query'])


def test_solve_by_hand():
  # 4 x 7: perimeter 2 * 11 = 22, area 28; perimeter 22 and a side of 4 leave
  # 11 - 4 = 7; 180 - 60 - 70 = 50.
  for form, values, query, answer in (
      ('rectangle_perimeter', (4, 7), {}, '22'),
      ('rectangle_area', (4, 7), {}, '28'),
      ('rectangle_side', (4,), {'perimeter': 22}, '7'),
      ('square_perimeter', (6,), {}, '24'), ('square_area', (6,), {}, '36'),
      ('triangle_angle', (60, 70), {}, '50'), ('segment', (3, 5), {}, '8'),
      ('path', (3, 5, 4), {}, '12')):
    assert geometry.solve({'values': values}, form, query) == answer


def test_steps_are_right_and_end_with_the_answer(drawn):
  for example in drawn:
    facts, steps = example.meta['facts'], example.meta['steps']
    assert steps[:1] == facts and len(steps) >= 2
    for step in steps[1:]:
      left, right = step.split('=')
      assert eval(left) == int(right)  # digits and + - * / only
    assert steps[-1].split('=')[-1] == example.answer


def test_meta_is_complete(drawn):
  for i, example in enumerate(drawn):
    meta = example.meta
    assert set(meta) == {
        'answer_type', 'form', 'difficulty', 'caption', 'facts', 'steps',
        'query', 'scene'}
    assert meta['answer_type'] == 'number' and example.answer.isdigit()
    assert meta['difficulty'] == {
        'rectangle_perimeter': 3, 'rectangle_side': 3, 'triangle_angle': 3,
        'path': 3}.get(meta['form'], 2)
    assert example.uid == i and example.source == 'geometry'
    assert example.question.startswith('<image>')
    assert '{' not in example.question
    assert not re.findall(r'\d', meta['caption'])
    image, = example.images
    assert image.mode == 'RGB' and image.size == (64, 64)


def test_every_form_and_template_appears(drawn):
  forms = collections.Counter(e.meta['form'] for e in drawn)
  assert set(forms) == set(geometry.FORMS)
  # 1000 / 8 forms = 125 each, sigma = sqrt(1000 * 7/64) = 10.5.
  assert all(70 < n < 180 for n in forms.values())
  for form, templates in geometry.TEMPLATES.items():
    for template in templates:
      pattern = re.sub(
          r'\\{\w+\\}', r'\\d+', re.escape('<image>' + template))
      assert any(re.fullmatch(pattern, e.question) for e in drawn
                 if e.meta['form'] == form), template


def test_answers_are_balanced():
  for form in geometry.FORMS:
    answers = collections.Counter(
        geometry.geometry(0, 'train', i, form=(form,)).answer
        for i in range(200))
    assert len(answers) >= 8 and max(answers.values()) <= .25 * 200, form


def test_glyphs_differ_clearly():
  cells = {char: np.array([c == '1' for c in rows.replace(' ', '')])
           for char, rows in draw.FONT.items()}
  assert all(len(cell) == 35 for cell in cells.values())
  for a, b in itertools.combinations(cells, 2):
    assert (cells[a] != cells[b]).sum() >= 3, (a, b)


def test_items_are_deterministic_and_random_access(drawn):
  def fingerprint(example):
    text = repr((example.uid, example.question, example.answer,
                 sorted(example.meta.items())))
    return hashlib.md5(
        text.encode() + example.images[0].tobytes()).hexdigest()

  for i in (900, 3, 77):
    assert fingerprint(geometry.geometry(3, 'train', i)) == fingerprint(
        drawn[i])
  assert len({fingerprint(e) for e in drawn}) == N
  assert geometry.geometry(3, 'train', 4, uid_offset=50).uid == 54


def test_splits_never_share_a_figure():
  # A square of side s has at most 9 sides * 5 colours * 48 placements, so
  # that unrestricted draws of the two splits would collide often.
  def content(example):
    scene = example.meta['scene']
    digits = tuple(sorted(_digits(example.images[0]).items()))
    return digits, scene['lines'], scene['colour'], scene['figure']

  shown = {
      split: {content(geometry.geometry(
          seed, split, i, form=('square_area', 'square_perimeter')))
              for seed in (0, 1) for i in range(n)}
      for split, n in (('train', 700), ('eval', 200), ('test', 200))}
  for a, b in itertools.combinations(shown, 2):
    assert shown[a] and shown[b] and not shown[a] & shown[b]
  assert len(shown['train']) < 2 * 700 * .8  # the space is small enough


def test_the_same_numbers_are_asked_in_every_split():
  # Only pictures are held out, not sums: otherwise nothing could be learnt
  # about a product that training never shows.
  sides = {
      split: {geometry.geometry(
          0, split, i, form=('square_area',)).meta['scene']['values']
              for i in range(200)} for split in ('train', 'eval', 'test')}
  assert sides['train'] == sides['eval'] == sides['test']
  assert len(sides['train']) == 9


def test_choices():
  letters = collections.Counter()
  for i in range(400):
    example = geometry.geometry(5, 'eval', i, as_choice=True)
    meta = example.meta
    options = re.findall(r'\(([A-D])\) (\d+)', example.question)
    assert tuple(text for _, text in options) == meta['choices']
    assert len(set(meta['choices'])) == 4
    value = dict(options)[example.answer]
    assert value == meta['value'] == geometry.solve(
        meta['scene'], meta['form'], meta['query'])
    assert meta['answer_type'] == 'choice'
    assert meta['steps'][-1] == f'{value}={example.answer}'
    if _asks_angle(example.question):
      assert all(int(text) % 10 == 0 for text in meta['choices'])
    letters[example.answer] += 1
  # 100 each, sigma = sqrt(400 * 3/16) = 8.7.
  assert all(60 < letters[letter] < 140 for letter in 'ABCD')


@pytest.mark.parametrize('split, kwargs, word', [
    ('dev', {}, 'dev'), ('train', {'form': ('circle_area',)}, 'circle_area'),
    ('train', {'form': 'segment'}, 'tuple')])
def test_bad_arguments_are_named(split, kwargs, word):
  with pytest.raises(ValueError, match=word):
    geometry.geometry(0, split, 0, **kwargs)
