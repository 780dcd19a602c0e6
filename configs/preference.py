"""Defaults of stages of kind `preference`."""

from ml_collections import config_dict

placeholder = config_dict.placeholder


def section(training: dict) -> config_dict.ConfigDict:
  """The family's section; `training`: what every stage that trains has."""
  return config_dict.ConfigDict(dict(
      kind='preference',
      pairs_per_step=16,
      # Pairs with a longer completion are dropped and counted.
      max_new_tokens=128,
      instruction=placeholder(str),  # of its prompts; None: data.instruction
      chunks_per_step=1,
      # Of mmr1/losses/preference.py: 'dpo' | 'ipo' | 'simpo'.
      loss=dict(fn='dpo', kwargs=dict()),
      # Added for the chosen completions: 'token_mean' (TRL), or 'seq_mean',
      # where each weighs the same (LLaMA-Factory).
      nll=dict(coefficient=0.0, reduce='token_mean'),
      # 'init': the parameters this stage starts from; a stage or a path.
      reference='init',
      reference_memory='device',  # or 'host': where it waits between passes
      **training,
  ))
