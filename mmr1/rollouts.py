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
import dataclasses
from typing import Any

import jax
import numpy as np

from mmr1 import asking
from mmr1 import context
from mmr1 import episodes
from mmr1 import hosts
from mmr1 import phases
from mmr1 import playing
from mmr1 import probing
from mmr1 import recording
from mmr1 import records
from mmr1 import rl_checks
from mmr1 import rl_setup
from mmr1 import sockets
from mmr1 import trees
from mmr1 import types
from mmr1.data import datasets
from mmr1.data import encode
from mmr1.data import lanes
from mmr1.rewards import score as score_lib
from mmr1.sampling import keys
from mmr1.sampling import read as read_lib
from mmr1.sampling import sample as sample_lib

_LOOK = 0x100c  # in the key law: what no sampler draws from


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
    self.shape = dataclasses.replace(
        episodes.playable(ctx.shape(), plan.env), completions=section.experts,
        fewer=not section.experts_required,
        completion_tokens=section.max_new_tokens)
    self._layout = ctx.policy.layout
    views = {look.name: look for look in sockets.looks(
        section, stage, ctx.config, section.branches,
        ctx.processor.patch_pixels)}
    self._branches = tuple(views[name] for name in section.branches)
    n = section.prompts_per_step
    self._rows = self._layout.own_rows(n)
    self._lanes = lanes.Lanes(
        datasets.open_stage(
            ctx.config, section, ctx.files, ctx.index(stage)),
        self.shape, n, self._rows,
        max_broken_frac=ctx.config.data.max_broken_frac,
        worker_count=ctx.config.data.worker_count)
    self._ahead: collections.deque[asking.Made] = collections.deque()
    # Of what a checkpoint had waiting: (sampled before step, for step).
    self._sampled_at: tuple[tuple[int, int], ...] = ()
    # Rollouts are scored one after the other; `scorer` has threads of its own.
    self._thread = futures.ThreadPoolExecutor(1, 'score')

  @property
  def broken(self) -> int:
    """Records that could not be used so far."""
    return len(self._lanes.breakage.broken)

  def next(self, state: types.TrainState, k: int) -> asking.Made:
    """The rollout of step k, from 0; later ones are sampled from `state`."""
    last = min(k + self._section.staleness, self._section.steps - 1)
    while k + len(self._ahead) <= last:
      self._ahead.append(self._make(state, k, k + len(self._ahead)))
    return self._ahead.popleft()

  def again(self, state: types.TrainState, k: int, round_: int) -> asking.Made:
    """One more rollout for step k, of the next prompts."""
    return self._make(state, k, k, round_)

  def _make(self, state, at: int, step: int, round_: int = 0) -> asking.Made:
    prompted, prompts = self.take()
    asked = self.asked(prompts, step, round_)
    shown = self._shown(asked)
    if prompted.imitated:
      return self.made(at, step, prompted, asked, asking.demonstrated(
          shown, *self._traces(prompted, 1), state.step))
    player = episodes.begin(self.plan.env, self._ctx, dict(zip(
        self._rows, (e for e, _ in prompted.pairs))), shown,
                           group=self._section.samples_per_prompt,
                           length=self._section.max_new_tokens)
    rollout = self.sample(state, shown, step, round_, player)
    greedy = None
    if rl_checks.needs(self.plan.advantage.fn) == 'baseline':
      greedy = self._submit(self.greedy(state, shown), prompted)[-1]
    made = self.made(at, step, prompted, asked, self.attached(
        rollout, prompted), player=player)
    return made._replace(greedy=greedy)

  # What a checkpoint needs.

  def state(self) -> dict[str, Any]:
    """JSON-able: where to read on, and when what waits was sampled."""
    before = (self._ahead[0].prompted.before if self._ahead
              else self._lanes.position())
    turns = {lane: turn for part in hosts.gather(before['turns'])
             for lane, turn in part.items()}
    return {'stream': {**before, 'turns': [
        turns[lane] for lane in range(self._section.prompts_per_step)]},
            'sampled_at': [[made.at, made.step] for made in self._ahead]}

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
    for i, (at, step) in enumerate(self._sampled_at):
      prompted, prompts = self.take()
      asked = self.asked(prompts, step)
      fields = waiting[str(i)]
      rollout = types.Rollout(
          prompts=self._shown(asked),
          completions=types.Completions(**fields.pop('completions')), **fields)
      self._ahead.append(self.made(at, step, prompted, asked, rollout))

  # How a rollout is made.

  @phases.phase('data')
  def take(self) -> tuple[asking.Prompted, types.Prompts]:
    """The rows of this host; what was broken in those of the others too."""
    before = self._lanes.position()
    (pairs, broken), error = hosts.attempt(self._lanes.take, ([], []))
    self._ctx.watchdog.prompts = [example.uid for example, _ in pairs]
    needs = [(len(e.tokens), len(e.patches)) for _, e in pairs]
    imitated = [example.member.imitate for example, _ in pairs]
    every = hosts.share((broken, needs, imitated), error)
    self._lanes.note([one for part, _, _ in every for one in part])
    taken = asking.Prompted(pairs, tuple(
        max(sizes) for sizes in zip(*(one for _, part, _ in every
                                      for one in part))),
                            any(one for *_, part in every for one in part),
                            before)
    # Rows of several rollouts become one batch: all have the full shape then.
    alone = self._section.rounds == 1 and self.plan.replay is None
    needs = taken.needs if alone else (
        self.shape.prompt_length, self.shape.patches)
    return taken, self._layout.spread_own(
        self.shape.collate([encoded for _, encoded in pairs], needs=needs),
        self._section.prompts_per_step)

  def asked(self, prompts: types.Prompts, step: int,
            round_: int = 0) -> types.Prompts:
    """A row for every branch of a prompt, with what its views draw from."""
    config = self._ctx.config
    if not config.views:
      return prompts
    key = keys.step_key(config.seed, self._ctx.index(self._stage), step,
                        round_=round_, view=_LOOK)
    return asking.repeated(prompts, key, max(1, len(self._branches)))

  def _shown(self, asked: types.Prompts) -> types.Prompts:
    """The images that each row is sampled from."""
    if not self._branches:
      return asked
    return asking.branched(asked, self._branches)

  @phases.phase('sample', ready=lambda rollout: rollout.done)
  def sample(self, state: types.TrainState, prompts: types.Prompts,
             k: int, round_: int = 0,
             player: playing.Player | None = None) -> types.Rollout:
    key = keys.step_key(
        self._ctx.config.seed, self._ctx.index(self._stage), k, round_=round_)
    sampler = self._ctx.sampler
    return sampler(
        sampler.publish(state.params['policy']), prompts, key,
        self.plan.sampling, state.step,
        group=self._section.samples_per_prompt - self._section.experts,
        length=self._section.max_new_tokens, player=player)

  def greedy(self, state: types.TrainState,
             prompts: types.Prompts) -> types.Rollout:
    """One completion of every prompt, without chance."""
    sampler, length = self._ctx.sampler, self._section.max_new_tokens
    return sampler(
        sampler.publish(state.params['policy']), prompts,
        keys.step_key(self._ctx.config.seed, 0, 0),
        sample_lib.knobs(temperature=0.0, max_new_tokens=length),
        state.step, group=1, length=length)

  def attached(self, rollout: types.Rollout,
               prompted: asking.Prompted) -> types.Rollout:
    """With the traces of the data as the last of every group."""
    experts = self._section.experts
    if not experts:
      return rollout
    return asking.attached(rollout, *self._traces(prompted, experts))

  def _traces(self, prompted: asking.Prompted,
              count: int) -> tuple[jax.Array, jax.Array]:
    """Tokens and kinds [N, count, T] of the first completions of the data."""
    ids = [[encode.encode_completion(text, self._ctx.processor)
            for text in example.completions[:count]]
           for example, _ in prompted.pairs]
    return self._layout.spread_own(asking.traces(
        ids, count, self._section.max_new_tokens, self._ctx.processor.pad_id),
                                   self._section.prompts_per_step)

  @phases.phase('score')
  def made(self, at: int, step: int, prompted: asking.Prompted,
           asked: types.Prompts, rollout: types.Rollout, *,
           inserted: bool = False,
           player: playing.Player | None = None) -> asking.Made:
    """Reads the samples, and has them scored. `inserted` as in `read.Host`."""
    host, samples, scores = self._submit(rollout, prompted, inserted, player)
    branch = np.arange(len(host.done)) % max(1, len(self._branches))
    return asking.Made(at, step, prompted, asked, branch, rollout, host,
                       samples, scores, played=player)

  def _submit(
      self, rollout: types.Rollout, prompted: asking.Prompted,
      inserted: bool = False, player: playing.Player | None = None,
  ) -> tuple[read_lib.Host, list[records.Sample], futures.Future]:
    """Its arrays and this host's samples, whose scores come later."""
    host = read_lib.to_host(rollout)._replace(inserted=inserted)
    n, g, _ = host.tokens.shape
    first = self._layout.first_rows(n)
    of = dict(zip(self._rows, (example for example, _ in prompted.pairs)))
    mine = [of[row // max(1, len(self._branches))] for row in first]
    samples = read_lib.read(host, mine, self._ctx.processor, first,
                            pieces=bool(self.plan.probes))
    samples = samples if player is None else player.told(samples)
    return host, samples, self._thread.submit(
        hosts.attempt, lambda: self.plan.scorer.call(
            samples, len(first), g, self.plan.objective.knobs), None)

  def scored(self, made: asking.Made) -> score_lib.Scored:
    """The scores of all hosts' samples. A collective."""
    if made.scored is not None:
      return made.scored
    n, g, _ = made.host.tokens.shape
    return episodes.counted(made.played, self._together(made.scores, n, g))

  def baseline(self, made: asking.Made) -> score_lib.Scored | None:
    """Of the greedy completions, [N, 1, K]; None without. A collective."""
    return made.greedy and self._together(made.greedy, len(made.host.done), 1)

  def _together(self, scores: futures.Future, n: int,
                g: int) -> score_lib.Scored:
    part, error = scores.result()
    every = hosts.share((self._layout.first_rows(n), part), error)
    return self.plan.scorer.together(every, n, g)

  def probed(self, made: asking.Made, scored: score_lib.Scored,
             looks: Mapping[tuple[str, str], np.ndarray],
             knobs: Mapping[str, float]) -> score_lib.Scored:
    """With the columns of the stage's probes. A collective if there are any.

    Args:
      made: whose samples.
      scored: their rewards.
      looks, knobs: see `probing.columns`; on every host.
    """
    if not self.plan.probes:
      return scored
    n, g, _ = made.host.tokens.shape
    first = self._layout.first_rows(n)
    part, error = hosts.attempt(
        lambda: probing.columns(
            self.plan.probes, made.samples, first, looks, knobs), None)
    columns = np.full((n, g, len(self.plan.probes)), np.nan)
    for rows, values in hosts.share((first, part), error):
      columns[list(rows)] = values
    return probing.beside(scored, tuple(self.plan.probes), columns)
