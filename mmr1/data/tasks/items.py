"""What procedural tasks share: their randomness, splits and answer letters.

numpy and the standard library only: data workers import this module.
"""

import hashlib
import operator
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

# Eighths of the space of contents that each split owns.
SPLITS: Mapping[str, range] = {
    'train': range(0, 6),
    'eval': range(6, 7),
    'test': range(7, 8),
}
LETTERS = 'ABCD'


def check_address(
    task: str, seed: int, split: str, i: int) -> tuple[int, int]:
  """(seed, i) as ints; raises ValueError as `generator` does."""
  if split not in SPLITS:
    raise ValueError(
        f'{task}: split {split!r} does not exist; allowed: {tuple(SPLITS)}.')
  seed, i = operator.index(seed), operator.index(i)
  if seed < 0 or i < 0:
    raise ValueError(
        f'{task}: seed and index must be at least 0, got seed={seed}, i={i}.')
  return seed, i


def generator(
    task: str, seed: int, split: str, i: int) -> np.random.Generator:
  """The random stream of item `i`: same on every process and machine.

  Args:
    task: name of the task, so that two tasks do not share streams.
    seed: non-negative.
    split: one of `SPLITS`.
    i: index of the item, non-negative; there is no upper end.

  Raises:
    ValueError: for an unknown split, a negative seed or a negative index.
  """
  seed, i = check_address(task, seed, split, i)
  return np.random.default_rng(
      (zlib.crc32(task.encode()), seed, zlib.crc32(split.encode()), i))


def owns(split: str, content: str) -> bool:
  """Whether items with this content belong to `split`.

  The contents themselves are divided by a hash, whatever the seed: a task
  redraws until its split owns what it drew, so a content of one split can
  never turn up in another.
  """
  digest = hashlib.blake2b(content.encode(), digest_size=2).digest()
  return digest[0] % 8 in SPLITS[split]


def pick(rng: np.random.Generator, options: Sequence):
  """One of `options`, uniformly (far cheaper than `rng.choice`)."""
  return options[rng.integers(len(options))]


def forms(
    task: str, known: Sequence[str], form: Sequence[str] | None
) -> Sequence[str]:
  """The question forms to draw from.

  Args:
    task: name of the task, for the error.
    known: all forms of the task.
    form: the wanted ones, or None for all.

  Raises:
    ValueError: when `form` is a lone string, empty, or has an unknown name.
  """
  if form is None:
    return known
  if isinstance(form, str):
    raise ValueError(
        f'{task}: form must be a tuple, got the string {form!r}; '
        f'write ({form!r},).')
  unknown = [name for name in form if name not in known]
  if unknown or not form:
    raise ValueError(
        f'{task}: form={tuple(form)!r} has unknown names {unknown} or is '
        f'empty; allowed: {tuple(known)}, or None for all.')
  return form


def lettered(
    rng: np.random.Generator, answer: str, others: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
  """Hides `answer` among the wrong texts `others`, in random order.

  Returns:
    (letter of the answer, texts of the options in the order of the letters).
  """
  options = [answer, *others]
  options = tuple(options[j] for j in rng.permutation(len(options)))
  return LETTERS[options.index(answer)], options


def near(
    rng: np.random.Generator, answer: int, *, step: int = 1
) -> tuple[str, ...]:
  """Three wrong numbers close to `answer`, none below 0.

  How many of them lie below it is drawn first, so that choosing the middle of
  the options is no better than chance.
  """
  below = [n for n in range(answer - 4 * step, answer, step) if n >= 0]
  low = int(rng.integers(min(len(below), 3) + 1))
  above = range(answer + step, answer + 5 * step, step)
  wrong = [below[j] for j in rng.permutation(len(below))[:low]]
  wrong += [above[j] for j in rng.permutation(4)[:3 - low]]
  return tuple(str(n) for n in wrong)


def with_letters(question: str, options: Sequence[str]) -> str:
  """`question (A) ... (B) ...`."""
  return ' '.join([question] + [
      f'({letter}) {text}' for letter, text in zip(LETTERS, options)])
