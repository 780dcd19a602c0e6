"""Puzzles: pictures, answers, levels, traces and splits."""

import collections
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from mmr1 import puzzle_rules
from mmr1 import records
from mmr1.data import traces
from mmr1.data.tasks import items
from mmr1.data.tasks import maze
from mmr1.data.tasks import puzzles
from mmr1.data.tasks import twenty_four
from tests.data.tasks import puzzle_oracle as oracle

N = 40  # per kind and level
LEVELS = range(1, 6)


def item(kind, level, i, *, split='train', seed=5):
  return puzzles.puzzles(seed, split, i, kinds=(kind,), levels=(level, level))


@pytest.fixture(scope='module')
def drawn():
  """{(kind, level): N examples}."""
  return {(kind, level): [item(kind, level, i) for i in range(N)]
          for kind in puzzles.KINDS for level in LEVELS}


def of(drawn, kind):
  return [e for level in LEVELS for e in drawn[kind, level]]


def test_pictures_show_the_scene(drawn):
  for e in of(drawn, 'sliding') + of(drawn, 'sudoku'):
    name = 'board' if e.meta['form'] == 'sliding' else 'givens'
    assert oracle.board(e) == e.meta['scene'][name] == e.meta['puzzle'][name]
  for e in of(drawn, 'twenty_four'):
    assert oracle.board(e) == (e.meta['scene']['numbers'],)
  for e in of(drawn, 'container'):
    assert tuple(oracle.heights(e)) == e.meta['scene']['heights']
  for e in of(drawn, 'maze'):
    moves, start, goal = oracle.maze(e)
    scene = e.meta['scene']
    assert (start, goal) == (scene['start'], scene['goal'])
    assert all(moves[r, c] == set(scene['open'][r][c]) for r, c in moves)
  for e in of(drawn, 'ordering'):
    letters, edges = oracle.graph(e)
    assert tuple(letters) == e.meta['scene']['nodes']
    assert edges == set(e.meta['scene']['edges'])


def test_text_alone_gives_no_answer(drawn):
  """The same words have many answers; sizes are those promised."""
  for kind in puzzles.KINDS:
    for level in LEVELS:
      part = drawn[kind, level]
      assert {e.question for e in part} <= {
          e.question for e in of(drawn, kind)} and len(
              {e.question for e in of(drawn, kind)}) == 2
      answers = collections.Counter(e.answer for e in part)
      # Sliding level 1 has five ways of one or two moves.
      assert len(answers) >= 4 and max(answers.values()) <= .5 * N, kind
      assert max(part[0].images[0].size) <= (64 if level < 3 else 96)
      assert all(e.question.startswith('<image>') for e in part)


# Answers.


def test_the_solver_is_right_and_its_rules_agree(drawn):
  for (kind, level), part in drawn.items():
    for e in part:
      assert puzzle_rules.passes(e.meta['puzzle'], e.answer), (kind, level)
      assert e.meta['form'] == kind and e.meta['difficulty'] == level
  for e in of(drawn, 'sliding'):
    assert oracle.wins(oracle.board(e), e.answer.split(','))
    assert len(e.answer.split(',')) == oracle.fewest_slides(oracle.board(e))
  for e in of(drawn, 'maze'):
    assert oracle.walks(oracle.maze(e), e.answer.split(','))
    assert len(e.answer.split(',')) == oracle.fewest_steps(oracle.maze(e))
  for e in of(drawn, 'sudoku'):
    only, = oracle.completions(oracle.board(e))  # there is one
    assert e.answer == '/'.join(''.join(map(str, row)) for row in only)
  for e in of(drawn, 'ordering'):
    assert e.answer == ','.join(min(oracle.orders(*oracle.graph(e))))
  for e in of(drawn, 'twenty_four'):
    assert oracle.value(e.answer) == 24
    assert sorted(re.findall(r'\d+', e.answer)) == sorted(
        map(str, oracle.board(e)[0]))
  for e in of(drawn, 'container'):
    h = oracle.heights(e)
    assert int(e.answer) == max(
        min(a, b) * abs(i - j) for i, a in enumerate(h)
        for j, b in enumerate(h))


