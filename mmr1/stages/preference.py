"""Stage `preference`: pairs of completions, the chosen one above the other.

A pair is one prompt row with G = 2, [chosen, rejected]: the prompt and its
images are there once. The loss is a function of mmr1/losses/preference.py, to
which a negative log-likelihood of the chosen one may be added; those that read
a reference have it scored by frozen parameters before the update.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import numpy as np

from mmr1 import asking
from mmr1 import context
from mmr1.data import completed
from mmr1.data import datasets
from mmr1.data import packing
from mmr1.data import pipeline
from mmr1 import handover
from mmr1 import learner as learner_lib
from mmr1 import loop
from mmr1 import objective as objective_lib
from mmr1 import phases
from mmr1 import resolve
from mmr1 import rl_checks
from mmr1.losses import preference
from mmr1.losses import reduce
from mmr1.sampling import sample
from mmr1 import training
from mmr1 import types
from mmr1 import update

Pair = tuple[packing.Example, packing.Example]
_KNOBS = {'temperature': 1.0, 'coef/preference': 1.0}


def setup(section: Any, stage: str, config: Any) -> Mapping[str, Any]:
  """Checks the section before anything runs."""
  training.check(section, stage, config)
  for key in ('pairs_per_step', 'chunks_per_step', 'log_every'):
    if section[key] < 1:
      raise ValueError(
          f'{stage}.{key}: got {section[key]}; allowed: at least 1.')
  if section.pairs_per_step % section.chunks_per_step:
    raise ValueError(
        f'{stage}.chunks_per_step: {section.pairs_per_step} pairs '
        f'(pairs_per_step) do not split into {section.chunks_per_step} chunks.')
  objective = objective_of(section)
  if objective.reference:
    rl_checks.check_memory(section, stage)
    if section.reference != 'init':
      context.check_init(section.reference, stage, config, 'reference')
  datasets.template(config.data, section.instruction)
  _check_data(section.data, stage, config)
  return {}


def _check_data(data: str, stage: str, config: Any) -> None:
  before = config.stages[:config.stages.index(stage)]
  collects = [name for name in before if config[name].kind == 'collect']
  if data == 'train' or datasets.is_file(data):
    datasets.open_expert(config, data, 'pair')  # not after the stages before
  elif data not in collects:
    raise ValueError(
        f"{stage}.data: got {data!r}; allowed are 'train', a file with columns "
        'chosen and rejected (.jsonl, .parquet, tfds:name/split) and the '
        f'collect stages before it, {collects}.')


def objective_of(section: Any) -> objective_lib.Objective:
  """What the stage optimises: the loss of pairs, and nll of the chosen.

  Raises:
    ValueError: an unknown loss, keyword, value or reduction.
  """
  fn = resolve.function(section.loss.fn, 'mmr1.losses.preference')
  kwargs, where = section.loss.kwargs.as_dict(), f'{section.where}.loss.kwargs'
  resolve.check_kwargs(fn, kwargs, where)
  _check_numbers(kwargs, where)
  traced, names, static = objective_lib.split(kwargs, 'preference')
  rewards = getattr(fn, 'rewards', None)

  def metrics(scores, block, knobs):
    given = static | {name: knobs[f'preference/{name}'] for name in names}
    return preference.metrics(
        scores, block, rewards and rewards(scores, block, **given)), {}
  made = [update.Term(
      'preference', objective_lib.with_knobs(
          fn, 'preference', names, **static), metrics, whole=True)]
  knobs, nll = {**_KNOBS, **traced}, section.nll
  if not 0 <= nll.coefficient < float('inf'):
    raise ValueError(f'{section.where}.nll.coefficient: got '
                     f'{nll.coefficient}; allowed: 0 (none) or more.')
  if nll.reduce not in reduce.MODES or nll.reduce == 'constant':
    raise ValueError(f'{section.where}.nll.reduce: got {nll.reduce!r}; allowed '
                     'are token_mean, seq_mean and seq_sum.')
  if nll.coefficient:
    made.append(update.Term('nll', functools.partial(
        preference.nll, reduction={'mode': nll.reduce})))
    knobs['coef/nll'] = nll.coefficient
  return objective_lib.Objective(
      tuple(made), knobs, getattr(fn, 'reference', False), False)


def _check_numbers(kwargs: Mapping[str, Any], where: str) -> None:
  """Those that losses share."""
  if kwargs.get('length', 'sum') not in preference.LENGTHS:
    raise ValueError(f'{where}.length: got {kwargs["length"]!r}; allowed are '
                     f'{preference.LENGTHS}.')
  if not 0 < kwargs.get('beta', 1.0) < float('inf'):
    raise ValueError(
        f'{where}.beta: got {kwargs["beta"]}; allowed: more than 0.')
  if not 0 <= kwargs.get('label_smoothing', 0.0) < 0.5:
    raise ValueError(f'{where}.label_smoothing: got '
                     f'{kwargs["label_smoothing"]}; allowed: 0 to below 0.5.')


def assemble(
    pairs: list[Pair], shape: pipeline.Shape, length: int) -> types.Block:
  """A block [N, 2, T]; the mask covers what is compared.

  For ids [5, 9, 2] and [7, 2] under T = 4: tokens [[5, 9, 2, pad], [7, 2, pad,
  pad]], mask [[1, 1, 1, 0], [1, 1, 0, 0]]. What both go on from is kind
  KIND_FORCED and not in the mask.
  """
  prompts = shape.collate([one.encoded for one, _ in pairs])
  tokens, kind = asking.traces(
      [[one.ids for one in pair] for pair in pairs], 2, length,
      shape.processor.pad_id)
  for row, pair in zip(kind, pairs):
    row[:, :pair[0].given] = types.KIND_FORCED
  return types.Block(
      prompts=prompts, completions=types.Completions(
          tokens=tokens, kind=kind, positions=np.asarray(
              sample.text_positions(prompts.next_position, tokens.shape))),
      mask=kind == types.KIND_EXPERT,
      advantage=np.zeros((*kind.shape[:2], 1), np.float32))


class PairLearner(learner_lib.Learner):
  """Reference log-probs where the loss reads them, then one update."""

  def __init__(self, ctx: context.Context, stage: str, section: Any):
    objective = objective_of(section)
    super().__init__(ctx, stage, section, objective.terms,
                     updates=section.steps, chunks=section.chunks_per_step)
    self.knobs = training.traced(objective.knobs)
    self._reference = training.reference(
        ctx, self.start, section.reference, whole=False,
        memory=section.reference_memory) if objective.reference else None

  def scored(self, state: types.TrainState, block: types.Block) -> types.Block:
    """The block, with the reference's log-probs f32[N, 2, T] if any."""
    return block if self._reference is None else self._scored(state, block)

  @phases.phase('reference', ready=lambda block: block.ref)
  def _scored(self, state, block):
    ref, _ = learner_lib.log_probs(
        self._ctx.policy, self._reference(state), block,
        temperature=self.knobs['temperature'], chunks=self._chunks,
        buckets=tuple(self._section.length_buckets), rows=True)
    return block.replace(ref=ref)


