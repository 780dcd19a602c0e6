"""Plans: by formula here, compiled for TPUs where `libtpu` is (slow)."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from configs import frank
from configs import vision_r1
from mmr1 import resolve
from mmr1.models import checkpoints
from mmr1.planning import chips
from mmr1.planning import estimate
from mmr1.planning import programs
from mmr1.planning import shapes

ROOT = pathlib.Path(__file__).parent.parent.parent


def config(scale='qwen2_5_vl_7b', **changes):
  c = vision_r1.get_config(scale)
  c.update_from_flattened_dict(
      {name.replace('__', '.'): value for name, value in changes.items()})
  return resolve.finalise(c)


@pytest.mark.parametrize('scale, parameters', [
    ('qwen2_5_vl_3b', 3_754_622_976), ('qwen2_5_vl_7b', 8_292_166_656),
    ('qwen2_5_vl_32b', 33_452_718_336), ('qwen2_5_vl_72b', 73_410_777_344),
    ('qwen3_vl_2b', 2_127_532_032), ('qwen3_vl_4b', 4_437_815_808),
    ('qwen3_vl_8b', 8_767_123_696)])
def test_sizes_are_the_published_ones(scale, parameters):
  """Parameters as the hub counts them."""
  _, params = checkpoints.describe(
      ROOT / 'mmr1' / 'assets' / 'shapes' / scale, param_dtype='bfloat16')
  import jax
  assert sum(x.size for x in jax.tree.leaves(params)) == parameters


def test_what_does_not_train_has_no_plan():
  with pytest.raises(ValueError, match="stages \\('frank',\\) trains.*merges"):
    estimate.plan(resolve.finalise(frank.get_config('qwen2_5_vl_7b')),
                  chips.topology('h100:8'))


def test_a_gpu_by_formula():
  """A 7B on 8 x 80 GB: float32 parameters and two moments in 8 parts are 12
  bytes each, the reference 2; what arguments come to is in the plan."""
  made = estimate.plan(config(sampler__rows=None), chips.topology('h100:8'),
                       stages=('think_short',))
  stage = made['stages']['think_short']
  count = 8_292_166_656
  assert stage['held']['state'] == pytest.approx(12 * count / 8, rel=.01)
  assert stage['held']['reference'] == pytest.approx(2 * count / 8, rel=.01)
  assert made['mesh'] == dict(slice=1, data=1, fsdp=8, tensor=1)
  assert set(stage['programs']) == {
      'prefill', 'decode', 'reference', 'old', 'update'}
  for row in stage['programs'].values():
    assert row['flops'] == pytest.approx(row['flops_by_formula'], rel=.06)
  decode = stage['programs']['decode']
  # 64 prompts in each part, 16 samples each, a cache of 4,096 tokens that
  # grows in chunks of 256: 2 * 28 layers * 4 heads * 128 * 2 bytes a token.
  assert decode['arguments_by_formula']['cache'] == (
      64 * 16 * 4096 * 2 * 28 * 4 * 128 * 2)
  assert not decode['fits'] and 'sampler.rows' in decode['turn']
  json.dumps(made)


def test_rows_at_a_time_bound_the_cache():
  made = estimate.plan(
      config(sampler__rows=512), chips.topology('h100:8'),
      stages=('think_short',))
  decode = made['stages']['think_short']['programs']['decode']
  # 64 rows in each part, one chunk more while samples wait.
  assert decode['arguments_by_formula']['cache'] == (
      64 * (4096 + 256) * 2 * 28 * 4 * 128 * 2)
  assert decode['runs'] == math.ceil(512 * 16 / 512)
  assert decode['flops'] == pytest.approx(decode['flops_by_formula'], rel=.02)


@pytest.mark.parametrize('changes, topology, said', [
    ({}, 'v5p:4x4x5', 'slices of v5p'),
    (dict(mesh__tensor=3), 'h100:8', 'does not make 8 devices'),
    (dict(mesh__tensor=8), 'h100:8', 'heads=28, kv_heads=4'),
    ({}, 'h100:64', r'cold_start.rows_per_step: 32 prompts at a time'),
    (dict(model__path='nowhere'), 'h100:8', None)])
def test_m22_what_cannot_be(changes, topology, said):
  if said is None:  # the scale's sizes are known
    programs.open_model(
        config(**changes), estimate.sharding.default())
    return
  with pytest.raises(ValueError, match=said):
    estimate.plan(config(**changes), chips.topology(topology))


def test_bytes_on_one_device_are_those_of_its_part():
  import jax
  from mmr1 import sharding
  layout = sharding.over(
      estimate.devices(chips.topology('h100:8')), data=2, fsdp=4)
  x = jax.ShapeDtypeStruct((16, 3), 'float32', sharding=layout.named(
      ('data', 'fsdp')))
  assert shapes.bytes_on_one({'a': x, 'b': x}) == 2 * 2 * 3 * 4


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None,
                    reason='libtpu, the compiler for TPUs, is not installed')
def test_a_tpu_that_is_not_there(tmp_path):
  """The tiny scale on four chips, compiled: the state and the cache are updated
  in place, nobody gathers the cache, and arguments are those by formula but for
  the padding of small arrays."""
  out = tmp_path / 'plan.json'
  done = subprocess.run(
      [sys.executable, '-m', 'mmr1.plan', '--config=configs/vision_r1.py',
       '--topology=v5e:2x2', f'--json={out}', '--stages=think_long'], cwd=ROOT,
      capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
  assert done.returncode == 0, done.stderr
  assert 'Fits' in done.stdout
  programs_ = json.loads(out.read_text())['stages']['think_long']['programs']
  for row in programs_.values():
    assert row['compiled'] and row['fits']
    assert row['flops'] == pytest.approx(row['flops_by_formula'], rel=.15)
  decode, update = programs_['decode'], programs_['update']
  assert decode['aliased'] >= decode['arguments_by_formula']['cache']
  assert decode['sent'] < decode['arguments_by_formula']['cache'] / 1000
  assert update['aliased'] >= .98 * update['arguments_by_formula']['state']
  for name in ('prefill', 'update'):  # the tower is no argument of decode
    row = programs_[name]
    assert row['arguments'] >= .98 * sum(row['arguments_by_formula'].values())
