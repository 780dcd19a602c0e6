"""Graded rewards of answers that are text: shared words, word errors."""

from collections.abc import Mapping, Sequence
import collections
import math
import re

import numpy as np

from mmr1 import records
from mmr1 import text

FORMS = ('exp', 'negative')
_LONGEST = 10_000  # characters, beside those of the gold answer
_WORD = re.compile(r'[^\W_]+')


def words(said: str) -> list[str]:
  """What ROUGE counts: lower-case runs of letters and digits, not stemmed.

  Of ASCII text as the package rouge-score splits it; other scripts keep their
  letters [ours].
  """
  return _WORD.findall(text.fold(said).lower())


def rouge_n(gold: str, said: str, n: int) -> float:
  """ROUGE-N, F measure, 0 to 1.

  F = 2 P R / (P + R): of the n-grams of `words`, P is the share of those said
  that the gold text has, R of the gold ones that are said, each as often as in
  both (Lin 2004, section 2). 0 where a side has none, as of one word for n = 2.

  Args:
    gold: the gold answer.
    said: the answer.
    n: words of an n-gram.
  """
  if _too_long(gold, said):
    return 0.0
  ours, theirs = (_grams(words(part), n) for part in (gold, said))
  shared = sum((ours & theirs).values())
  return _f(shared, sum(ours.values()), sum(theirs.values()))


def rouge_l(gold: str, said: str) -> float:
  """ROUGE-L, F measure, 0 to 1: of the longest common subsequence of words.

  P = LCS / words said, R = LCS / gold words (Lin 2004, section 3, one sentence;
  P and R of equal weight, as in rouge-score).
  """
  if _too_long(gold, said):
    return 0.0
  ours, theirs = words(gold), words(said)
  return _f(_common(ours, theirs), len(ours), len(theirs))


def rouge(gold: str, said: str) -> float:
  """The mean of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 1.

  An equal answer of one word earns 2/3: there is no pair of words in it.
  """
  return (rouge_n(gold, said, 1) + rouge_n(gold, said, 2)
          + rouge_l(gold, said)) / 3


def word_error_rate(gold: str, said: str) -> float:
  """Insertions + deletions + substitutions per gold word, 0 to infinity.

  The least number that makes one text the other. Words are what white space
  parts, with their case and punctuation, as in jiwer's default. Infinite where
  only the gold text is empty, or where the answer is beyond 10,000 characters
  + 4 for each gold one.
  """
  ours, theirs = text.fold(gold).split(), text.fold(said).split()
  if _too_long(gold, said) or (theirs and not ours):
    return math.inf
  return _edits(ours, theirs) / len(ours) if ours else 0.0


def transcript(gold: str, said: str, form: str) -> float:
  """exp(-WER), 0 to 1; 'negative': -min(WER, 1), bounded by us [ours].

  Raises:
    ValueError: an unknown form.
  """
  if form not in FORMS:
    raise ValueError(f'transcript: got form={form!r}; allowed are {FORMS}.')
  rate = word_error_rate(gold, said)
  return math.exp(-rate) if form == 'exp' else -min(rate, 1.0)


def free_form(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    strict: bool = True,
    prefilled: bool = False,
) -> float | None:
  """`rouge` of the completion's answer; 0 without one.

  None when the example has no gold answer.

  Args:
    sample: the completion.
    knobs: unused.
    strict, prefilled: see `text.extract_answer`.
  """
  del knobs
  if sample.example.answer is None:
    return None
  said = text.extract_answer(sample.text, strict=strict, prefilled=prefilled)
  return 0.0 if said is None else rouge(sample.example.answer, said)


free_form.range = (0.0, 1.0)


def transcribed(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    form: str = 'exp',
    strict: bool = True,
    prefilled: bool = False,
) -> float | None:
  """`transcript` of the completion's answer; of '' without one.

  Args: `form` as of `transcript`, the others and None as of `free_form`.
  """
  del knobs
  if sample.example.answer is None:
    return None
  said = text.extract_answer(sample.text, strict=strict, prefilled=prefilled)
  return transcript(sample.example.answer, said or '', form)


transcribed.range = (-1.0, 1.0)


def _too_long(gold: str, said: str) -> bool:
  return len(said) > _LONGEST + 4 * len(gold)


def _grams(said: Sequence[str], n: int) -> collections.Counter:
  return collections.Counter(zip(*(said[i:] for i in range(n))))


def _f(shared: int, ours: int, theirs: int) -> float:
  """2 P R / (P + R) = 2 shared / (ours + theirs); 0 where nothing is."""
  return 2 * shared / (ours + theirs) if ours and theirs else 0.0


def _common(a: Sequence[str], b: Sequence[str]) -> int:
  """Length of the longest common subsequence.

  One row of the table as the bits of an integer, a 0 where it grows (Hyyro
  2004): a thousand words against a thousand take a millisecond.
  """
  places = collections.defaultdict(int)
  for i, word in enumerate(a):
    places[word] |= 1 << i
  full = row = (1 << len(a)) - 1
  for word in b:
    hits = row & places.get(word, 0)
    row = ((row + hits) | (row - hits)) & full
  return len(a) - row.bit_count()


def _edits(a: Sequence[str], b: Sequence[str]) -> int:
  """Levenshtein distance of words, a row of the table at a time."""
  ids = {}
  a, b = ([ids.setdefault(word, len(ids)) for word in part] for part in (a, b))
  a, steps = np.asarray(a, np.int64), np.arange(len(a) + 1)
  row = steps
  for i, word in enumerate(b, 1):
    best = np.append(i, np.minimum(row[1:] + 1, row[:-1] + (a != word)))
    # A deletion costs 1 a place: the best of all places to the left.
    row = np.minimum.accumulate(best - steps) + steps
  return int(row[-1])
