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
