"""Traces that the worlds' solver writes for `collect`."""

import dataclasses

import pytest

from configs import common
from mmr1 import records
from mmr1 import resolve
from mmr1 import text
from mmr1.data import datasets
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import traces
from mmr1.rewards import answer
from mmr1.rewards import format as format_lib


def example(answer_, facts, steps, **changes):
  return records.Example(
      uid=3, question='?', answer=answer_, source='world',
      meta=dict(facts=facts, steps=steps), **changes)


@pytest.mark.parametrize('gold, facts, steps, wanted', [
    ('15', ('3', '7', '5'), ('3+7=10', '10+5=15'),
     '<think>I see 3; 7; 5. 3+7=10,10+5=15.</think> <answer>15</answer>'),
    # Facts are not said again; alone they are the whole chain.
    ('B', ('red', 'red=B'), ('red=B',),
     '<think>I see red; red=B.</think> <answer>B</answer>')])
def test_by_hand(gold, facts, steps, wanted):
  one = example(gold, facts, steps)
  made, counts = traces.solved([one, one], None, 'base')
  assert counts == {} and len(made) == 2
  assert made[0].completions == (wanted,)
  # Nothing else changes.
  assert dataclasses.replace(made[0], completions=()) == one


def test_another_ending_and_what_is_seen_alone():
  one = dataclasses.replace(example('15', ('digits 7,8',), ('7+8=15',)),
                            question='<image>Sum?')
  (made,), _ = traces.told([one], None, 'base', ending='<answer> {} </answer>')
  assert made.completions == (
      '<think>I see digits 7,8. 7+8=15.</think><answer> 15 </answer>',)
  assert made.question == 'Digits 7,8. Sum?' and not made.images
  (made,), counts = traces.seen([one], None, 'base')
  assert counts == {} and made.completions == ('I see digits 7,8.',)
  assert dataclasses.replace(made, completions=()) == one


def test_what_was_there_is_replaced():
  one = example('1', ('1',), (), completions=('old', 'older'))
  (made,), _ = traces.solved([one], None, 'base')
  assert made.completions == ('<think>I see 1.</think> <answer>1</answer>',)


@pytest.mark.parametrize('world, most', [
    ('digits', 64), ('shapes', 96), ('geometry', 96), ('motion', 96)])
def test_every_world_is_solved_in_the_format_and_short_enough(world, most):
  """`most` tokens are what the stages that read them allow."""
  c = common.get_base()
  c.stages, c.data.mixture = ('rl',), (world,)
  source = datasets.open_split(resolve.finalise(c), 'train')
  examples = [source[i] for i in range(60)]
  made, _ = traces.solved(examples, None, 'base')
  processor = processor_lib.Processor.open('mmr1/assets/tiny')
  for one in made:
    said = one.completions[0]
    sample = records.Sample(
        text=said, tokens=(), kinds=(), length=0, truncated=False,
        example=one, uid=one.uid, group=0, slot=0)
    assert answer.correct(sample, {}) == 1
    assert format_lib.think_answer(sample, {}) == 1
    think = text.parse_think_answer(said).think
    assert all(step in think for step in (*one.meta['facts'],
                                          *one.meta['steps']))
    assert len(encode.encode_completion(said, processor)) <= most


def test_an_example_without_a_solution_is_an_error():
  with pytest.raises(KeyError, match='facts'):
    traces.solved([records.Example(uid=0, answer='1')], None, 'base')
