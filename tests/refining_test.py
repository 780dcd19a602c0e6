"""The loop of answers and critiques, with models made of Python."""

import pytest

from mmr1 import records
from mmr1 import refining


def run(answers, critiques, *, rounds=2, **given):
  """Turns of one problem; what the reasoner was asked; whom the critic read."""
  asked, read = [], []
  def ask(examples):
    asked.extend(e.question for e in examples)
    return [answers[len(asked) - 1]]
  def criticise(examples, said):
    read.extend(said)
    return [critiques[len(read) - 1]]
  (turns,) = refining.refine(
      [records.Example(uid=0, question='<image>q')], ask, criticise,
      rounds=rounds, rewrite=lambda q, critique: f'{critique} {q}',
      satisfied=lambda critique: critique == 'fine', **given)
  return turns, asked, read


def test_a_critique_is_put_in_front_of_the_question():
  turns, asked, read = run(['a', 'b', 'c'], ['x', 'y'])
  assert asked == ['<image>q', 'x <image>q', 'y <image>q']
  assert read == ['a', 'b']
  assert [turn.answer for turn in turns] == ['a', 'b', 'c']
  assert [turn.critique for turn in turns] == ['x', 'y', None]


def test_or_in_front_of_all_that_was_there():
  _, asked, _ = run(['a', 'b', 'c'], ['x', 'y'], history='accumulate')
  assert asked == ['<image>q', 'x <image>q', 'y x <image>q']


def test_it_stops_where_nothing_is_wrong():
  turns, asked, read = run(['a', 'b'], ['x', 'fine'], rounds=3)
  assert read == ['a', 'b'] and len(asked) == 2
  assert turns[-1].critique == 'fine' and len(turns) == 2
  turns, asked, _ = run(['a'], ['fine'], rounds=3)
  assert len(asked) == 1
  assert [refining.answer_after(turns, k) for k in range(4)] == ['a'] * 4


def test_no_rounds_ask_no_critic():
  turns, asked, read = run(['a'], [], rounds=0)
  assert len(asked) == 1 and not read and turns[0].critique is None


def test_what_does_not_fit_leaves_the_answer_before():
  turns, _, _ = run(['a', None], ['x'], rounds=2)
  assert [refining.answer_after(turns, k) for k in range(3)] == ['a'] * 3
  turns, asked, read = run([None], [], rounds=2)
  assert not read and refining.answer_after(turns, 2) is None
  turns, asked, _ = run(['a'], [None], rounds=2)
  assert len(asked) == 1 and refining.answer_after(turns, 1) == 'a'


def test_a_critique_brings_no_picture():
  _, asked, _ = run(['a', 'b'], ['see <image>'], rounds=1)
  assert asked[1] == 'see image <image>q'


def test_only_those_that_go_on_are_asked_again():
  seen = []
  def ask(examples):
    seen.append([e.uid for e in examples])
    return [str(e.uid) for e in examples]
  turns = refining.refine(
      [records.Example(uid=i, question='q') for i in range(3)], ask,
      lambda examples, said: ['fine' if e.uid == 1 else 'x' for e in examples],
      rounds=2, rewrite=lambda q, c: q + c,
      satisfied=lambda critique: critique == 'fine')
  assert seen == [[0, 1, 2], [0, 2], [0, 2]]
  assert [len(one) for one in turns] == [3, 1, 3]


@pytest.mark.parametrize('given', [dict(rounds=-1), dict(history='append')])
def test_m22_what_cannot_work(given):
  with pytest.raises(ValueError, match='refine: got'):
    run(['a'], ['x'], **given)
