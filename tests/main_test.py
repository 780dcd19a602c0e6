"""The command line as a user meets it: typos, broken records, own data."""

import io
import json

from PIL import Image
import pytest

from mmr1 import log

QUICK = ['--config.grpo.steps=2', '--config.grpo.prompts_per_step=4',
         '--config.grpo.samples_per_prompt=2',
         '--config.grpo.max_new_tokens=8']


def refused(shell, cwd, *args):
  """stderr of a command that must fail in a few readable lines."""
  result = shell.run(*args, '--workdir=run', cwd=cwd)
  assert result.code not in (0, None) and result.code > 0, result
  assert 'Traceback' not in result.err, result.err
  assert len(result.err.splitlines()) <= 12, result.err
  assert not (cwd / 'run').exists()
  return result.err


@pytest.mark.parametrize('args, named', [
    # A typo, with what was probably meant.
    (['forkme', '--config.grpo.stepz=3'], ['--config.grpo.stepz=3', '"steps"']),
    (['forkme', '--config.grop.steps=3'], ['grop']),
    (['forkme', "--config.stages=('grop',)"], ['stages', 'grop', 'grpo']),
    (['forkme', '--config.grpo.steps=many'], ['config.grpo.steps', 'many']),
    # An argument that the config does not know.
    (['vision_r1:unknown'], ['unknown', 'tiny', 'qwen2_5_vl_7b']),
    (['forkme:tny'], ['tny', 'tiny']),
    # Contradictions.
    (['forkme', '--config.grpo.samples_per_prompt=1'],
     ['grpo', 'samples_per_prompt=1', 'at least 2']),
    (['forkme', '--config.grpo.max_new_tokens=449'],
     ['grpo.max_new_tokens', '449', '512']),
    (['forkme', '--config.data.patches=50'], ['data.patches', '50', '64']),
    # 0 is no 'unlimited'; numbers below it are no numbers of anything.
    (['forkme', '--config.grpo.top_p=0'], ['grpo', 'top_p=0.0']),
    (['forkme', '--config.rl.max_new_tokens=0'], ['has no effect', 'grpo']),
    (['forkme', '--config.grpo.max_new_tokens=0'],
     ['grpo.max_new_tokens', '0']),
    (['forkme', '--config.grpo.steps=-1'], ['grpo.steps', '-1']),
    (['forkme', '--config.rl.optimizer.lr=-0.1'],
     ['grpo.optimizer.lr', '-0.1']),
    (['forkme', '--config.evaluation.examples=0'], ['evaluation.examples']),
    (['forkme', '--config.grpo.length_buckets=(32, 64)'],
     ['grpo.length_buckets', '(32, 64)', 'below max_new_tokens=64']),
    (['forkme', '--config.grpo.record_every=-1'], ['grpo.record_every', '-1']),
    # Steps to trace that there are not.
    (['forkme', '--profile=grop:1-2'], ['--profile', 'grop', 'grpo']),
    # Files that are not there.
    (['forkme', '--config.model.path=no/model'], ['model.path', 'no/model']),
    (['forkme', '--config.data.path=no.jsonl'], ['data.path', 'no.jsonl']),
    # Keys that nothing in this run reads.
    (['vision_r1:ci', '--config.rl.top_k=5'], ['rl.top_k', 'no effect']),
    (['forkme', '--config.sft.steps=5'], ['sft.steps', 'no effect']),
    (['forkme', '--config.grpo.rewards='
      "('result',)", '--config.rewards.format.weight=0.5'],
     ['rewards.format.weight']),
    (['forkme', '--config.data.holdout=5'],
     ['data.holdout', 'no effect without data.path']),
    (['forkme', 'steps=3'], ["'steps=3'", '--config.key=value']),
], ids=lambda value: ' '.join(value)[-40:] if isinstance(value, list) else '')
def test_m22_an_error_names_the_key_and_leaves_no_workdir(
    shell, flags, tmp_path, args, named):
  # What a case sets comes last and wins.
  said = refused(shell, tmp_path, args[0], *flags, *args[1:])
  for part in named:
    assert part in said, said