def learner(
    ctx: context.Context, stage: str, section: Any) -> PairLearner:
  """What the stage learns with, at its start."""
  return PairLearner(ctx, stage, section)


def run(
    ctx: context.Context, stage: str, section: Any, plan: Mapping[str, Any],
) -> None:
  """Trains; the stage's last checkpoint is its model."""
  del plan
  mixture = (datasets.open_completions(
      ctx.files[section.data], ctx.config.seed, 'pair')
             if section.data in ctx.files
             else datasets.open_expert(ctx.config, section.data, 'pair'))
  shape = dataclasses.replace(ctx.shape(section.instruction), completions=2)
  handover.check(ctx, stage, mixture, section.max_new_tokens)
  data = ctx.config.data
  pairs = completed.Completed(pipeline.Stream(
      mixture, shape, max_broken_frac=data.max_broken_frac,
      worker_count=data.worker_count), ctx.processor, section.max_new_tokens, 2)
  trainer = learner(ctx, stage, section)

  def take_step(state: types.TrainState, k: int) -> loop.Step:
    taken = pairs.next(section.pairs_per_step)
    block = trainer.scored(state, ctx.policy.layout.spread(
        assemble(taken, shape, section.max_new_tokens)))
    state, metrics = trainer.update(state, (block,), trainer.knobs, k)
    lengths = np.asarray([[len(one.ids) for one in pair] for pair in taken])
    return loop.Step(state, {
        **metrics, 'response_length/chosen': lengths[:, 0].mean(),
        'response_length/rejected': lengths[:, 1].mean(),
        'response_length/max': lengths.max(), 'data/dropped_long':
        pairs.dropped, 'data/broken': pairs.broken}, (block,),
        functools.partial(_samples, taken), given={'knobs': trainer.knobs},
        tokens=int(lengths.sum()), times=trainer.clock.take())

  loop.train(ctx, stage, section, trainer.start.state, pairs, take_step,
             trainer.start.stored)


def _samples(taken: list[Pair]) -> list[dict[str, Any]]:
  """Rows for the samples file."""
  rows = []
  for (example, _), *_ in (pair[0] for pair in taken[:2]):
    chosen, rejected = example.completions[:2]
    shared = {'prompt': example.asked, 'images': list(example.images),
              'answer': example.answer}
    rows += [{**shared, 'side': 'chosen', 'completion': chosen},
             {**shared, 'side': 'rejected', 'completion': rejected}]
  return rows
