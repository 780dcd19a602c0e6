import fractions
import os
import random
import re
import subprocess
import sys
import time

import pytest

from mmr1 import text

F = fractions.Fraction
GOOD = '<think>I count 3.</think><answer>3</answer>'


@pytest.mark.parametrize('good', [
    GOOD,
    '<think>a</think> \n\n <answer>3</answer>',
    '\n <think>a\nb\n\nc</think>\n<answer>\n3\n4\n</answer> \n',
    '<think> x < y > z </think><answer> Final Answer:B </answer>',
])
def test_m12_structure_accepts(good):
  parsed = text.parse_think_answer(good)
  assert parsed.ok and parsed.think and parsed.answer
  # The published pattern agrees (the other direction does not hold).
  assert re.fullmatch(
      r'<think>.*?</think>\s*<answer>.*?</answer>', good.strip(), re.DOTALL)


@pytest.mark.parametrize('bad', [
    '', '3', '<answer>3</answer>', '<think>a</think>', '<think>a',
    '<think>a</think><answer>3',                          # cut
    '<think></think><answer>3</answer>',                  # empty think
    '<think> \n </think><answer>3</answer>',
    '<think>a</think><answer> \n</answer>',               # empty answer
    '<think>a</think><answer> Final Answer: </answer>',
    '<answer>3</answer><think>a</think>',                 # reversed
    '</think>a<think><answer>3</answer>',
    '<think>a</think></answer>3<answer>',
    '<think><think>a</think></think><answer>3</answer>',  # nested
    '<think>a<answer>3</answer></think>',
    '<think>a<answer></think>3</answer>',
    '<answer><think>a</think>3</answer>',
    '<think>a</think><answer>3</answer><answer>4</answer>',  # repeated
    '<think>a</think><think>b</think><answer>3</answer>',
    '<think>a</think><answer><answer>3</answer></answer>',
    GOOD + GOOD, 'x' + GOOD, GOOD + 'x',                  # around
    '<think>a</think> so <answer>3</answer>',             # between
    '<THINK>a</THINK><ANSWER>3</ANSWER>',
    '\uff1cthink\uff1ea\uff1c/think\uff1e<answer>3</answer>',
])
def test_m12_structure_refuses(bad):
  assert text.parse_think_answer(bad) == text.Parsed('', '', False)


def test_m12_prefilled_think():
  rest = 'I count.</think>\n<answer>3</answer>'
  assert not text.parse_think_answer(rest).ok
  parsed = text.parse_think_answer(rest, prefilled=True)
  assert parsed == text.Parsed('I count.', '3', True)
  # Opening the block a second time is a repeated tag.
  assert not text.parse_think_answer(GOOD, prefilled=True).ok
  # With an open think block, what is not after </think> is no answer.
  cut = 'so <answer>3</answer>'
  assert text.extract_answer(cut, strict=True) == '3'
  assert text.extract_answer(cut, strict=True, prefilled=True) is None


@pytest.mark.parametrize('source, answer', [
    (GOOD, '3'),
    ('<answer> Final Answer: 3 </answer>', '3'),
    ('<answer> The answer is \\boxed{3} </answer>', '\\boxed{3}'),
    ('<answer>The answer is</answer>', None),
    ('<answer>3</answer> because', '3'),                 # format's concern
    ('<think>15</think><answer>7</answer>', '7'),        # not from the think
    ('15', None), (r'\boxed{15}', None), ('Answer: 15', None),
    ('<answer></answer>', None), ('<answer>Final Answer:</answer>', None),
    ('<answer>3</answer><answer>3</answer>', None),      # several
    ('<think>a <answer>3</answer></think>', None),       # inside the think
    ('<think>a <answer>3</answer>', None),
    ('<answer>3', None), ('</answer>3<answer>', None),
])
def test_m11_strict_extraction(source, answer):
  assert text.extract_answer(source, strict=True) == answer


@pytest.mark.parametrize('source, answer', [
    (GOOD, '3'),
    ('<answer>3</answer> \\boxed{4}', '3'),              # rule 1 before 3
    ('<answer>3</answer><answer>4</answer> \\boxed{5}', None),
    ('<think>I see 4', None),                            # rule 2
    ('<think>Answer: 4</think> It has five sides', 'It has five sides'),
    (r'first \boxed{3}, no, \boxed{\frac{1}{2}}. Answer: 9', r'\frac{1}{2}'),
    (r'Answer: 3 \boxed{4', r'3 \boxed{4'),              # an open box is none
    ('Answer: 2. Wait.\nThe answer is 1.5. Because of the sides.', '1.5'),
    ('So the final answer is: **B**', 'B'),
    ('**Answer:** A. Paris\nbye', 'A. Paris'),
    ('Answer:\n\n  12\nmore', '12'),
    ('one two three four five six seven eight',          # 8 words
     'one two three four five six seven eight'),
    ('one two three four five six seven eight nine', None),
    ('', None), ('   ', None),
])
def test_lenient_extraction_in_its_documented_order(source, answer):
  assert text.extract_answer(source, strict=False) == answer


