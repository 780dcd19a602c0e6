"""Whole runs: kill -9, SIGTERM, and what a run leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import forkme
import mmr1
from mmr1 import log
from mmr1 import resolve
from mmr1 import runner
from tests import command

TRAINS = {'cold_start': 3, 'think_short': 4, 'think_long': 2}
SHRUNK = [
    '--config.bridge.size=24', '--config.bridge.kwargs.overlong=0.0',
    '--config.cold_start.steps=3', '--config.cold_start.rows_per_step=4',
    '--config.cold_start.optimizer.warmup_steps=1',
    '--config.cold_start.checkpoint_every=1',
    '--config.rl.prompts_per_step=2', '--config.rl.checkpoint_every=2',
    '--config.rl.optimizer.lr=1e-2', '--config.rl.samples_every=1',
    '--config.think_short.steps=4', '--config.think_short.max_new_tokens=8',
    '--config.think_short.samples_per_prompt=4',
    '--config.think_long.steps=2', '--config.think_long.max_new_tokens=16',
    '--config.think_long.samples_per_prompt=2',
    '--config.think_long.reference=cold_start',
    # The real reward is 0 for whatever a random model says.
    '--config.rewards.hard.fn=tests.own:even']
CLOCK = ('time', 'tokens_per_s', 'compile')  # what metrics begin with


@pytest.fixture(scope='module')
def whole(shell, flags, tmp_path_factory):
  """A run that nothing disturbs."""
  folder = tmp_path_factory.mktemp('whole')
  result = shell.run('vision_r1', '--workdir=run', *flags, *SHRUNK, cwd=folder)
  assert result.code == 0, result.err
  return folder / 'run', result


def rows(folder, kind='loss'):
  """{(stage, step): row} of the training rows; each may be there once."""
  found = {}
  for row in log.read_rows(folder / 'metrics.jsonl'):
    if kind in row:
      key = row['stage'], row['step']
      assert key not in found, key
      found[key] = row
  return found


def saved(folder, stage):
  """(arrays by name, extra) of the checkpoint that a stage ended with."""
  path = folder / 'checkpoints' / f'{stage}_{TRAINS[stage]}'
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as opener:
    extra = opener.restore(path, args=ocp.args.Composite(
        extra=ocp.args.JsonRestore())).extra
    names = dict.fromkeys(extra['arrays'], 0)
    arrays = opener.restore(path, args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(names, restore_args={
            name: ocp.RestoreArgs(restore_type=np.ndarray)
            for name in names}))).state
  return arrays, extra


def assert_the_same(folder, straight):
  """Two runs left the same rows, states, markers and samples, bit for bit."""
  expected, got = rows(straight), rows(folder)
  assert set(got) == {
      (stage, step + 1) for stage, n in TRAINS.items() for step in range(n)}
  clean = lambda found: {
      key: {k: v for k, v in row.items() if not k.startswith(CLOCK)}
      for key, row in found.items()}
  assert clean(got) == clean(expected)
  # `rows` refuses an evaluation that is there twice.
  evaluations = [clean(rows(path, 'eval/accuracy'))
                 for path in (folder, straight)]
  assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 4
  for stage in TRAINS:
    (a, extra_a), (b, extra_b) = saved(straight, stage), saved(folder, stage)
    assert a.keys() == b.keys() and any('opt/' in name for name in a)
    for name in a:
      assert a[name].dtype == b[name].dtype, name
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert extra_a == extra_b
  done = lambda path: {
      file.name: file.read_text() for file in (path / 'DONE').iterdir()}
  assert done(folder) == done(straight)
  for stage in TRAINS:
    samples = [[(row['step'], row['completion']) for row in log.read_rows(
        path / 'samples' / f'{stage}.jsonl')] for path in (straight, folder)]
    assert samples[0] == samples[1], stage


def kill_from_outside(args, cwd, folder, stage, step):
  """`python -m mmr1.main`, killed when the row of (stage, step) appears."""
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  with open(cwd / 'outside.txt', 'wb') as out:
    process = subprocess.Popen(
        [sys.executable, '-m', 'mmr1.main',
         f'--config={root}/configs/vision_r1.py', *args],
        cwd=cwd, stdout=out, stderr=out,
        env={**os.environ, 'PYTHONPATH': root})
  metrics = folder / 'metrics.jsonl'
  wanted = f'"stage": "{stage}", "step": {step},'
  try:
    for _ in range(60_000):
      if process.poll() is not None:
        pytest.fail((cwd / 'outside.txt').read_text())
      if metrics.exists() and wanted in metrics.read_text():
        break
      time.sleep(0.002)
  finally:
    process.kill()
  assert process.wait() == -signal.SIGKILL


def test_m15_m16_killed_at_five_moments_it_ends_the_same(
    whole, shell, flags, tmp_path):
  args = ['--workdir=run', *flags, *SHRUNK]
  folder = tmp_path / 'run'

  def killed(*moment):
    result = shell.run('vision_r1', *args, cwd=tmp_path,
                       moment=command.Moment(*moment))
    assert result.code == -signal.SIGKILL, result.err
  # SIGTERM while the base is evaluated: its marker is left, nothing is begun.
  result = shell.run(
      'vision_r1', *args, cwd=tmp_path, moment=command.Moment(
          'finish', 'base', None, signal.SIGTERM))
  assert result.code == 0, result.err
  assert [file.name for file in (folder / 'DONE').iterdir()] == ['base.json']
  assert not (folder / 'data').exists()
  # In sft, from outside, while the checkpoint of step 2 is being written.
  kill_from_outside(args, tmp_path, folder, 'cold_start', 2)
  # After the last checkpoint of a stage and before it is marked as done.
  killed('finish', 'cold_start')
  assert (folder / 'checkpoints' / 'cold_start_3').exists()
  assert not (folder / 'DONE' / 'cold_start.json').exists()
  # Right after the switch to rl: a row is written, no checkpoint is.
  killed('write', 'think_short', 1)
  assert (folder / 'DONE' / 'cold_start.json').exists()
  # SIGTERM when the row of step 1 comes out, while step 2 is in the works:
  # it is finished and saved, and the exit code is 0.
  result = shell.run(
      'vision_r1', *args, cwd=tmp_path, moment=command.Moment(
          'write', 'think_short', 1, signal.SIGTERM))
  assert result.code == 0, result.err
  assert 'SIGTERM: state saved' in result.out
  assert (folder / 'checkpoints' / 'think_short_2').exists()
  assert max(step for stage, step in rows(folder)
             if stage == 'think_short') == 2
  # Between two checkpoints: step 3 is lost and done again.
  killed('write', 'think_short', 3)
  assert ('think_short', 3) in rows(folder)
  result = shell.run('vision_r1', *args, cwd=tmp_path)
  assert result.code == 0, result.err

  assert_the_same(folder, whole[0])


def test_the_run_it_was_compared_with_did_train(whole):
  folder, _ = whole
  found = rows(folder)
  assert all(row['update/skipped'] == 0 for row in found.values())
  rl = {key: row for key, row in found.items() if key[0] != 'cold_start'}
  assert all(row['grad_norm'] > 0 for row in found.values())
  assert any(0 < row['reward/mean'] < 1 for row in rl.values())
  before, _ = saved(folder, 'cold_start')
  after, _ = saved(folder, 'think_short')
  moved = [name for name in before if 'params/' in name
           and not np.array_equal(before[name], after[name])]
  assert len(moved) > 10


def test_evaluations_that_cut_what_a_stage_writes_are_said_once(whole):
  _, result = whole  # evaluated at 8 tokens
  said = ' '.join((result.out + result.err).split())
  assert said.count('evaluation.max_new_tokens is 8, think_long writes up to '
                    '16: longer answers are cut') == 1
  assert 'think_short writes up to' not in said


def test_the_reference_is_the_start_or_the_named_stage(whole):
  found = rows(whole[0])
  # 'init': the stage begins at its reference and leaves it.
  assert abs(found['think_short', 1]['kl']) < 1e-6
  assert found['think_short', 3]['kl'] > 1e-6
  # 'cold_start': think_short has moved away from it already.
  assert found['think_long', 1]['kl'] > 1e-6


def test_the_optimizer_is_carried_and_its_schedule_begins_anew(whole):
  folder, _ = whole
  arrays, _ = saved(folder, 'think_long')
  counts = sorted(int(x) for name, x in arrays.items()
                  if name.endswith('count'))
  # think_short made 4 updates, think_long 2: Adam counts 6, the schedule 2.
  assert counts == [2, 6]
  arrays, _ = saved(folder, 'think_short')
  assert sorted(int(x) for name, x in arrays.items()
                if name.endswith('count')) == [4, 4]


def test_m1_the_sampler_and_the_trainer_agree(whole):
  for key, row in rows(whole[0]).items():
    if key[0] != 'cold_start':
      assert row['sampler/logp_diff_max'] < 1e-4, key
      assert row['ratio/first'] == 1.0, key


def test_m17_nothing_compiles_after_the_first_step_of_a_stage(whole):
  folder, _ = whole
  counts = {}
  for (stage, _), row in rows(folder).items():
    counts.setdefault(stage, []).append(row['compile/count'])
  assert set(counts) == set(TRAINS)
  for stage, seen in counts.items():
    assert len(set(seen)) == 1, (stage, seen)
  assert counts['cold_start'][0] > 0


def test_m12_the_bridge_earns_the_reward_of_rl(whole):
  from mmr1.data import files
  from mmr1.data import rows as rows_lib
  from mmr1 import records
  from mmr1.papers import vision_r1
  folder, _ = whole
  source = files.JsonlSource(
      str(folder / 'data' / 'bridge' / 'train.jsonl'),
      form=rows_lib.RowFormat(require_completion=True))
  assert len(source) >= 16
  for example in (source[i] for i in range(len(source))):
    text = example.completions[0]
    sample = records.Sample(
        text=text, tokens=(), kinds=(), length=0, truncated=False,
        example=example, uid=0, group=0, slot=0)
    assert vision_r1.hard_format_result(sample, {}) == 1.0
    wrong = text.replace('Final Answer:', 'Final Answer:no ')
    assert vision_r1.hard_format_result(
        sample.__class__(**{**vars(sample), 'text': wrong}), {}) == 0.0


def test_m19_every_evaluation_leaves_a_card(whole):
  folder, _ = whole
  for name in ('base_0', 'cold_start_3', 'think_short_4', 'think_long_2'):
    card = json.loads((folder / 'eval' / f'{name}.json').read_text())
    assert card['n'] == 6
    assert len(log.read_rows(folder / 'eval' / f'{name}.jsonl')) == 12


def test_what_a_run_prints(whole):
  _, result = whole
  assert 'accuracy on held-out problems' in result.out
  for stage in ('base', *TRAINS):
    assert stage in result.out
  assert 'Traceback' not in result.out + result.err
  assert '2 x ' in result.out  # both cores are devices


def state_of(folder):
  return {str(path): path.stat().st_mtime_ns
          for part in ('checkpoints', 'DONE', 'metrics.jsonl', 'data', 'eval')
          for path in [folder / part, *(folder / part).rglob('*')]}


def test_m15_a_finished_run_does_nothing_and_prints_its_table(
    whole, shell, flags):
  folder, first = whole
  before = state_of(folder)
  again = shell.run(
      'vision_r1', '--workdir=run', *flags, *SHRUNK, cwd=folder.parent)
  assert again.code == 0, again.err
  assert state_of(folder) == before
  table = lambda text: text[text.index('accuracy on'):].split('GiB')[0].rsplit(
      '\n', 1)[0]
  assert table(again.out) == table(first.out)


def test_another_config_in_the_same_workdir_is_refused(whole, shell, flags):
  folder, _ = whole
  before = state_of(folder)
  other = shell.run(
      'vision_r1', '--workdir=run', *flags, *SHRUNK, '--config.seed=7',
      cwd=folder.parent)
  assert other.code == 1
  assert 'seed: 0 -> 7' in other.err and '--fresh' in other.err
  assert 'Traceback' not in other.err
  assert state_of(folder) == before


def test_fresh_leaves_nothing_of_the_run_before(
    whole, shell, flags, tmp_path):
  shutil.copytree(whole[0], tmp_path / 'run')
  args = [flag for flag in SHRUNK if not any(
      name in flag for name in ('think_', 'config.rl.', 'rewards.'))]
  result = shell.run(
      'vision_r1:ci', '--workdir=run', '--fresh', *flags, *args, cwd=tmp_path)
  assert result.code == 0, result.err
  folder = tmp_path / 'run'
  assert {key for key in rows(folder)} == {
      ('cold_start', step) for step in (1, 2, 3)}
  left = {str(path.relative_to(folder)) for path in folder.rglob('*')}
  assert not [name for name in left if 'think_' in name]
  assert {'FINISHED', 'DONE/cold_start.json', 'data/bridge/train.jsonl'} < left
  # The same stages from the same seed: the same parameters as before.
  (a, _), (b, _) = saved(whole[0], 'cold_start'), saved(folder, 'cold_start')
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# In this process.


@pytest.fixture
def one_step(shrink):
  c = shrink(forkme.get_config())
  c.rl.rewards = ('result',)
  c.grpo.steps, c.grpo.prompts_per_step = 1, 2
  c.grpo.samples_per_prompt, c.grpo.max_new_tokens = 2, 8
  return c


def test_a_notebook_runs_it_off_the_main_thread(one_step, tmp_path):
  results = []
  with pytest.warns(UserWarning, match='main thread'):
    thread = threading.Thread(target=lambda: results.append(
        mmr1.run(one_step, str(tmp_path / 'run'), quiet=True)))
    thread.start()
    thread.join()
  (result,) = results
  assert list(result) == ['base', 'grpo']
  assert result['grpo']['eval/n'] == 6
  # Again: the same, from the disk. Fresh: anew.
  stamp = (tmp_path / 'run' / 'checkpoints' / 'grpo_1').stat().st_mtime_ns
  assert mmr1.run(one_step, str(tmp_path / 'run'), quiet=True) == result
  same = (tmp_path / 'run' / 'checkpoints' / 'grpo_1').stat().st_mtime_ns
  assert same == stamp
  assert mmr1.run(
      one_step, str(tmp_path / 'run'), quiet=True, fresh=True) == result
  new = (tmp_path / 'run' / 'checkpoints' / 'grpo_1').stat().st_mtime_ns
  assert new != stamp


@pytest.mark.parametrize('flat, message', [
    (dict(stages=()), 'stages: empty'),
    (dict(seed=-1), 'seed: got -1'),
    (dict(data__max_broken_frac=2.0), 'data.max_broken_frac: got 2.0'),
    (dict(data__worker_count=-1), 'data.worker_count: got -1'),
    (dict(data__eval_size=0), 'data.eval_size: got 0'),
    (dict(grpo__max_new_tokens=449), 'grpo.max_new_tokens: got 449'),
    (dict(evaluation__max_new_tokens=500), 'evaluation.max_new_tokens'),
    (dict(grpo__optimizer__lr=-1.0), r'grpo.optimizer.lr: got -1.0'),
    (dict(grpo__optimizer__freeze=('visul/.*',)), r'grpo.optimizer.freeze'),
    (dict(grpo__optimizer__warmup_steps=2), r'grpo.optimizer.warmup_steps'),
    (dict(evaluation__top_p=0.0), r'evaluation: sampling: .*top_p=0.0'),
])
def test_m22_what_cannot_work_is_refused_before_the_workdir(
    one_step, tmp_path, flat, message):
  one_step.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in flat.items()})
  with pytest.raises(ValueError, match=message):
    mmr1.run(one_step, str(tmp_path / 'run'), quiet=True)
  assert not (tmp_path / 'run').exists()


def test_m22_reserved_names(one_step):
  one_step.base = one_step.grpo
  one_step.stages = ('base',)
  with pytest.raises(ValueError, match="'base' has a meaning of its own"):
    runner.plan(resolve.finalise(one_step))
