"""Templates: how an Example is put to the model.

A template maps an Example to chat messages whose contents are lists of parts,
`{'type': 'text', 'text': ...}`, `{'type': 'image'}` or `{'type': 'video'}`;
the checkpoint's own chat template does the rest. Options are bound with
`functools.partial`. Rewards, cold-start data and evaluation must share one.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from mmr1 import records

Messages = list[dict[str, Any]]
Template = Callable[[records.Example], Messages]

_PLACEHOLDER = re.compile(r'<(image|video)>')


def think_answer(
    example: records.Example,
    *,
    instruction: str = '',
    system: str = '',
) -> Messages:
  """User turn: media and question, then `instruction`; no system prompt.

  The model is expected to answer `<think>...</think><answer>...</answer>`,
  which it learnt in a cold start or is told in `instruction` or `system`.

  Args:
    example: the problem.
    instruction: text after the last user turn, on a line of its own. An
      example whose member has one of its own gets that.
    system: text of a system turn; '' for none. An example's own system
      message stays in front of it.
  """
  messages = plain(example)
  if example.member.instruction is not None:
    instruction = example.member.instruction
  if instruction:
    users = [m for m in messages if m['role'] == 'user']
    users[-1]['content'].append(
        {'type': 'text', 'text': f'\n{instruction}'})
  if system:
    part = {'type': 'text', 'text': system}
    if messages[0]['role'] == 'system':
      messages[0]['content'] += [{'type': 'text', 'text': '\n'}, part]
    else:
      messages.insert(0, {'role': 'system', 'content': [part]})
  return messages


def plain(example: records.Example) -> Messages:
  """The example's question or messages with their media, nothing else.

  `<image>` and `<video>` are replaced in order. Where one kind has no
  placeholder at all, its media stand in front of the first user turn.

  Raises:
    ValueError: the numbers of placeholders and media differ.
  """
  turns = example.messages or (
      {'role': 'user', 'content': example.question},)
  messages = [
      {'role': turn['role'], 'content': parts(turn['content'])}
      for turn in turns]
  users = [m for m in messages if m['role'] == 'user']
  if not users:
    raise ValueError(
        f'messages with roles {[m["role"] for m in messages]}: a user turn is '
        'needed.')
  front = []
  for kind, media in (('image', example.images), ('video', example.videos)):
    found = count(messages, kind)
    if found and found != len(media):
      raise ValueError(
          f'{found} <{kind}> placeholders for {len(media)} {kind}s.')
    if not found:
      front += [{'type': kind}] * len(media)
  users[0]['content'] = front + users[0]['content']
  return messages


def parts(text: str) -> list[dict[str, str]]:
  """Splits a text at its placeholders: 'a<image>b' has three parts."""
  result, done = [], 0
  for match in _PLACEHOLDER.finditer(text):
    if match.start() > done:
      result.append({'type': 'text', 'text': text[done:match.start()]})
    result.append({'type': match.group(1)})
    done = match.end()
  if done < len(text):
    result.append({'type': 'text', 'text': text[done:]})
  return result


def joined(messages: Messages, *, strings: bool) -> list[dict[str, Any]]:
  """Messages whose texts without media in between are one part.

  Some chat templates trim every part, or read only the first one of a system
  message (Gemma 3's): an instruction of its own would be glued to the question
  or lost.

  Args:
    messages: texts only if `strings`.
    strings: contents become strings, as templates of text-only models want it.
  """
  result = []
  for message in messages:
    content = []
    for kind, run in itertools.groupby(
        message['content'], lambda part: part['type']):
      content += run if kind != 'text' else [
          {'type': 'text', 'text': ''.join(part['text'] for part in run)}]
    if strings:
      content = ''.join(part['text'] for part in content)
    result.append({**message, 'content': content})
  return result


def written(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, answer: bool,
) -> str:
  """The text that a checkpoint's chat template makes of messages.

  Args:
    tokenizer: with a chat template.
    messages: with contents as it wants them, see `joined`.
    answer: whether the assistant's turn is opened at the end.

  Raises:
    ValueError: the template refuses them: some know no system turn or want
      turns to alternate, one of a text-only model wants strings.
  """
  try:
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=answer)
  except (jinja2.TemplateError, TypeError) as error:
    roles = [message['role'] for message in messages]
    raise ValueError(
        f'the chat template of the model refuses messages with roles {roles}: '
        f'{error}') from error


def count(messages: Sequence[Mapping[str, Any]], kind: str) -> int:
  """Number of parts of one kind ('image' or 'video') in the messages."""
  return sum(
      part['type'] == kind for m in messages for part in m['content'])
