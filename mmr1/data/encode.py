"""One encode (law 4): an Example becomes ids, positions and patches together.

Ids are expanded here, once; nothing later re-tokenises or re-expands. See
`collate` for stacking encoded prompts into `types.Prompts`.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from mmr1 import positions
from mmr1 import records
from mmr1.data import processor as processor_lib
from mmr1.data import template as template_lib
from mmr1.data import video
from mmr1.data.codecs import base


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
  """One prompt, unpadded.

  Fields:
    tokens: i32[p], placeholders expanded to one per merged cell.
    positions: i32[p, 3], (time, height, width) rotary positions.
    next_position: position of the first completion token.
    patches: f32[s, C] in window order (see `types.Media`); s = 0 for text.
    patch_position: i32[s, 2], (row, column) in the frame; 0 where padded.
    patch_segment: i32[s], frame number from 1; 0 where padded.
    slot: i32[p], merged cell of every placeholder token, -1 for text.
    uid: the example's.
    patch_extent: i32[s, 2], rows and columns of the frame, or None.
    taps, weights: i32, f32[p, A], cells that are blended into the token, or
      None. None for every prompt of a family or for none.
  """
  tokens: np.ndarray
  positions: np.ndarray
  next_position: int
  patches: np.ndarray
  patch_position: np.ndarray
  patch_segment: np.ndarray
  slot: np.ndarray
  uid: int
  patch_extent: np.ndarray | None = None
  taps: np.ndarray | None = None
  weights: np.ndarray | None = None


def encode(
    example: records.Example,
    processor: processor_lib.Processor,
    *,
    template: template_lib.Template,
    prefix: str = '',
) -> Encoded:
  """Encodes a prompt.

  Args:
    example: the problem; its media are decoded here.
    processor: of the checkpoint.
    template: Example -> messages.
    prefix: text the assistant's turn is made to start with.

  Raises:
    ValueError: placeholders and media do not match, the chat template refuses
      the messages, the text holds a vision token or one without a row in the
      embedding, an image is empty or longer than 200 times its other side, or
      there are media and the model reads text only.
  """
  text, spans, order = _text(example, processor, template, prefix)
  tokens = expanded(text, spans, processor)
  codec = processor.codec
  if codec is None:
    place, following = positions.counted(len(tokens))
    return Encoded(
        tokens=tokens, positions=place, next_position=following,
        patches=np.zeros((0, 0), np.float32),
        patch_position=np.zeros((0, 2), np.int32),
        patch_segment=np.zeros(0, np.int32),
        slot=np.full(len(tokens), -1, np.int32), uid=example.uid)
  images = codec.image_pixels(example.images) if example.images else []
  media = {'image': iter(images),
           'video': (codec.video_pixels(clip) for clip in example.videos)}
  pixels = [next(media[kind]) for kind in order]
  place, following = codec.positions(tokens, spans)
  return Encoded(
      tokens=tokens, positions=place, next_position=following,
      uid=example.uid, **joined(tokens, pixels, codec))


def prompt_length(
    example: records.Example,
    processor: processor_lib.Processor,
    *,
    template: template_lib.Template,
    prefix: str = '',
) -> int:
  """Length of `encode(...).tokens` from the sizes of the media alone.

  No pixel is decoded: a PIL image that was opened but not loaded stays so.
  """
  text, spans, _ = _text(example, processor, template, prefix)
  return len(expanded(text, spans, processor))


def prefilled(
    processor: processor_lib.Processor,
    *,
    template: template_lib.Template,
    prefix: str = '',
) -> bool:
  """True if prompts end with an open `<think>` that completions go on from."""
  text, _, _ = _text(
      records.Example(uid=0, question='?'), processor, template, prefix)
  return text.rstrip().endswith('<think>')


def encode_completion(
    text: str, processor: processor_lib.Processor) -> np.ndarray:
  """Ids i32[t] of an assistant text, closed by eos exactly once.

  Raises:
    ValueError: the text holds a vision token, or eos before its end.
  """
  ids = processor.tokenizer(text, add_special_tokens=False)['input_ids']
  if not ids or ids[-1] != processor.eos_id:
    ids = [*ids, processor.eos_id]
  _check_free_of(ids, processor.banned, processor, 'the completion')
  _check_free_of(ids[:-1], (processor.eos_id,), processor, 'the completion')
  _check_rows(ids, processor, 'the completion')
  return np.asarray(ids, np.int32)


def encode_given(
    texts: Sequence[str], processor: processor_lib.Processor) -> np.ndarray:
  """Ids i32[g] of texts that a completion goes on from, each by itself; a
  ValueError for a vision token or eos in them."""
  ids = [token for text in texts for token in processor.tokenizer(
      text, add_special_tokens=False)['input_ids']]
  _check_free_of(ids, (*processor.banned, processor.eos_id), processor,
                 'the given text')
  _check_rows(ids, processor, 'the given text')
  return np.asarray(ids, np.int32)


def decode(
    tokens: Sequence[int], processor: processor_lib.Processor) -> str:
  """Text of completion tokens, special tokens removed."""
  # A tokenizer.model does not say that the end of a turn is one.
  ends = (processor.pad_id, processor.eos_id)
  return processor.tokenizer.decode(
      [int(token) for token in tokens if token not in ends],
      skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _text(
    example: records.Example, processor: processor_lib.Processor,
    template: template_lib.Template, prefix: str,
) -> tuple[str, list[base.Span], list[str]]:
  """The chat as text, each run of cells one placeholder.

  Returns:
    the text, and the span and kind ('image', 'video') of every medium in
    order of appearance.
  """
  codec = processor.codec
  if codec is None and (example.images or example.videos):
    raise ValueError(
        f'{len(example.images)} images and {len(example.videos)} videos, but '
        f'the model ({processor.family}) reads text only.')
  if example.videos and not codec.video_mark:
    raise ValueError(f'{len(example.videos)} videos, but the model '
                     f'({processor.family}) reads images only.')
  messages = template(example)
  for message in messages:
    for part in message['content']:
      if part['type'] == 'text':
        _check_text(part['text'], processor)
  _check_text(prefix, processor)
  for kind, media in (('image', example.images), ('video', example.videos)):
    found = template_lib.count(messages, kind)
    if found != len(media):
      raise ValueError(
          f'the template made {found} {kind} slots for {len(media)} {kind}s.')
  messages = template_lib.joined(messages, strings=codec is None)
  text = template_lib.written(
      processor.tokenizer, messages, answer=True) + prefix
  return (text, [], []) if codec is None else filled(text, example, codec)


def filled(
    text: str, example: records.Example, codec: base.Codec,
) -> tuple[str, list[base.Span], list[str]]:
  """Puts what a medium is as text where the chat template has its mark."""
  spans = {
      'image': codec.image_spans([video.frame_size(x) for x in example.images]),
      'video': [codec.video_span(clip) for clip in example.videos]}
  marks = {codec.image_mark: 'image', codec.video_mark: 'video'}
  marks.pop('', None)
  # The longer first: one mark may be a part of the other.
  pattern = '|'.join(map(re.escape, sorted(marks, key=len, reverse=True)))
  order = [marks[mark] for mark in re.findall(pattern, text)]
  for kind, media in spans.items():
    if order.count(kind) != len(media):
      raise ValueError(
          f'the chat template wrote {order.count(kind)} {kind} placeholders '
          f'for {len(media)} {kind}s; does it support {kind} parts?')
  rest = {kind: iter(media) for kind, media in spans.items()}
  ordered = [next(rest[kind]) for kind in order]
  texts = iter([span.text for span in ordered])
  return re.sub(pattern, lambda _: next(texts), text), ordered, order


def expanded(
    text: str, spans: Sequence[base.Span],
    processor: processor_lib.Processor) -> np.ndarray:
  """Ids i32[p] of a chat, every run of cells at its full length."""
  ids = processor.tokenizer(text, add_special_tokens=False)['input_ids']
  _check_rows(ids, processor, 'the chat')
  ids = np.asarray(ids, np.int32)
  repeats = np.ones(len(ids), np.int64)
  runs = [count for span in spans for count in span.runs]
  if processor.codec:
    places = np.flatnonzero(_is_cell(ids, processor.codec))
    if len(places) != len(runs):
      raise ValueError(
          f'the chat has {len(places)} placeholder tokens for {len(runs)} '
          'runs of cells; does the tokenizer know the placeholders as special '
          'tokens?')
    repeats[places] = runs
  return np.repeat(ids, repeats)


def _is_cell(tokens: np.ndarray, codec: base.Codec) -> np.ndarray:
  return np.isin(tokens, (codec.image_id, codec.video_id))


def _check_text(text, processor):
  """Text must not smuggle in the ids that stand for media."""
  for token in processor.banned:
    written = processor.tokenizer.convert_ids_to_tokens(token)
    if written in text:
      raise ValueError(
          f'the text holds the special token {written}; write <image> or '
          '<video> where media belong.')


def _check_free_of(ids, tokens, processor, what):
  for token in tokens:
    if token in ids:
      written = processor.tokenizer.convert_ids_to_tokens(token)
      raise ValueError(f'{what} holds the special token {written}.')


def _check_rows(ids, processor, what):
  """An id past the embedding would be read as its last row."""
  if max(ids, default=0) >= processor.vocab_size:
    written = processor.tokenizer.convert_ids_to_tokens(int(max(ids)))
    raise ValueError(f'{what} holds the token {written}, which is in the '
                     'tokenizer but not in the model.')


def joined(
    tokens: np.ndarray, pixels: Sequence[base.Pixels], codec: base.Codec,
) -> dict[str, np.ndarray | None]:
  """The media of a prompt one after the other; the cell of every token."""
  empty = codec.nothing()
  parts, cells, frames = [empty], 0, 0
  for one in pixels:
    parts.append(one._replace(
        segment=np.where(one.segment > 0, one.segment + frames, 0),
        slot=np.where(one.slot >= 0, one.slot + cells, one.slot),
        taps=None if one.taps is None else one.taps + cells))
    cells += len(one.patches) // codec.unit
    frames += int(one.segment.max(initial=0))
  whole = {
      name: None if getattr(empty, name) is None else np.concatenate(
          [getattr(part, name) for part in parts])
      for name in base.Pixels._fields}
  found = _is_cell(tokens, codec)
  if found.sum() != len(whole['slot']):
    raise ValueError(
        f'{found.sum()} cell tokens for {len(whole["slot"])} cells: text and '
        'pixels of a medium disagree.')

  def spread(values, rest):
    if values is None:
      return None
    result = np.full((len(tokens), *values.shape[1:]), rest, values.dtype)
    result[found] = values
    return result
  return dict(
      patches=whole['patches'], patch_position=whole['position'],
      patch_segment=whole['segment'].astype(np.int32),
      patch_extent=whole['extent'],
      slot=spread(whole['slot'].astype(np.int32), -1),
      taps=spread(whole['taps'], 0), weights=spread(whole['weights'], 0))
