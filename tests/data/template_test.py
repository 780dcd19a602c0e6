"""Where media and text go."""

import functools

import pytest

from mmr1 import records
from mmr1.data import template

A, B = object(), object()


def _text(text):
  return {'type': 'text', 'text': text}


IMAGE, VIDEO = {'type': 'image'}, {'type': 'video'}


def test_media_in_placeholder_order():
  example = records.Example(
      uid=0, question='a<image>b<video>\nc<image>', images=(A, B),
      videos=(A,))
  (turn,) = template.plain(example)
  assert turn['role'] == 'user'
  assert turn['content'] == [
      _text('a'), IMAGE, _text('b'), VIDEO, _text('\nc'), IMAGE]


def test_media_without_placeholders_in_front_of_the_first_user_turn():
  example = records.Example(uid=0, images=(A,), videos=(B,), messages=(
      {'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'q'},
      {'role': 'assistant', 'content': 'a'}, {'role': 'user', 'content': 'r'}))
  turns = template.plain(example)
  assert [t['role'] for t in turns] == ['system', 'user', 'assistant', 'user']
  assert turns[1]['content'] == [IMAGE, VIDEO, _text('q')]
  assert turns[3]['content'] == [_text('r')]


def test_one_kind_placed_the_other_in_front():
  example = records.Example(
      uid=0, question='q<video>', images=(A,), videos=(B,))
  assert template.plain(example)[0]['content'] == [IMAGE, _text('q'), VIDEO]


@pytest.mark.parametrize('question, images', [
    ('<image><image>q', (A,)), ('<image>q', ()), ('<image>q', (A, B))])
def test_numbers_must_agree(question, images):
  with pytest.raises(ValueError, match='placeholders'):
    template.plain(records.Example(uid=0, question=question, images=images))


def test_think_answer_has_no_system_prompt_unless_asked():
  example = records.Example(uid=0, question='<image>q', images=(A,))
  assert template.think_answer(example) == template.plain(example)
  told = functools.partial(
      template.think_answer, instruction='Think.', system='You reason.')
  system, user = told(example)
  assert system == {'role': 'system', 'content': [_text('You reason.')]}
  assert user['content'] == [IMAGE, _text('q'), _text('\nThink.')]


def test_instruction_goes_to_the_last_user_turn_and_system_is_joined():
  example = records.Example(uid=0, messages=(
      {'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'q'},
      {'role': 'assistant', 'content': 'a'}, {'role': 'user', 'content': 'r'}))
  turns = template.think_answer(example, instruction='i', system='t')
  assert [len(t['content']) for t in turns] == [3, 1, 1, 2]
  assert turns[3]['content'][-1] == _text('\ni')
  assert ''.join(p['text'] for p in turns[0]['content']) == 's\nt'
  # The example's own messages stay as they were.
  assert example.messages[0]['content'] == 's'


def test_needs_a_user_turn():
  with pytest.raises(ValueError, match='user'):
    template.plain(records.Example(
        uid=0, messages=({'role': 'system', 'content': 's'},)))


def test_a_member_may_have_its_own_instruction():
  def asked(**member):
    (turn,) = template.think_answer(records.Example(
        uid=0, question='q', member=records.Member(**member)),
                                    instruction='Think.')
    return turn['content']
  assert asked() == [_text('q'), _text('\nThink.')]
  assert asked(instruction='Briefly.') == [_text('q'), _text('\nBriefly.')]
  assert asked(instruction='') == [_text('q')]
