"""The first problems of a stage, before it runs: what a person can look at."""

from collections.abc import Sequence
import itertools
from typing import Any, NamedTuple

from etils import epath
import numpy as np
from PIL import Image

from mmr1 import records
from mmr1.data import datasets
from mmr1.data import mixtures
from mmr1.data import processor as processor_lib
from mmr1.data import sources
from mmr1.data import template as template_lib
from mmr1.data import worlds

_LOOKED = 256  # items at most until each member of a mixture was there
_FRAMES = 4  # of a video


class First(NamedTuple):
  """A problem.

  Fields:
    example: it, with the frame of its boxes.
    text: as the model reads it; '' for a stage whose model reads no text.
    tokens: of the prompt; None without the model's processor.
    instruction: that it is asked under.
    prefilled: whether the prompt ends with an open `<think>`.
    made_by: the collect stage that writes what the stage reads, or ''.
  """
  example: records.Example
  text: str = ''
  tokens: int | None = None
  instruction: str = ''
  prefilled: bool = False
  made_by: str = ''


def of(config: Any, stage: str,
       processor: processor_lib.Processor | None) -> list[First]:
  """The first problem of each member of what a stage reads.

  A stage that reads what a collect stage writes is shown what that one reads.

  Args:
    config: resolved and planned.
    stage: which.
    processor: of the model; None: it is not there.

  Raises:
    ValueError: nothing can be read.
  """
  section = config[stage]
  if section.kind == 'merge':
    return []
  if section.kind in ('flow', 'detect'):
    world = worlds.open_world(
        config, section.world, 'train', order=config.stages.index(stage) + 1,
        needs=())
    return [First(world[0])]
  mixture, made_by = _mixture(config, stage, section)
  instruction = section.instruction if 'instruction' in section else None
  found: dict[str, First] = {}
  reasons = []
  for k in range(min(_LOOKED, len(mixture))):
    item = mixture[k]
    made = item if isinstance(item, records.Broken) else _first(
        item, config.data, instruction, processor, made_by)
    if isinstance(made, records.Broken):
      reasons.append(f'{made.where}: {made.reason}')
      continue
    found.setdefault(made.example.member.name, made)
    if len(found) == len(mixture.sources):
      break
  if not found:
    raise ValueError(f'{stage}: none of its first records can be used; '
                     + '; '.join(reasons[:2]))
  return list(found.values())


def _mixture(config: Any, stage: str,
             section: Any) -> tuple[sources.Mixture, str]:
  """What the stage reads, and which stage writes that."""
  order = config.stages.index(stage) + 1
  if section.kind == 'reward_model':
    written = {name for name in section.mixture if name in config.stages}
    pairs = [(name, weight) for name, weight in zip(
        section.mixture, section.weights) if name not in written]
    if pairs:
      return mixtures.open_pairs(
          config, *zip(*pairs), 'train', written={}, order=order), ''
    return datasets.open_split(config, 'train'), sorted(written)[0]
  if section.kind in ('evaluate', 'refine'):
    return datasets.open_split(config, 'eval'), ''
  data = section.data
  if data in config.stages:
    return datasets.open_split(config, 'train'), data
  if data == 'train' and config.data.path is None:  # or its stand-in
    return datasets.open_split(config, 'train', order=order), ''
  if section.kind in ('sft', 'preference'):
    return datasets.open_expert(
        config, data, 'pair' if section.kind == 'preference' else 'completion',
        order=order), ''
  if section.kind == 'rl':
    return datasets.open_stage(config, section, {}, order), ''
  return datasets.open_split(config, 'train', order=order), ''


def _first(item: records.Example, data: Any, instruction: str | None,
           processor: processor_lib.Processor | None,
           made_by: str) -> First | records.Broken:
  own = item.member.instruction
  said = next((x for x in (own, instruction, data.instruction)
               if x is not None), '')
  if processor is None:
    return First(item, spoken(datasets.template(data, instruction)(item)),
                 instruction=said, made_by=made_by)
  shape = datasets.shape(data, processor, instruction)
  pair = shape.encode(item, 0)
  if isinstance(pair, records.Broken):
    return pair
  example, encoded = pair
  return First(example, folded(encoded.tokens, processor), len(encoded.tokens),
               said, shape.prefilled, made_by)


def spoken(messages: template_lib.Messages) -> str:
  """Messages as text, where no tokenizer is there: 'user: <image>What ...'."""
  return '\n'.join(
      f'{turn["role"]}: ' + ''.join(
          part['text'] if part['type'] == 'text' else f'<{part["type"]}>'
          for part in turn['content']) for turn in messages)


def folded(tokens: Sequence[int],
           processor: processor_lib.Processor) -> str:
  """The prompt as the model reads it, special tokens included; a run of cells
  of an image is '<image 64 tokens>'."""
  codec = processor.codec
  cells = {} if codec is None else {
      codec.image_id: 'image', codec.video_id: 'video'}
  parts = []
  for kind, run in itertools.groupby(
      (int(token) for token in tokens), lambda token: cells.get(token)):
    ids = list(run)
    parts.append(f'<{kind} {len(ids)} tokens>' if kind else
                 processor.tokenizer.decode(
                     ids, skip_special_tokens=False,
                     clean_up_tokenization_spaces=False))
  return ''.join(parts)


def pictures(example: records.Example) -> dict[str, Image.Image]:
  """{what it is: picture} of a problem: its images, frames of its videos, and
  what is to be made of them."""
  found: dict[str, Any] = {
      f'image_{i}': image for i, image in enumerate(example.images)}
  for i, video in enumerate(example.videos):
    found |= {f'video_{i}_frame_{j}': frame
              for j, frame in enumerate(video.frames[:_FRAMES])}
  if example.meta.get('target') is not None:
    found['target'] = example.meta['target']
  return {name: image if isinstance(image, Image.Image) else
          Image.fromarray(np.asarray(image))
          for name, image in found.items()}


def save(folder: Any, stage: str, example: records.Example) -> list[str]:
  """Writes its pictures as PNG; returns their paths."""
  folder, paths = epath.Path(folder), []
  for name, image in pictures(example).items():
    folder.mkdir(parents=True, exist_ok=True)
    member = f'_{example.member.name}' if example.member.name else ''
    path = folder / f'{stage}{member}_{name}.png'
    with path.open('wb') as file:
      image.convert('RGB').save(file, 'PNG')
    paths.append(str(path))
  return paths
