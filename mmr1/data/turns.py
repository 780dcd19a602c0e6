"""Texts and conversations in the columns of a user's file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmr1.data import media

RecordError = media.RecordError
_ROLES = ('system', 'user', 'assistant')


def listed(value: Any) -> list[Any]:
  """A column's value as a list; None is an empty one."""
  if value is None:
    return []
  if isinstance(value, np.ndarray) and (
      value.dtype == object or value.ndim == 4):
    return list(value)
  return list(value) if isinstance(value, (list, tuple)) else [value]


def text(value: Any, what: str) -> str:
  """A column's value that must be text with something in it.

  Raises:
    RecordError: it is none; `what` says what it should be.
  """
  if isinstance(value, bytes):
    try:
      value = value.decode('utf-8')
    except UnicodeDecodeError as error:
      raise RecordError(f'wrong type: {what}: {error}') from error
  if not isinstance(value, str):
    raise RecordError(
        f'wrong type: {what} is {type(value).__name__}, needed is text')
  if not value.strip():
    raise RecordError(f'empty {what}')
  try:
    value.encode('utf-8')
  except UnicodeEncodeError as error:  # JSON can write half of a pair
    raise RecordError(f'wrong type: {what}: {error}') from error
  return value


def texts(value: Any, what: str) -> tuple[str, ...]:
  """One text or a list of them."""
  return tuple(text(v, what) for v in listed(value))


def messages(value: Any) -> tuple[list[dict[str, str]], list[Any]]:
  """Turns whose contents are text with placeholders, and inline images."""
  found, inline = [], []
  for turn in listed(value):
    if not isinstance(turn, Mapping) or not {'role', 'content'} <= set(turn):
      raise RecordError('wrong type: a message is a dict of role and content')
    if turn['role'] not in _ROLES:
      raise RecordError(
          f'wrong type: role {turn["role"]!r}; allowed are {_ROLES}')
    content = turn['content']
    if isinstance(content, (list, tuple)):
      content = ''.join(_part(part, inline) for part in content)
    found.append({
        'role': turn['role'], 'content': text(content, 'message')})
  return found, inline


def _part(part: Any, inline: list[Any]) -> str:
  """The text of one content part; an image it carries goes to `inline`."""
  kind = part.get('type') if isinstance(part, Mapping) else None
  if kind == 'text':
    said = part.get('text') or ''
    if not isinstance(said, str):
      raise RecordError(
          f'wrong type: a text part holds {type(said).__name__}, needed is text')
    return said
  if kind == 'video' and set(part) == {'type'}:
    return '<video>'
  if kind == 'image' or kind == 'image_url':
    held = part.get('image', part.get('image_url', part.get('path')))
    if isinstance(held, Mapping) and 'url' in held:
      held = held['url']
    if held is not None:
      inline.append(held)
    return '<image>'
  raise RecordError(
      f'wrong type: message part {kind!r}; allowed are text, image, '
      'image_url and video')


def reply(value: Any, what: str) -> str:
  """A response: text, or a conversation that ends with it.

  Of `[{'role': 'user', ...}, {'role': 'assistant', 'content': 'Seven.'}]` it is
  'Seven.': sets of preferences often say the prompt twice more.
  """
  said = listed(value)
  if not said or isinstance(said[-1], (str, bytes)):
    return text(value, what)
  turns, _ = messages(value)
  if turns[-1]['role'] != 'assistant':
    raise RecordError(
        f'wrong type: {what} ends with a turn of {turns[-1]["role"]!r}; needed '
        "is one of 'assistant'")
  return turns[-1]['content']
