"""From the data section to mixtures and shapes."""

import json
import os
import shutil

import pytest

from configs import common
from mmr1 import records
from mmr1 import resolve
from mmr1.data import datasets


@pytest.fixture
def config(shrink):
  return shrink(common.get_base())


def final(c):
  c.stages = ('rl',)
  return resolve.finalise(c, direct=('rl',))


def write(path, n, offset=0, **more):
  path.write_text(''.join(json.dumps(dict(
      problem=f'{i}+0=?', answer=str(i), **more)) + '\n'
      for i in range(offset, offset + n)))
  return str(path)


def answers(mixture):
  return [mixture[k].answer for k in range(len(mixture))]


def test_worlds_are_mixed_by_weight_and_splits_differ(config):
  config.data.mixture, config.data.weights = ('digits', 'geometry'), (3.0, 1.0)
  config.data.train_size = config.data.eval_size = 50
  c = final(config)
  train, held_out = (datasets.open_split(c, s) for s in ('train', 'eval'))
  assert len(train) == 100
  # 3 of every 4 items are digits.
  assert train.counts(40) == (30, 10)
  question = lambda m: [
      (m[k].question, m[k].answer, m[k].uid) for k in range(12)]
  assert question(train) == question(datasets.open_split(c, 'train'))
  assert question(train) != question(held_out)
  config.seed = 1
  assert question(datasets.open_split(final(config), 'train')) != question(
      train)


def test_a_file_replaces_the_worlds_and_every_kth_is_held_out(
    config, tmp_path):
  config.data.path = write(tmp_path / 'a.jsonl', 40)
  config.data.holdout = 8
  c = final(config)
  train, held_out = (datasets.open_split(c, s) for s in ('train', 'eval'))
  assert (len(train), len(held_out)) == (35, 5)
  assert sorted(answers(train) + answers(held_out), key=int) == [
      str(i) for i in range(40)]
  # An evaluation file leaves the training file whole.
  config.data.eval_path = write(tmp_path / 'b.jsonl', 6, offset=100)
  c = final(config)
  assert len(datasets.open_split(c, 'train')) == 40
  assert sorted(answers(datasets.open_split(c, 'eval'))) == [
      str(i) for i in range(100, 106)]


def test_columns_have_configurable_names(config, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"q": "2+2?", "gold": 4, "picture": null}\n' * 20)
  config.data.path = str(path)
  config.data.question_column, config.data.answer_column = 'q', 'gold'
  config.data.image_column = 'picture'
  example = datasets.open_split(final(config), 'train')[0]
  assert (example.question, example.answer) == ('2+2?', '4')
  config.data.answer_column = 'golden'
  with pytest.raises(ValueError, match="'golden'.*Did you mean 'gold'"):
    datasets.open_split(final(config), 'train')


def test_parquet_and_its_images(config, tmp_path):
  import io
  import pyarrow as pa
  from pyarrow import parquet
  from PIL import Image
  buffer = io.BytesIO()
  Image.new('RGB', (16, 24), 'blue').save(buffer, 'PNG')
  rows = [dict(images=[dict(bytes=buffer.getvalue(), path=None)],
               problem='colour?', answer='blue') for _ in range(12)]
  rows[4]['images'] = [dict(bytes=b'no png', path=None)]
  parquet.write_table(pa.Table.from_pylist(rows), tmp_path / 'a.parquet')
  config.data.path = str(tmp_path / 'a.parquet')
  train = datasets.open_split(final(config), 'train')
  held_out = datasets.open_split(final(config), 'eval')
  items = [m[k] for m in (train, held_out) for k in range(len(m))]
  broken = [item for item in items if isinstance(item, records.Broken)]
  (one,) = broken
  assert one.where.endswith('a.parquet:row 4')
  good = next(item for item in items if item is not one)
  assert good.images[0].size == (16, 24)


def test_completions_are_read_without_answers(config, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"problem": "x", "completion": "y"}\n' * 20)
  assert datasets.open_completions(str(path))[0].completions == ('y',)
  expert = datasets.open_expert(final(config), str(path))
  assert len(expert) == 20 and expert[0].completions == ('y',)


def test_imitation_does_not_see_what_is_held_out(config, tmp_path):
  config.data.path = write(tmp_path / 'a.jsonl', 40, completion='y')
  c = final(config)
  seen = set(answers(datasets.open_expert(c)))
  held_out = set(answers(datasets.open_split(c, 'eval')))
  assert len(seen) == 36 and len(held_out) == 4 and not seen & held_out
  config.data.eval_path = write(tmp_path / 'b.jsonl', 6)
  assert len(datasets.open_expert(final(config))) == 40


