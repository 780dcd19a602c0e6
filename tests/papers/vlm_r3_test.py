"""VLM-R3: the rule of regions and both sets of rewards, by hand."""

import dataclasses
import re
import time

import numpy as np
from PIL import Image
import pytest

from mmr1 import advantages
from mmr1 import environments
from mmr1 import episodes
from mmr1 import records
from mmr1 import resolve
from mmr1.data import datasets
from mmr1.envs import crop
from mmr1.papers import vlm_r3 as paper
from tests.papers import runs


def test_the_zoom_of_the_card():
  # 2 - (r - .125) / .375 between an eighth and a half: r = .2 is 2 - .2,
  # .3125 is 2 - .5.
  assert [paper.zoom_of(r) for r in (.05, .125, .2, .3125, .5, .9)] == (
      pytest.approx([2, 2, 1.8, 1.5, 1, 1]))


def test_regions_are_clamped_and_scaled_by_their_area():
  image = Image.new('RGB', (560, 560))
  # 56 x 56 (corners inside) is 1% of it: twice that. 561 x 280 is clamped to
  # 560 x 281, half: as it is, in 28s.
  assert paper.region(image, (100, 100, 155, 155)).size == (112, 112)
  assert paper.region(image, (-1, 0, 900, 280)).size == (560, 280)
  assert paper.region(image, (0, 0, 4, 4)).size == (56, 56)  # 4 cells at least
  for box in ((10, 10, 10, 40), (700, 0, 800, 9), (9, 9, 3, 3)):
    with pytest.raises(ValueError, match='empty'):
      paper.region(image, box)


def sample(text, *, right=True, valid=0):
  calls = [records.Turn('environment', '', call={'box': [0, 0, n + 1, 9]})
           for n in range(valid)]
  return records.Sample(
      text=text.replace('ANSWER', '7' if right else '8'), tokens=(), kinds=(),
      length=0, truncated=False, example=records.Example(
          uid=0, question='?', answer='7', meta={'answer_type': 'number'}),
      uid=0, group=0, slot=0, turns=tuple(calls))


def reward(s, arg=None):
  c = resolve.finalise(runs.config('vlm_r3', arg))
  total = 0.0
  for name in c.vlm_r3.rewards:
    section = c.rewards[name]
    total += section.weight * resolve.function(section.fn, 'mmr1.rewards')(
        s, {}, **section.kwargs.as_dict())
  return total


def of_length(n):
  text = '<think></think><answer>ANSWER</answer>'
  return text.replace('<think>', '<think>' + 'x' * (n - len(text) + 5))


@pytest.mark.parametrize('chars, right, valid, want', [
    (180, True, 2, 2.68), (180, False, 2, 1.18), (400, True, 0, 2.25),
    (250, True, 1, 2.75), (900, True, 3, 2.75)])
def test_rewards_of_the_paper(chars, right, valid, want):
  # acc + format + min(.001 chars, .25) + acc min(.5 n, .5).
  s = sample(of_length(chars), right=right, valid=valid)
  assert len(s.text) == chars
  assert reward(s) == pytest.approx(want, abs=1e-9)


BOX = '{"bbox_2d": [1, 2, 3, 4]}'
OTHER = '{"bbox_2d": [1, 2, 3, 5]}'
A, B, C = 'a' * 30, 'b' * 4, 'c' * 38


