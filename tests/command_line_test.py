"""Arguments of the commands: what None means, what is said of wrong ones."""

import pathlib

from absl import flags
from ml_collections import config_flags
import pytest

from mmr1 import command_line
from mmr1 import resolve

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'


def read(path, *given):
  """(config, overrides) of a file, one of ours by its name, after flags."""
  path = path if '/' in path else f'{CONFIGS}/{path}.py'
  argv, values = ['command', f'--config={path}', *given], flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  assert command_line.parsed(values, argv) == ['command']
  return values.config, config_flags.get_override_values(values['config'])


def said(path, *given):
  """The message that arguments are refused with."""
  with pytest.raises(ValueError) as caught:
    read(path, *given)
  assert command_line.is_message(caught.value)
  return str(caught.value)


@pytest.fixture
def written(tmp_path):
  """The path of a config file with this body of get_config."""
  def write(*lines):
    path = tmp_path / 'mine.py'
    path.write_text('\n  '.join(('def get_config(arg=None):', *lines, '')))
    return str(path)
  return write


# None.


@pytest.mark.parametrize('key, value', [
    ('data.instruction', None), ('sampler.rows', 4), ('mesh.fsdp', 1),
    ('data.video_fps', 2.0)])
@pytest.mark.parametrize('form', ['--config.{}=None', '--config.{} None',
                                  '-config.{}=None'])
def test_m22_none_is_none_where_it_may_be(key, value, form):
  given = [] if value is None else [f'--config.{key}={value}']
  config, overrides = read('forkme', *given, *form.format(key).split())
  for part in key.split('.'):
    config = config[part]
  assert config is None and overrides == {key: None}


def test_m22_the_last_of_two_values_is_meant():
  config, overrides = read('forkme', '--config.sampler.rows=None',
                           '--config.sampler.rows=4')
  assert config.sampler.rows == 4 and overrides == {'sampler.rows': 4}


@pytest.mark.parametrize('key, allowed', [
    ('seed', 'int'), ('rl.steps', 'int'), ('grpo.steps', 'int'),
    ('data.mixture', 'tuple'), ('rl.advantage.kwargs.std', 'str'),
    ('report', 'bool'), ('rl.optimizer', 'its keys')])
def test_m22_none_is_refused_where_it_may_not_be(key, allowed):
  message = said('forkme', f'--config.{key}=None')
  assert f'--config.{key}' in message and 'None' in message
  assert f'allowed: {allowed}' in message


def test_m22_none_is_refused_as_an_item():
  assert "no key 'data.mixture[0]'" in said(
      'forkme', '--config.data.mixture[0]=None')


def test_m22_none_of_a_stage_is_that_of_its_family():
  """What a stage does not set comes from there: it says nothing by itself."""
  flag = '--config.chain_of_focus.env=None'
  message = said('chain_of_focus', flag)
  assert flag in message and '--config.rl.env=None' in message
  config, overrides = read('chain_of_focus', flag, '--config.rl.env=None')
  final = resolve.finalise(config, overrides)
  assert final.chain_of_focus.env is None and final.cold_start.env == 'zoom'


def test_m22_none_of_a_family_reaches_its_stages():
  config, overrides = read('chain_of_focus', '--config.rl.env=None')
  assert resolve.finalise(config, overrides).chain_of_focus.env is None
  # Nothing reaches a stage that sets its own.
  config, overrides = read(
      'chain_of_focus', '--config.rl.env=None',
      '--config.chain_of_focus.env=zoom')
  with pytest.raises(ValueError, match='rl.env has no effect'):
    resolve.finalise(config, overrides)


# What is said.


@pytest.mark.parametrize('flag, value', [
    ('--config.seed.x=1', 'seed'), ('--config.data.path.x=1', 'data.path'),
    ('--config.rl.optimizer.lr.x=3', 'rl.optimizer.lr'),
    ('--config.data.template.x=3', 'data.template'),
    ('--config.stages.x=3', 'stages')])
def test_a_key_below_a_value_is_named(flag, value):
  key = flag.removeprefix('--config.').partition('=')[0]
  assert said('forkme', flag) == (
      f"{flag}: there is no key {key!r}: {value!r} is a value and has no keys.")


def test_a_misspelt_key_is_named_with_what_is_near(written):
  assert said('forkme', '--config.grpo.stepz=3') == (
      '--config.grpo.stepz=3: there is no key \'stepz\'. Did you mean "steps"?')
  path = written('from configs import common',
                 'return common.get_base(arg).rl.optimiser')
  assert said(path) == ('--config: there is no key \'optimiser\'. Did you mean '
                        '"optimizer"?')


@pytest.mark.parametrize('line, kind', [
    ('return None.foo', AttributeError), ('return {}["a"]', KeyError)])
def test_what_a_config_file_does_wrong_keeps_its_traceback(written, line, kind):
  with pytest.raises(kind):
    read(written(line))


def test_what_a_config_file_refuses_is_a_sentence(written):
  assert said(written('raise ValueError("take another one")')) == (
      '--config: take another one')
  assert 'nowhere.py' in said('./nowhere.py')
