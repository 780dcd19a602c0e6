"""The configs: they resolve, they say what the papers say, no key is dead."""

import ast
import importlib
import itertools
import pathlib

from ml_collections import config_dict
import pytest

from configs import common
from configs import vision_r1
from mmr1 import config_checks
from mmr1 import guard
from mmr1 import resolve
from mmr1 import runner

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py')
               if 'def get_config' in path.read_text())
ARGUMENTS = [(name, scale) for name in NAMES
             for scale in (None, *common.MODELS)]
ARGUMENTS += [('vision_r1', ','.join(filter(None, parts)))
              for parts in itertools.product(
                  ('', 'qwen2_5_vl_7b'), vision_r1.ABLATIONS)]


def make(name, arg=None):
  return importlib.import_module(f'configs.{name}').get_config(arg)


@pytest.mark.parametrize('name, arg', ARGUMENTS)
def test_every_config_resolves_and_plans(name, arg, monkeypatch):
  config = make(name, arg)
  final = resolve.finalise(config)
  assert final.name == name and final.stages
  # Real scales read a file that the user names; the plan is what is checked.
  monkeypatch.setattr('mmr1.stages.sft.datasets.open_expert', lambda *_: None)
  monkeypatch.setattr('mmr1.stages.reward_model.mixtures.open_pairs',
                      lambda *_, **__: None)
  _, plans = runner.plan(final)
  assert tuple(plans) == final.stages
  if 'tiny' in final.model.path:
    assert final.model.path == 'mmr1/assets/tiny'


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('scale', [None, 'qwen2_5_vl_7b'])
def test_evaluations_do_not_cut_what_a_stage_may_write(name, scale):
  module = importlib.import_module(f'configs.{name}')
  for option in ('', *getattr(module, 'OPTIONS', ())):
    arg = ','.join(part for part in (scale, option) if part)
    final = resolve.finalise(module.get_config(arg or None))
    assert config_checks.cut_answers(final) == []


def test_evaluations_that_cut_are_said_once_for_each_stage():
  config = make('vision_r1', 'qwen2_5_vl_7b')
  config.evaluation.max_new_tokens = 4096  # enough for the first stage
  told, = config_checks.cut_answers(resolve.finalise(config))
  assert told == (
      'evaluation.max_new_tokens is 4096, think_long writes up to 8192: longer '
      'answers are cut and count as wrong. Take '
      '--config.evaluation.max_new_tokens=8192.')


@pytest.mark.parametrize('name', NAMES)
def test_m22_unknown_arguments_are_named(name):
  with pytest.raises(ValueError, match="'qwen9'.*[Nn]earest|'qwen9'.*Allowed"):
    make(name, 'qwen9')


@pytest.mark.parametrize('arg', ['zero,long', 'tiny,qwen2_5_vl_7b'])
def test_m22_at_most_one_scale_and_one_ablation(arg):
  with pytest.raises(ValueError, match='at most one scale'):
    make('vision_r1', arg)


def test_the_papers_numbers_at_7b():
  c = resolve.finalise(make('vision_r1', 'qwen2_5_vl_7b'))
  assert c.stages == ('cold_start', 'think_short', 'think_long')
  cold, short, long = (c[name] for name in c.stages)
  # Cold start: lr 5e-6, cosine, warm-up 5%, 2 epochs of 200K by 32 rows
  # = 12 500 steps, cut at 16 384 tokens, tower and projector frozen.
  assert cold.optimizer.lr == 5e-6 and cold.optimizer.lr_decay == 'cosine'
  assert cold.rows_per_step == 32 and cold.steps == 2 * 200_000 // 32
  assert cold.optimizer.warmup_steps == 0.05 * cold.steps
  assert cold.max_new_tokens == 16_384
  assert cold.optimizer.weight_decay == 0
  assert cold.optimizer.freeze == ('visual/.*',)
  # PTST: 4K x 16, then 8K x 8, 100 steps each; length x group is constant.
  assert (short.max_new_tokens, short.samples_per_prompt) == (4096, 16)
  assert (long.max_new_tokens, long.samples_per_prompt) == (8192, 8)
  for stage in (short, long):
    assert stage.max_new_tokens * stage.samples_per_prompt == 65_536
    assert stage.steps == 100
    assert stage.policy.kwargs.as_dict() == dict(eps_low=0.2, eps_high=0.2)
    assert stage.kl.coefficient == 1e-2 and stage.kl.estimator == 'k3'
    assert stage.entropy.coefficient == 1e-3
    assert stage.optimizer.lr == 1e-6 and stage.optimizer.weight_decay == 1e-2
    assert stage.optimizer.clip_norm == 1.0
    assert stage.optimizer.warmup_steps == 0
    # 512 prompts a rollout, 128 an update.
    assert stage.prompts_per_step == 512 and stage.minibatches_per_step == 4
    assert stage.epochs_per_step == 1 and stage.old == 'recompute'
    assert (stage.temperature, stage.top_p, stage.top_k) == (1.0, 1.0, 0)
    assert stage.advantage.fn == 'grpo'
    assert stage.advantage.kwargs.as_dict() == dict(
        std='group', ddof=1, eps=1e-6)
    assert stage.policy.reduce == 'token_mean'
    assert stage.policy.ratio == 'token' and stage.policy.surrogate == 'clip'
    assert stage.rewards == ('hard',)
    assert stage.optimizer.freeze == ()
  assert long.carry == ('optimizer',) and short.carry == ()
  assert c.data.instruction is None and c.data.system is None
  evaluation = c.evaluation
  assert (evaluation.temperature, evaluation.top_p) == (0.6, 0.95)
  assert evaluation.max_new_tokens == 16_000
  assert c.data.min_pixels == 262_144
  assert c.model.compute_dtype == 'bfloat16'


