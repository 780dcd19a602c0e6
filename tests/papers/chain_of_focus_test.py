"""Chain-of-Focus: crops, rewards and the group-aware hook, by hand."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from mmr1 import environments
from mmr1 import episodes
from mmr1 import records
from mmr1 import resolve
from mmr1.data import datasets
from mmr1.envs import crop
from mmr1.papers import chain_of_focus as paper
from mmr1.rewards import combine
from tests.papers import runs


def painted(width, height):
  """Each pixel says where it is: red across, green down."""
  x, y = np.meshgrid(np.arange(width), np.arange(height))
  return Image.fromarray(np.stack(
      [x % 256, y % 256, 0 * x], -1).astype(np.uint8))


def test_a_crop_by_hand():
  # 640 x 480, [100, 100, 140, 160]: 1.5 times about (120, 130) is [90, 85, 150,
  # 175], 60 x 90; twice that 120 x 180; 120 / 28 = 4.3 and 180 / 28 = 6.4, so
  # 112 x 168, and 18,816 pixels are enough.
  image = painted(640, 480)
  made = paper.enlarged(image, (100, 100, 140, 160))
  assert made.size == (112, 168)
  corner, far = np.asarray(made)[0, 0], np.asarray(made)[-1, -1]
  assert abs(int(corner[0]) - 90) <= 1 and abs(int(corner[1]) - 85) <= 1
  assert abs(int(far[0]) - 149) <= 1 and abs(int(far[1]) - 174) <= 1


def test_small_parts_grow_and_edges_hold():
  # [0, 0, 10, 10] grows to [-2.5, -2.5, 12.5, 12.5], inside [0, 0, 12, 12];
  # 24 x 24 is one cell of 28, and 784 pixels are too few: sqrt(12544 / 576) =
  # 4.67 times 24 is 112.
  assert paper.enlarged(painted(640, 480), (0, 0, 10, 10)).size == (112, 112)


@pytest.mark.parametrize('box', [
    (600, 400, 660, 480), (-1, 0, 5, 5), (5, 5, 5, 9), (9, 5, 5, 9),
    (0, 480, 5, 481), (640, 0, 641, 5)])
def test_boxes_outside_are_refused(box):
  with pytest.raises(ValueError, match='inside'):
    paper.enlarged(painted(640, 480), box)


def sample(*turns, answer='7', calls=(), needs=True):
  """An episode; `calls` are boxes, or None for one that was refused."""
  said = [records.Turn('assistant', t) for t in turns]
  for n, box in enumerate(calls):
    said.insert(2 * n + 1, records.Turn('user', '', call=(
        {'said': ''} if box is None else {'box': box})))
  return records.Sample(
      text='\n'.join(turns), tokens=(), kinds=(), length=0, truncated=False,
      example=records.Example(uid=0, question='?', answer=answer, meta={
          'answer_type': 'number', 'needs_zoom': needs}),
      uid=0, group=0, slot=0, turns=tuple(said))


CALL = '<think>see</think><tool_call>{"bbox_2d":[0,0,4,4]}</tool_call>'
RIGHT = '<think>so</think><answer>7</answer>'
WRONG = '<think>so</think><answer>8</answer>'


def reward(arg, s):
  """What the config's rewards come to."""
  c = resolve.finalise(runs.config('chain_of_focus', arg))
  total = 0.0
  for name in c.chain_of_focus.rewards:
    section = c.rewards[name]
    value = resolve.function(section.fn, 'mmr1.rewards')(
        s, {}, **section.kwargs.as_dict())
    total += section.weight * (value or 0.0)
  return total


def test_worked_numbers_of_the_rewards():
  # .9 acc + .1 fmt; r4 and r5 pay 1 and .5 more for a tool on right answers,
  # r6 .5 on wrong ones. A call counts, whatever came of it.
  zoom = dict(calls=([0, 0, 4, 4],))
  assert reward(None, sample(RIGHT)) == pytest.approx(1.0)
  assert reward(None, sample('<answer>7</answer>')) == pytest.approx(.9)
  assert reward(None, sample(WRONG)) == pytest.approx(.1)
  for name, right, wrong in (('r4', 2.0, .1), ('r5', 1.5, .1), ('r6', 1.0, .6)):
    assert reward(name, sample(CALL, RIGHT, **zoom)) == pytest.approx(right)
    assert reward(name, sample(CALL, WRONG, **zoom)) == pytest.approx(wrong)
    refused = sample(CALL, WRONG, calls=(None,))
    assert reward(name, refused) == pytest.approx(wrong)
    assert reward(name, sample(RIGHT)) == pytest.approx(1.0)
    assert reward(name, sample(WRONG)) == pytest.approx(.1)
  # .8 / .2 and F1 above .5 against at least .5; r1 pays F1 itself.
  half = sample('<think>x</think><answer>a b c</answer>', answer='b')
  assert reward('r2', half) == pytest.approx(.2)  # F1 2 * 1 / (3 + 1) = .5
  assert reward('r0', half) == pytest.approx(1.0)
  assert reward('r1', half) == pytest.approx(.9 * .5 + .1)
  assert paper.overlap(half, {}, released=True) == 1.0  # 'b' is in 'a b c'


