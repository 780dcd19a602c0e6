"""The verifier as a reward and in the shared matcher of answers."""

import math
import pickle
import warnings

import pytest

from mmr1 import records
from mmr1.data import traces
from mmr1.data.tasks import puzzles
from mmr1.rewards import answer
from mmr1.rewards import puzzle
from mmr1.rewards import score

# A comes before B and before C: two orders.
STATE = {'kind': 'ordering', 'nodes': ('A', 'B', 'C'),
         'edges': (('A', 'B'), ('A', 'C'))}
META = {'answer_type': 'puzzle', 'puzzle': STATE}


def test_every_solution_earns_one_and_not_only_the_gold_answer(make, tagged):
  for right in ('A,B,C', 'A,C,B', 'a -> c -> b'):
    sample = make(tagged(right), 'A,B,C', **META)
    assert puzzle.solved(sample, {}) == 1.0
    assert answer.correct(sample, {}) == 1.0
    assert answer.match(right, sample.example) is True
  for wrong in ('B,A,C', 'A,B', 'A,B,C,A', 'A,B,D', '7'):
    sample = make(tagged(wrong), 'A,B,C', **META)
    assert puzzle.solved(sample, {}) == answer.correct(sample, {}) == 0.0
    assert answer.match(wrong, sample.example) is False


def test_the_answer_is_what_other_rewards_extract(make, tagged):
  right = 'A,C,B'
  for text in (right, f'<answer>{right}', f'<answer>{right}</answer>' * 2,
               f'<think>{right}</think>', f'<think>{right}</think><answer>'
               '</answer>', f'<think><answer>{right}</answer></think>',
               f'<think>{right}</think><answer>B,A,C</answer>'):
    assert puzzle.solved(make(text, **META), {}) == 0.0, text
  assert puzzle.solved(make(f'Answer: {right}', **META), {}, strict=False) == 1
  closed = f'I look.</think><answer>{right}</answer>'
  assert puzzle.solved(make(closed, **META), {}, prefilled=True) == 1.0
  assert puzzle.solved(
      make(tagged(f'Final Answer: {right}'), **META), {}) == 1.0


def test_m13_other_examples_have_no_value(make, tagged):
  assert puzzle.solved(make(tagged('15'), '15'), {}) is None
  scorer = score.Scorer({'solved': score.Reward(puzzle.solved)})
  samples = [make(tagged('A,C,B'), 'A,B,C', **META),
             make(tagged('B'), 'A,B,C', uid=1, **META),
             make(tagged('15'), '15', uid=2)]
  scored = scorer.score(samples, 3, 1, {})
  assert scored.columns[:2, 0, 0].tolist() == [1.0, 0.0]
  assert math.isnan(scored.columns[2, 0, 0]) and not scored.failures


def test_m11_hostile_texts_earn_nothing_and_raise_nothing(make, tagged):
  examples = [puzzles.puzzles(0, 'train', 0, kinds=(kind,))
              for kind in puzzles.KINDS]
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for example in examples:
      for text in ('', '(' * 90, '9**9**9', '[' * 9999, '-' * 99 + '1',
                   '\ud800', 'U' * 100_000, '\ufdfa' * 5000, '1/0',
                   '__import__("os")', example.question, 'U D L R',
                   'A B C D E F G H'):
        for whole in (text, tagged(text), f'<answer>{text}', tagged(
            f'{example.answer} or {text}')):
          sample = make(whole, example.answer, **records.thawed(example.meta))
          for strict in (True, False):
            assert puzzle.solved(sample, {}, strict=strict) == 0.0, whole[:99]
            assert answer.correct(sample, {}, strict=strict) == 0.0


def test_traces_of_the_solver_earn_one():
  examples = [puzzles.puzzles(0, 'eval', i) for i in range(60)]
  for example in traces.solved(examples, None, '')[0]:
    sample = records.Sample(
        text=example.completions[0], tokens=(), kinds=(), length=1,
        truncated=False, example=example, uid=0, group=0, slot=0)
    assert puzzle.solved(sample, {}) == answer.correct(sample, {}) == 1.0
    assert puzzle.solved(pickle.loads(pickle.dumps(sample)), {}) == 1.0
    assert not answer.unusable(example)


def test_m26_puzzles_that_no_answer_can_solve(make):
  def unusable(gold, **meta):
    return answer.unusable(make('', gold, answer_type='puzzle', **meta).example)
  assert not unusable('A,C,B', puzzle=STATE)
  assert 'does not solve' in unusable('B,A,C', puzzle=STATE)
  assert 'kind' in unusable('A,B,C')
  assert 'mase' in unusable('A,B,C', puzzle={'kind': 'mase'})
  assert 'edges' in unusable('A,B', puzzle={'kind': 'ordering', 'nodes': 'AB'})
  assert 'gold' in unusable(None, puzzle=STATE)
  with pytest.raises(ValueError, match='kind=None'):
    answer.match('A', make('', 'A', answer_type='puzzle').example)
