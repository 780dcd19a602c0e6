"""The rules of puzzles on instances small enough to judge by eye."""

import itertools
import json
import random
import time
import warnings

import pytest

from mmr1 import puzzle_rules

SLIDING = {'kind': 'sliding', 'board': ((2, 4, 0), (1, 6, 8))}
# 1 2 _ / 3 5 7 needs more than one move; here 1 2 3 / 5 _ 7 needs one.
NEAR = {'kind': 'sliding', 'board': ((1, 2, 3), (5, 0, 7))}
# Two ways around the middle wall of 2 x 2 cells: a ring.
RING = {'kind': 'maze', 'open': (('DR', 'DL'), ('UR', 'UL')),
        'start': (0, 0), 'goal': (1, 1)}
WALLED = {'kind': 'maze', 'open': (('R', 'DL'), ('R', 'UL')),
          'start': (0, 0), 'goal': (1, 1)}
SUDOKU = {'kind': 'sudoku', 'givens': (
    (1, 2, 0, 4), (3, 4, 1, 2), (2, 1, 4, 3), (4, 3, 2, 0))}
# Blanks that two grids fill: 1 and 2 can change places.
TWICE = {'kind': 'sudoku', 'givens': (
    (0, 0, 3, 4), (3, 4, 1, 2), (0, 0, 4, 3), (4, 3, 2, 1))}
ORDERING = {'kind': 'ordering', 'nodes': ('A', 'B', 'C', 'D'),
            'edges': (('B', 'A'), ('B', 'C'), ('A', 'D'), ('C', 'D'))}
POINTS = {'kind': 'twenty_four', 'numbers': (8, 2, 5, 1)}
EIGHTS = {'kind': 'twenty_four', 'numbers': (3, 3, 8, 8)}
WATER = {'kind': 'container', 'heights': (3, 1, 2, 4)}  # 3 * 3
EVERY = (SLIDING, NEAR, RING, WALLED, SUDOKU, TWICE, ORDERING, POINTS, EIGHTS,
         WATER)


@pytest.mark.parametrize('puzzle, right', [
    # The gap goes right; or away and back first.
    (NEAR, 'R'), (NEAR, 'r'), (NEAR, 'right'), (NEAR, '[R]'), (NEAR, '$R$'),
    (NEAR, 'U,D,R'), (NEAR, 'UDR'), (NEAR, 'Up, down -> right.'),
    (NEAR, 'R,L,R'), (NEAR, 'U\u2192D\u2192R'), (NEAR, '\\boxed{R}'),
    (RING, 'R,D'), (RING, 'D,R'), (RING, 'R L D R'), (WALLED, 'R,D'),
    (SUDOKU, '1234/3412/2143/4321'), (SUDOKU, '1 2 3 4\n3412\n2143\n4321'),
    (SUDOKU, '[[1,2,3,4],[3,4,1,2],[2,1,4,3],[4,3,2,1]]'),
    (TWICE, '1234/3412/2143/4321'), (TWICE, '2134/3412/1243/4321'),
    (ORDERING, 'B,A,C,D'), (ORDERING, 'B,C,A,D'), (ORDERING, 'bacd'),
    (ORDERING, 'B -> A -> C -> D'), (ORDERING, '(B, A, C, D)'),
    (POINTS, '(8-2)*(5-1)'), (POINTS, '(5 - 1) * (8 - 2) = 24'),
    (POINTS, '(8-2)\u00d7(5\u22121)'), (POINTS, '(8-2)\\times(5-1)'),
    (POINTS, '8*(5-2)/1'), (POINTS, '-8*(2-5)*1'), (POINTS, '(2-8)*(1-5)'),
    (EIGHTS, '8/(3-8/3)'),  # through a fraction, exactly
    (WATER, '9'), (WATER, '9.0'), (WATER, '$9$'),
])
def test_every_right_answer_passes(puzzle, right):
  assert puzzle_rules.passes(puzzle, right) is True
  # As a file has it.
  assert puzzle_rules.passes(json.loads(json.dumps(puzzle)), right) is True


@pytest.mark.parametrize('puzzle, wrong', [
    (NEAR, 'L'), (NEAR, 'R,L'), (NEAR, 'R,R'), (NEAR, 'D,U,R'), (NEAR, ''),
    (NEAR, 'R,7'), (NEAR, 'not R'), (NEAR, '-R'), (NEAR, 'R or L'),
    (SLIDING, ''), (SLIDING, 'D'),
    (RING, 'R'), (RING, ''), (RING, 'D'), (RING, 'L,R,R,D'), (RING, 'R,D,R'),
    (WALLED, 'D,R'),  # through the wall
    (RING, 'R,D,L'),  # over the goal and on
    (SUDOKU, '1234/3412/2143/4312'), (SUDOKU, '1243/3412/2134/4321'),
    (SUDOKU, '2134/3412/1243/4321'),  # a grid, but not of these givens
    (SUDOKU, '1234/3412/2143'), (SUDOKU, '1234/3412/2143/43211'),
    (TWICE, '1134/3412/2243/4321'),  # rows hold a digit twice
    (TWICE, '1234/3412/1243/4321'),  # columns
    (SUDOKU, '1 2 3 4 then 3412 2143 4321'),
    (ORDERING, 'A,B,C,D'), (ORDERING, 'B,A,C'), (ORDERING, 'B,A,C,D,D'),
    (ORDERING, 'B,A,C,E'), (ORDERING, 'B,A,D,C'), (ORDERING, ''),
    (POINTS, '24'), (POINTS, '8*(5-2)'), (POINTS, '8+8+8'),
    (POINTS, '8*(5-2)*1*1'), (POINTS, '8*(5-2)**1'), (POINTS, '8*(5-2)//1'),
    (POINTS, '(8-2)*5-1'), (POINTS, '(8-2)*(5-1)=25'), (POINTS, '85-12'),
    (POINTS, '24=(8-2)*(5-1)+'), (POINTS, '+8*(5-2)*1'), (POINTS, '8,2,5,1'),
    (POINTS, '8/(5-2-1-2)'), (POINTS, '8/(2*5-1-9)'), (POINTS, '()'),
    (EIGHTS, '8/(3-2.666667)'), (EIGHTS, '8*3'), (EIGHTS, '8/(3-3)+8'),
    (WATER, '8'), (WATER, '-9'), (WATER, '9 or 8'), (WATER, 'nine'),
    (WATER, '3*3'), (WATER, ''),
])
def test_wrong_answers_fail(puzzle, wrong):
  assert puzzle_rules.passes(puzzle, wrong) is False


