"""A model so small that whole runs take seconds, and what runs it."""

import gc
import importlib.metadata
import json
import os
import pathlib
import shutil

from etils import epath
import pytest

from tests import command

# Compiling is most of the tests' time, so LLVM is told not to optimise: here
# and in the processes that tests start. Before jax is imported.
_QUICK = ['--xla_backend_optimization_level=0']
if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (
    0, 11):  # later ones do not know it, and would stop
  _QUICK.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_QUICK])

ROOT = pathlib.Path(__file__).parent.parent
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512)
VISION = dict(
    depth=2, hidden_size=32, intermediate_size=48, num_heads=2,
    out_hidden_size=32, fullatt_block_indexes=[1])


# Files that take minutes, although some have few tests: two processes end
# together when these begin first. pytest-xdist begins those with most tests.
LONGEST = (
    'hosts_test', 'sharding_test', 'runner_test', 'rl_test', 'qwen_vl_test',
    'main_test', 'text_decoder_test', 'sft_test', 'sockets_test',
    'papo_look_test', 'papo_test', 'bench_test', 'lineage_test',
    'staleness_test', 'replay_test')


def pytest_configure(config):
  if hasattr(config.option, 'loadscopereorder'):  # without xdist it is not there
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
  rank = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


# Every compiled program maps memory several times, and a process may have
# 65,530 maps (vm.max_map_count): with too many programs XLA ends with a fault.
MOST_MAPS = 20_000


@pytest.fixture(scope='module', autouse=True)
def few_programs():
  """Forgets what was compiled once there is much of it."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and len(maps.read_bytes().splitlines()) > MOST_MAPS:
    import jax
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope='session')
def tiny_folder(tmp_path_factory):
  """The embedded model's folder with other sizes and random weights."""
  import jax
  from mmr1.models import checkpoints
  from mmr1.models import qwen_vl
  folder = tmp_path_factory.mktemp('model') / 'tiny'
  shutil.copytree(
      ROOT / 'mmr1' / 'assets' / 'tiny', folder,
      ignore=shutil.ignore_patterns('*.safetensors'))
  config = json.loads((folder / 'config.json').read_text())
  config['text_config'].update(TEXT)
  config['text_config']['rope_parameters']['mrope_section'] = [2, 3, 3]
  config['vision_config'].update(VISION)
  (folder / 'config.json').write_text(json.dumps(config))
  sizes = checkpoints.read_config(folder)
  # Ten times the usual spread: samples, and what differs between them, vary.
  params = jax.tree_util.tree_map_with_path(
      lambda path, x: 10 * x if 'embed' in str(path) else x,
      qwen_vl.init_params(sizes, jax.random.key(0)))
  checkpoints.save(folder, qwen_vl.build(sizes), params)
  return str(folder)


@pytest.fixture(scope='session')
def programs(tmp_path_factory):
  """The compiled programs that all processes of these tests share."""
  return str(tmp_path_factory.mktemp('programs'))


@pytest.fixture(scope='session')
def shrink(tiny_folder, programs):
  """config -> the same config for the tiny model, in place."""
  def change(config, **flat):
    config.model.path = tiny_folder
    config.cache_dir = programs
    config.cpu_devices = 0  # jax has started; other tests keep their devices
    config.tensorboard = config.report = False
    config.evaluation.examples = 6
    config.evaluation.prompts_per_batch = 2
    config.evaluation.max_new_tokens = 8
    config.update_from_flattened_dict(
        {key.replace('__', '.'): value for key, value in flat.items()})
    return config
  return change


@pytest.fixture(scope='session')
def flags(tiny_folder, programs):
  """The same as arguments of the command."""
  return [
      f'--config.model.path={tiny_folder}', f'--config.cache_dir={programs}',
      '--config.report=False',
      '--config.evaluation.examples=6', '--config.evaluation.'
      'prompts_per_batch=2', '--config.evaluation.max_new_tokens=8']


@pytest.fixture(scope='session')
def shell():
  """Runs `python -m mmr1.main` in processes of its own; see tests.command."""
  with command.Shell(ROOT) as result:
    yield result


@pytest.fixture(scope='session')
def open_run():
  """(config, folder) -> (context, {stage: plan}): a run opened, not begun."""
  from mmr1 import guard
  from mmr1 import resolve
  from mmr1 import runner
  opened = []

  def open_(config, folder):
    final = resolve.finalise(config)
    modules, plans = runner.plan(final)
    del modules
    ctx = runner.open_run(final, str(folder), quiet=True,
                          interrupt=guard.Interrupt())
    opened.append(ctx)
    return ctx, plans
  yield open_
  for ctx in opened:
    ctx.close()


@pytest.fixture
def remote(tmp_path):
  """gs://bucket/..., served from a local folder."""
  root = tmp_path / 'bucket'
  root.mkdir()

  def local(path):
    return os.fspath(path).replace('gs://bucket', str(root))

  def one(original, path, *args, **kwargs):
    return original(local(path), *args, **kwargs)

  def two(original, path, dst, **kwargs):
    return original(local(path), local(dst), **kwargs)

  names = ('open', 'exists', 'isdir', 'listdir', 'mkdir', 'makedirs', 'remove',
           'rmtree', 'stat')
  with epath.testing.mock_epath(
      copy=two, replace=two, rename=two, **{name: one for name in names}):
    yield root
