"""Environments that answer the turns of a completion, as a config names them.

An environment is an object of two functions and no state of its own, made of a
section of `environments`: `fn(**kwargs)` has

  reset(example, seed) -> state
  step(state, sample) -> state, records.Observation

and, if it likes, `unusable(example) -> str`: why no episode can begin with an
example, '' where one can. Such examples are skipped and named.

`sample` is the episode so far (`records.Sample`); its last turn is what the
assistant has just said. All samples of a group start from the same seed. States
are not changed in place: samples of other rows are stepped at the same time, in
threads. What an environment raises, or what takes too long, is told to the
model as an observation and counted; so is a picture that cannot be encoded.

How an episode ends, `Sample.end`: by what the environment says ('answer' if it
says nothing else), or cut by a limit:

  'length'       on tokens: the episode ran into T,
  'turn_length'  a turn into `turn_tokens`,
  'overflow'     what the environment said is longer than an observation may be,
                 or would leave nothing of T to answer with;
  'max_turns'    on turns: none is left to answer in;
  'max_images'   on images: what the environment said has one too many.

What cannot be answered, or does not fit, is dropped. So the last token is
always one that was sampled.
"""

import collections
from collections.abc import Callable, MutableMapping, Sequence
import dataclasses
import queue
import threading
import time
from typing import Any
import weakref

import numpy as np

from mmr1 import records
from mmr1 import resolve
from mmr1.data import encode
from mmr1.data import inserting
from mmr1.data import processor as processor_lib
from mmr1.sampling import stops

# Ends that nobody wanted.
LIMITS = ('length', 'turn_length', 'overflow', 'max_turns', 'max_images')
FAILURES = ('env_error', 'timeout')  # of an environment, as errors


@dataclasses.dataclass(frozen=True, eq=False)
class Environment:
  """What a section of `environments` says.

  Fields:
    name: of the section.
    fn: the environment.
    stop: strings that end a turn, beside eos.
    max_turns: of the assistant; turn_tokens: of each, None: what is left.
    observation_tokens, observation_patches: of an observation at most.
    images: of an episode at most.
    workers: threads that step; limit_s: seconds that a step may take.
  """
  name: str
  fn: Any
  stop: tuple[str, ...]
  max_turns: int
  turn_tokens: int | None
  observation_tokens: int
  observation_patches: int
  images: int
  workers: int
  limit_s: float

  @property
  def unusable(self) -> Callable[[records.Example], str] | None:
    """The environment's, if it has one."""
    return getattr(self.fn, 'unusable', None)

  @property
  def room(self) -> int:
    """Patches of an episode at most."""
    return self.images * self.observation_patches


def environment(config: Any, name: str | None) -> Environment | None:
  """The environment of that name; None: there is none.

  Raises:
    ValueError: no such section, function or keyword, a number out of range.
  """
  if name is None:
    return None
  section, where = config.environments[name], f'environments.{name}'
  fn, kwargs = (resolve.function(section.fn, 'mmr1.papers'),
                section.kwargs.as_dict())
  resolve.check_kwargs(fn, kwargs, f'{where}.kwargs')
  for key, least in (('max_turns', 1), ('observation_tokens', 1),
                     ('observation_patches', 0), ('images', 0), ('workers', 1)):
    if section[key] < least:
      raise ValueError(f'{where}.{key}: got {section[key]}; allowed: at least '
                       f'{least}.')
  if section.turn_tokens is not None and section.turn_tokens < 1:
    raise ValueError(f'{where}.turn_tokens: got {section.turn_tokens}; allowed:'
                     ' at least 1, or None.')
  if not 0 < section.limit_s <= threading.TIMEOUT_MAX:
    raise ValueError(f'{where}.limit_s: got {section.limit_s}; allowed: above '
                     f'0 seconds, at most {threading.TIMEOUT_MAX:g}.')
  if isinstance(section.stop, str):
    raise ValueError(
        f'{where}.stop: got the string {section.stop!r}, each of whose letters '
        f'would end a turn; allowed is a tuple of strings: ({section.stop!r},).')
  if section.stop:
    stops.table((), section.stop)
  if section.max_turns > 127:
    raise ValueError(f'{where}.max_turns: got {section.max_turns}; allowed: at '
                     'most 127.')
  return Environment(
      name, fn(**kwargs), **{key: section[key] for key in (
          'stop', 'max_turns', 'turn_tokens', 'observation_tokens',
          'observation_patches', 'images', 'workers', 'limit_s')})


