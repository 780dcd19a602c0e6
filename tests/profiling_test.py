"""Which steps are traced, and where the trace goes."""

import types

import jax.numpy as jnp
import pytest

from configs import forkme
from mmr1 import profiling
from mmr1 import resolve


@pytest.fixture(scope='module')
def config():
  c = forkme.get_config()
  c.grpo.steps = 6
  return resolve.finalise(c)


class Steps:
  """Takes steps, and says which the profiler was running in."""

  def __init__(self, monkeypatch):
    self.begun, self.ended, self.traced, self.on = 0, 0, [], False
    monkeypatch.setattr(profiling, 'start', self.start)

  def start(self, folder):
    self.begun, self.on, self.folder = self.begun + 1, True, folder

    def stop():
      self.ended, self.on = self.ended + 1, False
    return stop

  def run(self, profile, *numbers, stage='grpo'):
    def step(number):
      if self.on:
        self.traced.append(number)
      return types.SimpleNamespace(state=jnp.ones(2), number=number)
    for number in numbers:
      assert profile.step(stage, number, step, number).number == number
    return self.traced


def test_the_steps_that_were_asked_for(config, monkeypatch):
  steps, said = Steps(monkeypatch), []
  profile = profiling.Profile('grpo:2-4', config, 'run/profile')
  assert steps.run(profile, 1, 2, 3, 4, 5, 6) == [2, 3, 4]
  assert steps.run(profile, 2, 3, stage='other') == [2, 3, 4]
  profile.close(said.append)
  assert (steps.begun, steps.ended, said) == (1, 1, [])
  assert steps.folder == 'run/profile'


def test_m15_a_run_that_goes_on_in_between(config, monkeypatch):
  """The rest of the steps; a stop in between ends the trace; and none."""
  steps, said = Steps(monkeypatch), []
  assert steps.run(profiling.Profile('grpo:2-4', config), 3, 4, 5) == [3, 4]
  profile = profiling.Profile('grpo:5-6', config)
  assert steps.run(profile, 5) == [3, 4, 5] and steps.on
  profile.close(said.append)
  assert not steps.on and not said
  profile = profiling.Profile('grpo:2-3', config)
  steps.run(profile, 4, 5)
  profile.close(said.append)
  assert len(said) == 1 and 'none of the steps 2 to 3 ran' in said[0]
  profiling.Profile().close(said.append)
  assert len(said) == 1


@pytest.mark.parametrize('asked, said', [
    ('grpo', r"got 'grpo'; write <stage>:<first>-<last>.*'grpo:3-5'"),
    ('grpo:a-b', "got 'grpo:a-b'; write"),
    ('grop:1-2', "'grop' is no stage.*grpo"),
    ('grpo:0-2', 'got steps 0 to 2; .* 1 to 6 .grpo.steps'),
    ('grpo:3-2', 'got steps 3 to 2'),
    ('grpo:6-7', 'got steps 6 to 7')])
def test_m22_steps_that_there_are_not(config, asked, said):
  with pytest.raises(ValueError, match=f'--profile: {said}'):
    profiling.Profile(asked, config)


def test_one_step_into_a_bucket(config, remote):
  profile = profiling.Profile('grpo:2', config, 'gs://bucket/run/profile')
  for number in (1, 2, 3):
    profile.step('grpo', number, lambda: types.SimpleNamespace(
        state=jnp.ones(2) + 1))
  (file,) = remote.rglob('*.xplane.pb')
  assert file.relative_to(remote / 'run' / 'profile').parts[:2] == (
      'plugins', 'profile')
  assert file.stat().st_size > 0
