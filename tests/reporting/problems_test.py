"""Problems of an evaluation: which answers are to the same one."""

import json

import pytest

from mmr1.reporting import problems
from mmr1.reporting import reading


@pytest.fixture
def make(tmp_path):
  """A run whose evaluation asked these: {name: (question, images)}."""
  def write(name, asked):
    (tmp_path / name / 'eval').mkdir(parents=True)
    (tmp_path / name / 'eval' / 'grpo_5.jsonl').write_text(''.join(json.dumps({
        'uid': i, 'prompt': question, 'images': images, 'decoding': 'greedy',
        'sample': 0, 'text': 'B', 'gold': 'B', 'correct': True}) + '\n'
        for i, (question, images) in enumerate(asked)))
    return reading.read(tmp_path / name)
  return write


def test_problems_of_other_files_are_others(make):
  """Number and letter of the answer are the same by chance."""
  one, other = '0' * 16 + '.png', '1' * 16 + '.png'
  a = make('a', [
      ('Which angle?', []), ('Who is older?', [one]), ('Left?', [one])])
  b = make('b', [
      ('How many?', []), ('Who is older?', [other]), ('Left?', [one])])
  (made,) = problems.collect([a, b], 1_000_000)
  by = {}
  for problem, evaluation, row in zip(
      made.index['problem'], made.index['evaluation'], made.rows):
    by.setdefault(problem, []).append((evaluation, row['prompt']))
  assert sorted(by.values()) == [
      [(0, 'Left?'), (1, 'Left?')], [(0, 'Which angle?')],
      [(0, 'Who is older?')], [(1, 'How many?')], [(1, 'Who is older?')]]


def test_a_loop_that_leaves_no_question_is_about_that_of_its_run(make):
  run = make('a', [('Which angle?', [])])
  (run.path / 'eval' / 'loop_0.jsonl').write_text(json.dumps({
      'uid': 0, 'gold': 'B', 'correct': [True], 'extracted': ['B'],
      'turns': [{'answer': 'B', 'critique': None}]}) + '\n')
  (made,) = problems.collect([reading.read(run.path)], 1_000_000)
  assert made.index['problem'] == [0, 0]
  assert made.index['evaluation'] == [0, 1]