def test_division_by_zero_is_wrong():
  zero = {'kind': 'twenty_four', 'numbers': (8, 3, 3, 1)}
  assert puzzle_rules.passes(zero, '8*3/(3-1-2)') is False
  assert puzzle_rules.passes(zero, '8/(3-3)*1') is False
  assert puzzle_rules.passes(zero, '8*3*(3-1)/2') is False
  assert puzzle_rules.passes(zero, '8*(3+1)-3') is False  # 29
  assert puzzle_rules.passes(
      {'kind': 'twenty_four', 'numbers': (24, 1)}, '24*1') is True


HOSTILE = (
    '', ' ', '\n', '\x00', '(' * 99, '(' * 400, ')' * 90, '[' * 300, '-' * 99,
    '-' * 95 + '8', '9**9**9**9', '9' * 99 + '*' + '9', '1/0', '0/0', '8/0',
    '__import__("os")', 'lambda: 0', 'U' * 999, 'up' * 400, ',' * 999,
    'U,' * 400, '\u0661\u0665', '\u2460\u2464', '\ufdfa' * 999, '\U0001f600',
    '\ud800', '1' * 16, '1234' * 4, '0' * 16, '{}' * 200, '\\' * 99, 'nan',
    'inf', '1e999999999', '3(4)', '1 is 1', '"\\d"', '[]', '()', '[', ')(',
    '8 2 5 1', '0x18', '1_0', '=24', '= 24', '24=24', 'U\u2028D', '..', '.',
    '\u00df' * 4, '*8', '8*', '2 (5)', '0124', '(((8-2)))*((5-1)))')


@pytest.mark.parametrize('puzzle', EVERY)
def test_no_text_raises_or_warns(puzzle):
  """None of these is an answer, nor is a shuffle of characters that are."""
  rng = random.Random(0)
  alphabet = 'UDLRABCD1234 85,/()*-+=[]\n\u2192\u00d7'
  noise = [''.join(rng.choices(alphabet, k=rng.randrange(2, 60)))
           for _ in range(300)]
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for answer in HOSTILE:
      assert puzzle_rules.passes(puzzle, answer) is False, answer
    for answer in noise:
      assert puzzle_rules.passes(puzzle, answer) in (True, False)


@pytest.mark.parametrize('puzzle', EVERY)
def test_a_million_characters_take_no_time(puzzle):
  start = time.monotonic()
  for part in ('U,D,', '1', '(', '-', '\ufdfa', ' ', 'B,A,', '{', '=24', '9*'):
    assert puzzle_rules.passes(puzzle, part * (1_000_000 // len(part))) is False
  assert time.monotonic() - start < 1


@pytest.mark.parametrize('puzzle', [
    None, 'maze', {}, {'kind': 'mase'}, {'kind': ['maze']},
    {'kind': 'sliding'}, {'kind': 'sliding', 'board': ((1, 2), (3, 4))},
    {'kind': 'sudoku', 'givens': None},
    {'kind': 'maze', 'open': (('R',),), 'start': 3, 'goal': (0, 0)},
    {'kind': 'ordering', 'nodes': 'AB', 'edges': None}])
def test_m26_a_broken_puzzle_is_named(puzzle):
  answer = 'A,B' if puzzle and 'nodes' in puzzle else '1' * 16
  answer = 'R' if 'sliding' in str(puzzle) or 'open' in str(puzzle) else answer
  with pytest.raises(ValueError, match='puzzle .*(kind|state)'):
    puzzle_rules.passes(puzzle, answer)


def test_the_most_water_is_the_most():
  """All heights of four bars up to 3, against an area counted in squares."""
  for heights in itertools.product(range(1, 4), repeat=4):
    best = 0
    for i, j in itertools.combinations(range(4), 2):
      best = max(best, sum(  # unit squares between the bars, under both
          1 for _ in range(i, j) for level in range(3)
          if level < heights[i] and level < heights[j]))
    assert puzzle_rules.most_water(heights) == best
    assert puzzle_rules.passes(
        {'kind': 'container', 'heights': heights}, str(best))
