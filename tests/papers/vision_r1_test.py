"""Vision-R1: the hard and the soft reward."""

import pytest

from mmr1 import records
from mmr1.papers import vision_r1
from mmr1.rewards import score

THINK = ('<think> The image shows a triangle. 3+4=7, 7+8=15. Wait, check again.'
         ' 7+8=15. </think>')


def sample(text, gold='15', *, truncated=False, **meta):
  example = records.Example(uid=0, answer=gold, meta=meta)
  return records.Sample(
      text=text, tokens=(1,), kinds=(1,), length=1, truncated=truncated,
      example=example, uid=0, group=0, slot=0)


@pytest.mark.parametrize('text, hard, soft', [
    # Both right.
    (f'{THINK}<answer> Final Answer:15 </answer>', 1.0, 1.0),
    (f'{THINK}<answer>15</answer>', 1.0, 1.0),
    (f'\n{THINK}\n\n<answer>\n15\n</answer>\n', 1.0, 1.0),
    # (a) well-formed and wrong: exactly 0; soft keeps the format half.
    (f'{THINK}<answer> Final Answer:14 </answer>', 0.0, 0.5),
    (f'{THINK}<answer>1.5</answer>', 0.0, 0.5),
    (f'{THINK}<answer>-15</answer>', 0.0, 0.5),
    # (a) right without tags: exactly 0.
    ('15', 0.0, 0.0), ('Final Answer:15', 0.0, 0.0),
    (r'\boxed{15}', 0.0, 0.0),
    # Right answer block, no think block: soft gives the result half.
    ('<answer>15</answer>', 0.0, 0.5),
    (f'So: {THINK}<answer>15</answer>', 0.0, 0.5),
    # Tag games, spam and the gold inside the think block only.
    ('', 0.0, 0.0),
    (f'{THINK}<answer></answer>', 0.0, 0.0),
    (f'{THINK}<answer>15</answer><answer>14</answer>', 0.0, 0.0),
    ('<think><answer>15</answer></think><answer>14</answer>', 0.0, 0.0),
    (f'{THINK}<answer>14 or 15</answer>', 0.0, 0.5),
    ('<answer>15</answer><think>15</think>', 0.0, 0.0),
])
def test_m11_rewards_by_hand(text, hard, soft):
  assert vision_r1.hard_format_result(sample(text), {}) == hard
  assert vision_r1.soft_format_result(sample(text), {}) == soft


@pytest.mark.parametrize('cut', [
    THINK, THINK[:-9], f'{THINK}<answer> Final Answer:15',
    f'{THINK}<answer> Final Answer:15 </answ', f'{THINK}<answer>'])
def test_a_truncated_right_chain_earns_nothing(cut):
  full = f'{THINK}<answer> Final Answer:15 </answer>'
  assert full.startswith(cut)
  assert vision_r1.hard_format_result(sample(cut, truncated=True), {}) == 0.0
  assert vision_r1.soft_format_result(sample(cut, truncated=True), {}) == 0.0


def test_m12_prefilled_think():
  text = f'{THINK}<answer>15</answer>'.removeprefix('<think>')
  assert vision_r1.hard_format_result(sample(text), {}) == 0.0
  for fn in (vision_r1.hard_format_result, vision_r1.soft_format_result):
    assert fn(sample(text), {}, prefilled=True) == 1.0


def test_answers_of_every_kind():
  def hard(answer, gold, **meta):
    text = f'{THINK}<answer> Final Answer:{answer} </answer>'
    return vision_r1.hard_format_result(sample(text, gold, **meta), {})
  assert hard('B', 'B') == hard('(B)', 'B', choices=('x', 'y')) == 1.0
  assert hard('y', 'B', choices=('x', 'y')) == 1.0
  assert hard('A, B', 'B', choices=('x', 'y')) == 0.0
  assert hard('2^{1/2}', r'\sqrt{2}') == 1.0
  assert hard('1', r'\sqrt{2}') == 0.0
  assert hard('Blue', 'blue') == 1.0
  assert hard('0', '0') == 1.0


def test_m13_without_a_gold_answer_there_is_no_value():
  text = f'{THINK}<answer>15</answer>'
  for fn in (vision_r1.hard_format_result, vision_r1.soft_format_result):
    assert fn(sample(text, None), {}) is None
    got = score.Scorer({'r': score.Reward(fn)}).score(
        [sample(text), sample('15'), sample(text, None)], 1, 3, {})
    assert got.columns[0, :2, 0].tolist() == [1.0, 0.0]
    assert got.metrics['reward/none_frac'] == pytest.approx(1 / 3)


def test_m10_a_bomb_behind_the_format_counts_as_a_time_out():
  text = f'{THINK}<answer>9^{{9^{{9^{{9}}}}}}</answer>'
  got = score.Scorer({'r': score.Reward(
      vision_r1.hard_format_result, {'limit_s': 0.5})}).score(
          [sample(text, r'\sqrt{2}')], 1, 1, {})
  assert got.columns.tolist() == [[[0.0]]]
  assert got.metrics['reward/timeout_frac'] == 1.0
