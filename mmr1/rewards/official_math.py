r"""How benchmarks of mathematics read a completion: MathVista, MathVerse and
MathVision. The first two ask a language model, see `verdict.Judge`."""

import re

from mmr1 import records
from mmr1 import text
from mmr1.rewards import pool
from mmr1.rewards import text_distance
from mmr1.rewards import verdict

Judge, Verdict = verdict.Judge, verdict.Verdict
LIMIT_S = 5.0  # of symbolic algebra
_LONGEST = 500  # characters of an expression that algebra looks at


def _judged(said: str, example: records.Example, judge: Judge | None,
            ) -> tuple[str | None, float | None, str]:
  """(answer, score or None, by what)."""
  if judge is None:
    return None, None, 'unjudged'
  found = judge(said, example)
  answer, score = found if isinstance(found, tuple) else (found, None)
  return answer, score, 'judge'


def mathvista(
    said: str, example: records.Example, judge: Judge | None = None) -> Verdict:
  """Extract (rules, else a judge), then normalise and compare.

  A choice is the one of its letter, else the closest by edit distance; numbers
  are cut to the precision. What no rule extracts and no judge sees counts as
  wrong.
  """
  meta, by = example.meta, 'rule'
  got = _quick(said, example)
  if got is None:
    got, score, by = _judged(said, example, judge)
    if score is not None:
      return Verdict(got, score, by)
  if got is None:
    return Verdict(None, 0.0, by)
  choices, type_ = meta.get('choices'), meta['type']
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


def _quick(said: str, example: records.Example) -> str | None:
  """What MathVista extracts without a model."""
  choices, type_ = example.meta.get('choices'), example.meta['type']
  if choices and said in choices:
    return said
  if type_ in ('integer', 'float'):
    try:
      return str({'integer': int, 'float': float}[type_](said))
    except ValueError:
      pass
  quoted = re.search(r'The answer is "(.*)"\.', said)
  return quoted and quoted[1]


def mathverse(
    said: str, example: records.Example, judge: Judge | None = None) -> Verdict:
  """A model extracts the answer and a model compares it with the gold one.

  A judge that gives an answer alone does the first half; the second is then
  equality, as with --quick_match of the benchmark's code.
  """
  got, score, by = _judged(said, example, judge)
  got = got.strip() if got is not None else None
  if score is None:
    score = float(got == example.answer)
  return Verdict(got or None, score, by)


_SAID = ('the final answer is', 'the answer is', 'the correct answer is',
         'the answer should be')
# Left out of an answer: what only sets it, degrees, some units.
_DROPPED = (
    '{}', ' ', '\\,', '\n', '\\text', '\\mbox', '\\left', '\\right',
    '^{\\circ}', '^\\circ', '{m}^3', 'm^3', '{units}', 'units', '{km}', 'km',
    '\\!', '\\$', '$', '\\%')


def mathvision(said: str, example: records.Example) -> Verdict:
  r"""A letter at an end, a number behind 'is', the last box, or what follows
  'the answer is'; equal as text, or as values rounded to 2 digits.

  It is compared with the gold answer and, of a choice, with the option's text.
  Values are those that algebra gives LaTeX; the benchmark's code evaluates them
  as Python, here they stay in a killable process.

  Raises:
    pool.TimedOut, pool.WorkerDied: of the algebra.
  """
  got = _stated(said.strip())
  golds, choices = [example.answer], example.meta.get('choices')
  if choices:
    place = ord(example.answer) - 65
    golds += [choices[place]] if 0 <= place < len(choices) else []
  return Verdict(got or None, float(any(
      _same(gold.lower().strip(), got) for gold in golds)))


def _stated(said: str) -> str:
  """The answer of a completion, in small letters and without what sets it."""
  for c in 'ABCDE':
    if said.endswith((f' {c}.', f' ({c}).')) or said.startswith(
        (f'{c}\n', f'({c})\n', f'({c}) {c}\n')):
      said = c
  last = said.rpartition('is ')[2].rstrip('.')
  if _number(last) is not None:
    said = last
  if 'oxed{' not in said:
    for phrase in _SAID:
      for form in (phrase, phrase.replace('the', 'The')):
        before, found, behind = said.rpartition(form)
        said = behind.strip()
        if found:
          said = said.split('\n')[0].split('. ')[0]
  elif said.count('oxed{') > 1:
    said = '\\boxed{' + said.rpartition('oxed{')[2]
  said = _cleaned(said.lower())
  for letter in 'abcde':
    said = said.replace(f'({letter})', letter).replace(f'{{{letter}}}', letter)
  return said.rstrip('.').lstrip(':').strip()


def _cleaned(said: str) -> str:
  _, box, behind = said.rpartition('oxed{')
  inner, end, _ = behind.rpartition('}')
  said = inner if box and end else said
  closed, opened = said.find('}'), said.find('{')
  if closed >= 0 and (opened < 0 or closed < opened):
    said = said[:closed]  # the box ended here
  said = said.rpartition('=')[2].rpartition('\\approx')[2]
  said = said.replace('\\\\', '\\').replace('∞', '\\infty')
  for part in _DROPPED:
    said = said.replace(part, '')
  return said.replace('tfrac', 'frac').replace('dfrac', 'frac')


def _number(said: str) -> float | None:
  try:
    return float(said)
  except ValueError:
    return None


def _same(gold: str, got: str) -> bool:
  if not gold or not got or max(len(gold), len(got)) > _LONGEST:
    return False
  if gold == got:
    return True
  for left, right in ('()', '[]'):
    sides = [x[1:-1].split(',') for x in (gold, got)
             if x.startswith(left) and x.endswith(right) and ',' in x]
    if len(sides) == 2 and len(sides[0]) == len(sides[1]):
      return all(_same(a.strip(), b.strip()) for a, b in zip(*sides))
  values = [_number(x) for x in (gold, got)]
  if None not in values:
    return round(values[0], 2) == round(values[1], 2)
  if not all(re.search(r'[0-9]|\\pi', x) for x in (gold, got)):
    return False  # words have no value
  return pool.shared().call(
      'mmr1.rewards.equivalence:rounded_equal', text.fold(gold),
      text.fold(got), limit_s=LIMIT_S)
