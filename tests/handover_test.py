"""Cold-start data must earn the rewards of the rl stage that follows (M12)."""

import json

import pytest

from configs import common
from mmr1 import handover
from mmr1.data import datasets

GOOD = '<think>{0}+0={0}</think><answer>{0}</answer>'
UNTAGGED = 'The answer is {0}.'
WRONG = '<think>{0}+1</think><answer>1{0}</answer>'


@pytest.fixture
def check(shrink, open_run, tmp_path, capsys):
  """(texts, rewards, cap) -> what is printed, or the error."""
  def run(texts, rewards=('format', 'result'), *, cap=64,
          stages=('imitate', 'grpo')):
    c = shrink(common.get_base())
    c.stages = stages
    c.data.path = c.data.eval_path = str(tmp_path / 'train.jsonl')
    (tmp_path / 'train.jsonl').write_text('\n'.join(json.dumps(dict(
        problem=f'What is {i}?', answer=str(i), completion=text.format(i)))
        for i, text in enumerate(texts)))
    c.imitate = common.overlay(c.sft, steps=1, max_new_tokens=cap)
    c.grpo = common.overlay(c.rl, steps=1, rewards=rewards)
    run.count += 1
    ctx, _ = open_run(c, tmp_path / f'run{run.count}')
    said = []
    ctx.logger.note = ctx.logger.warn = said.append
    handover.check(
        ctx, 'imitate', datasets.open_expert(ctx.config, 'train'), cap)
    return said
  run.count = 0
  return run


def test_m12_what_is_imitated_earns_the_rewards_of_rl(check):
  said = check([GOOD] * 12)
  assert len(said) == 2
  assert "12 of 12 completions earn 1 under 'format', a reward of grpo" in said[0]
  assert "'result'" in said[1]


def test_m12_data_in_another_format_is_refused_before_training(check):
  with pytest.raises(ValueError, match=(
      r"imitate: 0 of 12 completions earn 1 under 'format', a reward of grpo; "
      r"not that of .*train.jsonl:\d+: 'The answer is .*rewards.format")):
    check([UNTAGGED] * 12)
  with pytest.raises(ValueError, match="under 'result'"):
    check([WRONG] * 12)


def test_m12_a_few_bad_completions_are_named_and_go_on(check):
  said = check([GOOD] * 12 + [UNTAGGED], ('format',))
  assert len(said) == 1 and '12 of 13' in said[0] and "'The answer" in said[0]


def test_only_what_can_be_trained_on_is_looked_at(check):
  # Too long for the cap, or holding the end of a turn.
  rest = [UNTAGGED + ' And so on.' * 40, UNTAGGED + '<|im_end|>more']
  said = check([GOOD] * 12 + rest * 6, ('format',), cap=48)
  assert '12 of 12' in said[0]


def test_without_an_rl_stage_or_such_a_reward_nothing_is_asked(check):
  assert check([UNTAGGED] * 4, stages=('imitate',)) == []
  assert check([UNTAGGED] * 4, stages=('grpo', 'imitate')) == []


def test_rewards_that_call_nothing_perfect_ask_nothing(
    check, monkeypatch):
  monkeypatch.delattr('mmr1.rewards.format.think_answer.perfect')
  assert check([UNTAGGED] * 4, ('format',)) == []
