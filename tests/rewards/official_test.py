"""Benchmarks' files, their own rules, and the strict mode, by hand."""

import io
import json

from PIL import Image
import pytest

from mmr1 import records
from mmr1.data import benchmarks
from mmr1.rewards import official
from mmr1.rewards import text_distance


def picture():
  out = io.BytesIO()
  Image.new('RGB', (100, 50)).save(out, 'PNG')
  return {'bytes': out.getvalue(), 'path': None}


def one(tmp_path, name, **row):
  from pyarrow import Table, parquet
  path = tmp_path / f'{name}.parquet'
  parquet.write_table(Table.from_pylist([row]), path)
  (item,) = benchmarks.Benchmark(name, str(path))
  assert isinstance(item, records.Example), item
  return item


def both(said, example, **kw):
  return (official.official(said, example, **kw),
          official.strict(said, example))


def test_mmmu_falls_back_on_chance_and_strict_does_not(tmp_path):
  example = one(tmp_path, 'mmmu', id='v_1', question='<image 1> what?',
                options="['cat', 'dog']", answer='B', image_1=picture(),
                image_2=None, question_type='multiple-choice')
  assert example.question == '<image> what?\n(A) cat\n(B) dog'
  assert len(example.images) == 1
  # The last bracketed letter counts.
  assert official.official('(A)? no, (B).', example) == ('B', 1.0, 'rule')
  assert official.official('so it must be a dog I think', example)[:2] == (
      'B', 1.0)
  loose, strict = both('no idea', example)
  assert loose.by == 'chance' and loose == both('none', example)[0]
  assert strict == (None, 0.0, 'rule')
  assert official.strict('<answer>B</answer>', example).score == 1.0
  assert official.strict('(B)', example).score == 0.0


def test_mmmu_open_and_pro(tmp_path):
  example = one(tmp_path, 'mmmu', id='v_2', question='how many?', options='[]',
                answer="['12', 'twelve']", image_1=picture())
  assert official.official('The answer is 12.0', example).score == 1.0
  assert official.official('The answer is 13', example).score == 0.0
  assert official.strict('<answer>Twelve</answer>', example).score == 1.0
  example = one(tmp_path, 'mmmu_pro', id='p', image=picture(), answer='C',
                options="['a1', 'b1', 'c1']")
  assert official.official('(A) and (B). Answer: C', example).score == 1.0


def test_mathvista_rules_and_judge(tmp_path):
  example = one(tmp_path, 'mathvista', pid='1', question='what?',
                choices=['red', 'green'], answer='green', precision=None,
                answer_type='text', decoded_image=picture())
  assert official.official('green', example) == ('green', 1.0, 'rule')
  assert official.official('The answer is "(B) x".', example).score == 1.0
  assert official.official('It is the second', example) == (
      None, 0.0, 'unjudged')
  # 'gren' is one edit from 'green', three from 'red'.
  assert official.official('?', example, judge=lambda said, e: 'gren') == (
      'green', 1.0, 'judge')
  example = one(tmp_path, 'mathvista', pid='2', question='how long?',
                choices=None, answer='1.2', precision=1.0, answer_type='float',
                decoded_image=picture())
  assert official.official('1.24', example).score == 1.0  # rounds to 1.2
  assert official.strict('<answer>1.2</answer>', example).score == 1.0


def test_choices(tmp_path):
  example = one(tmp_path, 'mmstar', index=0, question='Q Options: A: x, B: y',
                answer='B', image=picture())
  assert [both(s, example)[0].score for s in (
      'B', 'B: y', 'The answer is B', 'maybe', 'A')] == [1, 1, 1, 0, 0]
  assert official.strict('<answer>B</answer>', example).score == 1.0
  example = one(tmp_path, 'ai2d', question='Q', options=['x', 'y'], answer='1',
                image=picture())
  assert both('B. y', example)[0] == ('B', 1.0, 'rule')
  example = one(tmp_path, 'mme_realworld', index=1, question='Q', answer='C',
                bytes=picture()['bytes'], **{'multi-choice options': [
                    '(A) one', '(B) two', '(C) red']})
  assert both('The best answer is C', example)[0].score == 1.0
  assert both('red', example)[0] == ('C', 1.0, 'rule')