@pytest.mark.parametrize('name, longest', [
    ('r0', 1000), ('r1', 10), ('r2', 10), ('r4', 1000), ('r6', 1000)])
def test_how_long_an_answer_may_be(name, longest):
  format_ = resolve.finalise(
      runs.config('chain_of_focus', name)).rewards.format
  for count, want in ((longest, 1), (longest + 1, 0)):
    said = f'<think>x</think><answer>{"w " * count}</answer>'
    assert paper.tags(sample(said), {}, **format_.kwargs.as_dict()) == want


@pytest.mark.parametrize('said, used', [
    ('<tool_call></tool_call>', 1), (CALL, 1), ('<tool_call>', 0),
    ('</tool_call><tool_call>', 0), ('', 0)])
def test_what_is_a_use_of_the_tool(said, used):
  assert paper.tool(sample(said + RIGHT), {}, answer='right') == used
  assert paper.tool(sample(said + WRONG), {}, answer='wrong') == used
  assert paper.tool(sample(said + RIGHT), {}, answer='wrong') == 0
  assert paper.tool(sample(said + WRONG), {}, answer='right') == 0


def test_the_tool_is_paid_somewhere():
  with pytest.raises(ValueError, match="answer='left'.*'right', 'wrong'"):
    paper.tool(sample(RIGHT), {}, answer='left')


def test_tags():
  words = ' '.join(['w'] * 1001)
  for text, want in ((RIGHT, 1), (CALL + RIGHT, 1), ('<answer>7</answer>', 0),
                     ('<think>x<answer>7</answer>', 0), ('<think>x</think>', 0),
                     (f'<think>x</think><answer>{words}</answer>', 0),
                     (f'{WRONG}<answer>{words[:-2]}</answer>', 1)):
    assert paper.tags(sample(text), {}) == want


def adaptive(acc, zoomed, **kwargs):
  columns = np.stack([acc, zoomed], -1).astype(float)[None]
  return paper.adaptive(
      columns, ('result', 'zoomed'), {}, {}, weights={
          'result': .9, 'zoomed': 0.0}, **kwargs)[0][0, :, 0]


def test_the_group_aware_hook():
  # Without zooming 1 of 2 is right, with it 1 of 2: it was not needed.
  np.testing.assert_allclose(
      adaptive([1, 0, 1, 0], [0, 0, 1, 1], scale=.5), [.9, 0, .4, -.5])
  # Needed (0 of 2 without), unknown (everybody zoomed), hopeless (nobody was
  # right): as it was.
  for acc, used in (([0, 0, 1, 1], [0, 0, 1, 1]), ([1, 0, 1, 0], [1] * 4),
                    ([0] * 4, [0, 0, 1, 1])):
    np.testing.assert_allclose(adaptive(acc, used, scale=.5),
                               .9 * np.array(acc))
  np.testing.assert_allclose(
      adaptive([1, 0, 1, 0], [0, 0, 1, 1], scale=0.), [.9, 0, .9, 0])


# The environment.


def make(**kwargs):
  return crop.Crop(**{**dict(rule='mmr1.papers.chain_of_focus:enlarged'),
                      **kwargs})


def step(env, image, *turns, seen=None):
  example = records.Example(
      uid=0, images=(image,), meta={} if seen is None else {'seen': seen})
  state = env.reset(example, 0)
  return env.step(state, sample(*turns))[1]


def test_the_tool_answers_and_says_what_is_wrong():
  image = painted(640, 480)
  made = step(make(prompt='again'), image, '<think>x</think><tool_call>{"name": '
              '"image_zoom_in_tool", "arguments": {"bbox_2d": [100, 100, 140, '
              '160], "label": "x"}}</tool_call>')
  assert made.images[0].size == (112, 168) and made.text == '<image>again'
  assert made.call == {'box': [100, 100, 140, 160]} and not made.error
  for said, why in (('{"bbox_2d": [600, 400, 660, 480]}', 'not inside'),
                    ('{"bbox_2d": [1, 2, 3]}', '4 numbers'), ('[', 'JSON'),
                    ('{"bbox_2d": [1, 2, 3, NaN]}', '4 numbers'),
                    ('[' * 9999, 'JSON')):
    bad = step(make(), image, f'<tool_call>{said}</tool_call>')
    assert why in bad.text and bad.error == 'invalid' and not bad.done
    assert not bad.images and 'box' not in bad.call
  assert step(make(), image, RIGHT).reason == 'answer'
  assert step(make(), image, 'hm').reason == 'no_answer'


