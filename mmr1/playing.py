"""Episodes: an environment answers the turns of a rollout.

See `mmr1.environments` for what an environment is.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple
import zlib

import numpy as np

from mmr1 import environments
from mmr1 import hosts
from mmr1 import records
from mmr1 import types
from mmr1.data import encode
from mmr1.data import inserting
from mmr1.data import processor as processor_lib
from mmr1.data import trajectories
from mmr1.sampling import chunks

_SHOWN = 200  # characters of an error that are told to the model
_ALWAYS = 4  # so many calls of a rollout failed, and no other came: always


class Outcome(NamedTuple):
  """What came of a turn, on every host.

  Fields:
    end: why the episode has ended, '' if it goes on.
    encoded: what is inserted, or None.
    reward: of the turn.
    called: whether the environment was asked for something.
    error: what went wrong, '' if nothing.
    images: that were inserted.
  """
  end: str
  encoded: encode.Encoded | None
  reward: float
  called: bool
  error: str
  images: int


@dataclasses.dataclass
class _Episode:
  """What this host has of an episode of its own."""
  example: records.Example
  state: Any
  turns: list[records.Turn] = dataclasses.field(default_factory=list)
  images: int = 0


class Player:
  """Plays the episodes of one rollout; a `chunks.Player`.

  Attributes:
    done: bool[N, G], ended by themselves.
    ends: {(prompt, slot): why}.
    rewards: f64[N, G, K], of the turns of the assistant, at most K.
  """

  def __init__(self, env: environments.Environment,
               processor: processor_lib.Processor,
               examples: Mapping[int, records.Example], following: np.ndarray,
               *, group: int, length: int, seed: int,
               kind: int = types.KIND_SAMPLED):
    """Begins an episode for every sample.

    Args:
      env: the environment.
      processor: of the checkpoint.
      examples: {row: example} of the rows that this host steps.
      following: i32[N], rotary position of the first completion token.
      group, length: G, T.
      seed: of the run.
      kind: of what the assistant says.

    Raises:
      ValueError: an episode cannot begin; on all hosts.
    """
    self.env, self._processor, self._length = env, processor, length
    self._kind = kind
    self.codec = processor.codec
    self.stops = environments.table(processor, env.stop) if env.stop else None
    self.turn_tokens = env.turn_tokens or length
    self.chunk = 1 + env.observation_tokens
    reads = processor.codec is not None
    self.patches = env.observation_patches if reads and env.images else 0
    self.room = env.room if reads else 0
    unit = processor.window_patches
    if self.patches % unit:
      raise ValueError(
          f'environments.{env.name}.observation_patches: got {self.patches}; '
          f'it must be a multiple of {unit} (one attention window), for example '
          f'{-(-self.patches // unit) * unit}.')
    n = len(following)
    self.trajectories = [[trajectories.Trajectory(int(at))
                          for _ in range(group)] for at in following]
    self.done = np.zeros((n, group), bool)
    self.ends: dict[tuple[int, int], str] = {}
    self.rewards = np.zeros((n, group, env.max_turns))
    self._outcomes: list[Outcome] = []
    self._own: dict[tuple[int, int], _Episode] = {}
    _, error = hosts.attempt(lambda: self._reset(examples, group, seed), None)
    hosts.share(None, error)

  def _reset(self, examples: Mapping[int, records.Example], group: int,
             seed: int) -> None:
    for row, example in examples.items():
      example = environments.framed(example, self._processor)
      start = zlib.crc32(f'{seed}/{example.uid}'.encode())
      try:
        for slot in range(group):
          self._own[row, slot] = _Episode(
              example, self.env.fn.reset(example, start))
      except Exception as error:  # an environment may raise anything
        raise ValueError(
            f'environments.{self.env.name}: no episode can begin with '
            f'{example.source or f"uid {example.uid}"} '
            f'({type(error).__name__}: {error}). Leave it out of the data, or '
            'let `unusable(example)` of the environment say why it is skipped.'
        ) from error

  def step(self, stopped: Mapping[tuple[int, int], chunks.Stopped],
           ) -> dict[tuple[int, int], encode.Encoded]:
    """See `chunks.Player`. A collective."""
    for (n, g), one in stopped.items():
      self.trajectories[n][g].say(one.tokens, self._kind)
    mine = {at: one for at, one in stopped.items() if at in self._own}
    part, error = hosts.attempt(lambda: self._answers(mine), {})
    result = {}
    for outcomes in hosts.share(part, error):
      for (n, g), one in outcomes.items():
        self._outcomes.append(one)
        self.rewards[n, g, self.trajectories[n][g].turns - 1] = one.reward
        if one.encoded is None:
          self.ends[n, g] = one.end
          self.done[n, g] = one.end not in environments.LIMITS
        else:
          self.trajectories[n][g].insert(one.encoded)
          result[n, g] = one.encoded
    return result

  def _answers(self, stopped) -> dict[tuple[int, int], Outcome]:
    asked = {at: one for at, one in stopped.items() if self._heard(at, one)}
    said = environments.together(
        lambda at: self._spoken(at, asked[at].why == 'eos'), list(asked),
        self.env.workers, self.env.limit_s)
    result = {at: Outcome(self._cut(at, one), None, 0.0, False, '', 0)
              for at, one in stopped.items() if at not in asked}
    for at, (answer, problem) in said.items():
      if problem is not None:
        answer = self._complained(at, asked[at].why == 'eos', problem)
      result[at] = self._outcome(at, *answer)
    return result

  def _heard(self, at, one: chunks.Stopped) -> bool:
    """Notes what was said; True if it is a whole turn."""
    self._own[at].turns.append(records.Turn(
        'assistant', encode.decode(one.tokens, self._processor)))
    return one.why != 'length'

  def _cut(self, at, one: chunks.Stopped) -> str:
    """The cap that a turn ran into; the episode's, where it is both."""
    whole = self.trajectories[at[0]][at[1]]
    own = len(one.tokens) == self.env.turn_tokens
    return 'turn_length' if own and len(whole) < self._length else 'length'

  def _spoken(self, at, closed: bool):
    """What the environment says, and that as tokens; on a thread."""
    episode = self._own[at]
    state, said = self.env.fn.step(episode.state, self._sample(at, episode))
    reward = np.asarray(said.reward, np.float64)
    if reward.ndim or not np.isfinite(reward):
      raise ValueError(f'its reward is {said.reward!r}, not a finite number')
    said = dataclasses.replace(said, text=_whole(said.text))
    return state, said, None if said.done else inserting.encode(
        said, self._processor, closed=closed)

  def _complained(self, at, closed: bool, problem: tuple[str, str]):
    """The same, of an environment that failed."""
    error, why = problem
    episode = self._own[at]
    said = records.Observation(
        text=f'Error: {_whole(why[:_SHOWN])}', call={}, error=error,
        role=getattr(self.env.fn, 'role', 'user'))
    try:
      encoded = inserting.encode(said, self._processor, closed=closed)
    except ValueError:  # a message with special tokens in it
      said = dataclasses.replace(said, text='Error')
      encoded = inserting.encode(said, self._processor, closed=closed)
    return episode.state, said, encoded

  def _outcome(self, at, state, said, encoded) -> Outcome:
    """Within the limits."""
    episode, whole = self._own[at], self.trajectories[at[0]][at[1]]
    episode.state = state
    told = (said.reward, said.call is not None, said.error)
    if said.done:
      last = episode.turns[-1]
      episode.turns[-1] = dataclasses.replace(last, text=last.text + said.text)
      return Outcome(said.reason, None, *told, 0)
    if whole.turns == self.env.max_turns:
      return Outcome('max_turns', None, *told, 0)
    if episode.images + len(said.images) > self.env.images:
      return Outcome('max_images', None, *told, 0)
    size, patches = inserting.size(encoded)
    if (size > self.env.observation_tokens or patches > self.patches
        or len(whole) + size + 1 > self._length):
      return Outcome('overflow', None, *told, 0)
    episode.images += len(said.images)
    episode.turns.append(records.Turn(
        said.role or 'environment', said.text, tuple(said.images), said.call,
        said.error))
    return Outcome('', encoded, *told, len(said.images))

  def _sample(self, at, episode: _Episode) -> records.Sample:
    whole, (n, g) = self.trajectories[at[0]][at[1]], at
    kinds = whole.kind
    return records.Sample(
        text=words(episode.turns), tokens=tuple(map(int, whole.tokens)),
        kinds=tuple(map(int, kinds)), length=int((kinds == self._kind).sum()),
        truncated=False, example=episode.example, uid=episode.example.uid,
        group=n, slot=g, turns=tuple(episode.turns))

  def told(self, samples: Sequence[records.Sample]) -> list[records.Sample]:
    """Samples of this rollout with what was said in their episodes."""
    result = []
    for s in samples:
      episode, at = self._own[s.group, s.slot], (s.group, s.slot)
      count = self.trajectories[s.group][s.slot].turns
      result.append(dataclasses.replace(
          s, text=words(episode.turns), turns=tuple(episode.turns),
          example=episode.example, end=self.ends[at],
          rewards=tuple(self.rewards[at][:count].tolist())))
    return result

  def of_all(self, samples: Sequence[records.Sample],
             ) -> list[records.Sample]:
    """`told` of samples of all hosts. A collective."""
    mine = self.told([s for s in samples if (s.group, s.slot) in self._own])
    every = {(s.group, s.slot): s for part in hosts.share(mine) for s in part}
    return [every[s.group, s.slot] for s in samples]

  def numbers(self) -> np.ndarray:
    """i8[N, G, T], the turn that each token is of, see `types.Completions`."""
    n, g = self.done.shape
    result = np.full((n, g, self._length), -1, np.int8)
    for i, j in np.ndindex(n, g):
      own = self.trajectories[i][j].numbers()
      result[i, j, :len(own)] = own
    return result

  def metrics(self) -> dict[str, float]:
    """Of all hosts' episodes.

      'env/turns', 'env/calls', 'env/errors', 'env/images'   of an episode
      'env/tokens'        of an episode, with what was inserted
      'env/answered_frac' episodes in which the environment spoke
      'env/<end>_frac'    how they ended

    Raises:
      RuntimeError: the environment failed at whatever it was asked, four times
        at least.
    """
    played = [one for row in self.trajectories for one in row if len(one)]
    count, ends = max(len(played), 1), list(self.ends.values())
    calls = sum(one.called for one in self._outcomes)
    broken = [one.error for one in self._outcomes
              if one.error in environments.FAILURES]
    if len(broken) == calls >= _ALWAYS:
      raise RuntimeError(
          f'environments.{self.env.name}: all {calls} calls of a rollout '
          f'failed ({broken[0]}); the samples say how.')
    called = sum(any(one.kind == types.KIND_OBSERVATION) for one in played)
    return {
        'env/turns': sum(one.turns for one in played) / count,
        'env/tokens': sum(map(len, played)) / count,
        'env/calls': calls / count,
        'env/errors': sum(bool(one.error) for one in self._outcomes) / count,
        'env/images': sum(one.images for one in self._outcomes) / count,
        'env/answered_frac': called / count,
        **{f'env/{end}_frac': ends.count(end) / count
           for end in sorted({*ends, 'answer', *environments.LIMITS})}}


def _whole(text: str) -> str:
  """Half a character, as JSON of the model may hold, becomes '?': tokenizers
  and files take none."""
  return text.encode('utf-8', 'replace').decode()


def words(said: Sequence[records.Turn]) -> str:
  """What the assistant said, turn by turn, by line."""
  return '\n'.join(one.text for one in said if one.role == 'assistant')