def test_m22_a_data_key_that_the_file_makes_idle(shell, flags, tmp_path):
  fifty(tmp_path)
  said = refused(shell, tmp_path, 'forkme', *flags,
                 '--config.data.path=mine.jsonl', '--config.data.train_size=9')
  assert '--config.data.train_size has no effect with data.path' in said


def test_an_error_of_ones_own_code_keeps_its_traceback(
    shell, flags, tmp_path):
  result = shell.run(
      'forkme', *flags, '--config.tasks.digits.fn=tests.own:no_number',
      '--workdir=run', cwd=tmp_path)
  assert result.code == 1
  assert "in no_number" in result.err and 'ValueError' in result.err


def test_m22_no_config_at_all(shell, tmp_path):
  said = refused(shell, tmp_path, 'no_such_config')
  assert 'no_such_config' in said


def test_help_is_help(shell, tmp_path):
  result = shell.run('forkme', '--help', cwd=tmp_path)
  assert '--workdir' in result.out and 'fresh:' in result.out
  assert 'Traceback' not in result.err


# A user's own file.


def picture(colour, size=(40, 40)):
  buffer = io.BytesIO()
  Image.new('RGB', size, colour).save(buffer, 'PNG')
  return buffer.getvalue()


def fifty(folder):
  """50 records, 10 of them broken: {line: a word of the reason}."""
  (folder / 'images').mkdir()
  lines = []
  for i in range(50):
    (folder / 'images' / f'{i}.png').write_bytes(picture((i * 5, 90, 10)))
    lines.append(dict(images=[f'images/{i}.png'],
                      problem='<image>How red is it?', answer=str(i)))
  png = picture('red')
  (folder / 'images' / 'cut.png').write_bytes(png[:len(png) // 2])
  (folder / 'images' / 'thin.png').write_bytes(picture('red', (1, 900)))
  (folder / 'images' / 'text.png').write_text('not an image')
  (folder / 'images' / 'empty.png').write_bytes(b'')
  broken = {
      2: (dict(images=['images/none.png']), 'none.png'),
      7: (dict(images=['images/cut.png']), 'cut.png'),
      11: ('{"images": ["images/0.png"', 'bad json'),
      16: (dict(answer=''), 'empty answer'),
      21: (dict(problem='<image>Or <image>?'), '2 <image> placeholders'),
      26: (dict(answer=['3']), 'wrong type'),
      31: (dict(images=['images/empty.png']), 'empty.png'),
      36: (dict(problem=None), 'problem'),
      41: (dict(images=['images/text.png']), 'text.png'),
      46: (dict(images=['images/thin.png']), '200'),
  }
  texts = [json.dumps(line) for line in lines]
  for number, (change, _) in broken.items():
    texts[number - 1] = change if isinstance(change, str) else json.dumps(
        {**lines[number - 1], **change})
  (folder / 'mine.jsonl').write_text('\n'.join(texts) + '\n')
  return {number: reason for number, (_, reason) in broken.items()}


def test_m26_fifty_images_of_ones_own_with_ten_broken(
    shell, flags, tmp_path):
  broken = fifty(tmp_path)
  result = shell.run(
      'forkme', *flags, *QUICK, '--config.grpo.steps=20',
      '--config.data.path=mine.jsonl', cwd=tmp_path)
  assert result.code == 0, result.err
  # The default workdir is named after the config.
  folder = tmp_path / 'runs' / 'forkme'
  skipped = [line for line in result.err.splitlines() if 'skipped' in line]
  for number, reason in broken.items():
    found = [line for line in skipped if f'mine.jsonl:{number}:' in line]
    assert len(found) == 1, (number, result.err)
    assert reason in found[0]
    assert len(found[0]) < 300
  assert len(skipped) == 10
  rows = [row for row in log.read_rows(folder / 'metrics.jsonl')
          if 'loss' in row]
  assert len(rows) == 20
  # 45 records train, and 80 good prompts are more than one pass over them:
  # each was seen. The evaluation counts those that are held out.
  card = json.loads((folder / 'eval' / 'base_0.json').read_text())
  assert rows[-1]['data/broken'] + card['broken'] == 10
  assert card['n'] + card['broken'] == 5
  assert rows[0]['data/broken'] <= rows[-1]['data/broken']
  for text in (result.out, result.err):
    assert 'Traceback' not in text and '\x89PNG' not in text
  assert max(map(len, result.err.splitlines())) < 300


def test_m26_past_the_fraction_it_refuses(shell, flags, tmp_path):
  fifty(tmp_path)
  result = shell.run(
      'forkme', *flags, *QUICK, '--config.data.path=mine.jsonl',
      '--config.grpo.steps=40', '--config.data.max_broken_frac=0.05',
      cwd=tmp_path)
  assert result.code == 1 and 'Traceback' not in result.err
  assert 'data.max_broken_frac' in result.err and 'mine.jsonl:' in result.err


def test_m26_parquet_with_bytes_through_two_workers(shell, flags, tmp_path):
  import pyarrow as pa
  from pyarrow import parquet
  rows = [dict(image=dict(bytes=picture((i * 9, 5, 5)), path=None),
               question='How red?', answer=str(i)) for i in range(24)]
  rows[5]['image'] = dict(bytes=b'nothing', path=None)
  parquet.write_table(
      pa.Table.from_pylist(rows), tmp_path / 'mine.parquet')
  result = shell.run(
      'forkme', *flags, *QUICK, '--config.grpo.steps=8',
      '--config.data.worker_count=2', '--config.grpo.samples_every=1',
      '--config.data.path=mine.parquet', '--workdir=run', cwd=tmp_path)
  assert result.code == 0, result.err
  assert result.err.count('skipped mine.parquet:row 5') == 1
  # 22 records train, one of them broken: the first 5 steps of 4 prompts are
  # 20 different ones (two of each step's groups are in the samples file).
  seen = {}
  for row in log.read_rows(tmp_path / 'run' / 'samples' / 'grpo.jsonl'):
    seen.setdefault(row['step'], set()).add(row['uid'])
    assert row['images'] and row['answer'] == str(row['uid'])
  first = [uid for step in range(1, 6) for uid in seen[step]]
  assert len(first) == len(set(first)) == 10


def test_m26_the_symbolic_engine_says_what_to_do_with_own_data(
    shell, flags, tmp_path):
  fifty(tmp_path)
  result = shell.run(
      'vision_r1', *flags, '--config.data.path=mine.jsonl',
      '--config.bridge.size=8', '--workdir=run', cwd=tmp_path)
  assert result.code == 1 and 'Traceback' not in result.err
  for part in ('mine.jsonl:', 'captioner', 'reasoner', 'endpoint', 'local',
               'forkme'):
    assert part in result.err, result.err


@pytest.mark.slow  # as runner_test, which compares what is left
def test_fresh_starts_over(shell, flags, tmp_path):
  args = ['forkme', *flags, *QUICK, '--workdir=run', '--quiet']
  first = shell.run(*args, cwd=tmp_path)
  assert first.code == 0, first.err
  assert first.out == ''  # quiet
  (tmp_path / 'run' / 'mine.txt').write_text('x')
  other = shell.run(*args, '--config.seed=3', '--fresh', cwd=tmp_path)
  assert other.code == 0, other.err
  assert not (tmp_path / 'run' / 'mine.txt').exists()
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert config['seed'] == 3
  steps = [row['step'] for row in log.read_rows(
      tmp_path / 'run' / 'metrics.jsonl') if 'loss' in row]
  assert steps == [1, 2]
