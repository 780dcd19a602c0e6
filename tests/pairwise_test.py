"""Pairs as blocks, and what an evaluation of a reward model says."""

import math

import numpy as np
import pytest

from mmr1 import pairwise
from mmr1 import records
from mmr1 import types
from mmr1.data import encode
from mmr1.data import pipeline
from mmr1.data import processor as processor_lib
from mmr1.data import sources
from mmr1.data import template
from mmr1.data.tasks import pairs


@pytest.fixture(scope='module')
def shape(tiny_folder):
  return pipeline.Shape(
      processor=processor_lib.Processor.open(tiny_folder),
      template=template.think_answer, prompt_length=64, patches=64,
      completions=2, completion_tokens=64)


def drawn(shape, count, **kwargs):
  return [shape.encode(pairs.digits(0, 'train', i, **kwargs), i)
          for i in range(count)]


def test_law_1_a_pair_is_a_prompt_with_two_completions(shape):
  given = [*drawn(shape, 2), *drawn(shape, 1, told=True, shown=False)]
  block = pairwise.assemble(given, shape, 64, pad_rows=1)
  assert block.completions.tokens.shape == (4, 2, 64)
  assert block.prompts.tokens.shape[0] == 4
  for n, (example, _) in enumerate(given):
    for g in range(2):
      ids = encode.encode_completion(example.completions[g], shape.processor)
      mask = block.mask[n, g]
      assert ids[-1] == shape.processor.eos_id and mask.sum() == len(ids)
      np.testing.assert_array_equal(
          block.completions.tokens[n, g][mask], ids)
  assert not block.mask[3].any()  # a row that fills the batch
  assert (block.completions.kind == types.KIND_EXPERT)[:3].any()
  np.testing.assert_array_equal(block.extra['label'][:3, :, 0], [[1, 0]] * 3)
  np.testing.assert_array_equal(block.extra['margin'][:3], np.ones((3, 2, 1)))
  # Text-only pairs have no patches, in one batch with those that are seen.
  slots = block.prompts.media['vision'].slot
  assert (slots[:2] >= 0).any(-1).all() and not (slots[2] >= 0).any()
  swapped = pairwise.assemble(given, shape, 64, order=(1, 0))
  np.testing.assert_array_equal(
      swapped.completions.tokens, block.completions.tokens[:3, ::-1])
  np.testing.assert_array_equal(swapped.extra['label'][0, :, 0], [0, 1])


def test_what_a_record_says_of_its_pair_is_kept(shape):
  example = records.Example(
      uid=0, question='?', completions=('a', 'b'),
      meta={'margin': 2, 'labels': [.25, .75]})
  block = pairwise.assemble([shape.encode(example, 0)], shape, 8)
  np.testing.assert_array_equal(block.extra['label'][0, :, 0], [.25, .75])
  np.testing.assert_array_equal(block.extra['margin'][0, :, 0], [2, 2])


@pytest.mark.parametrize('completions', [('a',), ('a', 'b ' * 70)])
def test_m26_what_is_no_pair_or_too_long_is_broken(shape, completions):
  example = records.Example(uid=0, question='?', completions=completions)
  assert isinstance(shape.encode(example, 0), records.Broken)


def named(name, **meta):
  return records.Example(uid=len(meta), question='?', meta=meta,
                         member=records.Member(name=name))


