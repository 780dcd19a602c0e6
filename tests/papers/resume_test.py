"""Papers that keep something from step to step: killed, or on other devices,
their runs say the same. Slow: each test is whole runs in processes."""

import pytest

from tests import command
from tests import hosts_test

STEPS = 4
SMALL = (
    '--config.rl.prompts_per_step=4', '--config.rl.samples_per_prompt=4',
    '--config.rl.optimizer.lr=1e-2', '--config.rl.samples_every=1',
    '--config.rl.checkpoint_every=1', '--config.rl.max_new_tokens=8',
    '--config.evaluate_base=False')
VLR = 'tests.papers.vl_rethinker_steps_test'
EVEN = '--config.rewards.{}.fn=tests.own:anyhow'
# Of each config the stages to run, the last of them is killed; and its flags.
PAPERS = {
    'revisual_r1': ("('text','mrl','trl')", (
        '--config.text.size=16', EVEN.format('result'),
        EVEN.format('text_result'), '--config.mrl.steps=2')),
    'mm_helix': ("('traces','mm_helix')", (
        '--config.traces.size=16', '--config.rl.max_new_tokens=112',
        EVEN.format('result'))),
    'vl_rethinker': ("('vl_rethinker',)", (
        f'--config.rewards.outcome.fn={VLR}:right',
        f'--config.rewards.correct.fn={VLR}:right',
        '--config.rl.replay.capacity=12', '--config.rl.replay.rows=8',
        '--config.rl.max_new_tokens=16',
        f'--config.rl.revise.fn={VLR}:rethink_early',
        '--config.rl.revise.kwargs.longest=16',
        f'--config.rl.revise.keep.fn={VLR}:rethought',
        '--config.rl.revise.keep.kwargs.least=0')),
    'ares': ("('ares',)", (
        EVEN.format('result'), '--config.probes.high_entropy.kwargs.width=2',
        '--config.probes.soft_cost.kwargs.width=2',
        '--config.probes.level.kwargs.width=2')),
    'recap': ("('recap',)", (
        '--config.rl.max_new_tokens=16', EVEN.format('accuracy'),
        EVEN.format('read'), '--config.rl.combine.kwargs.window=1')),
    'sophiavl_r1': ("('traces','judge','sophiavl_r1')", (
        '--config.traces.size=24', '--config.judge.steps=2',
        '--config.judge.rows_per_step=4',
        '--config.judge.optimizer.warmup_steps=0', EVEN.format('outcome'),
        '--config.judges.thinking.parse=tests.own:totalled')),
    'basereward': ("('voter','basereward')", (
        '--config.reward_model.steps=2',
        '--config.reward_model.pairs_per_step=4',
        '--config.reward_model.examples=6',
        '--config.reward_model.pairs_per_batch=2',
        '--config.reward_model.optimizer.warmup_steps=0',
        '--config.basereward.init=base', EVEN.format('rule'),
        EVEN.format('true'), "--config.judges.model.params=('voter',)")),
    # Its environment's turns end at about every second token of a random model.
    'chain_of_focus': ("('chain_of_focus',)", (
        '--config.environments.zoom.fn=tests.own_env:Asking',
        f'--config.environments.zoom.stop={tuple("aeinorst0123456789")}',
        '--config.environments.zoom.turn_tokens=16',
        '--config.rl.max_new_tokens=128', EVEN.format('result'))),
}

# Metrics that are not 0 in some step of the last stage: what is kept at work.
SHOWS = {
    'revisual_r1': ('knob/coef/entropy', 'loss/entropy'),
    'mm_helix': ('loss/guided',),
    'vl_rethinker': ('replay/rows', 'revise/kept', 'loss/imitation'),
    'ares': ('knob/high_entropy/threshold', 'aepo/hard/share'),
    'recap': ('reward/nll/weight', 'loss/imitation'),
    'basereward': ('reward/model/mean', 'reward/model/unit'),
    'chain_of_focus': ('env/calls', 'env/images'),
    'sophiavl_r1': ('reward/thinking/mean', 'knob/combine/decay')}

pytestmark = [pytest.mark.slow, pytest.mark.parametrize('slug', PAPERS)]


@pytest.fixture(scope='module')
def run(shell, flags, tmp_path_factory):
  """(slug, *more, moment, folder) -> (its workdir, result)."""
  def start(slug, *more, moment=None, folder=None):
    folder = folder or tmp_path_factory.mktemp(slug)
    result = shell.run(*line(slug, flags), *more, cwd=folder, moment=moment)
    return folder / 'run', result
  return start


def line(slug, flags):
  """The small run of a paper, as arguments of its command."""
  stages, own = PAPERS[slug]
  return (slug, '--workdir=run', *flags, f'--config.stages={stages}', *SMALL,
          f'--config.{slug_stage(slug)}.steps={STEPS}', *own)


@pytest.fixture(scope='module')
def whole(run):
  """slug -> the workdir of a run that nobody stopped; made once."""
  known = {}

  def get(slug):
    if slug not in known:
      known[slug], result = run(slug)
      assert result.code == 0, result.err[-3000:]
    return known[slug]
  return get


def slug_stage(slug):
  """Name of the last stage."""
  return PAPERS[slug][0].rstrip(",)'").rpartition("'")[2]


def test_m15_killed_and_resumed_to_the_bit(slug, run, whole):
  stage = slug_stage(slug)
  folder, result = run(
      slug, moment=command.Moment('write', stage, STEPS - 1))
  assert result.code == -9, result.err[-3000:]
  _, result = run(slug, folder=folder.parent)
  assert result.code == 0, result.err[-3000:]
  steps = [row for row in hosts_test.rows(folder) if row['stage'] == stage]
  for name in SHOWS[slug]:
    assert any(row.get(name) for row in steps), name
  assert hosts_test.rows(folder) == hosts_test.rows(whole(slug))
  assert hosts_test.texts(folder) == hosts_test.texts(whole(slug))
  hosts_test.assert_same_arrays(
      hosts_test.arrays(folder), hosts_test.arrays(whole(slug)))


def test_m27_devices_change_nothing(slug, run, whole):
  """Two devices, as the config has, and one."""
  folder, result = run(slug, '--config.cpu_devices=1')
  assert result.code == 0, result.err[-3000:]
  hosts_test.assert_close(
      hosts_test.rows(folder), hosts_test.rows(whole(slug)))


def test_m27_hosts_change_nothing(slug, shell, flags, whole, tmp_path):
  """Two processes with a device each, and one with two."""
  results = shell.hosts(
      *[(*line(slug, flags), '--config.cpu_devices=1')] * 2, cwd=tmp_path)
  assert [r.code for r in results] == [0, 0], results[1].err[-3000:]
  assert hosts_test.texts(tmp_path / 'run') == hosts_test.texts(whole(slug))
  hosts_test.assert_close(
      hosts_test.rows(tmp_path / 'run'), hosts_test.rows(whole(slug)))
