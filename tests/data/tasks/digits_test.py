"""Tests of the digits task: answers are recomputed from words and labels."""

import collections
import hashlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from mmr1.data.tasks import digits

N = 2000


@pytest.fixture(scope='module')
def drawn():
  return [digits.digits(3, 'train', i) for i in range(N)]


@pytest.fixture(scope='module')
def scans():
  """Ink u8[1797, 8, 8] and labels, as scikit-learn has them."""
  loaded = datasets.load_digits()
  return loaded.images.astype(np.uint8), loaded.target


def _formula(question, values):
  """The answer from the words of the question; shares no code."""
  if 'ubtract' in question:
    return sum(values[:-1]) - values[-1]
  if 'ouble' in question or 'twice' in question:
    return sum(values) + values[0]
  if 'product' in question or 'Multiply' in question:
    return values[0] * values[1] + sum(values[2:])
  return sum(values)


def _shows(cell, scan):
  """True if a 16x16 cell shows the scan: 14x14 pixels, noise of 4 levels."""
  ink = Image.fromarray(255 - 15 * scan).resize(
      (14, 14), Image.Resampling.BILINEAR)
  return min(
      np.abs(cell[y:y + 14, x:x + 14] - np.asarray(ink, float)).mean()
      for y in range(3) for x in range(3)) < 4.0


def _fingerprint(example):
  text = repr((example.uid, example.question, example.answer,
               sorted(example.meta.items())))
  return hashlib.md5(text.encode() + example.images[0].tobytes()).hexdigest()


def test_answers_follow_from_the_words_and_the_labels(drawn, scans):
  for i, example in enumerate(drawn):
    values = example.meta['scene']['digits']
    assert example.answer == str(_formula(example.question, values))
    assert values == tuple(
        int(scans[1][c]) for c in example.meta['scene']['scans'])
    assert example.meta['facts'] == (
        'digits ' + ','.join(map(str, values)),)
    assert example.uid == i and example.meta['answer_type'] == 'number'
    assert example.question.startswith('<image>')
    assert not any(c.isdigit() for c in example.question)


def test_steps_are_right_and_end_with_the_answer(drawn):
  for example in drawn:
    steps = example.meta['steps']
    assert len(steps) == example.meta['difficulty'] >= 1
    for step in steps:
      left, right = step.split('=')
      assert eval(left) == int(right)  # digits and + - * only
    assert steps[-1].split('=')[1] == example.answer


@pytest.mark.parametrize('split', ['train', 'eval'])
def test_pictures_show_the_scans_they_name(split, scans):
  """Held-out scans are numbered from 1437 = 1797 * 4 // 5 of the whole set."""
  first = 0 if split == 'train' else 1437
  for i in range(60):
    example = digits.digits(1, split, i)
    pixels = np.asarray(example.images[0].convert('L'), float)
    chosen = example.meta['scene']['scans']
    assert pixels.shape == (16, 16 * len(chosen))
    for k, scan in enumerate(chosen):
      cell = pixels[:, 16 * k:16 * k + 16]
      assert _shows(cell, scans[0][first + scan])
      assert not _shows(cell, scans[0][(first + scan + 1) % 1797])


def test_training_and_held_out_scans_are_disjoint(scans):
  """By their pixels: no scan is in the set twice either."""
  parts = {split: {scan.tobytes() for scan in digits.scans_of(split)[0]}
           for split in ('train', 'eval', 'test')}
  assert len(parts['train']) == 1437 and len(parts['eval']) == 360
  assert not parts['train'] & parts['eval']
  assert parts['test'] == parts['eval']
  assert parts['train'] | parts['eval'] == {s.tobytes() for s in scans[0]}


def test_every_form_length_and_wording_appears(drawn):
  forms = collections.Counter(e.meta['form'] for e in drawn)
  assert set(forms) == set(digits.FORMS)
  # 2000 / 4 = 500 each, sigma = sqrt(2000 * 3/16) = 19.
  assert all(400 < n < 600 for n in forms.values())
  lengths = collections.Counter(
      len(e.meta['scene']['digits']) for e in drawn)
  assert set(lengths) == {2, 3, 4} and min(lengths.values()) > 550
  for form in digits.FORMS:
    assert {e.question.removeprefix('<image>') for e in drawn
            if e.meta['form'] == form} == set(digits.questions(form))


def test_items_are_deterministic_and_random_access(drawn):
  assert len({_fingerprint(e) for e in drawn}) == N
  for i in (1900, 3, 77):
    assert _fingerprint(digits.digits(3, 'train', i)) == _fingerprint(drawn[i])
  code = ('import runpy, sys; sys.argv = [""]; from mmr1.data.tasks import '
          f'digits; test = runpy.run_path({__file__!r}); '
          'print(test["_fingerprint"](digits.digits(3, "train", 77)))')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True,
                        text=True, check=True)
  assert done.stdout.strip() == _fingerprint(drawn[77])
  others = {_fingerprint(digits.digits(*address)) for address in (
      (3, 'eval', 77), (3, 'test', 77), (4, 'train', 77))}
  assert len(others | {_fingerprint(drawn[77])}) == 4
  assert digits.digits(3, 'train', np.int64(4), uid_offset=50).uid == 54


def test_arguments_choose_lengths_and_forms():
  for i in range(50):
    example = digits.digits(
        0, 'train', i, min_digits=6, max_digits=6, forms=('sum',))
    assert len(example.meta['scene']['digits']) == 6
    assert example.meta['form'] == 'sum' and example.images[0].width == 96


@pytest.mark.parametrize('split, i, kwargs, word', [
    ('evl', 0, {}, "'evl' does not exist.*eval"), ('train', -1, {}, 'i=-1'),
    ('train', 0, {'forms': ('summ',)}, 'summ'),
    ('train', 0, {'forms': 'sum'}, 'tuple'),
    ('train', 0, {'forms': ()}, 'empty'),
    ('train', 0, {'min_digits': 1}, 'min_digits=1'),
    ('train', 0, {'min_digits': 4, 'max_digits': 3}, 'max_digits=3'),
    ('train', 0, {'max_digits': 10}, 'max_digits=10')])
def test_bad_arguments_are_named(split, i, kwargs, word):
  with pytest.raises(ValueError, match=word):
    digits.digits(0, split, i, **kwargs)


def test_digits_to_be_read(scans):
  images, labels = scans
  seen = set()
  for i in range(60):
    example = digits.reading(3, 'train', i, uid_offset=5, max_digits=3)
    values = example.meta['scene']['digits']
    assert example.answer == ','.join(map(str, values))
    assert example.completions == (f'<answer>{example.answer}</answer>',)
    assert example.uid == 5 + i and 2 <= len(values) <= 3
    picture = np.asarray(example.images[0].convert('L'), float)
    for k, (scan, value) in enumerate(zip(
        example.meta['scene']['scans'], values)):
      assert labels[scan] == value
      assert _shows(picture[:, 16 * k:16 * k + 16], images[scan])
    seen.add(example.question)
    # Another item than the sum of the same number.
    assert example.images[0].tobytes() != digits.digits(
        3, 'train', i, max_digits=3).images[0].tobytes()
  assert len(seen) == 3
  assert digits.reading(3, 'eval', 0).images[0].size[0] <= 64
  with pytest.raises(ValueError, match='reading: got min_digits=1'):
    digits.reading(0, 'train', 0, min_digits=1)
