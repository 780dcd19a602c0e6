r"""Reading model text: tags, the final answer, numbers.

Shared by rewards, evaluation, data engines and reports. Linear in the length of
the text, and never an exception for any text. Evaluation cards quote
`PARSER_VERSION`.
"""

import dataclasses
import fractions
import itertools
import re
import unicodedata

PARSER_VERSION = 2
MAX_DIGITS = 60  # of a mantissa; longer numbers are refused, not rounded
MAX_EXPONENT = 60
_TAGS = ('<think>', '</think>', '<answer>', '</answer>')
_SHORT = 8  # words of a text that may count as an answer as a whole
_LONGEST_NUMBER = 200  # characters, LaTeX included


@dataclasses.dataclass(frozen=True)
class Parsed:
  """A think/answer text taken apart; `think`, `answer` are '' unless `ok`."""
  think: str
  answer: str
  ok: bool


_NOT_OK = Parsed(think='', answer='', ok=False)


def parse_think_answer(text: str, *, prefilled: bool = False) -> Parsed:
  """The strict structure `<think>...</think> <answer>...</answer>`.

  A full match of `<think>.*?</think>\\s*<answer>.*?</answer>` (dot matches
  newline, outer white space stripped) in which each tag occurs once and both
  blocks have content (not 'Final Answer:' alone), in this order, not nested.

  Args:
    text: the completion.
    prefilled: the prompt's template already wrote `<think>`; the completion
      then starts inside the think block and must not open it again.
  """
  if prefilled:
    text = '<think>' + text
  text = text.strip()
  if any(text.count(tag) != 1 for tag in _TAGS):
    return _NOT_OK
  if not text.startswith('<think>') or not text.endswith('</answer>'):
    return _NOT_OK
  think, _, rest = text[len('<think>'):].partition('</think>')
  between, opened, answer = rest.partition('<answer>')
  answer = strip_prefix(answer.removesuffix('</answer>'))
  think = think.strip()
  # `opened` is empty when the answer block starts inside the think block.
  if not opened or between.strip() or not think or not answer:
    return _NOT_OK
  return Parsed(think=think, answer=answer, ok=True)


_PREFIX = re.compile(
    r'(?i)\**\s*(?:final\s+answer\s*:|the\s+answer\s+is\b\s*:?)\s*\**\s*')


def strip_prefix(answer: str) -> str:
  """The answer without a 'Final Answer:' or 'The answer is' in front."""
  answer = answer.strip()
  found = _PREFIX.match(answer)
  return answer[found.end():].strip() if found else answer


def extract_answer(
    text: str, *, strict: bool, prefilled: bool = False) -> str | None:
  r"""The final answer in a completion, or None when there is none.

  strict: the content of the one answer block. None when there is no block,
  more than one, an empty one, or one inside the think block. Text around the
  blocks is the format reward's concern.

  not strict (models that were never trained on the tags), first that applies:
    1. there is an answer tag: as in strict;
    2. a think block was opened and not closed: None; otherwise what follows
       the last `</think>`, or the whole text, is searched:
    3. the content of the last `\boxed{...}`;
    4. after the last 'answer is' (to the end of the sentence) or 'Answer:'
       (to the end of the line, or the next line if that is empty);
    5. the whole text if it has at most 8 words;
    6. None.

  `prefilled`: as in `parse_think_answer`.
  """
  if prefilled:
    text = '<think>' + text
  if strict or '<answer>' in text or '</answer>' in text:
    return _answer_block(text)
  if '</think>' in text:
    text = text.rpartition('</think>')[2]
  if '<think>' in text:
    return None
  answer = last_boxed(text)
  if answer is None:
    answer = _announced(text)
  if answer is None and len(text.split(maxsplit=_SHORT)) <= _SHORT:
    answer = text
  return (strip_prefix(answer) or None) if answer is not None else None


