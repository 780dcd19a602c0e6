"""Benchmarks' files, their own rules, and the strict mode, by hand."""

import io
import json
import time

from PIL import Image
import pytest

from mmr1 import records
from mmr1.data import benchmarks
from mmr1.rewards import official
from mmr1.rewards import pool
from mmr1.rewards import text_distance
from mmr1.rewards import verdict


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
  # Of '1,012' the plain search alone would find 012; the one with commas 1012.
  assert official.official('so 1,012', example).score == 1.0
  assert official.official('so 1,013', example).score == 0.0
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


def test_mathverse_asks_a_judge_for_all_and_reports_its_versions(tmp_path):
  row = dict(sample_index='3', problem_version='Vision Only', question='',
             image=picture(), answer='D', question_type='multi-choice',
             metadata=dict(subject='Plane Geometry', subfield='Angle'))
  example = one(tmp_path, 'mathverse', **row)
  assert example.question == 'Answer the question in the image.'
  assert list(example.meta['labels'].items()) == [
      ('version', 'Vision Only'), ('subject', 'Plane Geometry'),
      ('subfield', 'Angle')]
  assert official.official('D', example) == (None, 0.0, 'unjudged')
  # The first model extracts, the second compares: one judge does either half.
  assert official.official('...', example, judge=lambda *_: ' D ') == (
      'D', 1.0, 'judge')
  assert official.official('...', example, judge=lambda *_: ('140', 1.0)) == (
      '140', 1.0, 'judge')
  assert official.official('...', example, judge=lambda *_: None) == (
      None, 0.0, 'judge')
  assert official.official(
      'The answer is D.', example, judge=verdict.by_rules) == (
          'D', 1.0, 'judge')
  assert official.strict('<answer>D</answer>', example).score == 1.0
  assert official.strict('D', example) == (None, 0.0, 'rule')
  path = tmp_path / 'text.json'
  path.write_text(json.dumps([{
      **row, 'problem_version': 'Text Only', 'question': 'x?', 'image': ''}]))
  (example,) = benchmarks.Benchmark('mathverse', str(path))
  assert (example.question, example.images) == ('x?', ())


def test_mathvision_by_hand(tmp_path):
  example = one(
      tmp_path, 'mathvision', id='4', question='How many?\n<image1>',
      options=['2', '4', '6'], answer='B', solution=None, level=2,
      subject='counting', image='images/4.jpg', decoded_image=picture())
  assert example.question == 'How many?\n<image>\n(A) 2\n(B) 4\n(C) 6'
  assert example.meta['labels'] == {'level': 'level 2', 'subject': 'counting'}
  for said, score in (
      ('\\boxed{B}', 1), ('So it must be (B).', 1), ('B\nsince', 1),
      ('there is 4.', 1), ('the answer is B. Or C', 1),
      ('\\boxed{A} no, \\boxed{\\frac{8}{2}}', 1),  # 8 / 2 is option B
      ('\\boxed{C}', 0), ('So it must be C.', 0), ('the answer is 6', 0),
      ('B or C', 0), ('', 0)):
    assert official.official(said, example)[1:] == (score, 'rule'), said
  assert official.official('', example).extracted is None
  assert official.strict('<answer>B</answer>', example).score == 1.0
  assert official.strict('\\boxed{B}', example) == (None, 0.0, 'rule')
  path = tmp_path / 'test.jsonl'
  Image.new('RGB', (40, 40)).save(tmp_path / '1.png')
  for answer, said, score in (
      ('0.33', 'x = \\boxed{\\dfrac{1}{3}}', 1), ('(1,2)', '\\boxed{(1, 2.0)}', 1),
      ('(1,2)', '\\boxed{(1, 3)}', 0), ('60', '\\boxed{60^\\circ}', 1),
      ('60', 'the answer is 60.004', 1), ('60', 'the answer is 60.02', 0)):
    path.write_text(json.dumps(dict(
        id='1', question='?', options=[], answer=answer, level=1, subject='s',
        image='1.png')))
    (example,) = benchmarks.Benchmark('mathvision', str(path))
    assert official.official(said, example).score == score, said


@pytest.mark.parametrize('gold, said', [
    ('\\frac{1}{3}', '0.333'), ('\\sqrt{2}', '1.41'), ('2\\pi', '6.28'),
    ('\\frac{7}{2}', '3.51'), ('2^{3}', '8'), ('\\sqrt{3}+1', '2.74')])
