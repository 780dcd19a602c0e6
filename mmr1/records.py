"""Host-side records: what a task yields and what a reward sees.

Standard library only: reward workers and data workers import this module and
must never import jax. Media objects are held as opaque values (PIL images,
numpy frames); nobody here looks inside them.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any


def _frozen(value: Any) -> Any:
  """Read-only all the way down: lists become tuples, mappings views."""
  if isinstance(value, Mapping):
    return types.MappingProxyType({k: _frozen(v) for k, v in value.items()})
  if type(value) in (list, tuple):
    return tuple(map(_frozen, value))
  return value


def thawed(value: Any) -> Any:
  """With plain dictionaries: read-only views neither pickle nor become JSON."""
  if isinstance(value, Mapping):
    return {k: thawed(v) for k, v in value.items()}
  return tuple(map(thawed, value)) if type(value) is tuple else value


_READ_ONLY = ('meta', 'messages')  # fields of Example


@dataclasses.dataclass(frozen=True)
class Video:
  """A clip: `frames` (PIL images or uint8[H, W, 3]) sampled at `fps` Hz."""
  frames: tuple[Any, ...]
  fps: float = 2.0


@dataclasses.dataclass(frozen=True)
class Member:
  """What a config says of all examples of one source of its mixture.

  Fields:
    name: of the source.
    imitate: nothing is sampled for them: an rl stage learns from their first
      completion.
    rewards: names of those that judge them; None: all.
    instruction: text after the question in place of the config's one | None.
  """
  name: str = ''
  imitate: bool = False
  rewards: tuple[str, ...] | None = None
  instruction: str | None = None


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem.

  Fields:
    uid: source offset + index in the source; unique inside a run (law 6).
    question: user text with `<image>` and `<video>` placeholders, in order. A
      question without placeholders gets its media in front. Empty when
      `messages` is given.
    answer: the gold answer as text, or None when there is none.
    images: PIL images, in placeholder order.
    videos: clips, in placeholder order.
    messages: a conversation, `({'role': ..., 'content': ...}, ...)`, whose
      contents carry the placeholders; replaces `question`.
    completions: expert or logged assistant texts (for sft and off-policy use).
    given: texts that the assistant's turn starts with, before a completion,
      and that nobody imitates (only sft reads them). Each is made tokens by
      itself: a sampled response and what is put after it stay apart.
    source: where it came from: a task's name, or `file:line`.
    meta: anything else a reward or solver needs (facts, steps, boxes, choices,
      'answer_type'). With an environment `turns`: what the assistant says in the
      first completion, turn by turn; who imitates it asks the environment
      again, so that its pictures are in no file.
    member: what holds of all examples of its source.

  `meta` and `messages` are read-only to the last level (M25): their lists are
  tuples here. Images are the caller's own objects and must not be drawn on.
  """
  uid: int
  question: str = ''
  answer: str | None = None
  images: tuple[Any, ...] = ()
  videos: tuple[Video, ...] = ()
  messages: tuple[Mapping[str, Any], ...] = ()
  completions: tuple[str, ...] = ()
  given: tuple[str, ...] = ()
  source: str = ''
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  member: Member = Member()

  def __post_init__(self):
    for name in _READ_ONLY:
      object.__setattr__(self, name, _frozen(getattr(self, name)))

  def __getstate__(self):
    return {**self.__dict__,
            **{name: thawed(getattr(self, name)) for name in _READ_ONLY}}

  def __setstate__(self, state):
    for key, value in state.items():
      object.__setattr__(
          self, key, _frozen(value) if key in _READ_ONLY else value)

  @property
  def asked(self) -> str:
    """What the user says: the question, or the user's turns by line."""
    if not self.messages:
      return self.question
    return '\n'.join(
        turn['content'] for turn in self.messages if turn['role'] == 'user')


@dataclasses.dataclass(frozen=True)
class Broken:
  """A record that could not be used, and why (invariant M26).

  Fields:
    where: `file:line` or `source:index`.
    reason: one sentence, for a person.
  """
  where: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Turn:
  """One turn of a completion: who speaks, the text, images it carries.

  Of an environment's turn also what was asked of it (`call`), and what went
  wrong with that, in a word ('' if nothing).
  """
  role: str
  text: str
  images: tuple[Any, ...] = ()
  call: Any = None
  error: str = ''


@dataclasses.dataclass(frozen=True)
class Observation:
  """What an environment says to a turn of the assistant.

  Fields:
    text: with `<image>` where images are; without, they stand in front.
    images: PIL images.
    role: who speaks, as the chat template knows it ('user', 'tool'); '': nobody
      does, the assistant's own turn goes on behind it.
    reward: of the assistant's turn.
    done: the episode has ended. The text is then no turn: it is put behind
      what the assistant said last, where rewards read that, and made no tokens;
      images are not read.
    reason: why, in a word ('answer').
    call: what the turn asked for, of any JSON-able form; None: nothing.
    error: why that failed, in a word; '': it did not. The text tells the model.
  """
  text: str = ''
  images: tuple[Any, ...] = ()
  role: str = 'user'
  reward: float = 0.0
  done: bool = False
  reason: str = 'answer'
  call: Any = None
  error: str = ''


@dataclasses.dataclass(frozen=True)
class Sample:
  """One completion as rewards, filters and reports see it. Never mutated.

  Fields:
    text: decoded completion, special tokens removed; of several turns what the
      assistant said in each, by line.
    tokens: token ids, pad removed, the closing eos included when sampled.
    kinds: provenance of each token (`mmr1.types` KIND_*), same length.
    length: number of sampled tokens, or of an expert's.
    truncated: True when the completion ended by the length cap, not by eos.
    example: the problem it answers.
    uid: `example.uid`; group: row of the prompt in the batch; slot: index
      inside the group.
    turns: the completion split by speaker; one assistant turn if single-turn.
    end: why an episode ended ('answer', 'max_turns', 'length', ...), '' without
      an environment.
    rewards: of every turn of the assistant, by the environment.
    pieces: text of each token by itself, special tokens as ''; only where
      something asks for spans of tokens. Characters of several tokens show as
      replacement characters, and a tokenizer may drop a space in front, so
      their sum need not be `text`.
  """
  text: str
  tokens: tuple[int, ...]
  kinds: tuple[int, ...]
  length: int
  truncated: bool
  example: Example
  uid: int
  group: int
  slot: int
  turns: Sequence[Turn] = ()
  pieces: tuple[str, ...] = ()
  end: str = ''
  rewards: tuple[float, ...] = ()

  @property
  def calls(self) -> list[Turn]:
    """The environment's turns in which it was asked for something."""
    return [turn for turn in self.turns if turn.call is not None]


@dataclasses.dataclass(frozen=True)
class Edit:
  """What a completion goes on from.

  Fields:
    said: its beginning, a prefix of its text.
    put: text that is put in behind it.
  """
  said: str
  put: str
