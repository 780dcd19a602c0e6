"""Tests of the shapes task: answers are recomputed from the pixels.

The reader below sees only the picture and the words of the question; it shares
no code with the task.
"""

import collections
import functools
import hashlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from mmr1.data.tasks import shapes

COUNTING = ('count_colour', 'count_kind', 'count_both')
N = 1500


@pytest.fixture(scope='module')
def drawn():
  return [shapes.shapes(3, 'train', i) for i in range(N)]


def _colour(rgb):
  red, green, blue = rgb
  if red > 150:
    return 'yellow' if green > 120 else 'red'
  return 'green' if green > blue else 'blue'


def _kind(mask):
  """Kind of a shape from its silhouette, cropped to the bounding box."""
  width = mask.sum(axis=1)
  if mask.all():
    return 'square'
  if width[0] < mask.shape[1] / 2 and width[-1] == mask.shape[1]:
    return 'triangle'
  # A disc fills pi/4 = .79 of its box, a cross of thirds 5/9 = .56.
  return 'circle' if mask.mean() > .7 else 'cross'


def _see(image):
  """[(colour, kind, row, column)] of the objects in a picture."""
  return _read(image.size, image.tobytes())


@functools.cache
def _read(size, data):
  pixels = np.frombuffer(data, np.uint8).reshape(size[1], size[0], 3)
  pixels = pixels.astype(int)
  saturated = pixels.max(axis=2) - pixels.min(axis=2) > 60
  seen = []
  for row in range(pixels.shape[0] // 16):
    for column in range(pixels.shape[1] // 16):
      cell = np.s_[16 * row:16 * row + 16, 16 * column:16 * column + 16]
      mask = saturated[cell]
      if not mask.any():
        continue
      ys, xs = np.nonzero(mask)
      box = np.s_[ys.min():ys.max() + 1, xs.min():xs.max() + 1]
      assert 10 <= box[0].stop - box[0].start <= 14
      assert 10 <= box[1].stop - box[1].start <= 14
      colours = {tuple(c) for c in pixels[cell][mask]}
      assert len(colours) == 1, 'two objects in one cell'
      seen.append(
          (_colour(colours.pop()), _kind(mask[box]), row + 1, column + 1))
  return seen


def _nouns(question):
  """[(colour or None, kind or None)] of the noun phrases of a question."""
  found = re.findall(
      r'(?:(red|green|blue|yellow) )?(circle|square|triangle|cross|object)',
      question)
  return [(c or None, None if k == 'object' else k) for c, k in found]


def _stem(question):
  return question.removeprefix('<image>').split(' (A) ')[0]


def _answer(question, count, only):
  """The answer from the words; count(spec) and only(spec) see the picture."""
  a, *rest = _nouns(question)
  b = rest[0] if rest else None
  if 'colour' in question:
    return only(a)[0]
  if 'shape' in question:
    return only(a)[1]
  for word, axis, sign in (('left of', 3, 1), ('right of', 3, -1),
                           ('above', 2, 1), ('below', 2, -1)):
    if word in question:
      return 'yes' if sign * only(a)[axis] < sign * only(b)[axis] else 'no'
  if 'more' in question and 'How many' not in question:
    return 'yes' if count(a) > count(b) else 'no'
  if 'more' in question or 'outnumber' in question:
    return str(count(a) - count(b))
  prices = re.findall(r'\d', question)
  if prices:
    return str(count(a) * int(prices[0]) + count(b) * int(prices[1]))
  return str(count(a) + (count(b) if b else 0))


def _from_picture(example):
  seen = _see(example.images[0])

  def match(spec):
    return [o for o in seen if spec[0] in (None, o[0])
            and spec[1] in (None, o[1])]

  def only(spec):
    found = match(spec)
    assert len(found) == 1, f'{spec} is not unique in {example.question}'
    return found[0]

  return _answer(
      _stem(example.question), lambda spec: len(match(spec)), only)


def _from_facts(example):
  words = [fact.split() for fact in example.meta['facts']]

  def count(spec):
    return sum(int(w[-1]) for w in words
               if all(s is None or s in w for s in spec)
               or tuple(w[:-1]) == tuple(s for s in spec if s))

  def only(spec):
    found, = [w for w in words if all(s is None or s in w for s in spec)]
    colour = [w for w in found if w in shapes.RGB]
    kind = [w for w in found if w in ('circle', 'square', 'triangle', 'cross')]
    where = int(found[-1]) if found[-1].isdigit() else None
    return colour[0], kind[0], where, where

  return _answer(_stem(example.question), count, only)


def _fingerprint(example):
  text = repr((example.uid, example.question, example.answer,
               sorted(example.meta.items()), example.images[0].size))
  return hashlib.md5(text.encode() + example.images[0].tobytes()).hexdigest()


def test_answers_follow_from_the_pixels_and_the_words(drawn):
  for example in drawn:
    assert _from_picture(example) == example.answer, example.question


def test_answers_follow_from_the_facts(drawn):
  for example in drawn:
    assert _from_facts(example) == example.answer, (
        example.question, example.meta['facts'])


def test_the_facts_are_true(drawn):
  # Counts stated by the facts are those of the picture.
  for example in drawn:
    if example.meta['form'] in ('relation', 'colour_of', 'kind_of'):
      continue
    seen = _see(example.images[0])
    for fact in example.meta['facts']:
      *words, number = fact.split()
      assert int(number) == sum(set(words) <= set(o[:2]) for o in seen)


def test_scene_and_solve_agree_with_the_picture(drawn):
  for example in drawn:
    scene = example.meta['scene']
    assert _see(example.images[0]) == [
        (o['colour'], o['kind'], o['row'], o['column']) for o in scene]
    assert example.answer == shapes.solve(
        scene, example.meta['form'], example.meta['query'])


def test_steps_start_with_facts_are_right_and_end_with_the_answer(drawn):
  for example in drawn:
    facts, steps = example.meta['facts'], example.meta['steps']
    assert steps[:len(facts)] == facts
    assert steps[-1].split()[-1].split('=')[-1] == example.answer
    for step in steps[len(facts):]:
      # Digits and + - * = < > only, then yes or no after a comparison.
      relation, *verdict = step.split()
      assert eval(relation.replace('=', '==')) is True, step
      assert verdict == (
          [example.answer] if example.answer in ('yes', 'no') else [])
      if example.meta['form'] == 'compare':
        assert ('>' in relation) == (verdict == ['yes'])


def test_meta_is_complete(drawn):
  for i, example in enumerate(drawn):
    meta = example.meta
    assert set(meta) == {
        'answer_type', 'form', 'difficulty', 'caption', 'facts', 'steps',
        'query', 'scene'}
    assert example.uid == i and example.source == 'shapes'
    assert meta['answer_type'] == (
        'number' if example.answer.isdigit() else 'text')
    assert example.question.startswith('<image>')
    assert example.question.count('<image>') == 1
    assert '{' not in example.question
    assert meta['difficulty'] == {
        'total': 2, 'difference': 2, 'compare': 2, 'relation': 2, 'cost': 4,
        'count_both': 1, 'colour_of': 1, 'kind_of': 1}.get(
            meta['form'], 1 + (len(meta['facts']) > 1))


def test_the_caption_drops_what_is_asked(drawn):
  for example in drawn:
    assert not _nouns(example.meta['caption'])
    assert re.findall(r'\d', example.meta['caption']) == [
        str(len(_see(example.images[0])))]


def test_every_form_and_template_appears(drawn):
  forms = collections.Counter(e.meta['form'] for e in drawn)
  assert set(forms) == set(shapes.FORMS) == set(shapes.TEMPLATES)
  # 1500 / 10 forms = 150 each, sigma = sqrt(1500 * .1 * .9) = 12.
  assert all(90 < n < 210 for n in forms.values())
  for form, templates in shapes.TEMPLATES.items():
    for template in templates:
      pattern = re.sub(
          r'\\{\w+\\}', r'[\\w ]+', re.escape('<image>' + template))
      assert any(re.fullmatch(pattern, e.question) for e in drawn
                 if e.meta['form'] == form), template


def test_answers_are_balanced():
  for form in COUNTING + ('total', 'difference'):
    answers = collections.Counter(
        shapes.shapes(0, 'train', i, form=(form,)).answer for i in range(300))
    assert max(answers.values()) <= .4 * 300, form
    assert len(answers) >= 5
  for form in ('compare', 'relation'):
    yes = sum(shapes.shapes(0, 'train', i, form=(form,)).answer == 'yes'
              for i in range(400))
    assert .4 * 400 <= yes <= .6 * 400, form
  for form in ('colour_of', 'kind_of'):
    answers = collections.Counter(
        shapes.shapes(0, 'train', i, form=(form,)).answer for i in range(300))
    assert len(answers) == 4 and max(answers.values()) <= .4 * 300


def test_items_are_deterministic_and_random_access(drawn):
  for i in (1400, 3, 77):
    again = shapes.shapes(3, 'train', i)
    assert _fingerprint(again) == _fingerprint(drawn[i])
  prints = {_fingerprint(e) for e in drawn}
  assert len(prints) == N
  others = [shapes.shapes(4, 'train', 3), shapes.shapes(3, 'eval', 3)]
  for other in others:
    assert other.images[0].tobytes() != drawn[3].images[0].tobytes()


def test_another_process_draws_the_same_without_jax(drawn):
  code = (
      'import hashlib, sys\n'
      'from mmr1.data.tasks import geometry, shapes\n'
      'e = shapes.shapes(3, "train", 5)\n'
      'print(hashlib.md5(e.images[0].tobytes()).hexdigest(), e.question)\n'
      'assert "jax" not in sys.modules\n')
  out = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True,
      check=False, env={'PYTHONHASHSEED': '123', 'PYTHONPATH': '.'})
  assert out.returncode == 0, out.stderr
  picture = hashlib.md5(drawn[5].images[0].tobytes()).hexdigest()
  assert out.stdout.strip() == f'{picture} {drawn[5].question}'


def test_splits_never_share_a_scene():
  # Two objects on a 2x2 grid: 6 pairs of cells * 16 * 16 looks = 1536 scenes,
  # so that 1500 unrestricted draws per split would certainly collide.
  scenes = {}
  for split, n in (('train', 1500), ('eval', 500), ('test', 500)):
    scenes[split] = {
        tuple(_see(shapes.shapes(
            seed, split, i, objects=(2, 2), grid=(2, 2)).images[0]))
        for seed in (0, 1) for i in range(n // 2)}
  assert len(scenes['train']) > 400
  assert len(scenes['eval']) > 80 and len(scenes['test']) > 80
  assert not scenes['train'] & scenes['eval']
  assert not scenes['train'] & scenes['test']
  assert not scenes['eval'] & scenes['test']


def test_pictures_keep_to_cells_and_sizes(drawn):
  for example in drawn:
    image, = example.images
    assert image.mode == 'RGB' and image.size == (64, 64)
    assert 2 <= len(example.meta['scene']) <= 7
    for o in example.meta['scene']:
      left, top, right, bottom = o['box']
      # Neighbours never touch: a pixel is free on every side.
      assert min(left % 16, top % 16) >= 1
      assert max(right % 16, bottom % 16) <= 14
      assert left // 16 == right // 16 == o['column'] - 1
      assert top // 16 == bottom // 16 == o['row'] - 1
      # Jitter: the centre is at most 2.5 px from that of the cell.
      assert abs((left + right) / 2 % 16 - 7.5) <= 2.5
      assert abs((top + bottom) / 2 % 16 - 7.5) <= 2.5
  wide = shapes.shapes(0, 'train', 0, grid=(4, 6), objects=(9, 9))
  assert wide.images[0].size == (96, 64)
  assert len(_see(wide.images[0])) == 9


def test_choices():
  letters = collections.Counter()
  for i in range(600):
    example = shapes.shapes(5, 'eval', i, as_choice=True)
    meta = example.meta
    options = re.findall(r'\(([A-D])\) (\w+)', example.question)
    assert tuple(text for _, text in options) == meta['choices']
    assert len(set(meta['choices'])) == len(options)
    assert len(options) == (2 if 'yes' in meta['choices'] else 4)
    value = dict(options)[example.answer]
    assert value == meta['value'] == _from_picture(example)
    assert meta['answer_type'] == 'choice'
    assert meta['steps'][-1] == f'{value}={example.answer}'
    if len(options) == 4:
      letters[example.answer] += 1
  # About 480 with four options: 120 each, sigma = sqrt(480 * 3/16) = 9.5.
  assert all(75 < letters[letter] < 165 for letter in 'ABCD')


def test_examples_pickle_and_carry_the_offset():
  example = shapes.shapes(0, 'train', 7, uid_offset=1000)
  assert example.uid == 1007
  assert _fingerprint(pickle.loads(pickle.dumps(example))) == _fingerprint(
      example)


@pytest.mark.parametrize('kwargs, word', [
    ({'objects': (1, 7)}, r'\(1, 7\)'), ({'objects': (2, 10)}, r'\(2, 10\)'),
    ({'objects': (2, 5), 'grid': (2, 2)}, '<= 4'),
    ({'grid': (1, 4)}, r'\(1, 4\)'), ({'form': 'compare'}, 'tuple'),
    ({'form': ('comparison',)}, 'comparison')])
def test_bad_arguments_are_named(kwargs, word):
  with pytest.raises(ValueError, match=word):
    shapes.shapes(0, 'train', 0, **kwargs)