def test_mathvisions_values_are_those_of_latex2sympy(gold, said):
  """The library that the benchmark's own script evaluates answers with."""
  sympy = pytest.importorskip('sympy')
  latex2sympy = pytest.importorskip('latex2sympy2_extended').latex2sympy
  value = lambda x: round(float(sympy.N(latex2sympy(x))), 2)
  # In a worker: it bounds the memory of its process.
  equal = pool.shared().call('mmr1.rewards.equivalence:rounded_equal', gold,
                             said, limit_s=30.0)
  assert equal == (value(gold) == value(said))


def test_choices(tmp_path):
  example = one(tmp_path, 'mmstar', index=0, question='Q Options: A: x, B: y',
                answer='B', image=picture(), category='math', l2_category='x')
  # The first character decides, behind nothing or one of three leads.
  assert [both(s, example)[0].score for s in (
      'B', 'B: y', '(b)', 'Option B', 'The answer is B', 'bee', 'So: B',
      'maybe', 'A')] == [1, 1, 1, 1, 1, 1, 0, 0, 0]
  assert official.official('A', example).extracted == 'A'
  assert official.official('maybe', example).extracted is None
  assert official.strict('<answer>B</answer>', example).score == 1.0
  assert [*example.meta['labels']] == ['category', 'l2_category']
  example = one(tmp_path, 'ai2d', question='Q', options=['x', 'y'], answer='1',
                image=picture())
  assert both('B. y', example)[0] == ('B', 1.0, 'rule')
  assert both('(b)', example)[0] == ('B', 1.0, 'rule')
  assert both('B y', example)[0] == ('B Y', 0.0, 'rule')
  example = one(tmp_path, 'mme_realworld', index=1, question='Q', answer='C',
                bytes=picture()['bytes'], **{'multi-choice options': [
                    '(A) one', '(B) two', '(C) red']})
  assert both('The best answer is C', example)[0].score == 1.0
  assert both('red', example)[0] == ('C', 1.0, 'rule')
  path = tmp_path / 'own.json'
  Image.new('RGB', (40, 40)).save(tmp_path / 'a.jpg')
  path.write_text(json.dumps([{
      'Question_id': 'p/0', 'Text': 'Q', 'Image': 'a.jpg', 'Answer choices': [
          '(A) one', '(B) two'], 'Ground truth': 'A', 'Task': 'Perception',
      'Subtask': 'Monitoring', 'Category': 'x'}]))
  (example,) = benchmarks.Benchmark('mme_realworld', str(path))
  assert example.question == 'Q\n(A) one\n(B) two'
  assert example.meta['labels'] == {
      'task': 'Perception', 'subtask': 'Monitoring'}


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
  assert official.anls(['abcd'], 'abxy') == 0.5  # 2 / 4: the script keeps it
  assert official.strict('<answer>smit</answer>', example).score == 0.8
  anls = pytest.importorskip('anls')
  for golds, said in ((['abcd'], 'abxd'), (['a b'], 'A B'), (['ab'], 'cd')):
    assert official.anls(golds, said) == pytest.approx(
        anls.anls_score(prediction=said, gold_labels=golds, threshold=0.5))


def test_m11_a_flood_of_words_is_far_from_any_answer(tmp_path):
  example = one(tmp_path, 'docvqa', questionId=1, question='who?',
                answers=['invoice 12'], image=picture())
  for said in ('x' * 3999, 'x' * 4000, 'lorem ipsum ' * 800):
    loose, strict = both(f'<answer>{said}</answer>', example)
    assert loose.score == strict.score == official.anls(['abc'], said) == 0.0


@pytest.mark.parametrize('said', [
    'a long chain that was cut off ' * 3000, 'o' * 64_000, '0.' + '3' * 64_000,
    '1' * 64_000 + 'x', 'oxed{' * 20_000])
def test_m10_long_completions_are_read_at_once(tmp_path, said):
  worked = one(tmp_path, 'mathvision', id='1', question='?', options=[],
               image=picture(), answer='12', level=1, subject='algebra')
  counted = one(tmp_path, 'mmmu', id='v_2', question='how many?', options='[]',
                answer="['12']", image_1=picture())
  start = time.monotonic()
  for example in (worked, counted):
    assert official.official(said, example).score == 0.0
  assert time.monotonic() - start < 2  # with a square in it 10 s to minutes


