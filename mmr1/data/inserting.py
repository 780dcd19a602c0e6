"""What an environment says inside a completion becomes tokens, and only that.

The words of a turn between two of the assistant's are framed as the chat
template of the checkpoint frames them: prompt, sampled tokens and what is
inserted are together the tokens of the whole chat (law 4).
"""

import functools
from typing import Any

import numpy as np

from mmr1 import positions
from mmr1 import records
from mmr1.data import encode as encode_lib
from mmr1.data import processor as processor_lib
from mmr1.data import template as template_lib
from mmr1.data import video

_WORDS = ('a question', 'an answer|', '|an observation|')


def encode(
    observation: records.Observation, processor: processor_lib.Processor, *,
    closed: bool) -> encode_lib.Encoded:
  """Encodes an observation as if the completion began with it.

  Args:
    observation: not `done`.
    processor: of the checkpoint.
    closed: the assistant's turn has ended with its own eos.

  Returns:
    `Encoded` with positions from 0 on, cells and frames from the first.

  Raises:
    ValueError: placeholders and images do not match, the text holds a token of
      media or an eos, the chat template does not go on from a turn as it was,
      or the family does not read an image of this size.
  """
  if not observation.images:
    return _words(observation.text, observation.role, processor, closed)
  return _encoded(observation, processor, closed)


@functools.lru_cache(1024)  # an environment says much the same all the time
def _words(text: str, role: str, processor: processor_lib.Processor,
           closed: bool) -> encode_lib.Encoded:
  return _encoded(records.Observation(text=text, role=role), processor, closed)


def _encoded(observation: records.Observation,
             processor: processor_lib.Processor, closed: bool,
             ) -> encode_lib.Encoded:
  text = framed(observation, processor, closed=closed)
  codec = processor.codec
  if codec is None:
    tokens = encode_lib.expanded(text, [], processor)
    place, following = positions.counted(len(tokens))
    return encode_lib.Encoded(
        tokens=tokens, positions=place, next_position=following, uid=0,
        patches=np.zeros((0, 0), np.float32),
        patch_position=np.zeros((0, 2), np.int32),
        patch_segment=np.zeros(0, np.int32),
        slot=np.full(len(tokens), -1, np.int32))
  asked = records.Example(uid=0, images=observation.images)
  text, spans, _ = encode_lib.filled(text, asked, codec)
  tokens = encode_lib.expanded(text, spans, processor)
  place, following = codec.positions(tokens, spans)
  pixels = codec.image_pixels(observation.images) if observation.images else []
  return encode_lib.Encoded(
      tokens=tokens, positions=place, next_position=following, uid=0,
      **encode_lib.joined(tokens, pixels, codec))


def framed(
    observation: records.Observation, processor: processor_lib.Processor, *,
    closed: bool) -> str:
  """The text of an observation, a mark for each image.

  `closed`: see `encode`.
  """
  for special in (*processor.banned, processor.eos_id):
    written = processor.tokenizer.convert_ids_to_tokens(special)
    if written in observation.text:
      raise ValueError(f'an observation holds the special token {written}.')
  parts = template_lib.parts(observation.text)
  images = template_lib.count([{'content': parts}], 'image')
  if not images:
    parts = [{'type': 'image'}] * len(observation.images) + parts
  elif images != len(observation.images):
    raise ValueError(f'an observation has {images} <image> placeholders for '
                     f'{len(observation.images)} images.')
  if observation.images and processor.codec is None:
    raise ValueError(f'an observation has {len(observation.images)} images, '
                     f'but the model ({processor.family}) reads text only.')
  if observation.role:
    return _turn(observation.role, tuple(tuple(part.items()) for part in parts),
                 processor, closed)
  ends = [{'type': 'text', 'text': _WORDS[2]}]
  whole = _written([('user', ends + parts + ends)], processor, answer=False)
  return whole.split(_WORDS[2])[1]


@functools.lru_cache(1024)
def _turn(role: str, parts: tuple[tuple[tuple[str, str], ...], ...],
          processor: processor_lib.Processor, closed: bool) -> str:
  """All that the template writes from the end of a turn of the assistant to
  the beginning of its next one; `parts` are items of dicts."""
  question, answer = ([{'type': 'text', 'text': x}] for x in _WORDS[:2])
  chat = [('user', question), ('assistant', answer)]
  start = _written(chat, processor, answer=False).rpartition(_WORDS[1])[0]
  said = [dict(part) for part in parts]
  whole = _written([*chat, (role, said)], processor, answer=True)
  said = start + _WORDS[1]
  if not whole.startswith(said):
    raise ValueError(
        'the chat template of the model writes a turn of the assistant '
        f'otherwise when a turn of {role!r} follows: {whole!r} does not begin '
        f"with {said!r}. Let observations go on inside the turn (role '').")
  rest = whole[len(said):]
  if closed:
    end = processor.tokenizer.convert_ids_to_tokens(processor.eos_id)
    rest = rest.lstrip().removeprefix(end)
  return rest


def _written(chat: list[tuple[str, Any]], processor: processor_lib.Processor,
             *, answer: bool) -> str:
  messages = template_lib.joined(
      [{'role': role, 'content': parts} for role, parts in chat],
      strings=processor.codec is None)
  return template_lib.written(processor.tokenizer, messages, answer=answer)


def size(encoded: encode_lib.Encoded) -> tuple[int, int]:
  """(tokens, patches) that it takes."""
  return len(encoded.tokens), len(encoded.patches)


def seen(processor: processor_lib.Processor,
         example: records.Example) -> tuple[int, int] | None:
  """(height, width) as the model sees the first image, if it has one size."""
  codec = processor.codec
  if codec is None or codec.box_frame != 'seen' or not example.images:
    return None
  height, width = video.frame_size(example.images[0])
  return tuple(codec.seen(height, width))
