"""A row of a user's file becomes an Example, or Broken with the reason."""

import dataclasses
import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mmr1 import records
from mmr1.data import media
from mmr1.data import sources
from mmr1.data import template
from mmr1.data import turns

RecordError = media.RecordError
# What a column is called where it does not have its default name.
_ALIASES = {
    'image': ('images', 'image'),
    'video': ('videos', 'video'),
    'question': ('problem', 'question'),
    'answer': ('answer',),
    'message': ('messages',),
    'completion': ('completion', 'completions', 'solution', 'chosen'),
    'given': ('given',),
    'chosen': ('chosen',),
    'rejected': ('rejected',),
}


@dataclasses.dataclass(frozen=True)
class RowFormat:
  """Which columns hold what, and what a row must have.

  A column with its default name may be absent, and `problem` may be called
  `question` (`images` `image`, `completion` `completions`, `solution` or
  `chosen`); rows of one file may differ in how they call their media and their
  question. A name that was chosen must exist. '' says that there is no such
  column. Columns not named here go to `Example.meta`.

  Fields:
    image: one image or a list: paths (relative to the file's folder), bytes,
      `{'bytes', 'path'}`.
    video: one clip or a list of clips, see `media.clip`.
    question: text with `<image>` / `<video>` placeholders.
    answer: gold answer, text or number.
    message: a conversation `[{'role', 'content'}, ...]`; contents are text
      with placeholders or lists of parts. A closing assistant turn is the
      completion; earlier ones are part of the prompt.
    completion: assistant text to imitate, or a list of them.
    given: text that the completion goes on from and that is not imitated, or
      a list of parts, see `records.Example`.
    chosen, rejected: the two responses of a pair, see `turns.reply`; the
      completions of the example where pairs are required, else not read.
    constant_question: question of every row of a file without that column.
    require_answer, require_completion, require_pair: rows without are Broken.
  """
  image: str = 'images'
  video: str = 'videos'
  question: str = 'problem'
  answer: str = 'answer'
  message: str = 'messages'
  completion: str = 'completion'
  given: str = 'given'
  chosen: str = 'chosen'
  rejected: str = 'rejected'
  constant_question: str = ''
  require_answer: bool = True
  require_completion: bool = False
  require_pair: bool = False

  @classmethod
  def needing(cls, needs: str, **columns: str) -> 'RowFormat':
    """With one thing that every row must have: an 'answer', a 'completion' or
    a 'pair'."""
    return cls(**columns, **{
        f'require_{what}': what == needs
        for what in ('answer', 'completion', 'pair')})


  def names(self) -> set[str]:
    """What columns that hold something may be called."""
    found = {vars(self)[field] for field in _ALIASES} - {''}
    return {*found, *(a for aliases in _ALIASES.values() for a in aliases)}


_DEFAULT = RowFormat()


def resolve(
    wanted: RowFormat, available: Collection[str], where: str) -> RowFormat:
  """The format with the names that this file uses; '' for absent columns.

  Args:
    wanted: as configured.
    available: the file's columns.
    where: the file, for messages.

  Raises:
    ValueError: a chosen column does not exist, or a needed one is missing.
  """
  found = {}
  for field, aliases in _ALIASES.items():
    name = vars(wanted)[field]
    found[field] = name if name in available else ''
    if not name or found[field]:
      continue
    if name != vars(_DEFAULT)[field]:
      raise ValueError(_unknown(field, name, available, where))
    found[field] = next((a for a in aliases if a in available), '')
  has_question = (
      found['question'] or found['message'] or wanted.constant_question)
  if not has_question:
    raise ValueError(_unknown('question', wanted.question, available, where))
  if wanted.require_answer and not found['answer']:
    raise ValueError(
        _unknown('answer', wanted.answer, available, where) +
        ' Rows without an answer are fine only where none is required.')
  if wanted.require_completion and not (
      found['completion'] or found['message']):
    raise ValueError(
        _unknown('completion', wanted.completion, available, where))
  for field in ('chosen', 'rejected') if wanted.require_pair else ():
    if not found[field]:
      raise ValueError(_unknown(field, vars(wanted)[field], available, where))
  if wanted.image and not found['image']:
    used = set(found.values())
    similar = [c for c in sorted(available) if c not in used and any(
        part in c.lower() for part in ('image', 'img', 'picture', 'photo'))]
    if similar:
      raise ValueError(
          _unknown('image', wanted.image, available, where) +
          f' {similar[0]!r} looks like images; set image_column=\'\' if the '
          'data has none.')
  return dataclasses.replace(wanted, **found)