def test_changed_moves_are_judged_by_playing_them(drawn):
  """Every single change of a move, and detours: right ones are among them."""
  right = collections.Counter()
  for kind, shown, plays in (('sliding', oracle.board, oracle.wins),
                             ('maze', oracle.maze, oracle.walks)):
    for e in of(drawn, kind):
      seen, way = shown(e), e.answer.split(',')
      for k, move in itertools.product(range(len(way)), 'UDLR'):
        for changed in (way[:k] + [move] + way[k + 1:],
                        way[:k] + [move] + way[k:], way[:k] + way[k + 1:],
                        way + [move, {'U': 'D', 'D': 'U', 'L': 'R',
                                      'R': 'L'}[move]]):
          wanted = plays(seen, changed)
          assert wanted == puzzle_rules.passes(
              e.meta['puzzle'], ','.join(changed)), (seen, changed)
          right[kind, wanted and changed != way] += 1
  assert min(right.values()) > 500 and len(right) == 4, right


def test_other_ways_through_a_maze_pass(drawn):
  """Ways that never enter a cell twice; braided mazes have several."""
  several = 0
  for e in of(drawn, 'maze'):
    moves, start, goal = oracle.maze(e)
    found, todo = [], [('', start, {start})]
    while todo:
      way, (r, c), been = todo.pop()
      if (r, c) == goal:
        found.append(way)
        continue
      for move in moves[r, c]:
        to = (r + (move == 'D') - (move == 'U'),
              c + (move == 'R') - (move == 'L'))
        if to not in been:
          todo.append((way + move, to, been | {to}))
    assert e.answer.replace(',', '') in found
    assert all(puzzle_rules.passes(e.meta['puzzle'], way) for way in found)
    several += len(found) > 1
  assert several > 40


def test_any_other_digit_of_a_sudoku_fails(drawn):
  for e in of(drawn, 'sudoku'):
    for k, digit in itertools.product(range(len(e.answer)), '1234'):
      if e.answer[k] not in ('/', digit):
        changed = e.answer[:k] + digit + e.answer[k + 1:]
        assert not puzzle_rules.passes(e.meta['puzzle'], changed)


def test_all_orders_and_no_others_pass(drawn):
  several = 0
  for e in of(drawn, 'ordering')[::2]:
    letters, edges = oracle.graph(e)
    right = set(oracle.orders(letters, edges))
    several += len(right) > 1
    for order in itertools.permutations(letters):
      assert puzzle_rules.passes(
          e.meta['puzzle'], ','.join(order)) == (order in right)
  assert several > 50


def test_other_expressions_pass_and_changed_ones_are_computed(drawn):
  right = collections.Counter()
  for e in of(drawn, 'twenty_four'):
    for k, c in enumerate(e.answer):
      if c not in '+-*/':
        continue
      for other in '+-*/':
        changed = e.answer[:k] + other + e.answer[k + 1:]
        try:
          wanted = oracle.value(changed) == 24
        except ZeroDivisionError:
          wanted = False
        assert wanted == puzzle_rules.passes(e.meta['puzzle'], changed)
        right[wanted and other != c] += 1
    # The two sides of the operation done last may change places.
    for op in '+*':
      left, found, rest = e.answer.rpartition(op)
      swapped = f'({rest}){op}({left})'
      if found and left.count('(') == left.count(')') and (
          oracle.value(swapped) == 24):
        assert puzzle_rules.passes(e.meta['puzzle'], swapped)
        right['swapped'] += 1
  assert right[False] > 1000 and right['swapped'] > 50, right


def test_only_the_most_water_passes(drawn):
  for e in of(drawn, 'container'):
    for other in range(40):
      assert puzzle_rules.passes(e.meta['puzzle'], str(other)) == (
          str(other) == e.answer)


# Levels.


def _measure(e):
  kind = e.meta['form']
  if kind == 'sliding':
    return oracle.fewest_slides(oracle.board(e))
  if kind == 'maze':
    return oracle.fewest_steps(oracle.maze(e))
  if kind == 'sudoku':
    return sum(n == 0 for row in oracle.board(e) for n in row)
  if kind == 'ordering':
    letters, edges = oracle.graph(e)
    return len(letters) + len(edges)
  if kind == 'twenty_four':
    return oracle.cheapest(oracle.board(e)[0])
  return e.images[0].width * e.images[0].height  # bars times heights


def test_difficulty_grows_with_the_level(drawn):
  """The hardest item of a level is easier than the easiest of the next."""
  for kind in puzzles.KINDS:
    few = 6 if kind == 'twenty_four' else N
    spans = [[_measure(e) for e in drawn[kind, level][:few]]
             for level in LEVELS]
    assert all(max(a) < min(b) for a, b in zip(spans, spans[1:])), kind


