"""How benchmarks score an answer: their own rules, and a strict mode.

'official' reads the whole completion as the benchmark's own code does, a draw
by chance (MMMU) included; those draws are marked 'chance' and answers that the
benchmark gives to a judge model are marked 'judge', or 'unjudged' without one.
'strict' reads the answer block alone and never guesses (M19).
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mmr1 import boxes
from mmr1 import records
from mmr1 import text
from mmr1.rewards import answer as answer_lib
from mmr1.rewards import grounding
from mmr1.rewards import text_distance

VERSION = 1
Judge = Callable[[str, records.Example], str | None]
_NUMBER = r'-?\d+(?:\.\d+)?'
_POINT = re.compile(
    rf'[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})'
    rf'(?:\s*,\s*({_NUMBER})\s*,\s*({_NUMBER}))?\s*[\])]')


class Verdict(NamedTuple):
  """What was extracted, its score of 0 to 1, and by what: 'rule', 'chance',
  'judge' or 'unjudged'."""
  extracted: str | None
  score: float
  by: str = 'rule'


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
  """DocVQA (1905.13648, eq. 1): 1 - NL to the closest gold, 0 from NL .5 on."""
  best = 0.0
  for gold in golds:
    a, b = (' '.join(x.strip().lower().split()) for x in (gold, said))
    longest = max(len(a), len(b))
    if longest:
      best = max(best, 1 - text_distance.edits(a, b) / longest)
  return best if best > 0.5 else 0.0


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
    return Verdict(said, float(clicked(said, example, strict=False)))
  if name == 'refcoco':
    found = re.search(
        r'\[' + r'\s*,\s*'.join([rf'\s*{_NUMBER}'] * 4) + r'\s*\]', said)
    got = found and found[0]
    return Verdict(got, float(grounding.overlap(got, example) >= 0.5))
  if name == 'mathvista':
    return _mathvista(said, example, judge)
  if name in ('mmmu', 'mmmu_pro'):
    return _mmmu(said, example)
  got = _letter(said, example)
  return Verdict(got, float(got == example.answer.upper()))


def _letter(said: str, example: records.Example) -> str | None:
  """AI2D: a letter alone or 'B.' in front. MMStar: a letter alone or the first
  after 'answer is' (ours). MME-RealWorld: the first letter A to E left when
  phrases such as 'The best answer is' are removed."""
  name = example.meta['benchmark']
  plain = said.strip()
  if name == 'mme_realworld':
    for phrase in ('The best answer is', 'The correct answer is',
                   'The answer is', 'The answer', 'The best option is',
                   'The correct option is', 'Best answer:', 'Best option:'):
      plain = plain.replace(phrase, '')
    found = re.search('[ABCDE]', plain)
    if found:
      return found[0]
    if len(plain.split()) > 10:
      return None
    return next((option[1] for option in example.meta['options']
                 if plain.lower() in option.lower()), None)
  found = re.match(r'\s*\(?([A-Z])\)?(?:[.:)]|\s*$)', plain)
  if not found and name == 'mmstar':
    found = re.search(r'answer is:?\s*\(?([A-D])\b', plain)
  return found and found[1]


def _chance(example: records.Example, letters: Sequence[str]) -> str:
  digest = hashlib.sha256(example.meta['id'].encode()).digest()
  return letters[int.from_bytes(digest[:8], 'big') % len(letters)]


def _mmmu(said: str, example: records.Example) -> Verdict:
  """MMMU's eval_utils: the last '(B)', else ' B ', else a choice's text (of
  more than 5 words), else a draw. Pro looks after the last 'Answer:' first, and
  for 'B ' and 'B.' too."""
  meta = example.meta
  pro = meta['benchmark'] == 'mmmu_pro'
  choices = meta.get('choices')
  if choices is None:
    return _mmmu_open(said, meta['golds'])
  letters = [chr(65 + i) for i in range(len(choices))]
  if pro and 'Answer:' in said:
    behind = said.rpartition('Answer:')[2]
    fits = [x for x in letters if x in behind]
    if len(fits) == 1:
      return Verdict(fits[0], float(fits[0] == example.answer))
  for c in ",.!?;:'":
    said = said.strip(c)
  said = f' {said} '
  forms = ('({})', '{} ', '{}.') if pro else ('({})', ' {} ')
  for form in forms:
    fits = [x for x in letters if form.format(x) in said]
    if fits:
      # Pro places all but the bracketed form by ' B ', as its code does.
      placed = form if form == '({})' else ' {} '
      got = max(fits, key=lambda x: said.rfind(placed.format(x)))
      return Verdict(got, float(got == example.answer))
  low = said.lower()
  if len(said.split()) > 5:
    fits = [x for x, c in zip(letters, choices) if c.lower() in low]
    if fits:
      got = max(fits, key=lambda x: low.rfind(
          choices[letters.index(x)].lower()))
      return Verdict(got, float(got == example.answer))
  got = _chance(example, letters)
  return Verdict(got, float(got == example.answer), 'chance')


def _mmmu_open(said: str, golds: Sequence[str]) -> Verdict:
  """MMMU's open questions: a gold text inside what follows 'is', 'so', 'answer'
  ... in a line, or one of its numbers, rounded to 2 digits, a gold one."""
  words = ['could be ', 'so ', 'is ', 'thus ', 'therefore ', 'final ',
           'answer ', 'result ']
  lines = said.strip().strip('.').lower().split('\n')
  keys = []
  for i, line in enumerate(lines):
    ends = [line.rpartition(w)[2].strip() for w in words + (
        ['='] if i == len(lines) - 1 else []) if w in line]
    ends = [end for end in ends if end]
    if ends and min(ends, key=len) not in (':', ',', '.', '!', '?', ';', "'"):
      keys.append(min(ends, key=len))
  keys = keys or ['\n'.join(lines)]
  def norm(x):
    try:
      return [round(float(x.strip().replace(',', '')), 2)]
    except ValueError:
      x = x.strip().lower()
      return [f' {x}', f'{x} '] if len(x) == 1 else [x]
  numbers = re.compile(
      r'-?\b\d{1,3}(?:,\d{3})+\b|-?\d+(?:\.\d+)?[eE][+-]?\d+'
      r'|-?(?:\d+\.\d+|\.\d+|\d+\b)')
  found: list[Any] = [
      y for key in keys for x in [key, *numbers.findall(key)] for y in norm(x)]
  wanted = [y for gold in golds for y in norm(gold)]
  right = any(
      isinstance(w, str) and w in f if isinstance(f, str) else f == w
      for f in found for w in wanted)
  return Verdict('; '.join(keys), float(right))


def _mathvista(said: str, example: records.Example,
               judge: Judge | None) -> Verdict:
  """MathVista: extract (rules, else a judge), then normalise and compare.

  A choice is the one of its letter, else the closest by edit distance; numbers
  are cut to the precision. What no rule extracts and no judge sees counts as
  wrong.
  """
  meta, by = example.meta, 'rule'
  choices, type_ = meta.get('choices'), meta['type']
  got = None
  if choices and said in choices:
    got = said
  elif type_ in ('integer', 'float'):
    try:
      got = str({'integer': int, 'float': float}[type_](said))
    except ValueError:
      got = None
  if got is None:
    quoted = re.search(r'The answer is "(.*)"\.', said)
    got = quoted and quoted[1]
  if got is None:
    got, by = (None, 'unjudged') if judge is None else (
        judge(said, example), 'judge')
  if got is None:
    return Verdict(None, 0.0, by)
  if choices:
    got = got.strip()
    letter = re.search(r'\(([a-zA-Z])\)', got)
    got = letter[1].upper() if letter else got
    place = ord(got) - 65 if len(got) == 1 else -1
    got = choices[place] if 0 <= place < len(choices) else min(
        choices, key=lambda c: text_distance.edits(got, c))
  elif type_ in ('integer', 'float'):
    try:
      got = str(int(float(got))) if type_ == 'integer' else str(
          round(float(got), int(meta['precision'] or 0)))
    except (ValueError, OverflowError):
      return Verdict(None, 0.0, by)
  return Verdict(got, float(got == example.answer), by)
