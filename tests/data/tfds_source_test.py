"""TFDS through its own mock data, without TensorFlow."""

import subprocess
import sys

import tensorflow_datasets as tfds

from mmr1 import records
from mmr1.data import files
from mmr1.data import rows
from mmr1.data import tfds_source


def test_mnist_by_columns():
  form = rows.RowFormat(
      image='image', answer='label', constant_question='<image>Which digit?')
  with tfds.testing.mock_data(num_examples=6):
    source = files.open_path('tfds:mnist/train', form=form, offset=50)
    assert isinstance(source, tfds_source.TfdsSource) and len(source) == 6
    for i in range(6):
      item = source[i]
      assert isinstance(item, records.Example), item
      assert item.uid == 50 + i and item.images[0].size == (28, 28)
      assert item.answer in set('0123456789')
      assert item.question == '<image>Which digit?'
      assert item.source == f'tfds:mnist/train:{i}'


def test_class_names_spell_the_answer():
  form = rows.RowFormat(
      image='image', answer='label', constant_question='What is it?')
  with tfds.testing.mock_data(num_examples=4):
    source = tfds_source.TfdsSource('cats_vs_dogs', 'train', form=form)
    names = set(tfds.builder('cats_vs_dogs').info.features['label'].names)
    answers = [source[i].answer for i in range(4)]
  assert names == {'cat', 'dog'} and set(answers) <= names


def test_tensorflow_is_never_imported():
  code = '''
import sys
import tensorflow_datasets as tfds
from mmr1.data import rows, tfds_source
form = rows.RowFormat(image='image', answer='label', constant_question='q')
with tfds.testing.mock_data(num_examples=2):
  source = tfds_source.TfdsSource('mnist', 'test', form=form)
  print(source[1].images[0].size)
assert 'tensorflow' not in sys.modules
'''
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == '(28, 28)'
