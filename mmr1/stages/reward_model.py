"""Stage `reward_model`: a model that gives a whole completion one number.

It learns from records with several completions of one prompt, as a rule two,
(chosen, rejected): the prompt and its images are read once, G = 2. Its losses
are sections of `terms`, of `mmr1.losses.scoring`; no logits are made. What it
says of responses is a column of an rl stage, see `mmr1.judges`.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any

import numpy as np

from mmr1 import context
from mmr1 import learner as learner_lib
from mmr1 import loop
from mmr1 import objective as objective_lib
from mmr1 import pairwise
from mmr1 import scoring
from mmr1 import training
from mmr1 import types
from mmr1.data import datasets
from mmr1.data import mixtures
from mmr1.data import pipeline

_HEAD = 'scalars/reward/kernel'


def setup(section: Any, stage: str, config: Any) -> Mapping[str, Any]:
  """Checks the section before anything runs."""
  training.check(section, stage, config)
  for key in ('pairs_per_step', 'chunks_per_step', 'log_every', 'examples',
              'pairs_per_batch'):
    if section[key] < 1:
      raise ValueError(
          f'{stage}.{key}: got {section[key]}; allowed: at least 1.')
  if section.pairs_per_step % section.chunks_per_step:
    raise ValueError(
        f'{stage}.chunks_per_step: {section.pairs_per_step} pairs do not split '
        f'into {section.chunks_per_step} chunks; a pair is never divided.')
  if section.ties not in pairwise.TIES:
    raise ValueError(f'{stage}.ties: got {section.ties!r}; allowed are '
                     f'{pairwise.TIES}.')
  _check_head(section, stage, config)
  datasets.template(config.data, section.instruction)
  objective_of(section, stage, config)
  before = config.stages[:config.stages.index(stage)]
  if not any(config[name].kind == 'collect' for name in before
             if name in section.mixture):  # else its files are yet to be made
    try:
      for split in ('train', 'eval'):
        _open(section, config, split, {})
    except ValueError as error:
      raise ValueError(f'{stage}: {error}') from error
  return {}


def _check_head(section: Any, stage: str, config: Any) -> None:
  """The head must be there, and train."""
  if 'reward' not in config.model.scalars:
    raise ValueError(
        f'{stage}: the model has no head to train: set model.scalars to '
        "('reward',) and model.reward_head to its form.")
  config.model.reward_head.as_dict()
  def matched(patterns):
    return any(re.fullmatch(pattern, _HEAD) for pattern in patterns)
  if section.lora.rank and not matched(section.lora.train):
    raise ValueError(
        f'{stage}.lora.train: got {section.lora.train}; the head of a reward '
        "model is new and must train in full: ('scalars/.*',).")
  if matched(section.optimizer.freeze):
    raise ValueError(f'{stage}.optimizer.freeze: {section.optimizer.freeze} '
                     'holds the head of the reward model, which is to train.')


def objective_of(section: Any, stage: str, config: Any):
  """(terms, {knob: value}) of the stage.

  Raises:
    ValueError: no term, or an unknown one.
  """
  made, knobs = [], {'temperature': 1.0}
  for name in section.terms:
    term, coefficient, values = objective_lib.named(
        name, config.terms[name], {})
    if coefficient:
      made.append(term)
      knobs |= {f'coef/{name}': float(coefficient), **values}
  if not made:
    raise ValueError(
        f'{stage}.terms: got {section.terms}; needed is one with a coefficient '
        'that is not 0, such as bradley_terry.')
  return tuple(made), knobs


def _open(section: Any, config: Any, split: str, written: Mapping[str, str],
          order: int = 0):
  return mixtures.open_pairs(
      config, section.mixture, section.weights, split, written=written,
      order=order)


def learner(
    ctx: context.Context, stage: str, section: Any) -> learner_lib.Learner:
  """What the stage learns with, at its start."""
  terms, _ = objective_of(section, stage, ctx.config)
  return learner_lib.Learner(
      ctx, stage, section, terms, updates=section.steps,
      chunks=section.chunks_per_step, score=scoring.scores)


def run(
    ctx: context.Context, stage: str, section: Any, plan: Mapping[str, Any],
) -> None:
  """Trains; the stage's last checkpoint is its model."""
  del plan
  shape = dataclasses.replace(
      ctx.shape(section.instruction), completions=2,
      completion_tokens=section.max_new_tokens)
  stream = pipeline.Stream(
      _open(section, ctx.config, 'train', ctx.files, ctx.index(stage)), shape,
      max_broken_frac=ctx.config.data.max_broken_frac,
      worker_count=ctx.config.data.worker_count)
  trainer = learner(ctx, stage, section)
  _, numbers = objective_of(section, stage, ctx.config)
  knobs = training.traced(numbers)
  evaluation = pairwise.Evaluation(
      ctx, _open(section, ctx.config, 'eval', ctx.files), shape,
      examples=section.examples, rows=section.pairs_per_batch,
      length=section.max_new_tokens, ties=section.ties)

  def take_step(state: types.TrainState, k: int) -> loop.Step:
    taken = stream.take(section.pairs_per_step)
    block = pairwise.assemble(taken, shape, section.max_new_tokens)
    lengths = block.mask.sum(-1)
    batch = (ctx.policy.layout.spread(block),)
    state, metrics = trainer.update(state, batch, knobs, k)
    return loop.Step(state, {
        **metrics, 'response_length/mean': np.mean(lengths),
        'response_length/max': np.max(lengths),
        'data/broken': len(stream.broken)}, batch,
        functools.partial(_samples, taken), given={'knobs': knobs},
        tokens=int(lengths.sum()), times=trainer.clock.take())

  loop.train(
      ctx, stage, section, trainer.start.state, stream, take_step,
      trainer.start.stored, best='eval/pair_accuracy',
      evaluate=lambda state, stage, done: evaluation(
          state.params['policy'], stage, done))


def _samples(taken) -> list[dict[str, Any]]:
  """Rows for the samples file."""
  return [{'prompt': example.asked, 'images': list(example.images),
           'answer': example.answer, 'completion': text,
           'preferred': i == 0}
          for example, _ in taken[:2]
          for i, text in enumerate(example.completions)]
