"""How a batch divides over a mesh, and what is said where it does not."""

import types

import pytest

from configs import vision_r1
from mmr1 import batch
from mmr1 import resolve


def layout(count, said='fsdp=4 x tensor=2'):
  return types.SimpleNamespace(count=count, said=said)


def config(**flat):
  c = vision_r1.get_config()
  c.update_from_flattened_dict({
      name.replace('__', '.'): value for name, value in flat.items()})
  return resolve.finalise(c)


def test_rows_of_all_stages():
  found = batch.rows(config(
      rl__prompts_per_step=12, think_long__minibatches_per_step=3,
      think_long__old='recompute', sft__chunks_per_step=2))
  assert found['cold_start.rows_per_step'] == 32
  assert found['cold_start.chunks_per_step'] == 16
  assert found['think_short.prompts_per_step'] == 12
  assert found['think_long.minibatches_per_step'] == 4
  assert not any(key.startswith('bridge') for key in found)


@pytest.mark.parametrize('key, flat', [
    ('think_short.prompts_per_step: 12 prompts', dict(
        rl__prompts_per_step=12)),
    ('think_short.minibatches_per_step: 4 prompts', dict(
        rl__prompts_per_step=16, rl__minibatches_per_step=4,
        rl__old='recompute')),
    ('cold_start.rows_per_step: 20 prompts', dict(
        rl__prompts_per_step=16, cold_start__rows_per_step=20))])
def test_what_does_not_divide_is_named(key, flat):
  made = config(mesh__data=1, mesh__fsdp=8, **flat)
  with pytest.raises(ValueError) as error:
    batch.check(made, layout(8))
  assert key in str(error.value)
  assert 'fsdp=4 x tensor=2' in str(error.value)
  assert 'Take a multiple of 8' in str(error.value)


def test_the_default_mesh_computes_what_does_not_divide_on_each():
  batch.check(config(rl__prompts_per_step=7), layout(2))
  with pytest.raises(ValueError, match='prompts_per_step: 7'):
    batch.check(config(rl__prompts_per_step=7, mesh__tensor=2), layout(2))
