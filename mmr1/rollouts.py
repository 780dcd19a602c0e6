"""Rollouts of an rl stage, made up to `staleness` steps before they are used.

With staleness k the rollout of step j is sampled before the update of step
j - k, so from weights that are k versions old: while its rewards are computed on
the host, the devices sample the next ones and make the updates before. Which
weights sample which rollout depends on no clock, so that a run repeats, and
goes on from a checkpoint, to the last bit: rollouts that were not used yet are
part of it. With staleness 0 each is sampled, scored and used before the next.
"""

import collections
from collections.abc import Mapping
from concurrent import futures
from typing import Any, NamedTuple

import jax

from mmr1 import context
from mmr1.data import datasets
from mmr1.data import lanes
from mmr1.data import pipeline
from mmr1 import hosts
from mmr1 import phases
from mmr1 import records
from mmr1 import recording
from mmr1 import rl_setup
from mmr1.rewards import score as score_lib
from mmr1.sampling import keys
from mmr1.sampling import read as read_lib
from mmr1 import trees
from mmr1 import types


class Prompted(NamedTuple):
  """A step's prompts.

  Fields:
    pairs: of the rows of this host.
    needs: tokens and patches of the longest prompt of all hosts.
    before: what `lanes.Lanes.restore` needs to read them again, of this
      host's lanes.
  """
  pairs: list[pipeline.Pair]
  needs: tuple[int, int]
  before: dict[str, Any]


class Made(NamedTuple):
  """A rollout, whose rewards are on their way.

  Fields:
    at: the step, from 0, before which it was sampled.
    prompted: its prompts.
    rollout: on the devices.
    host: what the host needs of it.
    samples: of this host's rows, group after group.
    scores: (part of this host's rows or None, what went wrong or None), later.
  """
  at: int
  prompted: Prompted
  rollout: types.Rollout
  host: read_lib.Host
  samples: list[records.Sample]
  scores: futures.Future


class Rollouts:
  """The rollouts of one stage, in order.

  Attributes:
    plan: the stage's functions.
    shape: of its prompts.
    clock: of the phases.
  """

  def __init__(
      self, ctx: context.Context, stage: str, section: Any,
      plan: rl_setup.Plan, clock: phases.Clock):
    self._ctx, self._stage, self._section = ctx, stage, section
    self.plan, self.clock = plan, clock
    self.shape, self._layout = ctx.shape(), ctx.policy.layout
    n = section.prompts_per_step
    self._rows = self._layout.own_rows(n)
    self._lanes = lanes.Lanes(
        # Stages do not see the same prompts first: each has its own order.
        datasets.open_split(ctx.config, 'train', order=ctx.index(stage)),
        self.shape, n, self._rows,
        max_broken_frac=ctx.config.data.max_broken_frac,
        worker_count=ctx.config.data.worker_count)
    self._ahead: collections.deque[Made] = collections.deque()
    self._sampled_at: tuple[int, ...] = ()  # of what a checkpoint had waiting
    # Rollouts are scored one after the other; `scorer` has threads of its own.
    self._thread = futures.ThreadPoolExecutor(1, 'score')

  @property
  def broken(self) -> int:
    """Records that could not be used so far."""
    return len(self._lanes.breakage.broken)

  def next(self, state: types.TrainState, k: int) -> Made:
    """The rollout of step k, from 0; later ones are sampled from `state`."""
    last = min(k + self._section.staleness, self._section.steps - 1)
    while k + len(self._ahead) <= last:
      prompted, prompts = self.take()
      rollout = self.sample(state, prompts, k + len(self._ahead))
      self._ahead.append(self.made(k, prompted, rollout))
    return self._ahead.popleft()

  # What a checkpoint needs.

  def state(self) -> dict[str, Any]:
    """JSON-able: where to read on, and when what waits was sampled."""
    before = (self._ahead[0].prompted.before if self._ahead
              else self._position())
    turns = {lane: turn for part in hosts.gather(before['turns'])
             for lane, turn in part.items()}
    return {'stream': {**before, 'turns': [
        turns[lane] for lane in range(self._section.prompts_per_step)]},
            'sampled_at': [made.at for made in self._ahead]}

  def arrays(self) -> dict[str, jax.Array]:
    """What waits, without the prompts: these are read again."""
    return trees.named({str(i): made.rollout.replace(prompts=None)
                        for i, made in enumerate(self._ahead)})

  def restore(self, state: Mapping[str, Any]) -> None:
    """From `state`; what waited then comes by `take_back`."""
    self._lanes.restore(state['stream'])
    self._ahead.clear()
    self._sampled_at = tuple(state['sampled_at'])

  def take_back(self, arrays: Mapping[str, jax.Array]) -> None:
    """From `arrays`, after `restore`."""
    waiting = recording.nested(arrays)
    for i, at in enumerate(self._sampled_at):
      prompted, prompts = self.take()
      fields = waiting[str(i)]
      rollout = types.Rollout(
          prompts=prompts,
          completions=types.Completions(**fields.pop('completions')), **fields)
      self._ahead.append(self.made(at, prompted, rollout))

  # How a rollout is made.

  def _position(self) -> dict[str, Any]:
    return {'turns': self._lanes.turns(), **self._lanes.breakage.state()}

  @phases.phase('data')
  def take(self) -> tuple[Prompted, types.Prompts]:
    """The rows of this host; what was broken in those of the others too."""
    before = self._position()
    (pairs, broken), error = hosts.attempt(self._lanes.take, ([], []))
    self._ctx.watchdog.prompts = [example.uid for example, _ in pairs]
    needs = [(len(e.tokens), len(e.patches)) for _, e in pairs]
    every = hosts.share((broken, needs), error)
    self._lanes.note([one for part, _ in every for one in part])
    taken = Prompted(pairs, tuple(
        max(sizes) for sizes in zip(*(one for _, part in every
                                      for one in part))), before)
    return taken, self._layout.spread_own(self.shape.collate(
        [encoded for _, encoded in pairs], needs=taken.needs),
                                          self._section.prompts_per_step)

  @phases.phase('sample', ready=lambda rollout: rollout.done)
  def sample(self, state: types.TrainState, prompts: types.Prompts,
              k: int) -> types.Rollout:
    key = keys.step_key(
        self._ctx.config.seed, self._ctx.index(self._stage), k)
    sampler = self._ctx.sampler
    return sampler(
        sampler.publish(state.params['policy']), prompts, key,
        self.plan.sampling, state.step,
        group=self._section.samples_per_prompt,
        length=self._section.max_new_tokens)

  @phases.phase('score')
  def made(self, at: int, prompted: Prompted,
            rollout: types.Rollout) -> Made:
    """Reads the samples, and has them scored."""
    n, g = self._section.prompts_per_step, self._section.samples_per_prompt
    host, first = read_lib.to_host(rollout), self._layout.first_rows(n)
    mine = [example for row, (example, _) in zip(self._rows, prompted.pairs)
            if row in set(first)]
    samples = read_lib.read(host, mine, self._ctx.processor, first)
    scores = self._thread.submit(
        hosts.attempt, lambda: self.plan.scorer.call(
            samples, len(first), g, self.plan.objective.knobs), None)
    return Made(at, prompted, rollout, host, samples, scores)

  def scored(self, made: Made) -> score_lib.Scored:
    """The scores of all hosts' samples. A collective."""
    n, g = self._section.prompts_per_step, self._section.samples_per_prompt
    part, error = made.scores.result()
    every = hosts.share((self._layout.first_rows(n), part), error)
    return self.plan.scorer.together(every, n, g)
