"""How benchmarks score an answer: their own rules, and a strict mode.

'official' reads the whole completion as the benchmark's own code does, a draw
by chance (MMMU) included; those draws are marked 'chance' and answers that the
benchmark gives to a judge model are marked 'judge', or 'unjudged' without one.
'strict' reads the answer block alone and never guesses (M19).
"""

import re
from collections.abc import Sequence

from mmr1 import boxes
from mmr1 import records
from mmr1 import text
from mmr1.rewards import answer as answer_lib
from mmr1.rewards import grounding
from mmr1.rewards import official_choices
from mmr1.rewards import official_math
from mmr1.rewards import text_distance
from mmr1.rewards import verdict

VERSION = 3
Judge, Verdict = verdict.Judge, verdict.Verdict
_NUMBER = r'-?\d+(?:\.\d+)?'
_POINT = re.compile(
    rf'[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})'
    rf'(?:\s*,\s*({_NUMBER})\s*,\s*({_NUMBER}))?\s*[\])]')
_BOX = re.compile(r'\[' + ','.join([rf'\s*{_NUMBER}\s*'] * 4) + r'\]')
_JUDGED = {'mathvista': official_math.mathvista,
           'mathverse': official_math.mathverse}
_RULES = {'mathvision': official_math.mathvision,
          'mmmu': official_choices.mmmu, 'mmmu_pro': official_choices.mmmu,
          'mmstar': official_choices.mmstar, 'ai2d': official_choices.ai2d,
          'mme_realworld': official_choices.mme_realworld}


def relaxed(gold: str, said: str) -> bool:
  """ChartQA (2203.10244): a number within 5% of the gold one, or equal text.

  12.6 is right for 12 (.6 / 12 = .05), 12.7 is not. A percent sign divides by
  100; a gold number of 0 is compared as text.
  """
  def value(x):
    try:
      return float(x.rstrip('%')) / (100 if x.endswith('%') else 1)
    except ValueError:
      return None
  a, b = value(gold.strip()), value(said.strip())
  if a and b is not None:
    return abs(b - a) / abs(a) <= 0.05
  return gold.strip().lower() == said.strip().lower()


def anls(golds: Sequence[str], said: str) -> float:
  """DocVQA (1905.13648, eq. 1): 1 - NL to the closest gold answer.

  NL is the edit distance over the longer length. Below .5 it is 0; exactly .5
  stays, as in the evaluation script of the challenge, and not in the paper. As
  there, white space counts in the lengths and case and white space are folded
  for the distance.
  """
  best = 0.0
  for gold in golds:
    a, b = (' '.join(x.strip().lower().split()) for x in (gold, said))
    longest = max(len(gold), len(said))
    # A distance is at least the difference of lengths: below .5 there is
    # nothing to find out about, and `edits` cuts long texts.
    if longest and 2 * abs(len(a) - len(b)) <= longest:
      best = max(best, 1 - text_distance.edits(a, b) / longest)
  return best if best >= 0.5 else 0.0


def clicked(said: str | None, example: records.Example, *,
            strict: bool) -> bool:
  """ScreenSpot: whether the point (or the centre of a box) is in the box."""
  found = list(_POINT.finditer(said or ''))
  if not found or (strict and len(found) != 1):
    return False
  n = [float(x) for x in found[0].groups() if x is not None]
  x, y = n if len(n) == 2 else ((n[0] + n[2]) / 2, (n[1] + n[3]) / 2)
  width, height = example.images[0].size
  seen = example.meta.get('seen')
  at = boxes.convert(
      boxes.Box(x, y, x, y, example.meta.get('box_frame', 'original')),
      'original', image=boxes.Size(height, width),
      seen=seen and boxes.Size(*seen))
  left, top, right, bottom = example.meta['box']
  return left <= at.left <= right and top <= at.top <= bottom


def strict(said: str, example: records.Example, *,
           prefilled: bool = False) -> Verdict:
  """Of the answer block alone."""
  got, meta = text.extract_answer(
      said, strict=True, prefilled=prefilled), example.meta
  if got is None:
    return Verdict(None, 0.0)
  name = meta['benchmark']
  if name == 'docvqa':
    return Verdict(got, anls(meta['golds'], got))
  if name == 'chartqa':
    return Verdict(got, float(relaxed(meta['golds'][0], got)))
  if name == 'screenspot':
    return Verdict(got, float(clicked(got, example, strict=True)))
  if name in ('mmmu', 'mmmu_pro') and 'choices' not in meta:
    plain = text.normalise_answer(got)
    return Verdict(got, float(any(
        plain == text.normalise_answer(gold) for gold in meta['golds'])))
  return Verdict(got, float(bool(answer_lib.match(got, example))))


def official(said: str, example: records.Example, *,
             judge: Judge | None = None) -> Verdict:
  """As the benchmark's own code scores the completion."""
  meta, name = example.meta, example.meta['benchmark']
  if name == 'docvqa':
    return Verdict(said, anls(meta['golds'], said))
  if name == 'chartqa':
    return Verdict(said, float(relaxed(meta['golds'][0], said)))
  if name == 'screenspot':
    found = _POINT.search(said)
    return Verdict(found and found[0],
                   float(clicked(said, example, strict=False)))
  if name == 'refcoco':
    found = _BOX.search(said)
    got = found and found[0]
    return Verdict(got, float(grounding.overlap(got, example) >= 0.5))
  if name in _JUDGED:
    return _JUDGED[name](said, example, judge)
  return _RULES[name](said, example)
