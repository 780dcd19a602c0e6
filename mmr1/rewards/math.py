r"""Mathematical answers: exact where that decides, else math-verify.

`decide` settles most answers in the calling process: equal texts, and every
gold answer that is a plain number, which only a number of the same exact value
satisfies (so that '3+4' is no answer to 'what is 3+4', and '1.5' none to 15).
The rest goes to math-verify in a killable process, behind guards against
answers that would fool it (tried: it takes '\sqrt{3} = \sqrt{2}' for \sqrt{2},
'BA' for 'AB', and the set {1, 2} for the point (1, 2)).
"""

import re
from collections.abc import Mapping

from mmr1 import records
from mmr1 import text
from mmr1.rewards import pool
from mmr1.rewards import quantity

LIMIT_S = 5.0
_LONGEST = 1000  # characters of an answer that is still looked at
_EQUALS = re.compile(r'(?<![<>!\\])=')
_WORD = re.compile(r'[^\W\d_]{2,}(?:[ -][^\W\d_]+)*')
# Standard form, which is read with the algebra: 1.2 \times 10^3.
_SCIENTIFIC = re.compile(
    r'[+-]?[0-9](?:\.[0-9]+)?\s*(?:\\times|\\cdot|×|·)\s*10\s*\^\s*'
    r'\{?\s*[+-]?[0-9]{1,2}\s*\}?')
# A clock time, a date, a score: math-verify would divide or subtract them.
_CODE = re.compile(r'[0-9]+(?:\s*[:/-]\s*[0-9]+)+')


def decide(gold: str, answer: str) -> bool | None:
  """Equality where it is certain without symbolic algebra, else None.

  Both are final answers as text. True for equal texts (white space, unicode
  variants, enclosing $..$ and the like aside; case matters). With a gold that
  is a number, with or without a unit or a name in front ('x = 5'), exactly the
  equal quantities are right. False also for what no honest answer looks like:
  over 1000 characters, unbalanced braces, a box inside, digits of another
  script, a chain of equations, a different kind of list or bracket.
  """
  if len(answer) > _LONGEST:
    return False
  ours, theirs = _forms(gold, answer)
  if not theirs or not ours:
    return False
  if ours == theirs:
    return True
  expected = quantity.parse(ours)
  if expected is not None:
    got = quantity.named(answer)
    if got is None and _SCIENTIFIC.fullmatch(theirs):
      return None
    return got is not None and quantity.equal(expected, got)
  if _CODE.fullmatch(ours):
    return re.sub(r'\s', '', ours) == re.sub(r'\s', '', theirs)
  if _WORD.fullmatch(ours) or _unlike(ours, theirs):
    return False
  return None


def _forms(gold: str, answer: str) -> tuple[str, str]:
  """Both normalised; a name in front ('x =') goes where only one has it."""
  ours = text.normalise_answer(gold, keep_case=True)
  theirs = text.normalise_answer(answer, keep_case=True)
  if quantity.NAME.match(theirs) and not _EQUALS.search(ours):
    theirs = quantity.NAME.sub('', theirs, count=1)
  elif quantity.NAME.match(ours) and not _EQUALS.search(theirs):
    ours = quantity.NAME.sub('', ours, count=1)
  return ours, theirs


def _unlike(gold: str, answer: str) -> bool:
  """True when the answer's form alone says that it is not the gold answer."""
  if '\\boxed' in answer or any(
      c.isdigit() and not c.isascii() for c in answer):
    return True
  if len(_EQUALS.findall(gold)) != len(_EQUALS.findall(answer)):
    return True
  ours, theirs = _shape(gold), _shape(answer)
  return theirs is None or (ours is not None and ours != theirs)


def _shape(expression: str) -> tuple[str, int] | None:
  """(outer brackets, number of top-level commas); None if unbalanced.

  The brackets count only around a list: '(x+1)' is ('', 0), '(1, 2)' is
  ('()', 1), '1, 2' is ('', 1), '[0, 1)' is ('[)', 1).
  """
  plain = re.sub(r'\\(?:left|right)\b\s*', '', expression).strip()
  plain = plain.replace('\\{', '«').replace('\\}', '»')
  depth, least, commas, inner = 0, len(plain), 0, 0
  braces = 0
  for place, c in enumerate(plain):
    braces += (c == '{') - (c == '}')
    depth += (c in '([{«') - (c in ')]}»')
    if braces < 0:
      return None
    if 0 < place < len(plain) - 1:
      least = min(least, depth)
    commas += c == ',' and depth == 0
    inner += c == ',' and depth == 1
  if braces:
    return None
  enclosed = (len(plain) > 1 and plain[0] in '([«' and plain[-1] in ')]»'
              and least >= 1)
  if enclosed and inner:
    return plain[0] + plain[-1], inner
  return '', commas


def _echo(answer: str, question: str) -> bool:
  """True when the answer is copied out of the question."""
  answer, question = (
      re.sub(r'[\s$]', '', part) for part in (answer, question))
  return len(answer) > 2 and answer in question


def equal(
    gold: str,
    answer: str,
    *,
    question: str = '',
    limit_s: float = LIMIT_S,
) -> bool:
  """True when the answer equals the gold answer.

  Args:
    gold, answer: final answers as text.
    question: the problem. What is copied from it must equal the gold answer as
      text or number: 'simplify ...' is not answered by itself.
    limit_s: seconds for symbolic algebra.

  Raises:
    pool.TimedOut: symbolic algebra ran past `limit_s` seconds.
    pool.WorkerDied: it ran out of memory.
  """
  decided = decide(gold, answer)
  if decided is not None:
    return decided
  ours, theirs = _forms(gold, answer)
  if _echo(theirs, text.fold(question)):
    return False
  return pool.shared().call(
      'mmr1.rewards.equivalence:equal', ours, theirs, limit_s=limit_s)


def verify(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    strict: bool = True,
    prefilled: bool = False,
    limit_s: float = LIMIT_S,
) -> float | None:
  """1 when the answer equals the gold answer as mathematics, else 0.

  None when the example has no gold answer.

  Args:
    sample: the completion.
    knobs: unused.
    strict, prefilled: see `text.extract_answer`.
    limit_s: seconds for symbolic algebra; raises as `equal` does.
  """
  del knobs
  if sample.example.answer is None:
    return None
  answer = text.extract_answer(
      sample.text, strict=strict, prefilled=prefilled)
  return float(answer is not None and equal(
      sample.example.answer, answer, question=sample.example.asked,
      limit_s=limit_s))


verify.range = (0.0, 1.0)
verify.perfect = 1.0