@pytest.mark.parametrize('text, right, want', [
    # Pieces of 30, 4 and 38 characters: 1 + .5 + .04 + .5.
    (f'<think>{A}{BOX}{B}{OTHER}{C}</think><answer>ANSWER</answer>', True, 2.04),
    (f'<think>{A}{BOX}{B}{OTHER}{C}</think><answer>ANSWER</answer>', False, .54),
    # A box at the very end: the last piece is empty.
    (f'<think>{A}{BOX}</think><answer>ANSWER</answer>', True, 2.0),
    # No box, 28 characters: .1 at most.
    ('<think>' + 'x' * 28 + '</think><answer>ANSWER</answer>', True, 1.6),
    # One that is no JSON.
    (f'<think>{A}{{"bbox_2d": [1, 2}}{C}</think><answer>ANSWER</answer>', True,
     1.6),
    # JSON, but no list; a list with one in it counts, as in the code.
    (f'<think>{A}{{"bbox_2d": "abcd"}}{C}</think><answer>ANSWER</answer>', True,
     1.6),
    (f'<think>{A}{{"bbox_2d": [[1], 2, 3, 4]}}{C}</think><answer>ANSWER'
     '</answer>', True, 2.1),
    (f'<think>{A}{BOX}{B}{OTHER}{C}</think>7', True, .04)])
def test_rewards_of_the_code(text, right, want):
  assert reward(sample(text, right=right), 'released') == pytest.approx(want)


def test_stub_a_boxes_on_wrong_answers_earn_nothing():
  for form in paper.FORMS:
    assert paper.regions(sample(of_length(99), right=False, valid=2), {},
                         form=form) == 0


def test_stub_d_what_length_pays_for():
  # Beyond 250 nothing (paper); a second box next to the first lowers it (code).
  assert paper.length(sample(of_length(300)), {}) == paper.length(
      sample(of_length(900)), {}) == .25
  one = f'<think>{A}{BOX}{C}</think><answer>7</answer>'
  two = f'<think>{A}{BOX}{B}{BOX}{C}</think><answer>7</answer>'
  assert paper.length(sample(one), {}, form='released') == .1
  assert paper.length(sample(two), {}, form='released') == pytest.approx(.04)


def test_the_group_of_the_card():
  made = advantages.grpo(
      np.array([[[2.04], [2.0], [1.6], [.54], [.54]]]), eps=1e-4)
  np.testing.assert_allclose(
      made[0, :, 0], [.9231, .8701, .3395, -1.0664, -1.0664], atol=1e-4)


@pytest.fixture(scope='module')
def opened():
  c = resolve.finalise(runs.config('vlm_r3'))
  processor = datasets.open_processor(c.model, c.data)
  shape, mixture = datasets.shape(c.data, processor), datasets.open_split(
      c, 'train')
  return c, processor, [shape.encode(mixture[k], k) for k in range(20)]


def test_traces_look_at_both_rows_inside_one_turn(opened):
  c, processor, pairs = opened
  made, counts = paper.looked([e for e, _ in pairs], None, '')
  env = environments.environment(c, 'region')
  assert 0 < counts['guessed'] < 20
  for example, (_, encoded) in zip(made, pairs):
    whole = episodes.imitated(env, processor, example, encoded.next_position,
                              length=160, seed=0)
    looks = len(example.meta['turns']) - 1
    assert looks in (0, 2) and whole.patches == 16 * looks
    assert (whole.tokens == processor.eos_id).sum() == 0  # ends with a string
    s = dataclasses.replace(
        sample(example.completions[0]), example=example)
    assert paper.answered(s, {}) == 1


def test_an_answer_at_the_end_of_any_text():
  """As the regex of the release says, which takes a square of the length."""
  rule = re.compile(r'.*?<answer>.*?</answer>\s*', re.DOTALL)
  rng, ones = np.random.default_rng(0), 0
  parts = ['<answer>', '</answer>', '\n ', 'x', '</answer', '<', '>', '\x1f']
  for _ in range(3000):
    said = ''.join(rng.choice(parts, int(rng.integers(0, 7))))
    want = bool(rule.fullmatch(said))
    assert paper.answered(sample(said), {}) == want, said
    ones += want
  assert 100 < ones < 2900
  start = time.process_time()
  for said in ('<answer>' * 12_000 + '</answer>' + ' ' * 9000 + 'x',
               '<answer></answer>' * 6000 + 'x'):
    assert paper.answered(sample(said), {}) == 0
  assert time.process_time() - start < 1


