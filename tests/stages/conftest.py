"""A stage to take steps of."""

import pytest

from configs import forkme
from mmr1.stages import rl


@pytest.fixture
def trainer(shrink, open_run, tmp_path):
  """(change of the config, **flat ones of its stage) -> the Trainer of a stage
  'grpo'."""
  def make(change=None, **flat):
    c = shrink(forkme.get_config())
    if change:
      change(c)
    c.rl.rewards = ('one',)
    c.rewards.one = dict(fn=flat.pop('reward', 'tests.own:even'), weight=1.0,
                         in_pool=False, limit_s=5.0, kwargs=dict())
    c.grpo.steps, c.grpo.prompts_per_step = 4, 4
    c.grpo.samples_per_prompt, c.grpo.max_new_tokens = 4, 8
    for key, value in flat.items():
      *parents, last = key.split('__')
      section = c.grpo
      for parent in parents:
        section = section[parent]
      section[last] = value
    make.count += 1
    ctx, plans = open_run(c, tmp_path / str(make.count))
    return rl.Trainer(ctx, 'grpo', ctx.config.grpo, plans['grpo'])
  make.count = 0
  return make