def test_digits_that_cannot_make_24_are_known():
  for numbers in ((1, 1, 1, 1), (1, 1, 1, 5), (6, 7, 7, 9), (9, 9, 9, 9)):
    assert oracle.cheapest(numbers) is None
    assert twenty_four.cheapest(numbers) is None
  for numbers in ((3, 3, 8, 8), (1, 5, 5, 5), (1, 3, 4, 6), (4, 4, 7, 7)):
    # The classics that need a fraction: at least two quotients or a product.
    assert twenty_four.cheapest(numbers).cost == oracle.cheapest(numbers) >= 14


# Traces, addresses, splits.


def _from_facts(kind, facts):
  """The instance again from what the facts say."""
  rows = lambda text: [[int(n) if n != '_' else 0 for n in row]
                       for row in text.split('/')]
  cell = lambda name: [int(n) - 1 for n in re.findall(r'\d', name)]
  if kind == 'sliding':
    return {'board': rows(facts[0].removeprefix('board '))}
  if kind == 'sudoku':
    return {'givens': rows(facts[0].removeprefix('grid '))}
  if kind == 'maze':
    start, goal, open_ = facts
    return {'start': cell(start), 'goal': cell(goal), 'open': [
        row.split() for row in open_.removeprefix('open ').split('/')]}
  if kind == 'ordering':
    return {'edges': [fact.split('>') for fact in facts]}
  name = {'twenty_four': 'numbers', 'container': 'heights'}[kind]
  return {name: [int(n) for n in re.findall(r'\d+', facts[0])]}


def test_the_facts_are_all_that_must_be_seen(drawn):
  for (kind, _), part in drawn.items():
    for e in part:
      told = _from_facts(kind, e.meta['facts'])
      for name, value in told.items():
        assert value == json.loads(json.dumps(records.thawed(
            e.meta['puzzle'][name]))), e.meta['facts']


def test_steps_follow_and_end_with_the_answer(drawn):
  for (kind, _), part in drawn.items():
    for e in part:
      *steps, last = e.meta['steps']
      name, _, answer = last.partition('=')
      assert answer == e.answer and name in (
          'moves', 'rows', 'order', '24', 'most')
      assert traces.concise(e.meta['facts'], e.meta['steps']).endswith(
          f'{e.answer}.')
      _follow(kind, e, steps)


def _follow(kind, e, steps):
  """Each step before the last is right, and they lead to the answer."""
  if kind == 'sliding':
    way = [step[0] for step in steps]
    for k, step in enumerate(steps, 1):
      moved = oracle.slid(oracle.board(e), way[:k])
      flat = ''.join(str(n or '_') for n in moved)
      assert step == f'{way[k - 1]}={flat[:3]}/{flat[3:]}'
    assert ','.join(way) == e.answer
  elif kind == 'maze':
    way = [step[0] for step in steps]
    for k, step in enumerate(steps, 1):
      moves, start, _ = oracle.maze(e)
      r, c = [int(n) - 1 for n in re.findall(r'\d', step)]
      assert oracle.walks((moves, start, (r, c)), way[:k])
    assert ','.join(way) == e.answer
  elif kind == 'sudoku':
    grid = [list(row) for row in e.meta['scene']['givens']]
    for step in steps:
      r, c, *_, digit = map(int, re.findall(r'\d', step))
      assert grid[r - 1][c - 1] == 0
      grid[r - 1][c - 1] = digit
      assert len(oracle.completions(grid)) == 1
    assert e.answer == '/'.join(''.join(map(str, row)) for row in grid)
  elif kind == 'ordering':
    taken = ''
    for step in steps:
      free = {n for n in e.meta['scene']['nodes'] if n not in taken and all(
          a in taken for a, b in e.meta['scene']['edges'] if b == n)}
      assert step == f'free {"".join(sorted(free))}={min(free)}'
      taken += step[-1]
    assert ','.join(taken) == e.answer
  elif kind == 'twenty_four':
    assert len(steps) == 3
    for step in steps:
      left, right = step.split('=')
      assert oracle.value(left) == oracle.value(right)
    assert steps[-1].endswith('=24')
  else:
    waters = []
    for step in steps:
      i, j, low, far, water = map(int, re.findall(r'\d+', step))
      heights = e.meta['scene']['heights']
      assert low == min(heights[i - 1], heights[j - 1]) and far == j - i
      assert water == low * far
      waters.append(water)
    assert max(waters) == int(e.answer) and len(steps) == len(heights) - 1


