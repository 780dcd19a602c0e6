"""Plans of stages with looks, averages, branches and traces, by formula."""

import importlib

import pytest

from mmr1 import resolve
from mmr1.planning import chips
from mmr1.planning import estimate


def plan(slug, arg=None):
  c = resolve.finalise(importlib.import_module(f'configs.{slug}').get_config(
      arg))
  made = estimate.plan(c, chips.topology('h100:1'), stages=(slug,))
  return made['stages'][slug]


@pytest.mark.parametrize('slug, arg, more', [
    ('papo', None, {'look_masked', 'reference'}),
    ('papo', 'recompute', {'reference'}),
    ('vppo', 'paper', {'look_masked'}),
    ('vogue', None, {'look_raw'}),
    ('grpo_care', None, {'look_slow'}),
    ('ares', None, {'look_own', 'reference'}),
    ('vl_rethinker', None, {'old'}),
    ('sophiavl_r1', None, {
        'prefill_thinking', 'decode_thinking', 'reference'}),
    ('basereward', None, {'judge_model_0', 'judge_model_1', 'reference'}),
    ('chain_of_focus', None, {'observe', 'reference'}),
    ('vlm_r3', None, {'observe'}),
    ('luffy', None, set())])
def test_every_pass_of_a_step_is_a_program(slug, arg, more):
  stage = plan(slug, arg)
  programs = stage['programs']
  assert set(programs) == {'prefill', 'decode', 'update'} | more
  for name, row in programs.items():
    # Attention of the tower has no masks where XLA computes it, and views and
    # padding of small shapes are not in the formula.
    assert row['flops'] == pytest.approx(row['flops_by_formula'], rel=.25), name
  # An average of all that trains, in float32; nobody else has one.
  average = stage['held'].get('average', 0)
  assert (average > 0) == (slug == 'grpo_care')
  memory = stage['held'].get('memory', 0)
  assert (memory > 0) == (slug == 'vl_rethinker')


def test_a_reward_model_is_one_update_without_a_head_over_words():
  c = resolve.finalise(
      importlib.import_module('configs.basereward').get_config())
  made = estimate.plan(c, chips.topology('h100:1'), stages=('voter',))
  stage = made['stages']['voter']
  assert stage['kind'] == 'reward_model' and set(stage['programs']) == {'update'}
  row = stage['programs']['update']
  assert row['flops'] == pytest.approx(row['flops_by_formula'], rel=.25)
  assert stage['tokens'] == 2 * 24 * 48


def test_a_folder_of_a_judge_that_is_not_there_has_the_size_it_is_called():
  c = resolve.finalise(importlib.import_module(
      'configs.basereward').get_config('qwen2_5_vl_3b,rl'))
  made = estimate.plan(c, chips.topology('h100:64'), stages=('basereward',))
  stage = made['stages']['basereward']
  # Two of 7.6B parameters in bfloat16 beside one of 3.1B: 2 x 8.3 x 2 bytes.
  assert stage['held']['judges'] == pytest.approx(
      2 * 2 * 8.3e9 / 64, rel=.1)
  assert {'judge_model_0', 'judge_model_1'} < set(stage['programs'])


def test_a_look_costs_what_it_computes():
  """One with a divergence is two passes; one of every update with a gradient
  doubles the update."""
  masked, printed = plan('vppo'), plan('vppo', 'paper')
  def flops(stage, name):
    return stage['programs'][name]['flops']
  assert flops(printed, 'look_masked') == pytest.approx(
      2 * flops(masked, 'look_masked'), rel=.02)
  once, always = plan('papo'), plan('papo', 'recompute')
  assert flops(always, 'update') == pytest.approx(
      2 * flops(once, 'update'), rel=.1)


@pytest.mark.parametrize('arg, more', [(None, {'reference'}), ('simpo', set())])
def test_pairs_are_a_reference_pass_and_an_update(arg, more):
  c = importlib.import_module('configs.metis_specs').get_config(arg)
  made = estimate.plan(resolve.finalise(c), chips.topology('h100:1'),
                       stages=('cold_start',))['stages']['cold_start']
  assert set(made['programs']) == {'update'} | more
  assert ('reference' in made['held']) == bool(more)
  for name, row in made['programs'].items():
    assert row['flops'] == pytest.approx(row['flops_by_formula'], rel=.25), name


def test_of_adapters_moments_alone_are_held():
  """What is compared with is the base; what trains are two thin matrices."""
  c = importlib.import_module('configs.critic_v').get_config()
  made = estimate.plan(resolve.finalise(c), chips.topology('h100:1'),
                       stages=('critic', 'critic_start'))['stages']
  moments = {name: made[name]['held']['state'] for name in made}
  # Parameters, and two moments of all of them or of adapters.
  assert moments['critic'] < .5 * moments['critic_start']