def _answer_block(text: str) -> str | None:
  """The one answer block outside of thinking, or None."""
  if text.count('<answer>') != 1 or text.count('</answer>') != 1:
    return None
  before, _, rest = text.partition('<answer>')
  answer, closed, after = rest.partition('</answer>')
  if not closed or before.rfind('<think>') > before.rfind('</think>'):
    return None
  if any(tag in part for tag in _TAGS for part in (answer, after)):
    return None
  return strip_prefix(answer) or None


def last_boxed(text: str) -> str | None:
  r"""Content of the last `\boxed{...}` with balanced braces, or None."""
  start = text.rfind('\\boxed{')
  if start < 0:
    return None
  start += len('\\boxed')
  end = _closing(text, start)
  return None if end is None else text[start + 1:end]


def _closing(text: str, start: int) -> int | None:
  """Index of the brace that closes the one at `start`, or None."""
  depth = 0
  for found in re.compile(r'\\.|[{}]', re.DOTALL).finditer(text, start):
    if found.group() == '{':
      depth += 1
    elif found.group() == '}':
      depth -= 1
      if depth == 0:
        return found.start()
  return None


_ANNOUNCED = re.compile(
    r'\banswer(?:(?P<sentence>\s+is\b\**\s*:?)|\**\s*:)\**[ \t]*',
    re.IGNORECASE)


def _announced(text: str) -> str | None:
  """What follows the last 'answer is' or 'Answer:', or None."""
  last = None
  for last in _ANNOUNCED.finditer(text):
    pass
  if last is None:
    return None
  rest = text[last.end():].strip()
  line = rest.splitlines()[0] if rest else ''
  if last.group('sentence'):
    line = re.split(r'\.\s', line, maxsplit=1)[0]
  return line.strip().strip('*').strip() or None


_MINUS = str.maketrans({
    **dict.fromkeys('\u2010\u2011\u2012\u2013\u2212\ufe63', '-'),
    '\u2018': "'", '\u2019': "'", '\u201c': '"', '\u201d': '"',
})


def fold(text: str) -> str:
  """Unicode variants to one form, without changing what is meant.

  NFKC, except that it reads 5\u00b2 as 52 and 3\u00bd as 31/2: superscripts
  become ^{..}, subscripts _{..}, fractions get a space in front; circled and
  squared characters stay. The minus signs become '-', curly quotes straight.
  """
  if text.isascii():
    return text
  runs = itertools.groupby(text, _tag)
  text = ''.join(_fold_run(tag, ''.join(run)) for tag, run in runs)
  return unicodedata.normalize('NFC', text).translate(_MINUS)


def _tag(c: str) -> str:
  return '' if c < '\x80' else unicodedata.decomposition(c).partition(' ')[0]


def _fold_run(tag: str, run: str) -> str:
  if tag in ('<circle>', '<square>'):
    return run
  plain = [unicodedata.normalize('NFKC', c) for c in run]
  if tag == '<fraction>':
    return ''.join(' ' + c.replace('\u2044', '/') for c in plain)
  mark = {'<super>': '^', '<sub>': '_'}.get(tag)
  return f'{mark}{{{"".join(plain)}}}' if mark else ''.join(plain)


_COMMANDS = ('\\boxed', '\\text', '\\textbf', '\\mathrm', '\\mathbf')
_PAIRS = (('$$', '$$'), ('$', '$'), ('\\(', '\\)'), ('\\[', '\\]'),
          ('**', '**'))


def unwrap(text: str) -> str:
  r"""Without what merely encloses an answer: $..$, \boxed{..}, **, a period."""
  for _ in range(4):
    before = text = text.strip()
    if text.endswith('.') and not text.endswith('..'):
      text = text[:-1].rstrip()
    for left, right in _PAIRS:
      inner = text[len(left):-len(right)]
      if (len(text) > len(left) + len(right) and text.startswith(left)
          and text.endswith(right) and left not in inner
          and right not in inner):
        text = inner.strip()
    for command in _COMMANDS:
      if (text.startswith(command + '{')
          and _closing(text, len(command)) == len(text) - 1):
        text = text[len(command) + 1:-1].strip()
    if text == before:
      break
  return text