def test_accuracy_by_hand():
  examples = [named('seen', sample=1), named('seen', sample=1),
              named('seen', sample=2), named('told', sample=1)]
  s = np.asarray([[2., 1.], [0., 1.], [3., -1.], [.5, .5]])
  said = np.concatenate([s, s[:, ::-1]], 1)
  got = pairwise.summary(said, examples, 'half')
  # 1, 0, 1 and a tie: 2.5 of 4. Samples: (1, 0) no, (1) yes, the tie no.
  assert got['eval/pair_accuracy'] == .625
  assert got['eval/sample_accuracy'] == pytest.approx(1 / 3)
  assert got['eval/tie_frac'] == .25 and got['eval/order_diff_max'] == 0
  assert got['eval/seen/pair_accuracy'] == pytest.approx(2 / 3)
  assert got['eval/told/pair_accuracy'] == .5
  assert got['eval/macro_accuracy'] == pytest.approx((2 / 3 + .5) / 2)
  assert got['eval/ahead'] == 1.0 and got['eval/n'] == 4
  assert got['eval/bradley_terry'] == pytest.approx(sum(
      math.log1p(math.exp(-x)) for x in (1, -1, 4, 0)) / 4)
  wrong = pairwise.summary(said, examples, 'wrong')
  assert wrong['eval/pair_accuracy'] == .5
  assert wrong['eval/told/pair_accuracy'] == 0
  # A score that changes with the order is seen.
  said[2, 2:] = [-1., 2.5]
  assert pairwise.summary(said, examples, 'half')['eval/order_diff_max'] == .5


def test_of_one_source_there_is_no_mean_of_sources():
  got = pairwise.summary(np.asarray([[1., 0., 0., 1.]]), [named('a')], 'half')
  assert 'eval/macro_accuracy' not in got and got['eval/pair_accuracy'] == 1


# The world.


def test_pairs_of_a_problem_have_different_mistakes():
  for i in range(0, 60, 2):
    a, b = (pairs.digits(3, 'eval', i + k) for k in range(2))
    assert a.question == b.question and a.completions[0] == b.completions[0]
    assert a.meta['sample'] == b.meta['sample'] == i // 2
    assert a.meta['mistake'] != b.meta['mistake']
    assert a.uid == i and b.uid == i + 1


def test_the_mistake_is_what_it_is_called():
  seen = set()
  for i in range(120):
    example = pairs.digits(0, 'train', i, off=1)
    chosen, rejected = example.completions
    values = ','.join(map(str, example.meta['scene']['digits']))
    assert f'digits {values}.' in chosen
    assert f'Final Answer:{example.answer} ' in chosen and chosen != rejected
    head, answer = rejected.split('</think>')
    kind = example.meta['mistake']
    seen.add(kind)
    misread = kind in ('misread', 'hallucinated')
    assert (f'digits {values}.' in rejected) != misread
    if not misread:  # whose answer may come out right all the same
      assert f':{example.answer} ' not in answer
    said = rejected.partition('digits ')[2].partition('.')[0].split(',')
    assert (len(said) != len(values.split(','))) == (kind == 'hallucinated')
    assert 2 <= len(said) <= 3
    # Only in 'answer' the chain is that of the right response.
    assert (head == chosen.split('</think>')[0]) == (kind == 'answer')
    stated = head.rstrip('.').rpartition('=')[2]
    assert (f':{stated} ' in answer) == (kind != 'answer')
  assert seen == set(pairs.KINDS)


def test_told_pairs_have_no_image_and_say_the_digits():
  example = pairs.digits(0, 'train', 5, told=True, shown=False)
  assert not example.images and '<image>' not in example.question
  values = ','.join(map(str, example.meta['scene']['digits']))
  assert example.question.startswith(f'Digits {values}. ')
  both = pairs.digits(0, 'train', 5, told=True)
  assert both.images and both.question == f'<image>{example.question}'
  assert both.completions == example.completions


@pytest.mark.parametrize('kwargs, said', [
    (dict(kinds=('typo',)), 'typo'), (dict(per_problem=0), 'per_problem=0'),
    (dict(off=0), 'off=0'), (dict(shown=False), 'shown=False')])
def test_m22_what_the_world_refuses(kwargs, said):
  with pytest.raises(ValueError, match=said):
    pairs.digits(0, 'train', 0, **kwargs)


def test_a_world_of_pairs_is_a_source():
  source = sources.TaskSource(pairs.digits, seed=0, split='eval', size=4)
  assert [source[i].uid for i in range(4)] == [0, 1, 2, 3]
