"""What a stage may ask of the run."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from mmr1 import context
from mmr1 import resolve
from mmr1 import types
from mmr1.models import checkpoints


@pytest.fixture
def config(shrink):
  c = shrink(common.get_base())
  c.stages = ('first', 'second')
  c.first = common.overlay(c.rl, max_new_tokens=8)
  c.second = common.overlay(c.rl, max_new_tokens=8)
  return c


def finish(ctx, stage, params, step=3):
  state = types.TrainState(
      step=jnp.int32(step), params={'policy': params},
      opt={'policy': {'mu': jnp.full(2, 7.0)}})
  ctx.checkpoints.save(stage, step, state, {})
  ctx.checkpoints.finish(stage, {'step': step})
  ctx.models.append(stage)


def test_names_of_models(config, open_run, tmp_path):
  ctx, _ = open_run(config, tmp_path / 'run')
  assert ctx.named('previous') == 'base' and ctx.params('previous') is ctx.base
  assert ctx.named('first') == 'first'
  doubled = jax.tree.map(lambda x: 2 * x, ctx.base)
  finish(ctx, 'first', doubled)
  assert ctx.named('previous') == 'first'
  for name in ('previous', 'first'):
    jax.tree.map(np.testing.assert_array_equal, ctx.params(name), doubled)
  state = ctx.optimizer_state('previous', {'mu': jnp.zeros(2)})
  np.testing.assert_array_equal(state['mu'], [7.0, 7.0])
  # A folder, too.
  jax.tree.map(np.testing.assert_array_equal,
               ctx.params(config.model.path), ctx.base)
  with pytest.raises(ValueError, match="'second' has not finished"):
    ctx.params('second')


def test_stages_have_numbers_of_their_own(config, open_run, tmp_path):
  ctx, _ = open_run(config, tmp_path / 'run')
  assert [ctx.index(name) for name in ('base', 'first', 'second')] == [0, 1, 2]


@pytest.mark.parametrize('name, message', [
    ('second', "second.init: 'second' does not come before 'second'"),
    ('frist', "second.init: got 'frist'.*Nearest: first"),
    ('/no/such/model', "second.init: got '/no/such/model'"),
])
def test_m22_names_that_stand_for_nothing(config, name, message):
  final = resolve.finalise(config)
  with pytest.raises(ValueError, match=message):
    context.check_init(name, 'second', final)


def test_names_that_stand_for_a_model(config):
  final = resolve.finalise(config)
  for name in ('previous', 'base', 'first', config.model.path):
    context.check_init(name, 'second', final)
  with pytest.raises(ValueError, match="first.reference: 'second' does not"):
    context.check_init('second', 'first', final, 'reference')


@pytest.mark.parametrize('key', ['init', 'reference'])
def test_m22_a_folder_with_another_model(config, key, tmp_path):
  """It is refused before the stages that come first have cost hours."""
  folder = pathlib.Path(config.model.path)
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  config.second[key] = str(tmp_path)
  _, base = checkpoints.describe(folder, param_dtype='float32')
  context.check_folders(resolve.finalise(config), base)
  values = json.loads((folder / 'config.json').read_text())
  values['vision_config']['depth'] += 1
  (tmp_path / 'config.json').write_text(json.dumps(values))
  with pytest.raises(ValueError, match=(
      f'second.{key}: .* is another model than model.path: '
      r"'visual/blocks/mlp/down/bias' is \(3, 32\) there and \(2, 32\)")):
    context.check_folders(resolve.finalise(config), base)


def test_m16_preemption_is_a_clean_exit():
  with pytest.raises(SystemExit) as stopped:
    raise context.Preempted()
  assert stopped.value.code == 0
