"""A run that records, profiles and times itself, and its replay."""

import gzip
import json

import numpy as np
import pytest

from configs import common
from mmr1 import log
from mmr1 import recording
from mmr1 import replay
from mmr1 import runner
from mmr1.data import datasets
from tests import own
from tests.stages import sft_test

PHASES = ('data', 'sample', 'score', 'reference', 'update')


@pytest.fixture(scope='module')
def run(shrink, tmp_path_factory):
  """Folder of a run: two steps of sft, and rl, whose third update is not
  finite and stops it. Checkpoints of sft: 2; of rl: 1 and 2."""
  folder = tmp_path_factory.mktemp('replay')
  c = shrink(common.get_base())
  c.stages, c.evaluate_base = ('imitate', 'grpo'), False
  c.data.path = sft_test.write(folder, sft_test.THOUGHTS)
  c.imitate = common.overlay(
      c.sft, steps=2, rows_per_step=4, max_new_tokens=32, record_every=1,
      length_buckets=(16,), checkpoint_every=2)
  c.grpo = common.overlay(
      c.rl, steps=4, prompts_per_step=4, samples_per_prompt=4,
      max_new_tokens=8, record_every=1, checkpoint_every=1, max_bad_updates=1,
      old='recompute', minibatches_per_step=2, length_buckets=(4,),
      chunks_per_minibatch=2, carry=('optimizer',))
  c.grpo.kl.coefficient = 0.1
  c.grpo.advantage.fn = 'tests.own:poisoned'
  c.rewards.own = dict(fn='tests.own:even', weight=1.0, in_pool=False,
                       limit_s=5.0, kwargs=dict())
  c.grpo.rewards = ('own',)
  own.calls[0] = 0
  own.bad_steps.clear()
  own.bad_steps.add(3)
  with pytest.raises(FloatingPointError, match='bad_batches/grpo_3.npz'):
    runner.run(c, str(folder / 'run'), quiet=True, profile='grpo:2-4')
  return folder / 'run'


def files(run):
  return {path: path.stat().st_mtime_ns for path in run.rglob('*')}


@pytest.mark.parametrize('name, step, start, same', [
    ('rollouts/imitate_1.npz', None, 'where it starts', True),
    ('rollouts/grpo_1.npz', None, 'where it starts', True),
    ('bad_batches/grpo_3.npz', None, 'checkpoint grpo_2', True),
    ('rollouts/grpo_3.npz', 1, 'checkpoint grpo_1', False)])
def test_the_update_of_a_step_from_its_file(
    run, monkeypatch, capsys, name, step, start, same):
  """Equal to the run's own numbers, bit for bit, or it says why not; without
  data, and without a trace in the run's folder."""
  def no(*args, **kwargs):
    raise AssertionError('data were opened')
  monkeypatch.setattr(datasets, 'open_split', no)
  monkeypatch.setattr(datasets, 'open_expert', no)
  before = files(run)
  metrics = replay.replay(str(run), str(run / name), step=step)
  assert files(run) == before
  said = capsys.readouterr().out
  stage, number = recording.load(run / name)[:2]
  (row,) = [row for row in log.read_rows(run / 'metrics.jsonl')
            if (row['stage'], row['step']) == (stage, number)
            and 'loss' in row]
  assert f'{stage}, step {number}, from {start}' in said
  known = [key for key in metrics if key in row]
  assert {'loss', 'grad_norm', 'lr', 'update/skipped_total'} <= {*known}
  equal = [repr(metrics[key]) == repr(float(row[key])) for key in known]
  assert all(equal) == same
  assert (f'all {len(known)} numbers are those in metrics.jsonl, bit' in said
          ) == same
  assert ('so numbers differ' in said) == (not same)
  assert metrics['update/skipped'] == (number == 3) * 2


