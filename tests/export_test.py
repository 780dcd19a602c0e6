"""`python -m mmr1.export` as a user meets it."""

import json

import pytest

from mmr1 import checkpoint
from mmr1 import release
from mmr1 import workdir as workdir_lib
from mmr1.models import checkpoints
from tests import command


@pytest.fixture
def run(tiny_folder, tmp_path):
  """What a run leaves that an export reads: config, checkpoint, DONE."""
  stage = {'kind': 'sft', 'steps': 3}
  workdir_lib.Workdir(tmp_path / 'run', {
      'stages': ['cold_start'], 'cold_start': stage,
      'model': {'path': tiny_folder, 'param_dtype': 'float32',
                'position_rule': 'legacy'},
      'data': dict.fromkeys(('min_pixels', 'max_pixels', 'video_fps',
                             'video_max_frames'))})
  c = checkpoint.Checkpoints(tmp_path / 'run')
  c.save('cold_start', 3, {'params': {
      'policy': checkpoints.load(tiny_folder)[1]}}, {})
  c.finish('cold_start', {'step': 3})
  return tmp_path


def refused(shell, cwd, *args):
  result = shell.call(command.export, list(args), cwd=cwd)
  assert result.code == 1 and 'Traceback' not in result.err, result.err
  assert result.err.startswith('mmr1: ') and len(result.err.splitlines()) < 4
  return result.err


def test_it_says_what_it_exported(shell, run):
  result = shell.call(command.export, [
      '--workdir=run', '--out=out', '--dtype=bfloat16'], cwd=run)
  assert result.code == 0, result.err
  said = result.out.splitlines()
  assert said == [f'cold_start, step 3, as bfloat16: {run}/out',
                  'devices: cpu']  # an accelerator may be busy with the run
  config = json.loads((run / 'out' / 'config.json').read_text())
  assert config['dtype'] == 'bfloat16'
  assert 'not empty' in refused(shell, run, '--workdir=run', '--out=out')


def test_a_run_is_exported_into_itself_once(run):
  """As `python -m mmr1.evaluate --checkpoint=<run>` does."""
  folder = run / 'run' / 'export' / 'cold_start_3'
  folder.mkdir(parents=True)  # an interrupted one: config.json comes last
  (folder / 'half').touch()
  assert release.exported(str(run / 'run')) == str(folder)
  assert not (folder / 'half').exists()
  written = (folder / 'config.json').stat().st_mtime_ns
  assert release.exported(str(run / 'run'), step=3) == str(folder)
  assert (folder / 'config.json').stat().st_mtime_ns == written


@pytest.mark.parametrize('args, words', [
    ([], '--workdir=<run> and --out=<folder>'),
    (['--workdir=none', '--out=o'], 'none/config.json does not exist'),
    (['--workdir=run', '--out=o', '--stage=cold_strat'],
     "--stage: 'cold_strat' is no stage of this run that trains. "
     'Nearest: cold_start.'),
    (['--workdir=run', '--out=o', '--step=4'], '--step: got 4'),
    (['--workdir=run', '--out=o', '--dtype=int8'], 'int8'),
    (['--workdir=run', '--out=o', '--setp=4'], "flag 'setp'"),
    (['--workdir=run', '--out=o', '--adapter'],
     "--adapter: 'cold_start' has none, its lora.rank is 0"),
    (['--workdir=run', '--out=o', '--base=b'], 'no effect without --adapter'),
    (['run', '--workdir=run', '--out=o'], "unknown argument 'run'"),
], ids=lambda value: value[-1] if isinstance(value, list) and value else '')
def test_m22_a_wrong_command_is_a_line(shell, run, args, words):
  said = refused(shell, run, *args)
  assert words in said, said
  assert not (run / 'o').exists()


def test_help(shell, tmp_path):
  result = shell.call(command.export, ['--help'], cwd=tmp_path)
  assert result.code == 0
  for flag in ('workdir', 'out', 'stage', 'step', 'dtype', 'model', 'base',
               '[no]adapter'):
    assert f'--{flag}:' in result.out
