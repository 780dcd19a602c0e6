"""User files: columns, broken records, remote paths."""

import base64
import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from etils import epath
from pyarrow import parquet

from mmr1 import records
from mmr1.data import encode
from mmr1.data import files
from mmr1.data import processor as processor_lib
from mmr1.data import rows
from mmr1.data import template


def _png(image):
  buffer = io.BytesIO()
  image.save(buffer, 'PNG')
  return buffer.getvalue()


def _jsonl(path, lines):
  path.write_text(''.join(
      (line if isinstance(line, str) else json.dumps(line)) + '\n'
      for line in lines))
  return str(path)


@pytest.fixture
def fifty(tmp_path, noise):
  """Fifty records of which ten cannot be used, for ten reasons."""
  (tmp_path / 'img').mkdir()
  noise(20, 30).save(tmp_path / 'img' / 'ok.png')
  whole = _png(noise(40, 40))
  (tmp_path / 'img' / 'cut.png').write_bytes(whole[:len(whole) // 2])
  (tmp_path / 'img' / 'text.png').write_text('not an image')
  noise(2, 402).save(tmp_path / 'img' / 'thin.png')
  good = dict(images=['img/ok.png'], problem='<image>What?', answer='4')
  broken = {
      3: (good | dict(images=['img/none.png']), 'missing image'),
      7: (good | dict(images=['img/cut.png']), 'corrupt image'),
      11: ('{"images": ["img/ok.png"], "problem": ', 'bad json'),
      15: (good | dict(answer='  '), 'empty answer'),
      19: (good | dict(problem='<image><image>?'), 'placeholders'),
      23: (good | dict(problem=5), 'wrong type'),
      27: (good | dict(images=['img/thin.png']), 'bad image size'),
      31: ('[1, 2]', 'bad json'),
      35: (good | dict(images=['img/text.png']), 'corrupt image'),
      50: ({'images': ['img/ok.png'], 'answer': '4'}, 'missing column'),
  }
  lines = [broken[n][0] if n in broken else good | dict(answer=str(n))
           for n in range(1, 51)]
  return _jsonl(tmp_path / 'data.jsonl', lines), {
      n: reason for n, (_, reason) in broken.items()}


def test_m26_ten_broken_of_fifty_are_each_named(fifty):
  path, broken = fifty
  source = files.JsonlSource(path, offset=1000)
  assert len(source) == 50
  for i in range(50):
    item = source[i]
    line = i + 1
    if line in broken:
      assert isinstance(item, records.Broken), line
      assert item.where == f'{path}:{line}'
      assert item.reason.split(':')[0] == broken[line], item.reason
    else:
      assert item.uid == 1000 + i and item.answer == str(line)
      assert item.images[0].size == (30, 20)
      assert item.source == f'{path}:{line}'


def test_header_does_not_decode(fifty, monkeypatch):
  source = files.JsonlSource(fifty[0])

  def forbidden(self):
    raise AssertionError('pixels were decoded')

  monkeypatch.setattr('PIL.ImageFile.ImageFile.load', forbidden)
  assert source.header(0).images[0].size == (30, 20)


def test_blank_lines_and_windows_ends(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(
      b'\xef\xbb\xbf{"problem": "\xc3\xa4", "answer": 1}\r\n\r\n  \n'
      b'{"problem": "b", "answer": 2.5}')
  source = files.JsonlSource(str(path))
  assert len(source) == 2
  assert source[0].question == 'ä' and source[0].answer == '1'
  assert source[1].answer == '2.5' and source[1].source.endswith(':4')


@pytest.mark.parametrize('value', [
    True, [1], {'a': 1}, float('nan'), float('inf')])
def test_answers_of_wrong_type(tmp_path, value):
  path = _jsonl(tmp_path / 'a.jsonl', [dict(problem='q', answer=value)])
  item = files.JsonlSource(path)[0]
  assert item.reason.startswith('wrong type: answer')


def test_odd_records_are_named_not_raised(tmp_path):
  lines = [
      '{"problem": "\\ud800", "answer": "1"}',
      '{"problem": "q", "answer": "\\ud800"}',
      '{"problem": "q", "answer": 1' + '0' * 400 + '}',
      json.dumps(dict(problem='q', answer='1', images=['odd://x.png'])),
      json.dumps(dict(problem='q', answer='1', images=['a\0b.png'])),
      json.dumps(dict(problem='q', answer='1', images=[5])),
      json.dumps(dict(problem='q', answer='1', images=['.'])),
      json.dumps(dict(problem='q', answer='1', images=['data:,x!'])),
      json.dumps(dict(problem='q', answer='1', images=['http://x/y.png'])),
      json.dumps(dict(problem='q', answer='1', messages='hello')),
      '[' * 100_000,
      '\xff',
      json.dumps(dict(problem='q', answer='1', images=['data:,\xe9'])),
      json.dumps(dict(answer='1', messages=[dict(
          role='user', content=[dict(type='text', text=5)])])),
  ]
  source = files.JsonlSource(_jsonl(tmp_path / 'a.jsonl', lines))
  kinds = [source[i].reason.split(':')[0] if isinstance(
      source[i], records.Broken) else 'good' for i in range(len(source))]
  assert kinds == [
      'wrong type', 'wrong type', 'good', 'missing image', 'missing image',
      'wrong type', 'missing image', 'corrupt image', 'missing image',
      'wrong type', 'bad json', 'bad json', 'corrupt image', 'wrong type']


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'I;16'])
def test_every_kind_of_picture_encodes(tmp_path, noise, proc, mode):
  picture = noise(24, 24).convert('L' if mode == 'I;16' else mode)
  picture = picture.convert(mode)
  picture.save(tmp_path / 'p.tiff')
  path = _jsonl(tmp_path / 'a.jsonl', [
      dict(images='p.tiff', problem='q', answer='1')])
  item = files.JsonlSource(path)[0]
  out = encode.encode(item, proc, template=template.plain)
  assert out.patches.shape == (16, proc.channels)


def test_zero_is_an_answer_and_none_is_not(tmp_path):
  path = _jsonl(tmp_path / 'a.jsonl', [
      dict(problem='q', answer=0), dict(problem='q', answer=None)])
  source = files.JsonlSource(path)
  assert source[0].answer == '0'
  assert source[1].reason.startswith('empty answer')
  relaxed = files.JsonlSource(
      path, form=rows.RowFormat(require_answer=False))
  assert relaxed[1].answer is None


def test_a_column_that_comes_late_is_seen(tmp_path, noise):
  noise(8, 8).save(tmp_path / 'p.png')
  said = dict(problem='2+2, said "images"?', answer='4')
  path = _jsonl(tmp_path / 'a.jsonl', [
      *[said] * 250, dict(problem='?', answer='1', images=['p.png'])])
  source = files.JsonlSource(path)
  assert len(source[250].images) == 1 and source[250].meta == {}
  assert source[249].images == ()
  assert len(source) == 251


def test_files_that_were_joined_may_differ_in_their_names(tmp_path, noise):
  noise(8, 8).save(tmp_path / 'p.png')
  source = files.JsonlSource(_jsonl(tmp_path / 'a.jsonl', [
      dict(problem='a?', answer='1', image='p.png'),
      dict(question='b?', answer='2', images=['p.png', 'p.png']),
      dict(problem='c?', answer='3')]))
  assert [(x.question, len(x.images), x.meta) for x in source] == [
      ('a?', 1, {}), ('b?', 2, {}), ('c?', 0, {})]


def test_m26_an_answer_of_several_numbers_is_named():
  item = rows.to_example(
      {'problem': 'q', 'answer': np.array([1, 2])}, rows.resolve(
          rows.RowFormat(), ('problem', 'answer'), 'a'),
      folder='', uid=0, where='a:1')
  assert item.reason.startswith('wrong type: answer is ndarray')


def test_images_in_every_form(tmp_path, noise):
  picture = noise(12, 20)
  picture.save(tmp_path / 'p.png')
  data = _png(picture)
  url = 'data:image/png;base64,' + base64.b64encode(data).decode()
  table = pa.table({
      'image': [{'bytes': data, 'path': None},
                {'bytes': None, 'path': 'p.png'}],
      'question': ['<image>a', 'b'], 'answer': ['1', '2'],
      'boxes': [[1, 2], [3, 4]]})
  parquet.write_table(table, tmp_path / 'a.parquet')
  source = files.open_path(str(tmp_path / 'a.parquet'), offset=7)
  lines = _jsonl(tmp_path / 'a.jsonl', [
      dict(images='p.png', problem='q', answer='1'),
      dict(images=[url], problem='q', answer='1'),
      dict(images=[str(tmp_path / 'p.png')], problem='q', answer='1')])
  lines = files.open_path(lines)
  for item in (*(source[i] for i in range(2)), *(lines[i] for i in range(3))):
    np.testing.assert_array_equal(
        np.asarray(item.images[0]), np.asarray(picture))
  assert source[1].uid == 8 and source[1].meta['boxes'] == (3, 4)
  assert source[1].source == f'{tmp_path / "a.parquet"}:row 1'


def test_parquet_of_several_files_and_row_groups(tmp_path):
  for shard in range(3):
    table = pa.table({
        'problem': [f'{shard} {i}' for i in range(7)], 'answer': ['x'] * 7})
    parquet.write_table(
        table, tmp_path / f'train-{shard}.parquet', row_group_size=2)
  source = files.ParquetSource(str(tmp_path / 'train-*.parquet'))
  assert len(source) == 21
  source = pickle.loads(pickle.dumps(source))
  order = np.random.default_rng(0).permutation(21)
  for i in order:
    assert source[int(i)].question == f'{i // 7} {i % 7}'
    assert source[int(i)].source.endswith(f'train-{i // 7}.parquet:row {i % 7}')


def test_broken_rows_of_parquet_are_named(tmp_path, noise):
  data = _png(noise(30, 30))
  table = pa.table({
      'images': [[data], [data[:50]], []], 'problem': ['<image>q'] * 3,
      'answer': ['1', '1', None]})
  parquet.write_table(table, tmp_path / 'a.parquet')
  source = files.ParquetSource(str(tmp_path / 'a.parquet'))
  assert isinstance(source[0], records.Example)
  assert source[1].where.endswith(':row 1')
  assert source[1].reason.startswith('corrupt image')
  assert source[2].reason.startswith('empty answer')


def test_messages_with_completion_and_inline_parts(tmp_path, noise):
  noise(8, 8).save(tmp_path / 'p.png')
  path = _jsonl(tmp_path / 'a.jsonl', [
      dict(images=['p.png'], messages=[
          dict(role='user', content='<image>a'),
          dict(role='assistant', content='b'),
          dict(role='user', content='c'),
          dict(role='assistant', content='d')]),
      dict(messages=[
          dict(role='user', content=[
              dict(type='image', image='p.png'), dict(type='text', text='q')]),
          dict(role='assistant', content=[dict(type='text', text='r')])]),
      dict(messages=[dict(role='robot', content='q')]),
      dict(messages=[dict(role='user', content='q')]),
  ])
  source = files.JsonlSource(path, form=rows.RowFormat(
      require_answer=False, require_completion=True))
  assert [m['content'] for m in source[0].messages] == ['<image>a', 'b', 'c']
  assert source[0].completions == ('d',)
  assert source[1].messages[0]['content'] == '<image>q'
  assert len(source[1].images) == 1 and source[1].completions == ('r',)
  assert source[2].reason.startswith('wrong type: role')
  assert source[3].reason.startswith('empty completion')


def test_completion_columns(tmp_path):
  path = _jsonl(tmp_path / 'a.jsonl', [
      dict(problem='q', answer='1', solution='<think>s</think>'),
      dict(problem='q', answer='1', solution=['s', 't'])])
  source = files.JsonlSource(path)
  assert source[0].completions == ('<think>s</think>',)
  assert source[1].completions == ('s', 't')
  assert source[1].given == ()


def test_given_texts(tmp_path):
  path = _jsonl(tmp_path / 'a.jsonl', [
      dict(problem='q', answer='1', completion='0.7', given=given)
      for given in (['s', 't'], 's', None, [''], 3)])
  source = files.JsonlSource(path)
  assert [source[i].given for i in range(3)] == [('s', 't'), ('s',), ()]
  assert 'given' not in source[0].meta
  assert 'empty given' in source[3].reason and 'given is int' in source[4].reason


def test_videos(tmp_path, noise):
  frames = [noise(10, 12, i) for i in range(3)]
  for i, frame in enumerate(frames):
    frame.save(tmp_path / f'{i}.png')
  frames[0].save(tmp_path / 'v.gif', save_all=True, duration=250,
                 append_images=frames[1:])
  names = ['0.png', '1.png', '2.png']
  path = _jsonl(tmp_path / 'a.jsonl', [
      dict(problem='<video>q', answer='1', videos=v) for v in (
          ['v.gif'], [names], [dict(frames=names, fps=8)], ['v.mp4'],
          [dict(frames=names, fps=0)], [[]])])
  source = files.JsonlSource(path)
  # Three frames of 250 ms: 4 Hz.
  assert source[0].videos[0].fps == 4.0 and len(source[0].videos[0].frames) == 3
  assert source[1].videos[0].fps == 2.0
  assert source[2].videos[0].fps == 8.0
  np.testing.assert_array_equal(
      np.asarray(source[2].videos[0].frames[1]), np.asarray(frames[1]))
  for i, kind in ((3, 'bad video'), (4, 'wrong type'), (5, 'empty video')):
    assert source[i].reason.startswith(kind), source[i].reason


@pytest.mark.parametrize('form, columns, words', [
    (rows.RowFormat(question='promblem'), ('problem', 'answer'),
     ("'problem'", 'question_column')),
    (rows.RowFormat(), ('text', 'answer'), ('question_column',)),
    (rows.RowFormat(), ('problem', 'answers'), ("'answers'", 'answer_column')),
    (rows.RowFormat(), ('problem', 'answer', 'image_path'),
     ("'image_path'", 'image_column')),
    (rows.RowFormat(require_completion=True), ('problem', 'answer'),
     ('completion_column',)),
])
def test_m22_unknown_column_names_the_nearest_and_the_key(
    tmp_path, form, columns, words):
  path = _jsonl(tmp_path / 'a.jsonl', [{c: 'x' for c in columns}])
  with pytest.raises(ValueError) as error:
    files.JsonlSource(path, form=form)
  for word in (*words, path):
    assert word in str(error.value)
  # The same columns are fine where the user says what they are.
  fixed = {'question': columns[0], 'answer': columns[1], 'image': ''}
  files.JsonlSource(path, form=rows.RowFormat(**fixed))


def test_files_that_are_no_data(tmp_path):
  for name, content, word in (
      ('a.jsonl', '', 'empty'), ('b.jsonl', 'x\ny\n', 'line 1'),
      ('c.jsonl', '[{"problem": "q"}]', 'array'),
      ('d.parquet', 'x', 'not a parquet'), ('e.csv', 'x', '.jsonl')):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=word):
      files.open_path(str(tmp_path / name))
  with pytest.raises(ValueError, match='data.path'):
    files.open_path(str(tmp_path / 'none.jsonl'))