def test_repeats_go_on_and_leave_a_trace(run, tmp_path, capsys):
  path = run / 'rollouts' / 'imitate_1.npz'
  first = replay.replay(str(run), str(path))
  again = replay.replay(str(run), str(path), step=2, repeat=3,
                        profile=str(tmp_path / 'trace'))
  said = capsys.readouterr().out
  assert 'from checkpoint imitate_2; the run made it from the state' in said
  assert 'update 3: ' in said and 'update 4: ' not in said
  assert again['loss'] != first['loss']  # trained parameters
  # Compiled once, and the trace has the two that did not compile.
  assert ['programs compiled' in line for line in said.splitlines()
          if line.startswith('update ')][1:] == [True, False, False]
  names, steps = events(tmp_path / 'trace')
  assert 'update' in names and steps == {'2', '3'}


def test_a_record_has_what_the_step_earned(run):
  """Rewards, knobs and tokens, in the order of the samples file."""
  record = recording.load(run / 'rollouts' / 'grpo_1.npz')
  assert record.rewards['own'].shape == (4, 4)
  (block,) = record.batch
  sums = np.where(block.completions.kind == 1, block.completions.tokens, 0)
  np.testing.assert_array_equal(
      record.rewards['own'], sums.sum(-1) % 2 == 0)
  assert record.knobs['coef/kl'] == np.float32(0.1)
  assert block.old is not None and block.ref is not None


def test_m22_what_cannot_be_replayed(run, tmp_path, capsys):
  path = str(run / 'rollouts' / 'grpo_3.npz')
  with pytest.raises(ValueError, match=r'no checkpoint of step 9.*\[1, 2\]'):
    replay.replay(str(run), path, step=9)
  with pytest.raises(ValueError, match='there is no run'):
    replay.replay(str(tmp_path), path)
  other = recording.load(path)
  recording.save(tmp_path / 'x.npz', other.batch, {}, stage='other', step=1)
  with pytest.raises(ValueError, match="stage 'other'; the run in"):
    replay.replay(str(run), str(tmp_path / 'x.npz'))
  for args, said in (
      ([], '--workdir=<run> and --rollout=<file>'),
      (['--workdir=a', '--rollout=b', '--repeat=0'], 'repeat'),
      (['--workdir=a', '--rollout=b.npz'], 'b.npz: there is no such file'),
      (['x'], "unknown argument 'x'")):
    with pytest.raises(SystemExit, match=said):
      replay.main(['replay', *args])
  with pytest.raises(SystemExit) as ended:
    replay.main(['replay', f'--workdir={run}', f'--rollout={path}',
                 '--step=9'])
  assert str(ended.value).startswith('mmr1: --step')


# What the run itself left.


def events(folder):
  """(names of the host's events, numbers of the steps) of a trace."""
  (path,) = folder.rglob('*.trace.json.gz')
  (full,) = folder.rglob('*.xplane.pb')
  assert full.stat().st_size > 1000
  found = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  steps = {event['args'].get('step_num') for event in found
           if event.get('name') == 'step'}
  return {event.get('name') for event in found}, steps


def test_a_profile_names_its_steps_phases_and_programs(run):
  names, steps = events(run / 'profile')
  assert steps == {'2', '3'}
  assert {*PHASES} <= names
  assert {'PjitFunction(log_probs)', 'PjitFunction(update)'} <= names


def test_m24_times_of_phases_and_tokens_per_second(run):
  rows = [row for row in log.read_rows(run / 'metrics.jsonl') if 'loss' in row]
  for row in rows:
    phases = PHASES if row['stage'] == 'grpo' else ('update',)
    times = [row[f'time/{name}_s'] for name in phases]
    assert min(times) >= 0
    # Phases follow each other; a step ends after the one before is logged.
    assert max(times) < row['time/step_s'] + 1
    assert row['tokens_per_s'] > 0
  assert [row['step'] for row in rows] == [1, 2, 1, 2, 3]
  last = rows[-1]
  assert last['tokens_per_s'] * last['time/step_s'] == pytest.approx(
      last['response_length/mean'] * 16)
  assert last['time/sample_s'] > 0 and last['time/update_s'] > 0
