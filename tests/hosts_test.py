"""Several processes on this machine, as hosts of one run."""

import json
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mmr1 import checkpoint
from mmr1 import log
from tests import command

STEPS = 3
SHRUNK = [
    "--config.stages=('think_short',)", '--config.evaluation.examples=4',
    '--config.rl.prompts_per_step=4', '--config.rl.checkpoint_every=1',
    '--config.rl.optimizer.lr=1e-2', '--config.rl.samples_every=1',
    f'--config.think_short.steps={STEPS}',
    '--config.think_short.max_new_tokens=8',
    '--config.think_short.samples_per_prompt=2',
    '--config.rewards.hard.fn=tests.own:even']
STAGES = {'papo': "('papo',)", 'vogue': "('vogue',)",
          'luffy': "('traces','luffy')", 'grpo_care': "('grpo_care',)"}
CLOCK = ('time', 'tokens_per_s', 'compile')


def rows(folder):
  """Rows of metrics.jsonl without what a clock says."""
  return [{name: value for name, value in row.items()
           if not name.startswith(CLOCK)}
          for row in log.read_rows(folder / 'metrics.jsonl')]


def texts(folder):
  """Completions of all evaluations; None of a pair, whose metrics say all."""
  return {path.name: [json.loads(line).get('text')
                      for line in path.read_text().splitlines()]
          for path in sorted((folder / 'eval').glob('*.jsonl'))}


def assert_close(got, expected):
  """The same rows, numbers within 1e-5."""
  assert len(got) == len(expected)
  for one, other in zip(got, expected):
    assert one.keys() == other.keys()
    for name, value in one.items():
      if isinstance(value, float):
        np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-5,
                                   err_msg=name)
      else:
        assert value == other[name], name


@pytest.fixture(scope='module')
def run(shell, flags, tmp_path_factory):
  """(hosts, devices on each, *more, folder, moments) -> (folder, results)."""
  def start(hosts, devices, *more, folder=None, moments=None):
    folder = folder or tmp_path_factory.mktemp('hosts')
    argv = ('vision_r1', '--workdir=run', *flags, *SHRUNK,
            f'--config.cpu_devices={devices}', *more)
    if hosts == 1:
      results = [shell.run(*argv, cwd=folder, moment=(moments or {}).get(0))]
    else:
      results = shell.hosts(*[argv] * hosts, cwd=folder, moments=moments)
    return folder / 'run', results
  return start


@pytest.fixture(scope='module')
def alone(run):
  folder, (result,) = run(1, 4)
  assert result.code == 0, result.err
  return folder


@pytest.fixture(scope='module')
def two(run):
  folder, results = run(2, 2)
  assert [r.code for r in results] == [0, 0], results[1].err[-3000:]
  return folder


@pytest.fixture(scope='module')
def four(run):
  folder, results = run(4, 1)
  assert [r.code for r in results] == [0] * 4, results[3].err[-3000:]
  return folder


@pytest.mark.parametrize('hosts', [
    'two', pytest.param('four', marks=pytest.mark.slow)])
def test_m27_hosts_change_nothing(alone, request, hosts):
  """Samples, rewards, metrics and evaluations of one process with four devices,
  two with two and four with one."""
  folder = request.getfixturevalue(hosts)
  assert texts(folder) == texts(alone)
  assert_close(rows(folder), rows(alone))


@pytest.mark.slow
@pytest.mark.parametrize('slug', ['papo', 'vogue', 'luffy', 'grpo_care'])
def test_m27_hosts_change_nothing_of_a_paper(slug, shell, flags,
                                             tmp_path_factory):
  """Looks, branches, traces and an average, with two processes and with one."""
  argv = (slug, '--workdir=run', *flags, f"--config.stages={STAGES[slug]}",
          '--config.rl.prompts_per_step=4', '--config.rl.samples_per_prompt=2',
          '--config.rl.max_new_tokens=8', '--config.rl.optimizer.lr=1e-2',
          '--config.rl.samples_every=1', f'--config.{slug}.steps={STEPS}',
          '--config.rewards.result.fn=tests.own:even')
  if slug == 'luffy':
    argv += ('--config.traces.size=16', "--config.rl.rewards=('result',)",
             '--config.rl.max_new_tokens=64')  # as long as its traces
  one, two = (tmp_path_factory.mktemp(slug) for _ in range(2))
  alone_ = shell.run(*argv, '--config.cpu_devices=4', cwd=one)
  results = shell.hosts(*[(*argv, '--config.cpu_devices=2')] * 2, cwd=two)
  assert [r.code for r in (alone_, *results)] == [0, 0, 0], (
      alone_.err + results[1].err)[-3000:]
  assert texts(two / 'run') == texts(one / 'run')
  assert_close(rows(two / 'run'), rows(one / 'run'))