@pytest.fixture
def remote(tmp_path, monkeypatch):
  """gs://bucket/..., served from a local folder."""
  root = tmp_path / 'bucket'
  root.mkdir()

  def local(path):
    return str(path).replace('gs://bucket', str(root))

  def back(paths):
    return [p.replace(str(root), 'gs://bucket') for p in paths]

  def through(fn):
    return lambda original, path, *args, **kwargs: fn(
        original, local(path), *args, **kwargs)

  with epath.testing.mock_epath(
      open=through(lambda fn, p, *a, **k: fn(p, *a, **k)),
      exists=through(lambda fn, p: fn(p)),
      isdir=through(lambda fn, p: fn(p)),
      listdir=through(lambda fn, p: fn(p)),
      glob=through(lambda fn, p: back(fn(p)))):
    yield root


def test_remote_files_with_relative_images(remote, noise):
  (remote / 'img').mkdir()
  noise(9, 14).save(remote / 'img' / 'p.png')
  _jsonl(remote / 'a.jsonl', [
      dict(images=['img/p.png'], problem='q', answer='1'),
      dict(images=['gs://bucket/img/p.png'], problem='q', answer='1'),
      dict(images=['img/none.png'], problem='q', answer='1')])
  source = files.open_path('gs://bucket/a.jsonl')
  assert source[0].images[0].size == source[1].images[0].size == (14, 9)
  assert source[0].source == 'gs://bucket/a.jsonl:1'
  assert source[2].where == 'gs://bucket/a.jsonl:3'
  assert 'gs://bucket/img/none.png' in source[2].reason
  for shard in range(2):
    parquet.write_table(
        pa.table({'problem': ['q'], 'answer': ['1']}),
        remote / f't-{shard}.parquet')
  assert len(files.open_path('gs://bucket/t-*.parquet')) == 2


def test_remote_processor(remote, folder, proc):
  (remote / 'model').mkdir()
  for file in folder.iterdir():
    (remote / 'model' / file.name).write_bytes(file.read_bytes())
  (remote / 'model' / 'model.safetensors').write_bytes(b'not read')
  opened = processor_lib.Processor.open('gs://bucket/model')
  assert opened.banned == proc.banned and opened.path == 'gs://bucket/model'
  assert opened.tokenizer('abc')['input_ids'] == (
      proc.tokenizer('abc')['input_ids'])
