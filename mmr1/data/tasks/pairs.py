"""Pairs of responses to `digits` problems: a right one and one with a mistake.

The chosen response reads the digits, works the operation out and answers. The
rejected one is the same with one mistake:

  misread       a digit is another one
  hallucinated  there is a digit too many, or one is left out
  slip          the last step has another result, and the answer follows it
  answer        the answer is not what the chain comes to

After the first two everything follows from what was read: what is said is not
what is there, which only the image shows.
"""

from collections.abc import Sequence
import dataclasses
import zlib

import numpy as np

from mmr1 import records
from mmr1.data import traces
from mmr1.data.tasks import digits as digits_lib
from mmr1.data.tasks import items

KINDS = ('misread', 'hallucinated', 'slip', 'answer')


def digits(
    seed: int,
    split: str,
    i: int,
    *,
    uid_offset: int = 0,
    min_digits: int = 2,
    max_digits: int = 3,
    forms: tuple[str, ...] = digits_lib.FORMS,
    kinds: tuple[str, ...] = KINDS,
    per_problem: int = 2,
    off: int = 1,
    told: bool = False,
    shown: bool = True,
) -> records.Example:
  """Item `i` of the split: a problem with completions (chosen, rejected).

  Args:
    seed, split, i, uid_offset, min_digits, max_digits, forms: as of
      `digits.digits`.
    kinds: of mistakes, of KINDS.
    per_problem: so many items in a row are pairs of one problem, each with the
      next kind of mistake; `meta['sample']` is its number.
    off: a wrong result is so much too large or small, up to twice as much.
    told: the digits are said in the question; shown: there is an image of
      them. One of both at least.

  Raises:
    ValueError: an unknown kind, or a number out of range.
  """
  items.forms('pairs', KINDS, kinds)
  if not (told or shown):
    raise ValueError('pairs: got told=False, shown=False; nobody could know '
                     'the digits.')
  if per_problem < 1 or off < 1:
    raise ValueError(f'pairs: got per_problem={per_problem}, off={off}; '
                     'allowed: both at least 1.')
  problem, number = divmod(i, per_problem)
  example = digits_lib.digits(
      seed, split, problem, min_digits=min_digits, max_digits=max_digits,
      forms=forms)
  rng = np.random.default_rng(
      [seed, zlib.crc32(f'pairs {split}'.encode()), problem])
  kind = kinds[(int(rng.integers(len(kinds))) + number) % len(kinds)]
  values = list(example.meta['scene']['digits'])
  chosen = right(example)
  for _ in range(number + 1):  # pairs of a problem have mistakes of their own
    rejected = mistaken(rng, kind, example, (min_digits, max_digits), off)
  meta = {**example.meta, 'sample': problem, 'mistake': kind}
  question = example.question.removeprefix('<image>')
  if told:
    question = f'Digits {",".join(map(str, values))}. {question}'
  return dataclasses.replace(
      example, question=f'<image>{question}' if shown else question,
      images=example.images if shown else (), uid=uid_offset + i,
      completions=(chosen, rejected), meta=meta, source='pairs')


def right(example: records.Example) -> str:
  """The right response to a problem of `digits`."""
  return _said(example.meta['scene']['digits'], example.meta['steps'],
               example.answer)


def mistaken(rng: np.random.Generator, kind: str, example: records.Example,
             count: tuple[int, int], off: int) -> str:
  """The response with a mistake.

  Args:
    rng: decides which.
    kind: of KINDS.
    example: a problem of `digits`.
    count: how many digits there may be, so that their number alone says
      nothing.
    off: see `digits`.
  """
  values = list(example.meta['scene']['digits'])
  at, seen = int(rng.integers(len(values))), kind in KINDS[:2]
  if kind == 'misread':
    values[at] = (values[at] + int(rng.integers(1, 10))) % 10
  elif kind == 'hallucinated':
    fewer, more = len(values) > count[0], len(values) < count[1]
    if more and not (fewer and rng.random() < .5):
      values.insert(at, int(rng.integers(10)))
    elif fewer:
      del values[at]
    else:
      raise ValueError(
          f"pairs: kind='hallucinated' with {count} digits: there is no other "
          'number of them to be said; set max_digits above min_digits.')
  total, steps = digits_lib.operate(example.meta['form'], values)
  wrong = total + int(rng.integers(off, 2 * off + 1)) * (
      1 if rng.random() < .5 else -1)
  if kind == 'slip':
    head, _, _ = steps[-1].rpartition('=')
    steps = (*steps[:-1], f'{head}={wrong}')
  return _said(values, steps, str(total if seen else wrong))


def _said(values: Sequence[int], steps: Sequence[str], answer: str) -> str:
  """As the embedded model writes its responses."""
  chain = traces.concise((f'digits {",".join(map(str, values))}',), steps)
  return f'<think>{chain}</think><answer> Final Answer:{answer} </answer>'
