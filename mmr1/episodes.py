"""Episodes for the stages: of a rollout, and of traces that are imitated."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from mmr1 import arrays
from mmr1 import environments
from mmr1 import playing
from mmr1 import records
from mmr1 import types
from mmr1.data import encode
from mmr1.data import pipeline
from mmr1.data import processor as processor_lib
from mmr1.data import trajectories
from mmr1.rewards import score as score_lib
from mmr1.sampling import chunks


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shape(pipeline.Shape):
  """With `unusable` of an environment: such examples are Broken."""
  unusable: Callable[[records.Example], str]

  def encode(self, item: Any, index: int) -> pipeline.Pair | records.Broken:
    made = super().encode(item, index)
    if isinstance(made, records.Broken) or not (why := self.unusable(made[0])):
      return made
    return records.Broken(made[0].source or f'uid {made[0].uid}',
                          f'no episode: {why}')


def playable(shape: pipeline.Shape,
             env: environments.Environment | None) -> pipeline.Shape:
  """How prompts are written with which an episode can begin; what the
  environment has no use for is skipped, counted and named (M26)."""
  if env is None or env.unusable is None:
    return shape
  return _Shape(**vars(shape), unusable=env.unusable)


def begin(env: environments.Environment | None, ctx: Any,
          examples: Mapping[int, records.Example], prompts: types.Prompts, *,
          group: int, length: int) -> playing.Player | None:
  """A player for a rollout; None without an environment.

  Args:
    env: of the stage.
    ctx: the run.
    examples: {row: example} of this host's prompts.
    prompts: of the rollout.
    group, length: G, T.
  """
  if env is None:
    return None
  first = ctx.policy.layout.first_rows(len(prompts.uid))
  return playing.Player(
      env, ctx.processor, {row: examples[row] for row in first
                           if row in examples},
      arrays.fetch(prompts.next_position), group=group, length=length,
      seed=ctx.config.seed)


def counted(player: playing.Player | None,
            scored: score_lib.Scored) -> score_lib.Scored:
  """With the metrics of the episodes."""
  if player is None:
    return scored
  return dataclasses.replace(
      scored, metrics={**scored.metrics, **player.metrics()})


def imitated(
    env: environments.Environment, processor: processor_lib.Processor,
    example: records.Example, following: int, *, length: int, seed: int,
) -> trajectories.Trajectory:
  """An episode in which the assistant says `meta['turns']`, as an expert.

  A turn is closed by eos unless it ends with a string that ends turns.

  Raises:
    ValueError: no such turns, one that would have ended earlier, or an episode
      that ends before its last turn, does not end with it, or breaks a limit.
  """
  said = example.meta.get('turns')
  if not said:
    raise ValueError('no turns: with an environment `turns` says what the '
                     'assistant does, turn by turn')
  player = playing.Player(env, processor, {0: example}, np.asarray([following]),
                  group=1, length=length, seed=seed,
                  kind=types.KIND_EXPERT)
  for number, text in enumerate(said):
    cut = min((text.find(s) + len(s) for s in env.stop if s in text),
              default=None)
    if cut is not None and cut < len(text):
      raise ValueError(f'turn {number}: {text[:cut]!r} would have ended it')
    ids = encode.encode_completion(text, processor)
    ids = ids if cut is None else ids[:-1]
    if len(ids) > player.turn_tokens:
      raise ValueError(f'turn {number} has {len(ids)} tokens; the environment '
                       f'allows {player.turn_tokens}')
    told = player.step({(0, 0): chunks.Stopped(
        ids, 'eos' if cut is None else 'stop')})
    if bool(told) == (number == len(said) - 1):
      raise ValueError(
          f'turn {number} of {len(said)}: the environment '
          + ('goes on' if told else f'ends with {player.ends[0, 0]!r}'))
  if not player.done.all():
    raise ValueError(f'the episode ends with {player.ends[0, 0]!r}')
  return player.trajectories[0][0]


def record(sample: records.Sample) -> dict[str, Any]:
  """What an evaluation's record says of an episode; nothing without one."""
  if not sample.end:
    return {}
  return {'end': sample.end, 'calls': len(sample.calls),
          'turns': [[turn.role, turn.text] for turn in sample.turns],
          'form': sample.example.meta.get('form')}


def pooled(parts: Sequence[Mapping[str, float]],
           counts: Sequence[int]) -> dict[str, float]:
  """Means of metrics over a set, from those of its parts.

  Args:
    parts: means over each part, 0 where one lacks a metric.
    counts: episodes of each.
  """
  return {name: float(np.average(
      [part.get(name, 0.0) for part in parts], weights=counts))
          for name in sorted({name for part in parts for name in part})}
