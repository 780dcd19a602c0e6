"""VLM-R3 (arXiv 2505.16192, NeurIPS 2025): what only it needs.

A chain of thought in which the policy writes boxes and the parts that they are
about come back as pictures; R-GRPO pays regions, where the answer is right.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import re
from typing import Any
import zlib

import numpy as np
from PIL import Image

from mmr1 import positions
from mmr1 import records
from mmr1.data import traces
from mmr1.envs import crop
from mmr1.rewards import answer as answers

FORMS = ('paper', 'released')
_BOX = re.compile(r'\{[^{}]*\}')
_TAG = re.compile(r'</?(?:think|answer)>')


def zoom_of(part: float) -> float:
  """The factor for a region that is `part` of the picture: 2 below an eighth, 1
  from a half on, linear in between (the paper's rule, and the code's)."""
  return float(np.clip(2 - (part - .125) / .375, 1.0, 2.0))


def region(
    image: Image.Image, box: crop.Box, *, unit: int = 28,
    least: int = 4 * 28**2, most: int = 1024 * 28**2,
    scaled: bool = True) -> Image.Image:
  """The region of a box, enlarged the more the smaller it is.

  Clamped to the picture; corners are inside the region. Then multiples of
  `unit` within an area, by Lanczos.

  Args:
    image: the picture itself.
    box: x0, y0, x1, y1 in its pixels.
    unit, least, most: of the result, see `positions.smart_resize`.
    scaled: whether `zoom_of` holds; else the region keeps its size.

  Raises:
    ValueError: nothing of the box is inside.
  """
  width, height = image.size
  x0, x1 = (int(np.clip(x, 0, width - 1)) for x in (box[0], box[2]))
  y0, y1 = (int(np.clip(y, 0, height - 1)) for y in (box[1], box[3]))
  if x1 <= x0 or y1 <= y0:
    raise ValueError('the box is empty')
  part = image.crop((x0, y0, x1 + 1, y1 + 1))
  times = zoom_of(part.width * part.height / (width * height)) if scaled else 1
  rows, columns = positions.smart_resize(
      max(1, round(part.height * times)), max(1, round(part.width * times)),
      factor=unit, min_pixels=least, max_pixels=most)
  return part.resize((columns, rows), Image.Resampling.LANCZOS)


def regions(sample: records.Sample, knobs: Mapping[str, float], *,
            form: str = 'paper') -> float:
  """R_region, gated: boxes on a wrong answer earn nothing.

  'paper':    min(.5 n, .5) of n regions that came back.
  'released': .5 min(1, n) of n distinct boxes, if every box of the text can be
              read, wherever it is.
  """
  _known(form)
  if not answers.correct(sample, knobs):
    return 0.0
  if form == 'paper':
    return min(.5 * len(crop.boxes(sample)), .5)
  found = _boxes(sample.text)
  if found is None:
    return 0.0
  return .5 * min(1, len(set(found)))


regions.range = (0.0, 0.5)
regions.no_gold = crop.zoomed.no_gold


def length(sample: records.Sample, knobs: Mapping[str, float], *,
           form: str = 'paper') -> float:
  """R_length, whatever the answer is.

  'paper':    min(.001 characters, .25).
  'released': min(.1, .01 m), m the characters of the shortest part of the
              thinking (without tags, white space as one) between boxes; an
              empty part in the middle is left out, one at an end counts 0.
  """
  del knobs
  _known(form)
  if form == 'paper':
    return min(.001 * len(sample.text), .25)
  return min(.1, .01 * min(map(len, _segments(sample.text))))


length.range = (0.0, 0.25)
length.no_gold = 'grows with the length of the text'


def answered(sample: records.Sample, knobs: Mapping[str, float]) -> float:
  """1 if the text is anything and then an answer block at its end, else 0; think
  tags are not looked at, nor is another block before it, by the published rule.
  The release pays .5 of it."""
  del knobs
  said = sample.text.rstrip()
  inside = said.removesuffix('</answer>')
  return float(inside != said and '<answer>' in inside)


answered.range = (0.0, 1.0)
answered.perfect = 1.0


def _known(form: str) -> None:
  if form not in FORMS:
    raise ValueError(f'form {form!r} is not one of {FORMS}.')


def _boxes(said: str) -> list[tuple[str, ...]] | None:
  """Boxes of a text, each value as JSON; None if one cannot be read."""
  found = []
  for text in _BOX.findall(said):
    if '"bbox' not in text:
      continue
    try:
      box = json.loads(text)['bbox_2d']
    except (ValueError, KeyError, TypeError, RecursionError):
      return None
    if not isinstance(box, list):
      return None
    found.append(tuple(map(json.dumps, box)))
  return found


def _segments(said: str) -> list[str]:
  """The thinking, cut at its boxes."""
  thinking = said.partition('<answer>')[0]
  parts = [' '.join(_TAG.sub('', part).split())
           for part in _BOX.split(thinking)]
  return [parts[0], *(part for part in parts[1:-1] if part),
          *parts[-1:]] if len(parts) > 1 else parts


def looked(
    examples: Sequence[records.Example], ctx: Any, init: str, *,
    blind: float = 0.3,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: traces of the world `zoom` with its regions
  one after the other [ours].

  A share `blind` says digits without having looked.
  """
  del ctx, init
  made, guessed = [], 0
  for example in examples:
    rng = np.random.default_rng([zlib.crc32(b'looked'), example.uid])
    seen, (width, height) = example.meta['seen'], example.images[0].size
    scale = 2 * (seen[1] / width, seen[0] / height)
    facts, steps = example.meta['facts'], example.meta['steps']
    answer, said = example.answer, []
    if rng.random() < blind:
      values = rng.integers(0, 10, facts[0].count(',') + 1).tolist()
      facts, answer = (f'digits {",".join(map(str, values))}',), str(sum(values))
      steps = (f'{"+".join(map(str, values))}={answer}',)
      said, guessed = ['<think>'], guessed + 1
    else:
      for n, box in enumerate(example.meta['regions']):
        shown = json.dumps({'bbox_2d': [round(x * s) for x, s in zip(
            box, scale)]}, separators=(',', ':'))
        said.append(('<think>Let me see.' if not n else 'I see again.') + shown)
      said.append('')
    said[-1] += f'{traces.concise(facts, steps)}</think><answer>{answer}</answer>'
    made.append(dataclasses.replace(
        example, completions=('\n'.join(said),),
        meta={**example.meta, 'turns': tuple(said)}))
  return made, {'guessed': guessed}

