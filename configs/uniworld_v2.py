"""UniWorld-V2: Edit-R1, rewards for a model that edits pictures (DiffusionNFT).
"""

from configs import common

OPTIONS = ('paper', 'judge', 'flow_grpo', 'dpo')


def get_config(arg=None):
  scale, options = common.split(arg, OPTIONS, 'uniworld_v2')
  c = common.get_base(scale)
  c.name = 'uniworld_v2'
  c.data.path = None
  c.evaluate_base = False  # no stage touches the model of language
  c.stages = ('pretrain', 'nft')
  c.tasks.noisy_edits = dict(fn='edits.edits', noise=0.4, scale=1)
  c.pretrain = common.overlay(
      c.flow, world='noisy_edits', steps=900, prompts_per_step=128,
      samples_per_prompt=1, condition_dropout=0.1,
      optimizer=dict(lr=2e-3, warmup_steps=20, lr_decay='cosine'))
  c.nft = common.overlay(
      c.flow, objective=dict(fn='nft', kwargs=dict()), steps=60,
      prompts_per_step=12, samples_per_prompt=8, eval_every=20,
      optimizer=dict(lr=3e-4),
      select=dict(fn='drop_saturated', kwargs=dict()))
  return c