_DEGREE = r'(?:°|\^\s*\{?\s*\\circ\s*\}?|\\degree)'
_LAST_DEGREE = re.compile(rf'(?<=[0-9])\s*{_DEGREE}\s*$')


def normalise_answer(text: str, *, keep_case: bool = False) -> str:
  """The form in which two answers are compared as text.

  Unicode folded, enclosing $..$, boxes, bold and one trailing period removed,
  white space collapsed, a degree sign after a number dropped, commas removed
  from a number, case folded.

  Args:
    text: an answer.
    keep_case: for mathematics, where X and x differ.
  """
  text = ' '.join(unwrap(fold(text)).split()).replace('{,}', ',')
  text = _LAST_DEGREE.sub('', text)
  if len(text) <= _LONGEST_NUMBER and _PLAIN.fullmatch(text):
    text = text.replace(',', '')
  return text if keep_case else text.casefold()


_INT = r'(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)'
_DECIMAL = rf'(?:{_INT}(?:\.[0-9]*)?|\.[0-9]+)'
_PLAIN = re.compile(
    rf'(?P<sign>[+-]?)\s*(?P<digits>{_DECIMAL})(?:[eE](?P<exp>[+-]?[0-9]+))?'
    r'\s*(?P<percent>\\?%)?')
_RATIO = re.compile(
    rf'(?P<sign>[+-]?)\s*(?P<top>{_DECIMAL})\s*/\s*(?P<bottom>{_DECIMAL})')
_TEX_RATIO = re.compile(
    rf'(?P<sign>[+-]?)\s*\\[dt]?frac\s*\{{\s*(?P<top>-?\s*{_DECIMAL})\s*\}}'
    rf'\s*\{{\s*(?P<bottom>{_DECIMAL})\s*\}}')
_THOUSANDS = re.compile(r'(?<=[0-9])(?:\{,}|\\,|,\\!)(?=[0-9]{3}(?![0-9]))')
_MIXED = re.compile(
    r'(?P<sign>[+-]?)\s*(?P<whole>[0-9]+)\s+(?P<top>[0-9]+)/(?P<bottom>[0-9]+)')


def parse_number(text: str) -> fractions.Fraction | None:
  r"""The exact value of a plain number, or None.

  Read are integers and decimals in ASCII or full-width digits with a sign
  (also the unicode minus), thousands commas (or 1\,234), an exponent, a percent
  sign (50% = 1/2), ratios (1/2, \frac{1}{2}) and mixed numbers (3 1/2). Not
  numbers: inf, nan, other scripts' digits, decimal commas, expressions, a zero
  denominator, and anything past MAX_DIGITS or MAX_EXPONENT.
  """
  if len(text) > _LONGEST_NUMBER:
    return None
  text = _THOUSANDS.sub(',', unwrap(fold(text)))
  found = _PLAIN.fullmatch(text)
  if found:
    value = _decimal(found['digits'])
    exponent = fractions.Fraction(found['exp'] or '0')
    if value is None or abs(exponent) > MAX_EXPONENT:
      return None
    value *= fractions.Fraction(10)**int(exponent)
    value /= 100 if found['percent'] else 1
  else:
    found = (_RATIO.fullmatch(text) or _TEX_RATIO.fullmatch(text)
             or _MIXED.fullmatch(text))
    if not found:
      return None
    whole = _decimal(found.groupdict().get('whole', '0'))
    top, bottom = _decimal(found['top']), _decimal(found['bottom'])
    if whole is None or top is None or not bottom:
      return None
    if 'whole' in found.groupdict() and top >= bottom:
      return None  # 3 5/2 is no mixed number
    value = whole + top / bottom
  return -value if found['sign'] == '-' else value


def _decimal(digits: str) -> fractions.Fraction | None:
  digits = digits.replace(',', '').replace(' ', '').rstrip('.')
  if sum(c.isdigit() for c in digits) > MAX_DIGITS:
    return None
  return fractions.Fraction(digits)