def test_boxes_and_points(tmp_path):
  Image.new('RGB', (100, 50)).save(tmp_path / 'a.png')
  path = tmp_path / 'r.jsonl'
  path.write_text(json.dumps(dict(
      image='a.png', sent='left cat', bbox=[0, 0, 10, 10])))
  (example,) = benchmarks.Benchmark('refcoco', str(path))
  # [0, 0, 10, 6] covers 60 of 100; [0, 0, 10, 4] only 40.
  assert official.official('at [0, 0, 10, 6]', example).score == 1.0
  assert official.official('at [0, 0, 10, 4]', example).score == 0.0
  assert official.official(
      'at [0, 0, 10.0000000, 6.0000001]', example).score == 1.0
  assert official.strict('<answer>[0, 0, 10, 6]</answer>', example).score == 1
  assert official.strict('[0, 0, 10, 6]', example).score == 0.0
  path.write_text(json.dumps(dict(  # VLM-R1's
      image='a.png', problem='Where is it?', solution=[0, 0, 10, 10])))
  (example,) = benchmarks.Benchmark('refcoco', str(path))
  assert example.question == 'Where is it?'
  assert official.official('[0, 0, 10, 6]', example).score == 1.0
  parquet_row = dict(question_id='7', image=picture(), answer=['cat', 'left'],
                     bbox=[5., 6., 10., 10.])
  from pyarrow import Table, parquet
  parquet.write_table(Table.from_pylist([parquet_row] * 2),
                      tmp_path / 'val-0.parquet')
  found = [*benchmarks.Benchmark('refcoco', f'{tmp_path}/val-*.parquet')]
  assert [x.uid for x in found] == [0, 1, 2, 3]  # a problem per expression
  assert found[1].question.endswith('of: left')
  assert found[1].meta['box'] == (5, 6, 15, 16)  # width and height
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


@pytest.mark.parametrize('name, good, bad', [
    ('ai2d', dict(question='?', options=['x', 'y'], answer='1'),
     dict(answer='2')),
    ('chartqa', dict(query='?', label=['3'], human_or_machine=0),
     dict(human_or_machine=2))])
def test_m26_a_number_out_of_range_breaks_its_row_alone(
    tmp_path, name, good, bad):
  Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(json.dumps({'image': 'a.png', **row})
                            for row in (good, {**good, **bad})))
  first, second = benchmarks.Benchmark(name, str(path))
  assert isinstance(first, records.Example), first
  assert isinstance(second, records.Broken)


@pytest.mark.parametrize('name, row, said', [
    ('mmmu', dict(id='a_b_1', question='?', options='[]', answer=12), '12'),
    ('docvqa', dict(questionId=1, question='?', answers=['twelve', 12]), '12'),
    ('mathvision', dict(id=1, question='?', options=[10, 12], answer='B',
                        level=1, subject='s'), 'B')])
def test_numbers_among_texts_are_texts(tmp_path, name, row, said):
  Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps({'image': 'a.png', **row}))
  (example,) = benchmarks.Benchmark(name, str(path))
  for verdict_ in both(f'<answer>{said}</answer>', example):
    assert verdict_.score in (0.0, 1.0)
  assert official.strict(f'<answer>{said}</answer>', example).score == 1.0


def test_json_lines_end_at_line_feeds_alone(tmp_path):
  row = dict(questionId=1, question='a\u2028b\u0085c', answers=['x'],
             image='gone.png')
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(b'\xef\xbb\xbf' + json.dumps(
      row, ensure_ascii=False).encode())
  assert len(benchmarks.Benchmark('docvqa', str(path))) == 1
  whole = tmp_path / 'rows.json'
  whole.write_bytes(b'\xef\xbb\xbf' + json.dumps([row]).encode())
  assert len(benchmarks.Benchmark('docvqa', str(whole))) == 1


def test_m26_options_that_are_no_list_break_their_row_alone(tmp_path):
  good = dict(id='a', question='Which?', options="['x', 'y']", answer='A')
  path = tmp_path / 'mmmu.jsonl'
  path.write_text('\n'.join(json.dumps(row) for row in (
      good, {**good, 'options': "['x', 'y"})))
  found = benchmarks.Benchmark('mmmu', str(path))
  assert found[0].answer == 'A'
  assert isinstance(found[1], records.Broken) and 'SyntaxError' in str(found[1])