def fingerprint(e):
  text = repr((e.uid, e.question, e.answer, sorted(records.thawed(
      e.meta).items())))
  return hashlib.md5(text.encode() + e.images[0].tobytes()).hexdigest()


def test_items_are_deterministic_and_random_access():
  prints = [fingerprint(puzzles.puzzles(3, 'train', i)) for i in range(60)]
  assert len(set(prints)) == 60
  assert fingerprint(puzzles.puzzles(3, 'train', 7)) == prints[7]
  code = ('import runpy, sys; from mmr1.data.tasks import puzzles; '
          f'test = runpy.run_path({__file__!r}); print(*[test["fingerprint"]('
          'puzzles.puzzles(3, "train", i)) for i in range(59, -1, -1)])')
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True,
      env={**os.environ, 'PYTHONHASHSEED': '7'})
  assert done.stdout.split() == prints[::-1]
  others = {fingerprint(puzzles.puzzles(*address)) for address in (
      (3, 'eval', 7), (3, 'test', 7), (4, 'train', 7))}
  assert len(others | {prints[7]}) == 4
  assert puzzles.puzzles(3, 'train', np.int64(4), uid_offset=50).uid == 54


CONTENTS = {
    'sliding': lambda e: e.meta['scene']['board'],
    'maze': lambda e: e.meta['facts'],
    'sudoku': lambda e: e.answer,  # stronger: no solution recurs
    'ordering': lambda e: frozenset(e.meta['scene']['edges']),
    'twenty_four': lambda e: tuple(sorted(e.meta['scene']['numbers'])),
    'container': lambda e: e.meta['scene']['heights'],
}


@pytest.mark.parametrize('kind', puzzles.KINDS)
def test_splits_never_share_a_puzzle(kind):
  """Under different seeds; every level has items of its own in every split."""
  seen = {}
  for split, seed in (('train', 0), ('eval', 1), ('test', 2)):
    for level in LEVELS:
      part = {CONTENTS[kind](item(kind, level, i, split=split, seed=seed))
              for i in range(60)}
      assert len(part) >= 3, (split, level)
      seen.setdefault(split, set()).update(part)
  assert not seen['train'] & seen['eval'] and not seen['train'] & seen['test']
  assert not seen['eval'] & seen['test']


@pytest.mark.parametrize('split', items.SPLITS)
def test_mazes_belong_to_their_split(split):
  """So many that none comes twice, whatever the rule: the rule is asked."""
  for i in range(60):
    content = maze.content(item('maze', 3, i, split=split).meta['scene'])
    assert items.owns(split, f'maze {content}')


def test_kinds_and_levels_are_drawn_equally_often():
  some = [puzzles.puzzles(0, 'train', i) for i in range(900)]
  for name, count in (('form', 6), ('difficulty', 5)):
    found = collections.Counter(e.meta[name] for e in some)
    assert len(found) == count and min(found.values()) > .75 * 900 / count
  part = [puzzles.puzzles(0, 'train', i, kinds=('maze', 'sudoku'),
                          levels=(2, 3)) for i in range(60)]
  assert {(e.meta['form'], e.meta['difficulty']) for e in part} == {
      (kind, level) for kind in ('maze', 'sudoku') for level in (2, 3)}


@pytest.mark.parametrize('split, i, kwargs, word', [
    ('evl', 0, {}, "'evl' does not exist.*eval"), ('train', -1, {}, 'i=-1'),
    ('train', 0, {'kinds': ('mase',)}, 'mase.*allowed.*maze'),
    ('train', 0, {'kinds': 'maze'}, 'tuple'),
    ('train', 0, {'kinds': ()}, 'empty'),
    ('train', 0, {'levels': (0, 3)}, r'levels=\(0, 3\)'),
    ('train', 0, {'levels': (4, 3)}, r'levels=\(4, 3\)'),
    ('train', 0, {'levels': (1, 6)}, r'levels=\(1, 6\)')])
def test_bad_arguments_are_named(split, i, kwargs, word):
  with pytest.raises(ValueError, match=word):
    puzzles.puzzles(0, split, i, **kwargs)