def framed(example: records.Example,
           processor: processor_lib.Processor) -> records.Example:
  """With meta 'seen', (height, width) as the model sees the first image, where
  it has one size."""
  size = inserting.seen(processor, example)
  if size is None:
    return example
  return dataclasses.replace(example, meta={**example.meta, 'seen': size})


def together(fn: Callable[[Any], Any], items: Sequence[Any], workers: int,
             limit_s: float) -> dict[Any, tuple[Any, Any]]:
  """{item: (fn(item), None) or (None, (kind of failure, message))}.

  Each has `limit_s` from its own start on; one that is late makes room for the
  next, whether it ever returns or not.
  """
  result, began, waiting = {}, {}, collections.deque(items)
  answers, lock = queue.SimpleQueue(), threading.Lock()

  def take():
    with lock:
      if not waiting:
        return None
      began[waiting[0]] = time.monotonic()
      return waiting.popleft()

  def run():
    item = take()
    while item is not None:
      try:
        answer = fn(item), None
      except Exception as error:  # an environment may raise anything: told
        answer = None, ('env_error', f'{type(error).__name__}: {error}')
      with lock:
        if began.pop(item, None) is None:
          return  # came too late: another has taken this one's place
      answers.put((item, answer))
      item = take()

  def start():
    # Daemons: a step that never returns must not keep the process.
    threading.Thread(target=run, daemon=True).start()
  for _ in range(min(workers, len(items))):
    start()
  while len(result) < len(items):
    with lock:
      first = min(began.values(), default=time.monotonic())
    try:
      item, answer = answers.get(
          timeout=max(first + limit_s - time.monotonic(), 0.0))
      result[item] = answer
    except queue.Empty:
      for item in _late(began, lock, limit_s):
        result[item] = None, ('timeout', f'no result within {limit_s:g} s')
        start()
  return result


def _late(began: dict[Any, float], lock: threading.Lock,
          limit_s: float) -> list[Any]:
  """Takes those that began too long ago out of `began`."""
  with lock:
    before = time.monotonic() - limit_s
    late = [item for item, start in began.items() if start <= before]
    for item in late:
      del began[item]
  return late


def table(processor: processor_lib.Processor,
          strings: Sequence[str]) -> np.ndarray:
  """`stops.table` of a tokenizer, made once.

  Raises:
    ValueError: a string that would never be found.
  """
  made = _tables.setdefault(processor.tokenizer, {})
  key = processor.vocab_size, tuple(strings)
  if key not in made:
    known = len(processor.tokenizer)
    made[key] = stops.table(
        [encode.decode([token], processor) if token < known else ''
         for token in range(processor.vocab_size)], strings)
    _check_found(made[key], processor, strings)
  return made[key]


def _check_found(moves: np.ndarray, processor: processor_lib.Processor,
                 strings: Sequence[str]) -> None:
  """Raises for a string whose own tokens do not lead to the last state."""
  for text in strings:
    state, ids = 0, processor.tokenizer(
        text, add_special_tokens=False)['input_ids']
    for token in ids:
      state = moves[state, token]
    if state != len(moves) - 1:
      raise ValueError(
          f'stop: {text!r} would never end a turn: its tokens '
          f'{[encode.decode([token], processor) for token in ids]} are special '
          'ones, which are no text, or parts of a character. Allowed are '
          'strings of characters that are whole in the tokenizer, such as '
          "'</answer>'; the end of a turn in the chat ends turns anyway.")


# Of each tokenizer while it lives.
_tables: MutableMapping[Any, dict[Any, np.ndarray]] = (
    weakref.WeakKeyDictionary())