@pytest.mark.parametrize('changes, message', [
    (dict(mixture=('digts',)), "tasks.digts.*Nearest: digits"),
    (dict(weights=(1.0, 2.0)), r"data.weights: got \(1.0, 2.0\) .*'digits'"),
    (dict(weights=(-1.0,)), r'data.weights: got \(-1.0,\)'),
    (dict(weights=(float('nan'),)), 'data.weights: got'),
    (dict(weights=('one',)), r"data.weights: got \('one',\)"),
    (dict(weights=(), mixture=()), 'data.weights: got .*at least one world'),
    (dict(train_size=0), 'data.train_size: got 0'),
    (dict(path='no/such.jsonl'), 'no/such.jsonl: no such file.*data.path'),
    (dict(path='a.csv'), r'a.csv: known are files ending in .jsonl'),
    (dict(eval_path='b.jsonl'), r"data.eval_path: got 'b.jsonl' without"),
])
def test_m22_the_key_is_named(config, changes, message):
  config.data.update(changes)
  with pytest.raises(ValueError, match=message):
    datasets.open_split(final(config), 'train')


def test_m22_arguments_of_tasks_are_checked(config):
  config.tasks.digits.max_digit = 3
  with pytest.raises(ValueError, match=r'tasks.digits.max_digit.*max_digits'):
    datasets.open_split(final(config), 'train')


def test_holdout_of_a_short_file(config, tmp_path):
  config.data.path = write(tmp_path / 'a.jsonl', 5)
  with pytest.raises(ValueError, match=(
      'data.holdout: every=10 over 5 records.*data.eval_path')):
    datasets.open_split(final(config), 'train')


def test_the_shape_is_checked_and_the_template_bound(config):
  c = final(config)
  processor = datasets.open_processor(c.model, c.data)
  shape = datasets.shape(c.data, processor)
  assert (shape.prompt_length, shape.patches) == (64, 64)
  config.data.patches = 40  # a window of 32 px is 4 x 4 patches of 8 px
  with pytest.raises(ValueError, match=(
      r'data.patches: got 40; it must be a multiple of 16 .*example 48')):
    datasets.shape(final(config).data, processor)
  config.data.instruction, config.data.system = 'Think.', 'Be brief.'
  config.data.patches = 48
  shape = datasets.shape(final(config).data, processor)
  messages = shape.template(records.Example(uid=0, question='2+2?'))
  assert messages[0]['role'] == 'system'
  said = ''.join(p['text'] for p in messages[-1]['content'])
  assert said == '2+2?\nThink.'
  config.data.template = 'think_anwser'
  with pytest.raises(ValueError, match='think_answer'):
    datasets.shape(final(config).data, processor)
  # `plain` says nothing of its own; an instruction would be lost.
  config.data.template, config.data.system = 'plain', None
  with pytest.raises(ValueError, match='instruction'):
    datasets.shape(final(config).data, processor)


@pytest.mark.parametrize('buckets', [(8,), (16, 64), (32, 16), (16, 16)])
def test_m22_buckets_are_ascending_whole_windows(config, proc, buckets):
  config.data.patch_buckets = buckets
  with pytest.raises(ValueError, match='data.patch_buckets: got .*below '
                     'data.patches=64'):
    datasets.shape(final(config).data, proc)


@pytest.mark.parametrize('buckets', [(0,), (16, 64), (32, 16), (16, 16)])
def test_m22_prompt_buckets_are_ascending_and_below_the_cap(
    config, proc, buckets):
  config.data.prompt_buckets = buckets
  with pytest.raises(ValueError, match='data.prompt_buckets: got .*below '
                     'data.prompt_tokens=64'):
    datasets.shape(final(config).data, proc)


def test_the_buckets_reach_the_shape(config, proc):
  config.data.prompt_buckets, config.data.patch_buckets = (16, 40), (0, 32)
  shape = datasets.shape(final(config).data, proc)
  assert shape.prompt_buckets == (16, 40) and shape.patch_buckets == (0, 32)


@pytest.mark.parametrize('patches', [0, 7, 64])
def test_a_text_only_model_has_no_patches(config, text_proc, patches):
  config.data.patches = patches
  data = final(config).data
  assert datasets.shape(data, text_proc).patches == 0
  assert 'data.patches' not in data.unread()


@pytest.mark.parametrize('key, value', [
    ('prompt_tokens', 0), ('patches', 0), ('max_broken_frac', 1.5),
    ('max_broken_frac', -0.1), ('worker_count', -1)])
def test_m22_numbers_out_of_range(config, key, value):
  config.data[key] = value
  c = final(config)
  with pytest.raises(ValueError, match=f'data.{key}: got {value}; allowed'):
    datasets.check(c.data)
    datasets.shape(c.data, datasets.open_processor(c.model, c.data))


