"""Every ablation that a docstring names is one that a run accepts."""

import ast
import re

import pytest

from configs import common
from configs import papo
from configs import vppo
from mmr1 import guard
from mmr1 import resolve
from mmr1 import runner


def named(module):
  """[(key, value)] of the lines --config.key=value under 'Ablations:'."""
  text = module.__doc__.partition('Ablations:')[2]
  return [(key, value.strip('"')) for key, value in re.findall(
      r'--config\.([\w.]+)=("[^"]*"|\S+)', text)]


def read(value):
  """As the command line reads it."""
  try:
    return ast.literal_eval(value)
  except ValueError:
    return value


@pytest.mark.parametrize('module, key, value', [
    (module, *one) for module in (papo, vppo) for one in named(module)])
def test_m22_every_ablation_is_read(module, key, value, shrink, tmp_path):
  c = shrink(module.get_config())
  c.update_from_flattened_dict({key: read(value)})
  final = resolve.finalise(c, (key,))
  runner.plan(final)
  final.cache_dir, final.cpu_devices  # read before jax starts
  runner.open_run(
      final, str(tmp_path / 'run'), interrupt=guard.Interrupt(), quiet=True,
      overrides=(key,), defaults=common.get_base()).close()


def test_all_are_found():
  assert [len(named(module)) for module in (papo, vppo)] == [5, 6]
