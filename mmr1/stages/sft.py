"""Stage `sft`: cross-entropy on given completions, groups of one.

With `pack` a row holds as many examples as fit, see `mmr1.data.packing`.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import numpy as np

from mmr1 import asking
from mmr1 import context
from mmr1 import environments
from mmr1 import episodes
from mmr1.data import completed
from mmr1.data import datasets
from mmr1.data import encode
from mmr1.data import packing
from mmr1.data import pipeline
from mmr1.data import trajectories
from mmr1 import handover
from mmr1 import learner as learner_lib
from mmr1 import loop
from mmr1 import records
from mmr1.losses import reduce
from mmr1.losses import terms
from mmr1.sampling import sample
from mmr1 import training
from mmr1 import types
from mmr1 import update

KNOBS = {'temperature': 1.0, 'coef/nll': 1.0}


def setup(section: Any, stage: str, config: Any) -> Mapping[str, Any]:
  """Checks the section before anything runs."""
  training.check(section, stage, config)
  for key in ('rows_per_step', 'chunks_per_step', 'log_every'):
    if section[key] < 1:
      raise ValueError(
          f'{stage}.{key}: got {section[key]}; allowed: at least 1.')
  if section.rows_per_step % section.chunks_per_step:
    raise ValueError(
        f'{stage}.chunks_per_step: {section.rows_per_step} rows (rows_per_step)'
        f' do not split into {section.chunks_per_step} chunks.')
  if section.reduce not in reduce.MODES or section.reduce == 'constant':
    raise ValueError(
        f'{stage}.reduce: got {section.reduce!r}; allowed are token_mean, '
        'seq_mean and seq_sum.')
  env = environments.environment(config, section.env)
  if section.pack and env is not None:
    raise ValueError(f'{stage}.pack: True with env={section.env!r}; episodes '
                     'are not packed. Set one of both to its default.')
  datasets.template(config.data, section.instruction)
  _check_data(section.data, stage, config)
  return {}


def _check_data(data: str, stage: str, config: Any) -> None:
  before = config.stages[:config.stages.index(stage)]
  collects = [name for name in before if config[name].kind == 'collect']
  if data == 'train' or datasets.is_file(data):
    datasets.open_expert(config, data)  # now, not after the stages before
  elif data not in collects:
    raise ValueError(
        f'{stage}.data: got {data!r}; allowed are \'train\', a file (.jsonl, '
        f'.parquet, tfds:name/split) and the collect stages before it, '
        f'{collects}.')


class Rows(completed.Completed):
  """Examples with one completion each, or one episode with an environment."""

  def __init__(self, ctx: context.Context, stream: pipeline.Stream, cap: int,
               env: environments.Environment | None):
    super().__init__(stream, ctx.processor, cap)
    self._ctx, self._env = ctx, env

  def made(self, pair: pipeline.Pair) -> tuple[packing.Example, ...]:
    if self._env is None:
      return super().made(pair)
    example, encoded = pair
    try:
      whole = episodes.imitated(
          self._env, self._ctx.processor, example, encoded.next_position,
          length=self._cap, seed=self._ctx.config.seed)
    except ValueError as error:
      self._ctx.logger.warn(f'sft: {example.source}: {error}')
      return ()
    return packing.Example(pair, whole.tokens, 0, whole),

  def take(self, n: int) -> list[packing.Example]:
    """The next n."""
    return [one for (one,) in self.next(n)]


def assemble(
    rows: list[packing.Example],
    shape: pipeline.Shape,
    length: int,
    room: int = 0,
) -> types.Block:
  """A block of N rows, G = 1; the mask covers what is imitated.

  For ids [5, 9, 2] under T = 5: tokens [5, 9, 2, pad, pad], kind
  [expert, expert, expert, pad, pad], mask [1, 1, 1, 0, 0]. If the first is
  given, kind [forced, expert, expert, pad, pad], mask [0, 1, 1, 0, 0]. Episodes
  have images of `room` patches at most.
  """
  prompts = shape.collate([one.encoded for one in rows])
  if rows[0].whole is not None:
    return _block(prompts, trajectories.collate(
        [[one.whole] for one in rows], length, room, shape.processor.pad_id,
        shape.processor.codec))
  tokens, kind = asking.traces(
      [[one.ids] for one in rows], 1, length, shape.processor.pad_id)
  _mark_given(kind, [[one] for one in rows])
  return _block(prompts, types.Completions(
      tokens=tokens, kind=kind, positions=np.asarray(
          sample.text_positions(prompts.next_position, tokens.shape))))


def assemble_packed(
    rows: list[list[packing.Example]],
    shape: pipeline.Shape,
    room: packing.Room,
) -> types.Block:
  """The same of N rows with several examples each.

  For ids [5, 9, 2] and [7, 2] under T = 6: tokens [5, 9, 2, 7, 2, pad], mask
  [1, 1, 1, 1, 1, 0], segment [1, 1, 1, 2, 2, 0], and positions that go on
  after each one's own prompt.
  """
  prompts = packing.prompts(
      [[one.encoded for one in row] for row in rows], shape, room.examples)
  tokens, kind = asking.traces(
      [[np.concatenate([one.ids for one in row])] for row in rows],
      1, room.completion, shape.processor.pad_id)
  _mark_given(kind, rows)
  segment = np.zeros(tokens.shape, np.int32)
  place = np.zeros((*tokens.shape, 3), np.int32)
  for i, row in enumerate(rows):
    numbers = packing.segments([len(one.ids) for one in row])
    segment[i, 0, :len(numbers)] = numbers
    place[i, 0, :len(numbers)] = np.concatenate([
        one.encoded.next_position + np.arange(len(one.ids))
        for one in row])[:, None]
  return _block(prompts, types.Completions(
      tokens=tokens, kind=kind, positions=place, segment=segment))


def _mark_given(
    kind: np.ndarray, rows: list[list[packing.Example]]) -> None:
  """Tokens that nobody imitates, in kind i8[N, 1, T] of rows of examples."""
  for i, row in enumerate(rows):
    start = 0
    for one in row:
      kind[i, 0, start:start + one.given] = types.KIND_FORCED
      start += len(one.ids)


def _block(
    prompts: types.Prompts, completions: types.Completions) -> types.Block:
  return types.Block(
      prompts=prompts, completions=completions,
      mask=completions.kind == types.KIND_EXPERT,
      advantage=np.zeros((len(completions.kind), 1, 1), np.float32))


def room_of(shape: pipeline.Shape, length: int) -> packing.Room:
  """Of a packed row: no more examples than prompts that say next to nothing."""
  least = encode.prompt_length(
      records.Example(uid=0, question='?'), shape.processor,
      template=shape.template, prefix=shape.prefix)
  return packing.Room(
      shape.prompt_length, length, shape.patches,
      max(1, min(shape.prompt_length // least, length)))


def objective_of(section: Any) -> tuple[update.Term, ...]:
  """What the stage optimises."""
  return (update.Term('nll', functools.partial(
      terms.nll, reduction={'mode': section.reduce})),)


def learner(
    ctx: context.Context, stage: str, section: Any) -> learner_lib.Learner:
  """What the stage learns with, at its start."""
  return learner_lib.Learner(
      ctx, stage, section, objective_of(section), updates=section.steps,
      chunks=section.chunks_per_step)


def run(
    ctx: context.Context, stage: str, section: Any, plan: Mapping[str, Any],
) -> None:
  """Trains; the stage's last checkpoint is its model."""
  del plan
  mixture = (datasets.open_completions(ctx.files[section.data], ctx.config.seed)
             if section.data in ctx.files
             else datasets.open_expert(ctx.config, section.data))
  shape = dataclasses.replace(
      ctx.shape(section.instruction), completions=1)
  env = environments.environment(ctx.config, section.env)
  handover.check(ctx, stage, mixture, section.max_new_tokens)
  rows = Rows(ctx, pipeline.Stream(
      mixture, shape, max_broken_frac=ctx.config.data.max_broken_frac,
      worker_count=ctx.config.data.worker_count), section.max_new_tokens, env)
  inside = env.room if env is not None and ctx.processor.codec else 0
  room = room_of(shape, section.max_new_tokens) if section.pack else None
  packer = packing.Packer(rows, room) if section.pack else None
  trainer = learner(ctx, stage, section)
  knobs = training.traced(KNOBS)

  def take_step(state: types.TrainState, k: int) -> loop.Step:
    if packer is None:
      taken, full = rows.take(section.rows_per_step), {}
      block = assemble(taken, shape, section.max_new_tokens, inside)
    else:
      packed = packer.take(section.rows_per_step)
      taken = [one for row in packed for one in row]
      full = packing.metrics(packed, room)
      block = assemble_packed(packed, shape, room)
    batch = (ctx.policy.layout.spread(block),)
    state, metrics = trainer.update(state, batch, knobs, k)
    lengths = [len(one.ids) for one in taken]
    return loop.Step(state, {
        **metrics, **full, 'response_length/mean': np.mean(lengths),
        'response_length/max': np.max(lengths),
        'data/dropped_long': rows.dropped,
        'data/broken': rows.broken}, batch,
        functools.partial(_samples, taken), given={'knobs': knobs},
        tokens=sum(lengths), times=trainer.clock.take())

  loop.train(
      ctx, stage, section, trainer.start.state, packer or rows, take_step,
      trainer.start.stored)


def _samples(taken) -> list[dict[str, Any]]:
  """Rows for the samples file."""
  return [{'prompt': example.asked, 'images': list(example.images),
           'completion': example.completions[0], 'answer': example.answer}
          for (example, _), *_ in taken[:4]]
