"""Several responses of one of the run's models to each of many problems."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mmr1 import records
from mmr1.data import pipeline
from mmr1.sampling import keys
from mmr1.sampling import read
from mmr1.sampling import sample

_VIEW = 0x5e7  # in the key law: what no stage draws from
_ROWS = 64  # prompts of a batch


def responses(
    ctx: Any,
    params: Any,
    examples: Sequence[records.Example],
    *,
    count: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    instruction: str | None = None,
    draw: int = 0,
    rows: int | None = None,
) -> list[list[records.Sample]]:
  """Samples of every example, in order.

  Prompts are those that rl stages see, under another instruction if one is
  given. Those that do not fit have no samples.

  Args:
    ctx: the run's `context.Context`.
    params: of one of its models, see `Context.params`.
    examples: problems, with uids of their own.
    count: samples of each.
    max_new_tokens: of each sample.
    temperature: of sampling; 0: all samples of a problem are the same.
    top_p: see `sample.knobs`.
    instruction: see `Context.shape`.
    draw: calls with different numbers have different noise.
    rows: prompts of every batch, so that calls about few compile nothing; None:
      as many as there are, 64 at most.

  Raises:
    ValueError: a number outside its range; not one problem fits.
  """
  if count < 1:
    raise ValueError(f'responses: got count={count}; allowed: at least 1.')
  knobs = sample.knobs(temperature=temperature, top_p=top_p,
                       max_new_tokens=max_new_tokens)
  shape, fitting, first = ctx.shape(instruction), [], None
  for row, example in enumerate(examples):
    item = shape.encode(example, row)
    if isinstance(item, records.Broken):
      first = first or item
    else:
      fitting.append((row, item))
  if not fitting:
    raise ValueError(f'responses: none of {len(examples)} problems can be '
                     f'asked; the first: {first and first.reason}.')
  if first:
    ctx.logger.warn(f'{len(examples) - len(fitting)} of {len(examples)} '
                    f'problems cannot be asked; the first, {first.where}: '
                    f'{first.reason}')
  found: list[list[records.Sample]] = [[] for _ in examples]
  published, size = ctx.sampler.publish(params), rows or min(
      _ROWS, len(fitting))
  for start in range(0, len(fitting), size):
    part = fitting[start:start + size]
    ctx.logger.screen.doing(f'responses, {start} of {len(fitting)} problems')
    made = _batch(ctx, published, [item for _, item in part], shape, size,
                  knobs, count, max_new_tokens, draw)
    for i, (row, _) in enumerate(part):
      found[row] = made[i * count:(i + 1) * count]
  return found


def _batch(
    ctx: Any, published: Any, pairs: list[pipeline.Pair],
    shape: pipeline.Shape, size: int, knobs: sample.Knobs, count: int,
    length: int, draw: int) -> list[records.Sample]:
  prompts = ctx.policy.layout.spread(shape.collate(
      [encoded for _, encoded in pairs], pad_rows=size - len(pairs)))
  rollout = ctx.sampler(
      published, prompts, keys.step_key(
          ctx.config.seed, 0, draw, view=_VIEW),
      knobs, jnp.int32(0), group=count, length=length)
  return read.read(
      read.to_host(rollout), [example for example, _ in pairs], ctx.processor)