def test_what_is_no_box_is_passed_over(opened):
  """Nothing is cropped, and the thought goes on."""
  c, processor, pairs = opened
  env = environments.environment(c, 'region').fn
  state = env.reset(pairs[0][0], 0)
  for said in ('{"bbox_2d": [1,2]}', '{"bbox_2d": [3,3,3,9]}'):
    turn = dataclasses.replace(sample(said), turns=(
        records.Turn('assistant', said),))
    found = env.step(state, turn)[1]
    assert found.text == '\n' and not found.images and not found.done
    assert found.error == 'invalid' and found.role == ''


@pytest.mark.parametrize('arg', [None, 'released', 'qwen2_5_vl_7b',
                                 'qwen2_5_vl_7b,released'])
def test_an_answer_that_is_opened_is_closed_in_the_code_alone(arg):
  """By itself, or behind a box inside it, which would be cropped; what is
  closed, and who answers nothing, is as it was."""
  c = resolve.finalise(runs.config('vlm_r3', arg))
  released = 'released' in (arg or '')
  assert c.environments.region.kwargs.close == released
  env = environments.environment(c, 'region').fn
  example = records.Example(uid=0, images=(Image.new('RGB', (64, 64)),))

  def told(said):
    return env.step(env.reset(example, 0), dataclasses.replace(
        sample(said), example=example, turns=(
            records.Turn('assistant', said),)))[1]
  opened, boxed = told('so</think><answer>7'), told(f'<answer>7 {BOX}')
  assert opened.done and opened.reason == (
      'answer' if released else 'no_answer')
  assert boxed.done == released
  assert opened.text == (released and '</answer>' or '')
  for said in ('so</think><answer>7</answer>', 'nothing'):
    assert told(said).done and not told(said).text


def test_configs_at_scale():
  for arg, lr, rows in ((None, 2e-7, 64), ('released', 2e-7, 192)):
    c = resolve.finalise(runs.config('vlm_r3', ','.join(
        x for x in ('qwen2_5_vl_7b', arg) if x)))
    assert c.cold_start.optimizer.lr == lr
    assert c.cold_start.rows_per_step == rows
    assert c.vlm_r3.samples_per_prompt == 5
    assert c.vlm_r3.optimizer.freeze == ('visual/.*',)
    assert c.environments.region.max_turns == 8
    assert c.vlm_r3.policy.kwargs.eps_high == .28
    assert c.rewards.format.weight == (.5 if arg else 1.0)


@pytest.mark.parametrize('lenient', [False, True])
@pytest.mark.parametrize('said', [r'So x = \frac{1}{2}.', '{1, 2}: both roots.'])
def test_braces_alone_are_no_call(said, lenient):
  env = crop.Crop(rule='mmr1.papers.vlm_r3:region', form='inline', role='',
                  lenient=lenient)
  example = records.Example(uid=0, images=(Image.new('RGB', (64, 64)),))
  found = env.step(env.reset(example, 0), dataclasses.replace(
      sample(said), turns=(records.Turn('assistant', said),)))[1]
  assert found.done and found.reason == 'no_answer' and found.call is None
  assert crop.called(f'{said} {BOX} so {said}', 'inline') == BOX


def test_a_box_that_cannot_be_read_is_passed_over():
  """The turn goes on with nothing cropped, whatever ended it like a call."""
  env = crop.Crop(rule='mmr1.papers.vlm_r3:region', form='inline', role='',
                  lenient=True)
  image = Image.new('RGB', (64, 64))
  example = records.Example(uid=0, images=(image,))
  for said in ('see [1,2]}', '{"bbox_2d": [1, 2]}', '{"bbox_2d": [9, 9, 9, 9]}'):
    made = env.step(env.reset(example, 0), records.Sample(
        text=said, tokens=(), kinds=(), length=0, truncated=False,
        example=example, uid=0, group=0, slot=0,
        turns=(records.Turn('assistant', said),)))[1]
    assert not made.done and not made.images and made.error == 'invalid'
    assert made.text == '\n'
