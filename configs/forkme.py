"""<Paper>: <one line on what is new>. Copy this file to configs/<slug>.py.

  python -m mmr1.main --config=configs/forkme.py

A config names its stages and sets what differs from configs/common.py; the
name of a function is the path of its code (`answer.correct` is
mmr1/rewards/answer.py:correct; `my_package.rewards:mine` is yours). As it
stands this file is plain GRPO from the embedded model, 74 s on two free cores.
"""

from configs import common


def get_config(arg: str | None = None):
  """`arg`: None for the embedded model, or a scale of common.MODELS."""
  c = common.get_base(arg)
  c.name = 'forkme'
  c.stages = ('grpo',)

  # The problem: a procedural world, or a file with --config.data.path=...
  c.data.instruction = 'Think first, then answer, in tags.'

  # The reward: one section per column, combined by weight.
  c.rewards.format.weight = 0.1
  c.rl.rewards = ('result', 'format')

  # The objective: ratio x surrogate x reduce, KL, entropy.
  c.rl.advantage.kwargs = dict(std='group', ddof=1, eps=1e-6)
  c.rl.policy.kwargs = dict(eps_low=0.2, eps_high=0.2)
  c.rl.kl.coefficient = 0.0

  # The stage: what it does not set comes from the family `rl`.
  c.grpo = common.overlay(
      c.rl, steps=30, prompts_per_step=16, samples_per_prompt=8,
      max_new_tokens=64)
  return c