@pytest.mark.parametrize('source, value', [
    ('3', F(3)), ('-3', F(-3)), ('\u22123', F(-3)), ('+3', F(3)),
    ('- 3', F(-3)), ('3.', F(3)), ('.5', F(1, 2)), ('1.50', F(3, 2)),
    ('1/2', F(1, 2)), ('-1/2', F(-1, 2)), ('1.5/3', F(1, 2)),
    (r'\frac{1}{2}', F(1, 2)), (r'-\dfrac{3}{4}', F(-3, 4)),
    (r'\frac{-3}{4}', F(-3, 4)), ('3 1/2', F(7, 2)), ('3\u00bd', F(7, 2)),
    ('\u00bd', F(1, 2)), ('50%', F(1, 2)), (r'50\%', F(1, 2)),
    ('1.5e3', F(1500)), ('2E-2', F(1, 50)), ('1e00002', F(100)),
    ('1,234,567', F(1234567)), ('1{,}234', F(1234)), ('1,234.5', F(12345, 10)),
    (r'1\,234', F(1234)), (r'1,\!234{,}567', F(1234567)),
    ('$15$', F(15)), (r'\boxed{15}', F(15)), ('**15**', F(15)),
    ('\uff11\uff15', F(15)),           # full-width digits mean the same
    ('9' * 60, F(10**60 - 1)),
])
def test_numbers_are_read_exactly(source, value):
  assert text.parse_number(source) == value


@pytest.mark.parametrize('source', [
    '', 'three', 'inf', '-inf', 'nan', 'Infinity', '1/0', '0/0', '--3', '3-',
    '1.2.3', '1,23', '0,123', '12,34,567', '3 4', '1 234', '1e', 'e5', '0x10',
    '1_000', '3+4', '5\u00b2', '3 5/2', '\u0661\u0665', '\u2460', '1\u2460',
    '9' * 61, '1e61', '1e-61', '1e999999999', '1' + '0' * 100000, '3 cm',
    '3..', 'True', '1/2/3', r'1\,5', '1{,}5', r'15\,', r'1\,2345',
])
def test_m11_not_numbers(source):
  assert text.parse_number(source) is None


def test_normalise_answer():
  for same in ('  Dark  Blue. ', '$dark blue$', r'\text{Dark blue}',
               '**dark\nblue**', 'dark\u00a0blue', '\uff24ark blue'):
    assert text.normalise_answer(same) == 'dark blue'
  assert text.normalise_answer('1,234') == '1234'
  assert text.normalise_answer('(1,234)') == '(1,234)'  # a point, no number
  for degrees in ('30\u00b0', r'30^\circ', r'$30^{\circ}$', r'30\degree'):
    assert text.normalise_answer(degrees) == '30'
  # What plain NFKC would get wrong: 5 squared is not 52.
  assert text.normalise_answer('x\u00b2') == 'x^{2}'
  assert text.normalise_answer('2\u00b9\u2070') == '2^{10}'
  # Braces that were written stay apart: root of 3, squared, is not root of 32.
  assert text.normalise_answer('\\sqrt{3}^{2}\u03c0') == '\\sqrt{3}^{2}\u03c0'
  assert text.normalise_answer('x\u00b2\u2081\u2082\u00b3') == 'x^{2}_{12}^{3}'
  assert text.normalise_answer('\u0410') != 'a'  # Cyrillic A stays itself
  assert text.normalise_answer('X', keep_case=True) == 'X'


def test_any_text_is_read_in_linear_time_without_an_exception():
  rng = random.Random(0)
  parts = ['<think>', '</think>', '<answer>', '</answer>', '\\boxed{', '{', '}',
           '$', '\\', 'Answer:', 'answer is', '3', ',', '/', '.', '%', ' ',
           '\n', '**', '\u00b2', '\u00bd', '\ud800', '\u0661', 'a']
  for _ in range(1500):
    soup = ''.join(rng.choices(parts, k=rng.randrange(12)))
    for strict in (True, False):
      for prefilled in (True, False):
        got = text.extract_answer(soup, strict=strict, prefilled=prefilled)
        assert got is None or got.strip()
    assert text.normalise_answer(soup) is not None
    text.parse_number(soup)
  start = time.monotonic()
  for part in parts:
    long = part * 20000
    for strict in (True, False):
      text.extract_answer(long, strict=strict)
    text.parse_think_answer(long)
    text.normalise_answer(long)
    text.parse_number(long)
  assert time.monotonic() - start < 8


def test_host_modules_never_import_jax():
  code = '''
import sys
import mmr1.records, mmr1.text
from mmr1.rewards import (answer, choice, combine, equivalence, format, math,
                          number, pool, quantity, score, worker)
bad = [m for m in ('jax', 'jaxlib', 'flax', 'grain', 'torch', 'tensorflow')
       if m in sys.modules]
assert not bad, bad
'''
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}, check=False)
  assert done.returncode == 0, done.stderr