def test_relaxed_accuracy(tmp_path):
  example = one(tmp_path, 'chartqa', query='how many?', label=['12'],
                image=picture())
  assert official.official('12.6', example).score == 1.0  # .6 / 12 = .05
  assert official.official('12.7', example).score == 0.0
  assert official.strict('12', example).score == 0.0
  assert official.strict('<answer>11.4</answer>', example).score == 1.0
  assert official.relaxed('50%', '0.5') and not official.relaxed('yes', 'no')


def test_anls(tmp_path):
  assert text_distance.edits('kitten', 'sitting') == 3
  example = one(tmp_path, 'docvqa', questionId=1, question='who?',
                answers=['Smith', 'J. Smith'], image=picture())
  assert official.official('smith', example).score == 1.0
  assert official.official('smit', example).score == 0.8  # 1 - 1/5
  assert official.official('xy', example).score == 0.0
  assert official.strict('<answer>smit</answer>', example).score == 0.8
  anls = pytest.importorskip('anls')
  for golds, said in ((['abcd'], 'abxd'), (['a b'], 'A B'), (['ab'], 'cd')):
    assert official.anls(golds, said) == pytest.approx(
        anls.anls_score(prediction=said, gold_labels=golds, threshold=0.5))


def test_boxes_and_points(tmp_path):
  Image.new('RGB', (100, 50)).save(tmp_path / 'a.png')
  path = tmp_path / 'r.jsonl'
  path.write_text(json.dumps(dict(
      image='a.png', sent='left cat', bbox=[0, 0, 10, 10])))
  (example,) = benchmarks.Benchmark('refcoco', str(path))
  # [0, 0, 10, 6] covers 60 of 100; [0, 0, 10, 4] only 40.
  assert official.official('at [0, 0, 10, 6]', example).score == 1.0
  assert official.official('at [0, 0, 10, 4]', example).score == 0.0
  assert official.strict('<answer>[0, 0, 10, 6]</answer>', example).score == 1
  assert official.strict('[0, 0, 10, 6]', example).score == 0.0
  path = tmp_path / 's.json'
  path.write_text(json.dumps([dict(
      img_filename='a.png', instruction='close', bbox=[10, 10, 20, 20])]))
  (example,) = benchmarks.Benchmark('screenspot', str(path))
  assert official.official('(30, 30) or (0, 0)', example).score == 1.0
  assert official.official('(31, 30)', example).score == 0.0
  assert official.official('[10, 10, 20, 20]', example).score == 1.0
  assert official.strict(
      '<answer>(30, 30) or (0, 0)</answer>', example).score == 0.0
  example = one(tmp_path, 'screenspot', bbox=[.1, .2, .3, .6],
                instruction='x', image=picture(), file_name='f')
  assert example.meta['box'] == pytest.approx((10, 10, 30, 30))


def test_an_unknown_layout_says_so(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"problem": "?", "answer": 1}\n')
  with pytest.raises(ValueError, match="not a layout of docvqa.*'problem'"):
    benchmarks.Benchmark('docvqa', str(path))
  with pytest.raises(ValueError, match='docvqb.*docvqa'):
    benchmarks.Benchmark('docvqb', str(path))
  path.write_text(json.dumps(dict(
      questionId=1, question='?', answers=['a'], image='gone.png')))
  (item,) = benchmarks.Benchmark('docvqa', str(path))
  assert isinstance(item, records.Broken) and 'gone.png' in item.reason


def test_m26_options_that_are_no_list_break_their_row_alone(tmp_path):
  good = dict(id='a', question='Which?', options="['x', 'y']", answer='A')
  path = tmp_path / 'mmmu.jsonl'
  path.write_text('\n'.join(json.dumps(row) for row in (
      good, {**good, 'options': "['x', 'y"})))
  found = benchmarks.Benchmark('mmmu', str(path))
  assert found[0].answer == 'A'
  assert isinstance(found[1], records.Broken) and 'SyntaxError' in str(found[1])
