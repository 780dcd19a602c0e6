"""Fewer steps for the notebooks' test, and only there.

  MMR1_STEPS=2 python -m pytest -m slow tests/experiments/notebooks_test.py

A person who opens a notebook has no MMR1_STEPS and gets the whole run.
"""

import os
from typing import Any

VARIABLE = 'MMR1_STEPS'


def shorten(config: Any) -> Any:
  """The config; if MMR1_STEPS is set, with at most so many steps of each stage
  and 16 problems in an evaluation, and it says so."""
  steps = int(os.environ.get(VARIABLE, 0))
  if steps:
    config.evaluation.examples = min(16, config.evaluation.examples)
    for name in config.stages:
      stage = config[name]
      if 'optimizer' in stage:
        stage.steps = min(steps, stage.steps)
        stage.optimizer.warmup_steps = min(
            steps, stage.optimizer.warmup_steps or 0)
      elif stage.kind == 'collect':
        stage.size = 64
    print(f'{VARIABLE} is set: {steps} steps of each stage. This is a test, '
          'its numbers say nothing.')
  return config