def _unknown(field, name, available, where) -> str:
  near = difflib.get_close_matches(name, list(available), n=3, cutoff=0.5)
  hint = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
  return (f'{where}: no column {name!r} among {sorted(available)}.{hint} Set '
          f'{field}_column to the column that holds the {field}.')


def to_example(
    row: Mapping[str, Any],
    form: RowFormat,
    *,
    folder: str,
    uid: int,
    where: str,
    load: bool = True,
) -> sources.Item:
  """Builds the Example of a row.

  Args:
    row: column -> value.
    form: resolved names.
    folder: where relative paths start.
    uid: of the example.
    where: `file:line`, becomes `Example.source`.
    load: False reads only the headers of images.

  Returns:
    The Example, or Broken with `where` and the reason.
  """
  try:
    example = _example(row, form, folder, uid, where, load)
    _check_slots(example)
    return example
  except RecordError as error:
    return records.Broken(where=where, reason=str(error))


def _of_row(row: Mapping[str, Any], form: RowFormat) -> RowFormat:
  """The names of this row, where files with other names were joined."""
  other = {}
  for field in ('image', 'video', 'question'):
    name, aliases = vars(form)[field], _ALIASES[field]
    if name in aliases and row.get(name) is None:
      other[field] = next(
          (a for a in aliases if row.get(a) is not None), name)
  return dataclasses.replace(form, **other) if other else form


def _example(row, form, folder, uid, where, load) -> records.Example:
  form = _of_row(row, form)
  pictures = turns.listed(_value(row, form.image))
  messages, inline = turns.messages(_value(row, form.message))
  completions = _completions(row, form)
  if messages and messages[-1]['role'] == 'assistant':
    if completions:
      raise RecordError(
          'two completions: messages end with an assistant turn and there is '
          f'a column {form.chosen if form.require_pair else form.completion!r}')
    completions = (turns.text(messages[-1]['content'], 'completion'),)
    messages = messages[:-1]
  question = '' if messages else _question(row, form)
  answer = _answer(_value(row, form.answer))
  if form.require_answer and answer is None:
    raise RecordError('empty answer: no gold answer')
  if form.require_completion and not completions:
    raise RecordError('empty completion: no assistant text')
  used = {form.image, form.video, form.question, form.answer, form.message,
          form.completion, form.given, form.chosen, form.rejected}
  return records.Example(
      uid=uid, question=question, answer=answer, messages=tuple(messages),
      completions=completions, source=where,
      given=turns.texts(_value(row, form.given), 'given'),
      images=tuple(
          media.image(p, folder, load=load) for p in [*pictures, *inline]),
      videos=tuple(
          media.clip(v, folder, load=load)
          for v in _clips(_value(row, form.video))),
      meta={k: v for k, v in row.items() if k not in used})


def _value(row: Mapping[str, Any], column: str) -> Any:
  return row.get(column) if column else None


def _completions(row, form) -> tuple[str, ...]:
  if not form.require_pair:
    value = _value(row, form.completion)
    if value is not None and form.completion == form.chosen:
      return (turns.reply(value, 'chosen'),)
    return turns.texts(value, 'completion')
  pair = tuple(turns.reply(_value(row, vars(form)[side]), side)
               for side in ('chosen', 'rejected'))
  if pair[0] == pair[1]:
    raise RecordError('no pair: chosen and rejected are the same text')
  return pair


def _clips(value: Any) -> list[Any]:
  """A column value as a list of clips; one array [F, H, W, C] is one clip."""
  if isinstance(value, np.ndarray):
    return [value] if value.ndim == 4 else list(value)
  return turns.listed(value)


def _question(row, form) -> str:
  if not form.question:
    return turns.text(form.constant_question or None, 'question')
  if form.question not in row or row[form.question] is None:
    raise RecordError(f'missing column: {form.question}')
  text = turns.text(row[form.question], 'question')
  if not any(
      p['type'] == 'text' and p['text'].strip() for p in template.parts(text)):
    raise RecordError('empty question: placeholders only')
  return text


def _answer(value: Any) -> str | None:
  """Text of an answer; numbers are written out. None and '' are no answer."""
  if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0:
    value = value.item()
  if value is None or isinstance(value, (str, bytes)) and not value.strip():
    return None
  if isinstance(value, (str, bytes)):
    return turns.text(value, 'answer').strip()
  if isinstance(value, bool) or not isinstance(value, (int, float)) or (
      isinstance(value, float) and not math.isfinite(value)):
    raise RecordError(
        f'wrong type: answer is {type(value).__name__} {value!r:.40}, needed '
        'is text or a finite number')
  return str(value)


def _check_slots(example: records.Example):
  """Placeholders must match the media, by the template's own rule."""
  try:
    template.plain(example)
  except ValueError as error:
    raise RecordError(f'placeholders: {error}'.rstrip('.')) from error
