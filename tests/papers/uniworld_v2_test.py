"""UniWorld-V2: what the config says. Its numbers by hand are in
tests/losses/flow_test.py, tests/flows/ and tests/stages/flow_test.py."""

import pytest

from configs import uniworld_v2
from mmr1 import resolve
from mmr1 import runner
from tests.papers import runs


def resolved(arg=None):
  return resolve.finalise(uniworld_v2.get_config(arg))


def test_the_papers_numbers():
  c = resolved('paper')
  one = c.nft
  assert (one.prompts_per_step, one.samples_per_prompt) == (24, 12)
  assert one.solver.fn == 'dpm2' and one.solver_steps == 6
  assert one.evaluation.steps == 15 and one.guidance == 1
  assert one.objective.kwargs.as_dict() == dict(
      beta=1.0, clip=5.0, use='all', kl=1e-4, fraction=.99)
  # 5 of 6 times, in one update a round.
  _, plans = runner.plan(c)
  assert plans['nft'].objective.points(6) == 5
  assert one.minibatches_per_step == 1
  assert one.advantage.kwargs.as_dict() == dict(std='batch', ddof=0, eps=1e-4)
  assert one.select.kwargs.as_dict() == dict(
      mean=.9, std=.05, either=True, ban=True)
  assert one.old.as_dict() == dict(rate=.001, after=0, cap=.5)  # type 1
  assert one.ema.cap == .9
  assert (one.lora.rank, one.lora.alpha) == (32, 64)
  o = one.optimizer
  assert (o.lr, o.b1, o.b2, o.eps, o.weight_decay, o.clip_norm) == (
      3e-4, .9, .999, 1e-8, 1e-4, 1)
  assert o.lr_decay == 'constant' and o.decay_mask == 'all'


def test_a_scale_of_a_model_is_the_judge():
  for arg in ('qwen2_5_vl_32b', 'judge'):
    c = resolved(arg)
    assert c.nft.judge == 'editor' and c.judges.editor.params == 'base'
  assert resolved().nft.judge is None
  assert resolved('qwen2_5_vl_32b').nft.prompts_per_step == 24


def test_the_siblings():
  c = resolved('flow_grpo')
  assert c.nft.objective.fn == 'flow_grpo' and c.nft.solver.fn == 'flow_sde'
  assert c.nft.solver.kwargs.as_dict() == dict(eta=.7)
  assert c.nft.objective.kwargs.clip_range == 1e-4
  assert resolved('dpo').nft.objective.fn == 'dpo'
  # Their samples are of the parameters that train; lagging ones are NFT's.
  for arg in ('paper,flow_grpo', 'paper,dpo'):
    one = resolved(arg).nft
    assert one.old.as_dict() == resolved(arg[6:]).nft.old.as_dict()
    assert one.old.rate == 0 and one.prompts_per_step == 24
  with pytest.raises(ValueError, match='give one of'):
    resolved('dpo,flow_grpo')


@pytest.mark.parametrize('given', runs.ablations('uniworld_v2'))
def test_m22_every_ablation_plans(given):
  final, plans = runs.commanded('uniworld_v2', given)
  assert final.stages == ('pretrain', 'nft') and plans
