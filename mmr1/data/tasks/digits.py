"""Arithmetic over handwritten digits.

The images are scikit-learn's copy of the test part of the UCI digits set (1,797
scans of 8x8 pixels by 13 writers). Scans used for training never appear in
items of the other splits: the last fifth of the set is held out.

An item shows two to four digits in a row, more by argument; the question names
an operation on them, so that the answer needs reading (perception) and a chain
of one to four additions, subtractions or products (reasoning).
"""

import functools
import zlib

import numpy as np
from PIL import Image

from mmr1 import records
from mmr1.data.tasks import items

CELL = 16  # pixels; one merged cell of the embedded model
GLYPH = 14  # pixels a scan is drawn at; leaves room to jitter
FORMS = ('sum', 'minus_last', 'double_first', 'product_first')
# Operations that the embedded model was not taught; drawn where they are named.
UNTAUGHT = ('triple_first',)
_QUESTIONS = {
    'sum': (
        'What is the sum of the digits?',
        'Add all the digits.',
        'What do the digits add up to?',
    ),
    'minus_last': (
        'Add the digits but subtract the last one.',
        'Add all digits except the last, then subtract the last.',
    ),
    'double_first': (
        'Double the first digit and add the others.',
        'What is twice the first digit plus the other digits?',
    ),
    'product_first': (
        'Multiply the first two digits and add the others.',
        'What is the product of the first two digits plus the others?',
    ),
    'triple_first': (
        'Triple the first digit and add the others.',
        'What is three times the first digit plus the other digits?',
    ),
}
_TIMES = {'double_first': 2, 'triple_first': 3}


_READ = (
    'Read the digits.',
    'Which digits are shown?',
    'Write down the digits from left to right.',
)


@functools.cache
def scans_of(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Scans u8[n, 8, 8] in 0..16 and their labels i64[n] of one split."""
  from sklearn import datasets  # imported late: costs a second
  digits = datasets.load_digits()
  cut = len(digits.target) * 4 // 5
  part = slice(0, cut) if split == 'train' else slice(cut, None)
  return digits.images[part].astype(np.uint8), digits.target[part]


def questions(form: str) -> tuple[str, ...]:
  """Wordings of an operation."""
  return _QUESTIONS[form]


def operate(form: str, values: list[int]) -> tuple[int, tuple[str, ...]]:
  """The answer and the steps, each `left op right=result`."""
  first, rest = values[0], list(values[1:])
  steps = []
  if form in _TIMES:
    total = _TIMES[form] * first
    steps.append(f'{_TIMES[form]}*{first}={total}')
  elif form == 'product_first':
    second = rest.pop(0)
    steps.append(f'{first}*{second}={first * second}')
    total = first * second
  else:
    total = first
  for k, value in enumerate(rest):
    minus = form == 'minus_last' and k == len(rest) - 1
    new = total - value if minus else total + value
    steps.append(f'{total}{"-" if minus else "+"}{value}={new}')
    total = new
  return total, tuple(steps)


def picture(scans: np.ndarray, rng: np.random.Generator,
            ink: float = 1.0) -> Image.Image:
  """Digits in a row, each inside its own cell, jittered by two pixels."""
  canvas = np.full((CELL, len(scans) * CELL), 255.0)
  for k, scan in enumerate(scans):
    glyph = Image.fromarray(
        (255 - scan * (ink * (255 // 16))).astype(np.uint8))
    glyph = np.asarray(glyph.resize((GLYPH, GLYPH), Image.Resampling.BILINEAR))
    top, left = rng.integers(0, CELL - GLYPH + 1, 2)
    canvas[top:top + GLYPH, k * CELL + left:k * CELL + left + GLYPH] = glyph
  canvas += rng.normal(0.0, 4.0, canvas.shape)
  pixels = np.clip(canvas, 0, 255).astype(np.uint8)
  return Image.fromarray(pixels).convert('RGB')


def digits(
    seed: int,
    split: str,
    i: int,
    *,
    uid_offset: int = 0,
    min_digits: int = 2,
    max_digits: int = 4,
    forms: tuple[str, ...] = FORMS,
    ink: float = 1.0,
) -> records.Example:
  """Item `i` of the split: a row of handwritten digits and an operation.

  Args:
    seed: non-negative; (seed, split, i) fixes the item.
    split: 'train' uses the training scans; 'eval' and 'test' share the
      held-out ones.
    i: index, from 0, without an upper end.
    uid_offset: added to `i` to make the uid.
    min_digits, max_digits: how many digits are shown, 2..9.
    forms: operations to draw from, among FORMS and UNTAUGHT.
    ink: how dark the strokes are, 0 (white) to 1 (as scanned).

  Raises:
    ValueError: an unknown split or form, or a number outside its range.
  """
  forms = items.forms('digits', FORMS + UNTAUGHT, forms)
  if not 0 <= ink <= 1:
    raise ValueError(f'digits: got ink={ink}; allowed: 0 to 1.')
  rng, scans, values, chosen = _drawn(
      'digits', seed, split, i, min_digits, max_digits)
  n = len(values)
  form = str(rng.choice(np.asarray(forms)))
  question = str(rng.choice(np.asarray(_QUESTIONS[form])))
  answer, steps = operate(form, values)
  listed = ','.join(map(str, values))
  return records.Example(
      uid=uid_offset + i,
      question=f'<image>{question}',
      answer=str(answer),
      images=(picture(scans, rng, ink),),
      source='digits',
      meta={
          'answer_type': 'number',
          'form': form,
          'difficulty': len(steps),
          'caption': f'a row of {n} handwritten digits',
          'facts': (f'digits {listed}',),
          'steps': steps,
          'scene': {'digits': values, 'scans': [int(c) for c in chosen]},
      },
  )


def reading(
    seed: int,
    split: str,
    i: int,
    *,
    uid_offset: int = 0,
    min_digits: int = 2,
    max_digits: int = 4,
) -> records.Example:
  """Item `i` of the split: a row of handwritten digits to be read, '3,7'.

  It carries the transcription as a completion, `<answer>3,7</answer>`, for who
  imitates it.

  Args, Raises: as of `digits`.
  """
  rng, scans, values, chosen = _drawn(
      'reading', seed, split, i, min_digits, max_digits, stream='reading')
  question = items.pick(rng, _READ)
  listed = ','.join(map(str, values))
  return records.Example(
      uid=uid_offset + i,
      question=f'<image>{question}',
      answer=listed,
      images=(picture(scans, rng),),
      completions=(f'<answer>{listed}</answer>',),
      source='reading',
      meta={
          'answer_type': 'text',
          'difficulty': 0,
          'caption': f'a row of {len(values)} handwritten digits',
          'facts': (f'digits {listed}',),
          'steps': (),
          'scene': {'digits': values, 'scans': [int(c) for c in chosen]},
      },
  )


def _drawn(task: str, seed: int, split: str, i: int, least: int, most: int,
           stream: str = ''):
  """The item's generator, its scans, what they are and their numbers."""
  if not 2 <= least <= most <= 9:
    raise ValueError(
        f'{task}: got min_digits={least}, max_digits={most}; '
        'allowed are 2 <= min_digits <= max_digits <= 9.')
  seed, i = items.check_address(task, seed, split, i)
  rng = np.random.default_rng([seed, zlib.crc32((stream + split).encode()), i])
  scans, labels = scans_of(split)
  chosen = rng.integers(0, len(labels), int(rng.integers(least, most + 1)))
  return rng, scans[chosen], [int(v) for v in labels[chosen]], chosen
