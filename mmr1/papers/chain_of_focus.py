"""Chain-of-Focus (arXiv 2505.15436): what only it needs.

Whether and where to zoom is decided question by question: a tool brings a part
of the picture, enlarged.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any
import zlib

import numpy as np
from PIL import Image

from mmr1 import positions
from mmr1 import records
from mmr1 import resolve
from mmr1.data import traces
from mmr1.envs import crop
from mmr1.rewards import answer as answers
from mmr1.rewards import combine
from mmr1.rewards import text_overlap

ANSWERS = ('right', 'wrong')  # where a use of the tool is paid


def enlarged(
    image: Image.Image, box: crop.Box, *, grow: float = 1.5, times: float = 2.0,
    unit: int = 28, least: int = 112**2, most: int = 5120 * 28**2,
) -> Image.Image:
  """The part around a box, enlarged.

  Valid iff 0 <= x0 < W, 0 <= y0 < H, 0 < x1 <= W, 0 < y1 <= H, x1 > x0, y1 > y0.
  The box grows about its centre, inside the picture, and its corners are cut to
  whole pixels; the part is scaled, then brought to multiples of `unit` within an
  area. Source: the tool of the release, with the settings of its script.

  Args:
    image: the picture itself.
    box: x0, y0, x1, y1 in its pixels.
    grow: factor of the box's sides.
    times: factor of the part's sides.
    unit, least, most: of the result, see `positions.smart_resize`.

  Raises:
    ValueError: the box is not valid, or ends in nothing.
  """
  width, height = image.size
  x0, y0, x1, y1 = box
  close = 1e-6  # boxes in another frame are converted
  if not (0 <= x0 < width and 0 <= y0 < height and 0 < x1 <= width + close
          and 0 < y1 <= height + close and x1 > x0 and y1 > y0):
    raise ValueError('the box is not inside the image')
  half = (x1 - x0) * grow / 2, (y1 - y0) * grow / 2
  centre = (x0 + x1) / 2, (y0 + y1) / 2
  edges = (
      int(max(0, centre[0] - half[0])), int(max(0, centre[1] - half[1])),
      int(min(width, centre[0] + half[0] + close)),
      int(min(height, centre[1] + half[1] + close)))
  if edges[2] <= edges[0] or edges[3] <= edges[1]:
    raise ValueError('the box holds no pixel')
  part = image.crop(edges)
  rows, columns = positions.smart_resize(
      max(1, int(part.height * times)), max(1, int(part.width * times)),
      factor=unit, min_pixels=least, max_pixels=most)
  return part.resize((columns, rows), Image.Resampling.LANCZOS)


def tags(sample: records.Sample, knobs: Mapping[str, float], *,
         longest: int = 1000) -> float:
  """1 iff there are as many <think> as </think>, as many <answer> as </answer>,
  one of each at least, and at most `longest` words in the last answer, else 0.

  Source: `zoomin_reward3` of the release, as r4, r5 and r6 have it; r1 and r2
  with 10 words. Its r0 asks for a pattern of the whole text instead: that r0
  has this one is ours.
  """
  del knobs
  said = sample.text
  for name in ('think', 'answer'):
    count = said.count(f'<{name}>')
    if not count or count != said.count(f'</{name}>'):
      return 0.0
  return float(len(_answered(said).split()) <= longest)


tags.range = (0.0, 1.0)
tags.perfect = 1.0


def overlap(
    sample: records.Sample, knobs: Mapping[str, float], *,
    least: float | None = 0.5, above: bool = False, released: bool = False,
) -> float | None:
  """1 if the answer shares enough words with the gold one, else 0; None without
  a gold answer.

  F1 >= least, of words (variant r0); > least with `above` (r2); F1 itself
  without `least` (r1). The release of r0 calls it F1, and asks whether one text
  contains the other: `released`.
  """
  del knobs
  gold = sample.example.answer
  if gold is None:
    return None
  said = _answered(sample.text)
  if released:
    said, gold = said.lower().strip(), gold.lower().strip()
    return float(bool(said) and (said in gold or gold in said))
  f1 = text_overlap.rouge_n(gold, said, 1)
  if least is None:
    return f1
  return float(f1 > least if above else f1 >= least)


overlap.range = (0.0, 1.0)
overlap.perfect = 1.0


def tool(sample: records.Sample, knobs: Mapping[str, float], *,
         answer: str = 'right') -> float:
  """1 if the tool was used and the answer is as asked, else 0.

  'right': variants r4 (weight 1) and r5 (.5). 'wrong': r6 (.5), there an answer
  that cannot be judged counts as wrong. As in the release any
  `<tool_call>...</tool_call>` of the text is a use, whatever came of it: one
  that is empty or refused is paid too. `envs.crop.zoomed` counts what was seen.

  Raises:
    ValueError: another `answer`.
  """
  if answer not in ANSWERS:
    raise ValueError(
        f'chain_of_focus.tool: got answer={answer!r}; allowed are {ANSWERS}.')
  used = '</tool_call>' in sample.text.partition('<tool_call>')[2]
  right = bool(answers.correct(sample, knobs))
  return float(used and right == (answer == 'right'))


tool.range = (0.0, 1.0)
tool.no_gold = crop.zoomed.no_gold


def _answered(said: str) -> str:
  """The last answer block, '' without one."""
  _, opened, rest = said.rpartition('<answer>')
  return rest.partition('</answer>')[0].strip() if opened else ''


def adaptive(
    columns: np.ndarray,
    names: Sequence[str],
    knobs: Mapping[str, float],
    state: Any,
    *,
    weights: Mapping[str, float],
    g: str = 'mmr1.papers.chain_of_focus:thrift',
    accuracy: str = 'result',
    zoomed: str = 'zoomed',
    scale: float = 1.0,
) -> combine.Combined:
  """The weighted sum of the rewards + scale g(tool_i, with, without).

  The group-aware reward of the paper's later versions pays zooming by what the
  group needs. Its formula is in no code and no text that is known here; `g` is
  the place for it.

  Args:
    columns: f64[N, G, K], nan where there is no value.
    names: K names.
    knobs, weights, state: as in `combine.weighted_sum`.
    g: function (tool [N, G], right [N, G], with [N, 1], without [N, 1]) ->
      [N, G]: who zoomed, who was right, and the mean accuracy of those of the
      group who did and who did not, nan where there is none.
    accuracy, zoomed: names of the columns.
    scale: of g; 0: none.
  """
  total, says, state = combine.weighted_sum(
      columns, names, knobs, state, weights=weights)
  right, used = (columns[..., list(names).index(name)]
                 for name in (accuracy, zoomed))
  known, right = ~np.isnan(right), np.nan_to_num(right)
  used = np.nan_to_num(used) > 0

  def mean(of):
    count = (of & known).sum(1, keepdims=True)
    return np.where(count, (right * of).sum(1, keepdims=True)
                    / np.maximum(count, 1), np.nan)
  paid = scale * resolve.function(g, 'mmr1.papers')(
      used.astype(float), right, mean(used), mean(~used))
  return total + paid[..., None], {
      **says, 'reward/adaptive/mean': float(paid.mean())}, state


def thrift(tool_: np.ndarray, right: np.ndarray, with_: np.ndarray,
           without: np.ndarray) -> np.ndarray:
  """-1 for who zooms where the group does as well without, else 0 [ours].

  `without >= with_` and above 0; a group in which nobody zoomed, or everybody,
  says nothing.
  """
  del right
  known = ~np.isnan(with_) & ~np.isnan(without)
  waste = known & (np.nan_to_num(without) > 0) & (
      np.nan_to_num(without) >= np.nan_to_num(with_))
  return -tool_ * waste


def call(box: Sequence[float]) -> str:
  """A call of the tool, as short as it can be."""
  said = json.dumps({'bbox_2d': [round(x) for x in box]},
                    separators=(',', ':'))
  return f'<tool_call>{said}</tool_call>'


def explored(
    examples: Sequence[records.Example], ctx: Any, init: str, *,
    small: float = 0.5, large: float = 0.5,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: traces of the world `zoom` for a cold start
  [ours].

  Shares of those with `small` and with `large` digits zoom, the others answer
  at once, whether the digits can be read or not, and say any digits if not:
  what zooming is good for is left to rl.
  """
  del ctx, init
  made, used = [], 0
  for example in examples:
    rng = np.random.default_rng([zlib.crc32(b'explored'), example.uid])
    facts, steps, said = example.meta['facts'], example.meta['steps'], []
    answer = example.answer
    if rng.random() < (small if example.meta['needs_zoom'] else large):
      seen, (width, height) = example.meta['seen'], example.images[0].size
      box = [x * s for x, s in zip(example.meta['box'], 2 * (
          seen[1] / width, seen[0] / height))]
      said.append(f'<think>Let me check.</think>{call(box)}')
      used += 1
    elif example.meta['needs_zoom']:
      guess = rng.integers(0, 10, 2).tolist()
      answer = str(sum(guess))
      facts = (f'digits {guess[0]},{guess[1]}',)
      steps = (f'{guess[0]}+{guess[1]}={answer}',)
    said.append(f'<think>{traces.concise(facts, steps)}</think>'
                f'<answer>{answer}</answer>')
    made.append(dataclasses.replace(
        example, completions=('\n'.join(said),),
        meta={**example.meta, 'turns': tuple(said)}))
  return made, {'zoomed': used}
