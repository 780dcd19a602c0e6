"""Equations of a chain."""

import random
import time

import pytest

from mmr1.data import traces
from mmr1.data.tasks import digits
from mmr1.data.tasks import geometry
from mmr1.rewards import steps


@pytest.mark.parametrize('said, want', [
    ('3+4=7,7*2=14.', [True, True]), ('3+4=8,7*2=14.', [False, True]),
    ('2 + 3*4 = 14', [True]), ('2 + 3*4 = 20', [False]),
    ('10-2-3=5', [True]), ('10-2-3=11', [False]), ('12/4=3', [True]),
    ('7/2=3', [False]), ('8/4*2=4', [True]), ('8/4*2=1', [False]),
    ('7/2*2=7', [True]), ('1/0=0', [False]),
    ('6 × 7 = 42, 42 ÷ 6 = 7', [True] * 2),
    ('5−8=-3', [True]), ('-3+4=1', [True]), ('3*-4=-12', [True]),
    ('3 - -4=7', [True]), ('1+2+3+4=10', [True]), ('3+4=7=7', [True]),
    # None of the kind: a number alone, decimals, words, a wider number.
    ('7=7', []), ('I see 3,4.', []), ('', []), ('3+4', []), ('3+4=x', []),
    ('1.5+1=2', []), ('1+1=2.5', []), ('3+4=7.', [True]), ('x2+3=5', []),
    ('1234567890123+1=2', []), ('(2+3)*4=20', []),
    ('__import__("os")+1=2', []), ('2**3=8', [])])
def test_equations_by_hand(said, want):
  assert steps.equations(said) == want


def test_the_share(make):
  def of(said, **kw):
    return steps.true_steps(make(said), {}, **kw)
  chain = '3+4=7,7*2=15,15-5=10,1+1=3'
  assert of(f'<think>{chain}</think><answer>10</answer>') == .5
  # Of the think block alone, whether or not it was closed.
  assert of(f'1+1=3 <think>{chain[:5]}</think> 1+1=3') == 1
  assert of(f'<think>{chain}') == .5
  assert of(chain) == 0 and of(chain, prefilled=True) == .5
  assert of('<think>I see 7.</think><answer>7</answer>') == 0


@pytest.mark.parametrize('world', [digits.digits, geometry.geometry])
def test_chains_of_the_worlds_are_true(world, make):
  """And one slip lowers the share by that step."""
  rng, seen = random.Random(0), 0
  for i in range(60):
    meta = world(0, 'train', i).meta
    lines = [line for line in meta['steps']
             if any(sign in line.partition('=')[0][1:] for sign in '+-*/')]
    think = traces.concise(meta['facts'], meta['steps'])
    got = steps.equations(think)
    assert got == [True] * len(lines), think
    if lines:
      seen += 1
      line = rng.choice(lines)
      left, _, right = line.rpartition('=')
      wrong = think.replace(line, f'{left}={int(right) + 1}')
      found = steps.equations(wrong)
      assert not all(found) and len(found) == len(got)
  assert seen > 20


def test_hostile_texts_take_no_time():
  start = time.monotonic()
  for said in ('1+' * 10**6, '1' * 10**6, '1 + ' * 10**6, '-' * 10**6,
               '1+' + ' ' * 10**6 + '1=2', '9*' * 10**5 + '9=1',
               '1 +1' * 10**6, ('9' * 12 + '*') * 15 + '9=9'):
    assert not any(steps.equations(said))
  assert time.monotonic() - start < 5
  assert steps.equations(('9' * 12 + '*') * 15 + '1=9') == [False]