@pytest.mark.parametrize('arg, stages', [
    (None, ('bridge', 'cold_start', 'think_short', 'think_long')),
    ('zero', ('think_short',)),
    ('long', ('bridge', 'cold_start', 'think_long')),
    ('ci', ('bridge', 'cold_start')),
    ('qwen2_5_vl_7b,zero', ('think_short',)),
    ('qwen2_5_vl_7b,long', ('cold_start', 'think_long')),
])
def test_the_cards_ablations(arg, stages):
  c = resolve.finalise(make('vision_r1', arg))
  assert c.stages == stages
  if arg and 'zero' in arg:
    # The base without a cold start, told the format, under the soft reward.
    assert c.think_short.rewards == ('soft',) and c.data.instruction
    assert c.rewards.soft.fn.endswith('soft_format_result')
  if arg == 'qwen2_5_vl_7b,long':
    assert (c.think_long.max_new_tokens, c.think_long.samples_per_prompt,
            c.think_long.steps) == (16_384, 4, 300)


def test_the_tiny_run_keeps_length_times_group():
  c = resolve.finalise(make('vision_r1'))
  budgets = {c[name].max_new_tokens * c[name].samples_per_prompt
             for name in ('think_short', 'think_long')}
  assert len(budgets) == 1
  # What the last stage may write is what the evaluation lets it write.
  assert c.evaluation.max_new_tokens >= c.think_long.max_new_tokens


def flat(config, where=''):
  """{dotted path: value} of the leaves."""
  result = {}
  for key, value in config.items():
    path = f'{where}.{key}' if where else key
    if isinstance(value, config_dict.ConfigDict):
      result.update(flat(value, path))
    else:
      result[path] = value
  return result


@pytest.mark.parametrize('key, value, takers, others', [
    ('rl.temperature', 0.5, ('think_short', 'think_long'), ()),
    ('rl.optimizer.b2', 0.95, ('think_short', 'think_long'), ('cold_start',)),
    ('rl.policy.kwargs.eps_high', 0.3, ('think_short', 'think_long'), ()),
    ('sft.optimizer.b1', 0.8, ('cold_start',), ('think_short', 'think_long')),
])
def test_a_familys_value_reaches_the_stages_that_set_none(
    key, value, takers, others):
  config = make('vision_r1')
  config.update_from_flattened_dict({key: value})
  final = resolve.finalise(config, (key,))
  _, *rest = key.split('.')

  def at(stage):
    section = final[stage]
    for part in rest:
      section = section[part]
    return section
  assert all(at(stage) == value for stage in takers)
  assert not any(at(stage) == value for stage in others)


def test_a_stages_own_value_wins():
  config = make('vision_r1')
  config.update_from_flattened_dict(
      {'rl.kl.coefficient': 0.5, 'think_long.kl.coefficient': 0.25})
  final = resolve.finalise(config)
  assert final.think_short.kl.coefficient == 0.5
  assert final.think_long.kl.coefficient == 0.25


def accessed():
  """Names that mmr1 reads as `.name`, `['name']` or `x, name=` of a section.

  A name in a tuple that a loop only checks the range of is not a use.
  """
  names = set()
  for path in (ROOT / 'mmr1').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute):
        names.add(node.attr)
      elif isinstance(node, ast.Subscript) and isinstance(
          node.slice, ast.Constant):
        names.add(node.slice.value)
  return names


def test_m22_no_key_is_dead():
  """Every default of common.py is used by code somewhere."""
  used = accessed()
  dead = [path for path in flat(common.get_base())
          if path.rpartition('.')[2] not in used
          and not path.startswith('tasks.')  # keywords of the tasks
          and '.kwargs' not in path]
  assert not dead


def test_configs_share_nothing():
  a, b = common.get_base(), common.get_base()
  a.rl.policy.kwargs = dict(eps_low=0.5)
  a.sft.optimizer.lr = 7.0
  assert not len(b.rl.policy.kwargs) and b.rl.optimizer.lr == 1e-4
  assert a.rl.optimizer.lr == 1e-4


@pytest.mark.parametrize('arg', ['', *vision_r1.ABLATIONS])
def test_m22_every_ablation_reads_all_that_it_sets(arg, shrink, tmp_path):
  final = resolve.finalise(shrink(vision_r1.get_config(arg)))
  runner.plan(final)
  final.cache_dir, final.cpu_devices  # read before jax starts
  ctx = runner.open_run(
      final, str(tmp_path / 'run'), interrupt=guard.Interrupt(), quiet=True,
      defaults=common.get_base())
  ctx.close()
  assert (tmp_path / 'run' / 'config.json').exists()  # nothing was refused