@pytest.mark.slow
def test_m27_hosts_change_nothing_of_an_environment_with_pictures(
    shell, flags, tmp_path):
  """Pictures that came to one host's episodes are on all: two processes with a
  device each, and one with two."""
  ends = tuple('aeinorst0123456789')
  argv = ('chain_of_focus', '--workdir=run', *flags,
          "--config.stages=('chain_of_focus',)",
          '--config.rl.prompts_per_step=4', '--config.rl.samples_per_prompt=4',
          '--config.rl.max_new_tokens=128', '--config.rl.optimizer.lr=1e-2',
          '--config.rl.samples_every=1', '--config.chain_of_focus.steps=2',
          '--config.rewards.result.fn=tests.own:even',
          '--config.environments.zoom.fn=tests.own_env:Asking',
          f'--config.environments.zoom.stop={ends}',
          '--config.environments.zoom.turn_tokens=16')
  one, two = tmp_path / 'one', tmp_path / 'two'
  one.mkdir(), two.mkdir()
  alone_ = shell.run(*argv, '--config.cpu_devices=2', cwd=one)
  results = shell.hosts(*[(*argv, '--config.cpu_devices=1')] * 2, cwd=two)
  assert [r.code for r in (alone_, *results)] == [0, 0, 0], (
      alone_.err + results[1].err)[-3000:]
  assert_close(rows(two / 'run'), rows(one / 'run'))
  assert texts(two / 'run') == texts(one / 'run')
  steps = [row for row in rows(two / 'run') if 'loss' in row]
  assert len(steps) == 2 and all(row['env/images'] > 0 for row in steps)
  said = [[(row['step'], row['completion'], row['length'], row['advantage'])
           for row in log.read_rows(path / 'run/samples/chain_of_focus.jsonl')]
          for path in (one, two)]
  assert len(said[0]) > 2 and [row[:3] for row in said[0]] == [
      row[:3] for row in said[1]]
  np.testing.assert_allclose(*[[row[3] for row in part] for part in said],
                             rtol=1e-5, atol=1e-5)


def test_a_host_with_another_config_is_told_what_differs(run, shell, flags,
                                                         tmp_path):
  argv = ('vision_r1', '--workdir=run', *flags, *SHRUNK,
          '--config.cpu_devices=1')
  results = shell.hosts(argv, (*argv, '--config.seed=1'), cwd=tmp_path)
  for result in results:
    assert result.code == 1
    assert 'the config of host 1 is not that of host 0' in result.err
    assert 'seed: 0 -> 1' in result.err
  assert not (tmp_path / 'run').exists()


def arrays(folder):
  """{checkpoint and name: array} of all checkpoints, as they were written."""
  found = {}
  for path in sorted((folder / 'checkpoints').iterdir()):
    names = json.loads((path / 'extra' / 'metadata').read_text())['arrays']
    tree = {name: jax.ShapeDtypeStruct(shape, dtype)
            for name, (dtype, shape) in names.items()}
    read = ocp.PyTreeCheckpointer().restore(
        path / 'state', args=ocp.args.PyTreeRestore(
            tree, restore_args=jax.tree.map(
                lambda x: ocp.RestoreArgs(restore_type=np.ndarray), tree)))
    found |= {f'{path.name}/{name}': x for name, x in read.items()}
  return found


def assert_same_arrays(got, expected):
  assert got.keys() == expected.keys() and len(got) > 20
  for name, one in got.items():
    np.testing.assert_array_equal(one, expected[name], err_msg=name)


def test_m16_a_host_that_is_asked_to_stop_stops_all_and_others_go_on(
    alone, run):
  """SIGTERM to host 1 of two after step 1: both save and leave with 0. One
  process, with another mesh, goes on to the same result."""
  folder, results = run(2, 2, moments={1: command.Moment(
      'write', 'think_short', 1, signal.SIGTERM)})
  assert [r.code for r in results] == [0, 0], results[1].err[-3000:]
  assert 'state saved, stopping' in results[0].out + results[0].err
  assert not (folder / 'FINISHED').exists()
  saved = checkpoint.Checkpoints(folder, read_only=True).steps('think_short')
  assert saved and 1 <= max(saved) < STEPS
  folder, (result,) = run(
      1, 4, '--config.mesh.data=1', '--config.mesh.fsdp=2',
      '--config.mesh.tensor=2', folder=folder.parent)
  assert result.code == 0, result.err
  assert 'goes on elsewhere' in result.out and 'mesh.fsdp: 1 -> 2' in result.out
  assert_close(rows(folder), rows(alone))
  assert texts(folder) == texts(alone)


def test_m15_a_host_that_is_killed_stops_the_others_and_the_run_goes_on(
    two, run):
  """kill -9 of host 1 after step 2: host 0 says so and ends; the same command
  goes on from step 2 and ends bit for bit as two hosts that nobody kills."""
  began = time.monotonic()
  folder, results = run(
      2, 2, moments={1: command.Moment('write', 'think_short', 2)})
  assert results[1].code == -signal.SIGKILL
  assert results[0].code not in (0, None)
  assert 'another host' in results[0].err
  assert time.monotonic() - began < 180
  folder, results = run(2, 2, folder=folder.parent)
  assert [r.code for r in results] == [0, 0], results[1].err[-3000:]
  assert rows(folder) == rows(two)
  assert texts(folder) == texts(two)
  assert_same_arrays(arrays(folder), arrays(two))
