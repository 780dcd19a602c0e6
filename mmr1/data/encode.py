"""One encode (law 4): an Example becomes ids, positions and patches together.

Ids are expanded here, once; nothing later re-tokenises or re-expands. See
`collate` for stacking encoded prompts into `types.Prompts`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmr1 import positions
from mmr1 import records
from mmr1.data import processor as processor_lib
from mmr1.data import template as template_lib
from mmr1.data import video

# (grid, seconds per patch or None for an image), in order of appearance.
_Span = tuple[positions.Grid, float | None]


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
  """
  tokens: np.ndarray
  positions: np.ndarray
  next_position: int
  patches: np.ndarray
  patch_position: np.ndarray
  patch_segment: np.ndarray
  slot: np.ndarray
  uid: int


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
    ValueError: placeholders and media do not match, the text holds a vision
      token, an image is empty or longer than 200 times its other side, or
      there are media and the model reads text only.
  """
  text_ids = _text_ids(example, processor, template, prefix)
  images = _image_patches(example.images, processor)
  videos = [_video_patches(clip, processor) for clip in example.videos]
  media = {processor.image_id: iter(images), processor.video_id: iter(videos)}
  ordered = [next(media[i]) for i in text_ids if i in media]
  spans = [(grid, seconds) for _, grid, seconds in ordered]
  tokens = _expand(text_ids, spans, processor)
  place, next_position = _rotary(tokens, spans, processor)
  patches, patch_position, segment, cells = _layout(
      [(patches, grid) for patches, grid, _ in ordered], processor)
  slot = np.full(len(tokens), -1, np.int32)
  slot[np.isin(tokens, (processor.image_id, processor.video_id))] = cells
  return Encoded(
      tokens=tokens, positions=place, next_position=next_position,
      patches=patches, patch_position=patch_position, patch_segment=segment,
      slot=slot, uid=example.uid)


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
  ids = _text_ids(example, processor, template, prefix)
  spans = {
      processor.image_id: iter([
          (processor.image_grid(*video.frame_size(image)), None)
          for image in example.images]),
      processor.video_id: iter([
          (_video_grid(clip, processor), 1.0) for clip in example.videos])}
  ordered = [next(spans[i]) for i in ids if i in spans]
  return len(_expand(ids, ordered, processor))


def prefilled(
    processor: processor_lib.Processor,
    *,
    template: template_lib.Template,
    prefix: str = '',
) -> bool:
  """True if prompts end with an open `<think>` that completions go on from."""
  ids = _text_ids(
      records.Example(uid=0, question='?'), processor, template, prefix)
  return processor.tokenizer.decode(ids).rstrip().endswith('<think>')


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
  return np.asarray(ids, np.int32)


def decode(
    tokens: Sequence[int], processor: processor_lib.Processor) -> str:
  """Text of completion tokens, special tokens removed."""
  return processor.tokenizer.decode(
      [int(token) for token in tokens], skip_special_tokens=True,
      clean_up_tokenization_spaces=False)


def _text_ids(example, processor, template, prefix) -> list[int]:
  """Ids of the chat with one placeholder per medium."""
  if not processor.reads_media and (example.images or example.videos):
    raise ValueError(
        f'{len(example.images)} images and {len(example.videos)} videos, but '
        f'the model ({processor.family}) reads text only.')
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
  if not processor.reads_media:
    # Chat templates of text-only models want contents that are strings.
    messages = [
        {**message, 'content': ''.join(x['text'] for x in message['content'])}
        for message in messages]
  text = processor.tokenizer.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=True) + prefix
  ids = processor.tokenizer(text, add_special_tokens=False)['input_ids']
  for kind, token, media in (
      ('image', processor.image_id, example.images),
      ('video', processor.video_id, example.videos)):
    if ids.count(token) != len(media):
      raise ValueError(
          f'the chat template wrote {ids.count(token)} {kind} placeholders '
          f'for {len(media)} {kind}s; does it support {kind} parts?')
  return ids


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


def _image_patches(images, processor):
  """[(patches f32[n, C] in file order, grid, None)] of every image."""
  if not images:
    return []
  grids = [processor.image_grid(*video.frame_size(im)) for im in images]
  out = processor.image_processor(images=list(images), return_tensors='np')
  made = [tuple(int(x) for x in g) for g in out['image_grid_thw']]
  if made != grids:
    raise ValueError(
        f'the image processor made grids {made}, expected {grids}: '
        'preprocessor_config.json resizes in another way.')
  ends = np.cumsum([t * h * w for t, h, w in grids])[:-1]
  patches = np.split(np.asarray(out['pixel_values'], np.float32), ends)
  return [(p, grid, None) for p, grid in zip(patches, grids)]


def _video_patches(clip, processor):
  indices, rate = video.sampled(clip, processor.video)
  frames = [clip.frames[i] for i in indices]
  patches, grid = video.preprocess(frames, processor.video)
  return patches, grid, processor.temporal / rate


def _video_grid(clip, processor) -> positions.Grid:
  indices, _ = video.sampled(clip, processor.video)
  height, width = video.frame_size(clip.frames[0])
  return video.grid(len(indices), height, width, processor.video)


def _expand(ids, spans: Sequence[_Span], processor) -> np.ndarray:
  """Repeats each placeholder once per merged cell of its grid."""
  cells = iter([
      positions.vision_tokens(grid, processor.merge) for grid, _ in spans])
  placeholders = (processor.image_id, processor.video_id)
  repeats = [next(cells) if i in placeholders else 1 for i in ids]
  return np.repeat(np.asarray(ids, np.int32), repeats)


def _rotary(tokens, spans: Sequence[_Span], processor):
  rate = processor.tokens_per_second
  timed = [
      (*grid, 1.0 if rate is None and seconds is not None else seconds)
      for grid, seconds in spans]
  return positions.rope_index(
      tokens, timed, image_id=processor.image_id, video_id=processor.video_id,
      merge=processor.merge, rule=processor.position_rule,
      tokens_per_second=1.0 if rate is None else rate)


def _layout(media, processor):
  """Patches in window order with position, segment; slot of every cell."""
  patches = [np.zeros((0, processor.channels), np.float32)]
  place = [np.zeros((0, 2), np.int32)]
  segment = [np.zeros(0, np.int32)]
  slots = [np.zeros(0, np.int32)]
  done, frames = 0, 0
  for pixels, grid in media:
    order = positions.window_layout(
        grid, merge=processor.merge, window_cells=processor.window_cells)
    real = order >= 0
    patches.append(np.where(real[:, None], pixels[order], np.float32(0)))
    place.append(np.where(
        real[:, None], positions.patch_positions(grid, processor.merge)[order],
        0))
    frame = order // (grid[1] * grid[2])
    segment.append(np.where(real, frame + frames + 1, 0).astype(np.int32))
    slots.append(done // processor.merge ** 2 + positions.cell_slots(
        grid, merge=processor.merge, window_cells=processor.window_cells))
    done += len(order)
    frames += grid[0]
  return tuple(np.concatenate(x) for x in (patches, place, segment, slots))
