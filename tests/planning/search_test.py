"""The search for the smallest slice, and plans that end early."""

import json
import pathlib

import pytest

from configs import vision_r1
from mmr1 import resolve
from mmr1.planning import chips
from mmr1.planning import estimate
from mmr1.planning import search


@pytest.fixture
def tried(monkeypatch):
  """(formula, compiled) -> what was planned; both (chips, tensor) -> spare."""
  def find(formula, compiled):
    seen = []

    def plan(config, topology, *, tensor, until=None, **_):
      del config
      seen.append((topology.name, tensor, until))
      spare = compiled(topology.count, tensor)
      return {'spare': spare, 'fits': spare >= 0, 'name': topology.name}

    def by_formula(config, topology, tensor, stages):
      del config, stages
      if tensor == 8:
        raise ValueError('8 does not divide 28 heads')
      return formula(topology.count, tensor)
    monkeypatch.setattr(estimate, 'plan', plan)
    monkeypatch.setattr(search, '_by_formula', by_formula)
    return search.smallest(None, ('v6e',)), seen
  return find


def test_the_first_that_leaves_enough(tried):
  """By formula 16 chips and more have room, in truth 32 with tensor 4."""
  found, seen = tried(
      lambda count, tensor: 0.5 if count >= 16 else -1.0,
      lambda count, tensor: 0.12 if (count, tensor) == (32, 4) else 0.05)
  assert found[-1]['spare'] == 0.12 and found[-1]['name'] == 'v6e:4x8'
  assert [one[:2] for one in seen] == [
      ('v6e:4x4', 1), ('v6e:4x4', 2), ('v6e:4x4', 4),
      ('v6e:4x8', 1), ('v6e:4x8', 2), ('v6e:4x8', 4)]
  assert {until for *_, until in seen} == {estimate.SPARE}


def test_if_none_does_the_best_is_planned_to_its_end(tried):
  found, seen = tried(
      lambda count, tensor: 0.5 if count >= 128 else -1.0,
      lambda count, tensor: {(128, 2): 0.08}.get((count, tensor), -0.3))
  assert seen[-1] == ('v6e:8x16', 2, None)
  assert found[-1] == {'spare': 0.08, 'fits': True, 'name': 'v6e:8x16'}


def test_if_no_arguments_fit_that_is_said(tried):
  with pytest.raises(ValueError, match='none of the listed slices will do') as e:
    tried(lambda count, tensor: -0.2, None)
  assert ('v6e:16x16, mesh.tensor=4: arguments alone leave -20%, 10.1 GB too '
          'little') in str(e.value)
  assert '8 does not divide 28 heads' in str(e.value)


def test_what_a_compiler_says_where_there_is_no_room():
  """As libtpu 0.0.42 words it."""
  assert estimate.no_room(
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
      'memory space hbm. Used 40.50G of 31.25G hbm.', 1e9) == 40.5 * 2**30
  assert estimate.no_room(
      'JaxRuntimeError: RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total '
      'memory required for HLO temporaries (98.22G) exceeds available HBM '
      '(95.74G).', 1e9) == 98.22 * 2**30 + 1e9
  assert estimate.no_room('INTERNAL: a mistake', 1e9) is None


def test_a_plan_ends_with_what_leaves_too_little():
  """Decode of the 7B does not fit 8 GPUs: what comes after is not looked at."""
  c = vision_r1.get_config('qwen2_5_vl_7b')
  made = estimate.plan(
      resolve.finalise(c), chips.topology('h100:8'), until=0.1,
      stages=('think_long',))
  stage = made['stages']['think_long']
  assert not made['fits'] and not stage['complete']
  assert 'decode' in stage['programs'] and 'prefill' not in stage['programs']


def test_the_file_says_why_none_will_do(monkeypatch, tmp_path):
  from mmr1 import plan

  def none(config, names, **_):
    raise search.NoneWillDo(['v5e:1x1, mesh.tensor=1: too little'])
  monkeypatch.setattr(search, 'smallest', none)
  root = pathlib.Path(__file__).parents[2]
  argv = ['plan', f'--config={root}/configs/vision_r1.py:qwen2_5_vl_72b',
          '--topology=auto', '--chips=v5e', f'--json={tmp_path}/new/plan.json']
  with pytest.raises(search.NoneWillDo):
    plan.main(argv)
  kept = json.loads((tmp_path / 'new' / 'plan.json').read_text())
  assert kept['refused'] == ['v5e:1x1, mesh.tensor=1: too little']
  assert not kept['fits'] and kept['command'].endswith(' '.join(argv[1:]))
  assert 'jax' in kept['versions']