def test_stages_have_orders_of_their_own_over_the_same_records(
    config, tmp_path):
  config.data.path = write(tmp_path / 'a.jsonl', 40)
  c = final(config)
  orders = [answers(datasets.open_split(c, 'train', order=i)) for i in (0, 1)]
  assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_the_seed_shuffles_what_collect_wrote(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(
      f'{{"problem": "{i}", "completion": "y"}}\n' for i in range(20)))
  order = lambda seed: [
      m[k].question for m in [datasets.open_completions(str(path), seed)]
      for k in range(20)]
  assert order(0) == order(0) != order(1)


def test_pixels_are_a_budget_of_the_config(config):
  config.data.max_pixels = 1024
  c = final(config)
  processor = datasets.open_processor(c.model, c.data)
  assert processor.codec.max_pixels == 1024


def test_the_embedded_model_is_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = datasets.model_path('mmr1/assets/tiny')
  assert os.path.exists(os.path.join(found, 'config.json'))
  with pytest.raises(ValueError, match=r'--config.model.path'):
    datasets.model_path('checkpoints/none')


def test_a_folder_without_its_tokenizer(config, tiny_folder, tmp_path):
  """transformers would open it with an empty vocabulary."""
  folder = tmp_path / 'model'
  shutil.copytree(tiny_folder, folder)
  config.model.path = str(folder)
  c = final(config)
  known = len(datasets.open_processor(c.model, c.data).tokenizer)
  vocabulary = (folder / 'tokenizer.json').read_text()
  (folder / 'tokenizer.json').unlink()
  with pytest.raises(ValueError) as error:
    datasets.open_processor(c.model, c.data)
  assert f'{folder}/tokenizer.json is missing' in str(error.value)
  assert 'Download the tokenizer files' in str(error.value)
  (folder / 'vocab.json').write_text('{}')  # half of the other form
  with pytest.raises(ValueError, match='tokenizer.json is missing'):
    datasets.open_processor(c.model, c.data)
  (folder / 'tokenizer.json').write_text(vocabulary)
  assert len(datasets.open_processor(c.model, c.data).tokenizer) == known


# Members of the mixture, and what their sections say.


def test_a_member_may_be_a_file(config, tmp_path):
  config.data.mixture, config.data.weights = ('digits', 'mine'), (1.0, 3.0)
  config.tasks.mine = dict(
      path=write(tmp_path / 'a.jsonl', 40), instruction='Briefly.',
      rewards=('result',))
  config.data.holdout = 8
  c = final(config)
  train, held_out = (datasets.open_split(c, s) for s in ('train', 'eval'))
  assert [len(source) for source in train.sources] == [1_000_000, 35]
  assert [len(source) for source in held_out.sources] == [100_000, 5]
  assert train.counts(40) == (10, 30)
  found = {train[k].member.name: train[k].member for k in range(8)}
  assert found == {
      'digits': records.Member(name='digits'), 'mine': records.Member(
          name='mine', instruction='Briefly.', rewards=('result',))}
  # With a file to be evaluated on, nothing of the members is held out.
  config.data.eval_path = write(tmp_path / 'b.jsonl', 6, offset=100)
  c = final(config)
  train, held_out = (datasets.open_split(c, s) for s in ('train', 'eval'))
  assert len(train.sources[1]) == 40
  assert answers(held_out) == [str(i) for i in range(100, 106)]


def test_a_file_of_demonstrations_needs_no_answers(config, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(json.dumps(dict(
      problem=f'Read {i}.', completion=f'{i}')) + '\n' for i in range(30)))
  config.data.homogeneous = True
  config.data.mixture, config.data.weights = ('digits', 'mine'), (1.0, 1.0)
  config.tasks.mine = dict(path=str(path), imitate=True)
  train, held_out = (datasets.open_split(final(config), s, prompts=4)
                     for s in ('train', 'eval'))
  assert [train[k].member.imitate for k in range(8)] == [True] * 4 + [False] * 4
  assert train[0].completions and train[0].answer is None
  assert len(held_out.sources) == 1  # there is nothing to be asked
  config.data.mixture, config.data.weights = ('mine',), (1.0,)
  with pytest.raises(ValueError, match='demonstrations alone.*eval_path'):
    datasets.open_split(final(config), 'eval')


@pytest.mark.parametrize('section, said', [
    (dict(fn='digits.digits', rewards=('nobody',)), "rewards.nobody"),
    (dict(path='x.jsonl', grid=2), r"tasks.mine: got \['grid'\] beside a path"),
    (dict(path='x.jsonl'), 'x.jsonl: no such file'),
    (dict(fn='digits.digits', instructions=''), 'tasks.mine.instructions: no')])
def test_m22_members_are_checked(config, section, said):
  config.data.mixture, config.tasks.mine = ('mine',), section
  with pytest.raises(ValueError, match=said):
    datasets.open_split(final(config), 'train')


def test_m22_a_file_is_one_source(config):
  config.data.homogeneous, config.data.path = True, 'a.jsonl'
  with pytest.raises(ValueError, match='homogeneous.*one source.*data.mixture'):
    datasets.check(final(config).data)