def test_stub_b_crops_are_of_the_picture_not_of_what_is_seen():
  """One pixel of a thumbnail is sixteen of the picture, all of them there."""
  image = painted(128, 128)
  env = make(size=(('grow', 1.0), ('times', 1.0), ('unit', 16),
                   ('least', 512), ('most', 1024)))
  said = '<tool_call>{"bbox_2d":[16,0,24,4]}</tool_call>'
  made = step(env, image, said, seen=(32, 32)).images[0]
  assert made.size == (32, 16)
  np.testing.assert_array_equal(
      np.asarray(made), np.asarray(image)[:16, 64:96])
  blank = step(make(blank=True), image, said).images[0]
  assert np.asarray(blank).std() == 0


def test_zoomed_by_need():
  looked, passed = sample(CALL, RIGHT, calls=([0, 0, 4, 4],)), sample(RIGHT)
  assert [crop.zoomed(s, {}, needed=n) for s in (looked, passed)
          for n in (True, False, None)] == [1, None, 1, 0, None, 0]


# The world and its traces.


@pytest.fixture(scope='module')
def opened():
  c = resolve.finalise(runs.config('chain_of_focus'))
  processor = datasets.open_processor(c.model, c.data)
  shape, mixture = datasets.shape(c.data, processor), datasets.open_split(
      c, 'train')
  return c, processor, [shape.encode(mixture[k], k) for k in range(60)]


def test_the_world_needs_zooming_for_some(opened):
  """Seen, small digits have four pixels a side; cropped they are as drawn."""
  _, processor, pairs = opened
  kinds = {example.meta['needs_zoom'] for example, _ in pairs}
  assert kinds == {True, False}
  for example, encoded in pairs:
    assert example.images[0].size == (128, 128)
    assert example.meta['seen'] == (32, 32) and len(encoded.patches) == 16
    left, top, right, bottom = example.meta['box']
    small = example.meta['needs_zoom']
    assert (right - left, bottom - top) == ((32, 16) if small else (128, 64))
    outside = np.asarray(example.images[0]).astype(int)
    outside[top:bottom, left:right] = 255
    assert outside.min() > 200  # nothing to read anywhere else
    a, b = example.meta['facts'][0].removeprefix('digits ').split(',')
    assert example.answer == str(int(a) + int(b))


def test_traces_explore_both_ways(opened):
  c, processor, pairs = opened
  made, counts = paper.explored([e for e, _ in pairs], None, '')
  env, seen = environments.environment(c, 'zoom'), set()
  assert .3 < counts['zoomed'] / 60 < .7
  for example, (_, encoded) in zip(made, pairs):
    turns = example.meta['turns']
    seen.add((example.meta['needs_zoom'], len(turns)))
    whole = episodes.imitated(env, processor, example, encoded.next_position,
                              length=128, seed=0)
    assert whole.patches == 16 * (len(turns) - 1)
    assert paper.tags(dataclasses.replace(
        sample(*turns), example=example), {}) == 1
    if len(turns) == 2 and example.meta['needs_zoom']:
      # What comes back are the digits as they were drawn.
      left, top, right, bottom = example.meta['box']
      picture = example.images[0].crop((left, top, right, bottom))
      state = env.fn.reset(example, 0)
      back = env.fn.step(state, sample(turns[0]))[1].images[0]
      np.testing.assert_array_equal(np.asarray(back), np.asarray(picture))
  assert seen == {(a, b) for a in (True, False) for b in (1, 2)}


def test_configs_at_scale():
  c = resolve.finalise(runs.config('chain_of_focus', 'qwen2_5_vl_7b'))
  rl = c.chain_of_focus
  assert (rl.samples_per_prompt, rl.prompts_per_step, rl.max_new_tokens) == (
      6, 64, 32_756)
  assert rl.kl.coefficient == 1e-3 and rl.optimizer.lr == 1e-6
  assert c.environments.zoom.max_turns == 4 and c.cold_start.lora.rank == 32
  with pytest.raises(ValueError, match='one of the rewards'):
    runs.config('chain_of_focus', 'r4,r5')
  assert combine.weighted_sum is resolve.function(
      resolve.finalise(runs.config(
          'chain_of_focus', 'plain')).chain_of_focus.combine.fn,
      'mmr1.rewards')
