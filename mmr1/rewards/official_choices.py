"""How benchmarks of choices read a completion: MMMU, MMMU-Pro, MMStar, AI2D,
MME-RealWorld."""

import hashlib
import re
import string
from collections.abc import Sequence
from typing import Any

from mmr1 import records
from mmr1.rewards import verdict

Verdict = verdict.Verdict
_PHRASES = (
    'The best answer is', 'The correct answer is', 'The answer is',
    'The answer', 'The best option is', 'The correct option is',
    'Best answer:', 'Best option:')
_LEADS = ('', '(', 'option ', 'the answer is ')
_KEYS = ('could be ', 'so ', 'is ', 'thus ', 'therefore ', 'final ', 'answer ',
         'result ')
# With commas, with an exponent, plain: in this order, as three searches. A
# number is tried from its first digit only: from each, a long one takes minutes.
_NUMBERS = tuple(map(re.compile, (
    r'-?\b\d{1,3}(?:,\d{3})+\b', r'-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+',
    r'-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])')))


def mmstar(said: str, example: records.Example) -> Verdict:
  """The gold letter in front, alone or behind '(', 'option ' or 'the answer
  is ', in any case: the rule of its repository, which 'a cat' satisfies too."""
  plain = said.lower().strip().replace('\n', ' ')
  got = next((plain[len(lead)].upper() for lead in reversed(_LEADS)
              if plain.startswith(lead) and len(plain) > len(lead)
              and 'a' <= plain[len(lead)] <= 'd'), None)
  gold = example.answer.lower()
  right = any(plain.startswith(lead + gold) for lead in _LEADS)
  return Verdict(example.answer.upper() if right else got, float(right))


def ai2d(said: str, example: records.Example) -> Verdict:
  """The letter of 'B.' in front, else the completion itself; compared without
  case and punctuation (lmms-eval)."""
  found = re.match(r'\s*([A-Z])\.', said)
  got = (found[1] if found else said).translate(
      str.maketrans('', '', string.punctuation)).strip().upper()
  return Verdict(got or None, float(got == example.answer.upper()))


def mme_realworld(said: str, example: records.Example) -> Verdict:
  """The first of the letters A to E left when phrases such as 'The best answer
  is' are removed, else that of the option which the text is a part of."""
  plain = said.strip()
  for phrase in _PHRASES:
    plain = plain.replace(phrase, '')
  found = re.search('[ABCDE]', plain)
  if found:
    got = found[0]
  elif len(plain.split()) > 10:
    got = None
  else:
    got = next((option[1] for option in example.meta['options']
                if plain.lower() in option.lower()), None)
  return Verdict(got, float(got == example.answer.upper()))


def mmmu(said: str, example: records.Example) -> Verdict:
  """MMMU's eval_utils: the last '(B)', else ' B ', else a choice's text (of
  more than 5 words), else a draw. Pro looks after the last 'Answer:' first, and
  for 'B ' and 'B.' too."""
  meta = example.meta
  pro = meta['benchmark'] == 'mmmu_pro'
  choices = meta.get('choices')
  if choices is None:
    return _open(said, meta['golds'])
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


def _chance(example: records.Example, letters: Sequence[str]) -> str:
  """MMMU draws with a seed, in the order of the file; here the problem's id
  decides, so that a subset has the draws of the whole."""
  digest = hashlib.sha256(example.meta['id'].encode()).digest()
  return letters[int.from_bytes(digest[:8], 'big') % len(letters)]


def _open(said: str, golds: Sequence[str]) -> Verdict:
  """MMMU's open questions: a gold text inside what follows 'is', 'so', 'answer'
  ... in a line, or one of its numbers, rounded to 2 digits, a gold one."""
  whole = said.strip().strip('.').lower()
  lines, keys = whole.split('\n'), []
  for i, line in enumerate(lines):
    shortest = None
    for word in (*_KEYS, *(['='] if i == len(lines) - 1 else [])):
      if word in line:
        end = line.rpartition(word)[2].strip()
        if not shortest or len(end) < len(shortest):
          shortest = end
    if shortest and shortest not in (':', ',', '.', '!', '?', ';', "'"):
      keys.append(shortest)
  keys = keys or [whole]
  found: list[Any] = [y for key in keys for x in [
      key, *(n for pattern in _NUMBERS for n in pattern.findall(key))]
                      for y in _plain(x)]
  wanted = [y for gold in golds for y in _plain(gold)]
  right = any(
      isinstance(w, str) and w in f if isinstance(f, str) else f == w
      for f in found for w in wanted)
  return Verdict('; '.join(keys) or None, float(right))


def _plain(said: str) -> list[Any]:
  """A number, rounded; or a text, one letter with a space on a side."""
  try:
    return [round(float(said.strip().replace(',', '')), 2)]
  except ValueError:
    said = said.strip().lower()
    return [f' {said}', f'{said} '] if len(said) == 1 else [said]
