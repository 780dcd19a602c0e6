"""Defaults of stages of kind `flow`, see `mmr1.stages.flow`."""

from ml_collections import config_dict

ConfigDict = config_dict.ConfigDict
placeholder = config_dict.placeholder


def _generator() -> ConfigDict:
  """Sizes of the model of pictures."""
  return ConfigDict(dict(
      size=16, patch=4,  # side of a picture and of a patch, in pixels
      channels=3,
      source=True,  # it reads a picture that is to be changed
      width=64, layers=3, heads=4,
      vocabulary=27, tokens=3,  # ids of a condition, and its length
      dtype='float32', precision='default',
      remat=False,  # layers are computed again in the backward pass
  ))


def _flow(optimizer: ConfigDict) -> ConfigDict:
  return ConfigDict(dict(
      kind='flow',
      # 'new' parameters, 'previous' (the stage of this kind before it, new
      # ones where there is none), or a stage.
      start='previous',
      world='edits',  # a section of tasks
      # A function of mmr1/flow_objectives.py.
      objective=dict(fn='matching', kwargs=dict()),
      steps=100,
      prompts_per_step=24,
      samples_per_prompt=12,  # 1 where pictures are given, not sampled
      minibatches_per_step=1,
      chunks_per_minibatch=1,
      # Share of prompts that are learnt from without their condition.
      condition_dropout=0.0,
      # Sampling: a function of mmr1/flows/solvers.py, and how many steps.
      solver=dict(fn='dpm2', kwargs=dict()),
      solver_steps=6,
      guidance=1.0,
      # Of mmr1/rewards; or a section of `judges`, a model that reads pictures
      # and whose score is read from the logits of its first token.
      reward=dict(fn='pictures.edited', kwargs=dict()),
      judge=placeholder(str),
      advantage=dict(fn='grpo', kwargs=dict(std='batch', ddof=0, eps=1e-4)),
      select=dict(fn='keep_all', kwargs=dict()),
      # After each step old = d old + (1 - d) params, with d = rate * (updates -
      # after), at least 0 and at most cap: 0 is on-policy.
      old=dict(rate=0.0, after=0, cap=0.5),
      # What is evaluated: an average with the decay min((1 + u) / (10 + u),
      # cap) after u updates.
      ema=dict(cap=0.9),
      # Held-out prompts, with the same noise each time; a picture whose reward
      # is at least `followed` counts as one that follows its instruction.
      evaluation=dict(
          examples=64, samples=2, solver=dict(fn='dpm2', kwargs=dict()),
          steps=15, seed=1234, followed=0.9),
      optimizer=optimizer,
      # Adapters, as in `rl`; targets are regexes of names of kernels.
      lora=dict(rank=0, alpha=64.0, targets=('layer_.*/(q|k|v|o)/kernel',)),
      # As in `rl`; the best is that of eval/reward.
      max_bad_updates=5,
      log_every=1,
      samples_every=10,
      record_every=0,
      checkpoint_every=10,
      keep_checkpoints=2,
      eval_every=0,
      restore_best=False,
  ))


def add(c: ConfigDict, optimizer: ConfigDict) -> None:
  """Puts the defaults into a base config."""
  c.generator = _generator()
  c.flow = _flow(optimizer)
  c.tasks.edits = ConfigDict(dict(fn='edits.edits', noise=0.0, scale=1))
