"""Host-side records: what a task yields and what a reward sees.

Standard library only: reward workers and data workers import this module and
must never import jax. Media objects are held as opaque values (PIL images,
numpy frames); nobody here looks inside them.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
  return types.MappingProxyType(dict(mapping))


@dataclasses.dataclass(frozen=True)
class Video:
  """A clip: `frames` (PIL images or uint8[H, W, 3]) sampled at `fps` Hz."""
  frames: tuple[Any, ...]
  fps: float = 2.0


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
    source: where it came from: a task's name, or `file:line`.
    meta: anything else a reward or solver needs (facts, steps, boxes, choices,
      'answer_type'). Read-only.
  """
  uid: int
  question: str = ''
  answer: str | None = None
  images: tuple[Any, ...] = ()
  videos: tuple[Video, ...] = ()
  messages: tuple[Mapping[str, Any], ...] = ()
  completions: tuple[str, ...] = ()
  source: str = ''
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    object.__setattr__(self, 'meta', _frozen(self.meta))

  def __getstate__(self):  # mapping proxies do not pickle
    return {**self.__dict__, 'meta': dict(self.meta)}

  def __setstate__(self, state):
    for key, value in state.items():
      object.__setattr__(
          self, key, _frozen(value) if key == 'meta' else value)


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
  """One turn of a completion: who speaks, the text, images it carries."""
  role: str
  text: str
  images: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sample:
  """One completion as rewards, filters and reports see it. Never mutated.

  Fields:
    text: decoded completion, special tokens removed.
    tokens: token ids, pad removed, the closing eos included when sampled.
    kinds: provenance of each token (`mmr1.types` KIND_*), same length.
    length: number of sampled tokens.
    truncated: True when the completion ended by the length cap, not by eos.
    example: the problem it answers.
    uid: `example.uid`; group: row of the prompt in the batch; slot: index
      inside the group.
    turns: the completion split by speaker; one assistant turn if single-turn.
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
