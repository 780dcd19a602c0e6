"""Stage `sft`: cross-entropy on given completions, groups of one."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import numpy as np

from mmr1 import context
from mmr1.data import datasets
from mmr1.data import encode
from mmr1.data import pipeline
from mmr1 import handover
from mmr1 import loop
from mmr1.losses import reduce
from mmr1.losses import terms
from mmr1.sampling import sample
from mmr1 import training
from mmr1 import types
from mmr1 import sharding
from mmr1 import update

_KNOBS = {'temperature': 1.0, 'coef/nll': 1.0}


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
  _check_data(section.data, stage, config)
  return {}


def _check_data(data: str, stage: str, config: Any) -> None:
  collects = [name for name in config.stages
              if config[name].kind == 'collect']
  if data == 'train' or datasets.is_file(data):
    datasets.open_expert(config, data)  # now, not after the stages before
  elif data not in collects:
    raise ValueError(
        f'{stage}.data: got {data!r}; allowed are \'train\', a file (.jsonl, '
        f'.parquet, tfds:name/split) and the collect stages of this run, '
        f'{collects}.')


class Rows:
  """Completions in order; those too long are dropped, counted and named."""

  def __init__(self, ctx: context.Context, stream: pipeline.Stream, cap: int):
    self._ctx = ctx
    self._stream = stream
    self._cap = cap
    self.dropped = 0

  def take(self, n: int) -> list[tuple[pipeline.Pair, np.ndarray]]:
    """The next n prompts with ids i32[t], t <= cap, of their completion."""
    rows, since = [], 0
    while len(rows) < n:
      pair = self._stream.take(1)[0]
      ids = encode.encode_completion(
          pair[0].completions[0], self._ctx.processor)
      if len(ids) <= self._cap:
        rows.append((pair, ids))
        since = 0
        continue
      self.dropped += 1
      since += 1  # in a row: more than there are means all of them
      if since > len(self._stream.mixture):
        raise ValueError(
            f'sft: every completion is longer than max_new_tokens='
            f'{self._cap}; the last has {len(ids)} tokens. Raise it.')
    return rows

  @property
  def broken(self) -> int:
    """Records that could not be used so far."""
    return len(self._stream.broken)

  def state(self) -> dict[str, Any]:
    return {'stream': self._stream.state(), 'dropped': self.dropped}

  def restore(self, state: Mapping[str, Any]) -> None:
    self._stream.restore(state['stream'])
    self.dropped = state['dropped']


def assemble(
    rows: list[tuple[pipeline.Pair, np.ndarray]],
    shape: pipeline.Shape,
    length: int,
) -> types.Block:
  """A block of N rows, G = 1; the mask covers every completion token.

  For ids [5, 9, 2] under T = 5: tokens [5, 9, 2, pad, pad], kind
  [expert, expert, expert, pad, pad], mask [1, 1, 1, 0, 0].
  """
  n, pad_id = len(rows), shape.processor.pad_id
  prompts = shape.collate([encoded for (_, encoded), _ in rows])
  tokens = np.full((n, 1, length), pad_id, np.int32)
  kind = np.zeros((n, 1, length), np.int8)
  for i, (_, ids) in enumerate(rows):
    tokens[i, 0, :len(ids)] = ids
    kind[i, 0, :len(ids)] = types.KIND_EXPERT
  completions = types.Completions(
      tokens=tokens, kind=kind, positions=np.asarray(
          sample.text_positions(prompts.next_position, tokens.shape)))
  return types.Block(
      prompts=prompts, completions=completions, mask=kind != types.KIND_PAD,
      advantage=np.zeros((n, 1, 1), np.float32))


def run(
    ctx: context.Context, stage: str, section: Any, plan: Mapping[str, Any],
) -> None:
  """Trains; the stage's last checkpoint is its model."""
  del plan
  mixture = (datasets.open_completions(ctx.files[section.data], ctx.config.seed)
             if section.data in ctx.files
             else datasets.open_expert(ctx.config, section.data))
  shape = dataclasses.replace(ctx.shape(), completions=True)
  handover.check(ctx, stage, mixture, section.max_new_tokens)
  rows = Rows(ctx, pipeline.Stream(
      mixture, shape, max_broken_frac=ctx.config.data.max_broken_frac,
      worker_count=ctx.config.data.worker_count), section.max_new_tokens)
  start = training.start(ctx, stage, section, section.steps)
  nll = update.Term('nll', functools.partial(
      terms.nll, reduction={'mode': section.reduce}))
  train_step = training.make_update(
      ctx.policy, start.optimizer, (nll,), chunks=section.chunks_per_step)
  knobs = training.traced(_KNOBS)

  def take_step(state: types.TrainState, k: int) -> loop.Step:
    del k
    taken = rows.take(section.rows_per_step)
    batch = (sharding.spread(assemble(
        taken, shape, section.max_new_tokens)),)
    state, metrics = train_step(state, batch, knobs, None)
    lengths = [len(ids) for _, ids in taken]
    return loop.Step(state, {
        **metrics, 'response_length/mean': np.mean(lengths),
        'response_length/max': np.max(lengths),
        'data/dropped_long': rows.dropped,
        'data/broken': rows.broken}, batch,
        functools.partial(_samples, taken))

  loop.train(
      ctx, stage, section, start.state, rows, take_step, start.stored)


def _samples(taken) -> list[dict[str, Any]]:
  """Rows for the samples file."""
  return [{'prompt': example.question, 'images': list(example.images),
           'completion': example.completions[0], 'answer': example.answer}
          for (example, _), _ in taken[:4]]
