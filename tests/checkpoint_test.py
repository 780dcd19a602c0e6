"""Checkpoints: bit-exact, atomic, falling back; the resume rule."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import warnings

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from rich import console as rich_console

from mmr1 import checkpoint
from mmr1 import log
from mmr1 import resolve
from mmr1 import types
from mmr1 import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parent.parent


def state(seed=0):
  """A train state with every dtype that occurs, nan and -0.0 included."""
  key = jax.random.key(seed)
  kernel = jax.random.normal(key, (4, 8))
  odd = jnp.array([jnp.nan, -0.0, jnp.inf, 1e-40], jnp.float32)
  return types.TrainState(
      step=jnp.int32(seed),
      params={'policy': {'a': {'kernel': kernel, 'odd': odd},
                         'b': kernel.astype(jnp.bfloat16)},
              'frozen': {'c': jnp.ones((3, 3))}},
      opt={'policy': ({'mu': kernel * 2},
                      {'count': jnp.int32(3)})},
      aux={'mask': jnp.array([True, False]), 'kind': jnp.int8([1, 2]),
           'host': np.arange(3, dtype=np.uint32), 'none': None,
           'empty': jnp.zeros((0, 2))})


def same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_m15_bit_exact(tmp_path):
  c = checkpoint.Checkpoints(tmp_path)
  extra = {'data': {'position': 7, 'epochs': [1, 2]}, 'best': 0.5, 'x': None}
  path = c.save('think', 12, state(3), extra)
  assert path.name == 'think_12' and path.parent.name == 'checkpoints'
  # Into other values of the same shapes; a fresh object, as a new process has.
  got = checkpoint.Checkpoints(tmp_path).restore('think', state(5))
  assert got.step == 12 and got.extra == extra
  same_bits(got.tree, state(3))
  assert isinstance(got.tree.params['policy']['b'], jax.Array)
  assert got.tree.aux['none'] is None


def test_shardings_are_the_targets(tmp_path):
  c = checkpoint.Checkpoints(tmp_path)
  c.save('s', 0, {'a': jnp.arange(4.0)}, {})
  mesh = jax.make_mesh((1,), ('d',))
  sharding = jax.NamedSharding(mesh, jax.P('d'))
  target = {'a': jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)}
  got = c.restore('s', target).tree['a']
  assert got.sharding == sharding
  np.testing.assert_array_equal(got, np.arange(4.0))


def test_only_part_is_stored(tmp_path):
  c = checkpoint.Checkpoints(tmp_path)
  only = ('params/policy/.*', 'step')
  c.save('s', 0, state(1), {}, only=only)
  got = c.restore('s', state(2), only=only).tree
  same_bits(got.params['policy'], state(1).params['policy'])
  same_bits(got.aux, state(2).aux)  # the target's
  assert int(got.step) == 1
  with pytest.raises(ValueError, match="holds no"):
    c.restore('s', state(2))
  with pytest.raises(ValueError, match='checkpoint.only'):
    c.save('s', 1, state(1), {}, only=('prams/.*',))


def test_names_of_earlier_versions(tmp_path):
  tree = {'a': {'b': jnp.arange(3.0), 'c': jnp.ones(2)}}
  old = {'a_b': tree['a']['b'], 'a': {'c': tree['a']['c']}}
  checkpoint.Checkpoints(tmp_path).save('s', 0, old, {})
  zeros = jax.tree.map(jnp.zeros_like, tree)
  got = checkpoint.Checkpoints(
      tmp_path, older=[('x/', 'y'), ('a/', 'a_')]).restore('s', zeros).tree
  same_bits(got, tree)
  with pytest.raises(ValueError, match="holds no 'a/b'"):
    checkpoint.Checkpoints(tmp_path).restore('s', zeros)


def test_a_tree_that_does_not_fit_is_an_error_not_a_fallback(tmp_path):
  c = checkpoint.Checkpoints(tmp_path)
  for step in (0, 1):
    c.save('s', step, {'a': jnp.ones((2, 3)), 'b': jnp.ones(2)}, {})
  for target, word in (
      ({'a': jnp.ones((3, 2))}, r"'a' is \['float32', \[2, 3\]\]"),
      ({'a': jnp.ones((2, 3), jnp.bfloat16)}, 'bfloat16'),
      ({'bb': jnp.ones(2)}, "'bb'.*b")):
    with pytest.raises(ValueError, match=word):
      c.restore('s', target)
  with pytest.raises(ValueError, match='no such checkpoint'):
    c.restore('s', {'b': jnp.ones(2)}, step=9)
  assert c.restore('other', {'b': jnp.ones(2)}) is None


@pytest.mark.parametrize('extra', [
    {'a': object()}, {'a': float('nan')}, {1: 2}, {'a': np.float32(1)}])
def test_extra_must_be_json(tmp_path, extra):
  c = checkpoint.Checkpoints(tmp_path)
  with pytest.raises(ValueError, match='JSON'):
    c.save('s', 0, {'a': jnp.ones(2)}, extra)


def damage_truncate(path):
  for file in path.rglob('*'):
    if file.is_file() and file.parent.name == 'd':
      file.write_bytes(file.read_bytes()[:-7])


def damage_remove(path):
  for file in path.rglob('*'):
    if file.is_file() and file.parent.name == 'd':
      file.unlink()


def damage_flip(path):
  for file in path.rglob('*'):
    if file.is_file() and file.parent.name == 'd':
      data = bytearray(file.read_bytes())
      data[len(data) // 2] ^= 255
      file.write_bytes(data)


def damage_extra(path):
  (path / 'extra' / 'metadata').write_text('{"half')


def damage_empty(path):
  for file in path.rglob('*'):
    if file.is_file():
      file.unlink()


@pytest.mark.parametrize('damage', [
    damage_truncate, damage_remove, damage_flip, damage_extra, damage_empty])
def test_m15_falls_back_from_a_corrupt_latest(tmp_path, damage):
  c = checkpoint.Checkpoints(tmp_path)
  # Enough values that they fill files of their own.
  tree = lambda k: {'a': jax.random.normal(jax.random.key(k), (64, 64))}
  for step in (4, 5):
    c.save('s', step, tree(step), {'position': step})
  damage(tmp_path / 'checkpoints' / 's_5')
  c = checkpoint.Checkpoints(tmp_path)
  with pytest.warns(UserWarning, match='s_5'):
    got = c.restore('s', tree(0))
  assert (got.step, got.extra) == (4, {'position': 4})
  same_bits(got.tree, tree(4))
  # The run comes to step 5 again and replaces the damaged one.
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    c.save('s', 5, tree(5), {'position': 5})
  same_bits(checkpoint.Checkpoints(tmp_path).restore('s', tree(0)).tree,
            tree(5))


def test_no_readable_checkpoint_is_an_error(tmp_path):
  """Starting over silently would lose the run."""
  c = checkpoint.Checkpoints(tmp_path)
  c.save('s', 5, {'a': jnp.ones((64, 64))}, {})
  damage_remove(tmp_path / 'checkpoints' / 's_5')
  with pytest.warns(UserWarning), pytest.raises(ValueError, match='s_5'):
    c.restore('s', {'a': jnp.ones((64, 64))})


def test_m15_kill_while_saving(tmp_path):
  """kill -9 at random moments of an endless saving loop."""
  (tmp_path / 'loop.py').write_text(textwrap.dedent('''
      import sys
      import numpy as np
      from mmr1 import checkpoint
      c = checkpoint.Checkpoints(sys.argv[1])
      got = c.restore('s', {'a': np.zeros((256, 256), np.float32)})
      step = 0 if got is None else got.step
      print('ready', flush=True)
      while True:
        step += 1
        tree = {'a': np.full((256, 256), step, np.float32)}
        c.save('s', step, tree, {'position': step})
        print(step, flush=True)
      '''))
  last = 0
  for delay in (0.0, 0.137, 0.291):
    process = subprocess.Popen(
        [sys.executable, 'loop.py', str(tmp_path / 'run')], cwd=tmp_path,
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'})
    assert process.stdout.readline() == 'ready\n'
    process.stdout.readline()  # one is written
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    printed = process.stdout.read().split()
    process.wait()
    got = checkpoint.Checkpoints(tmp_path / 'run').restore(
        's', {'a': np.zeros((256, 256), np.float32)})
    # Whole, of one step, and no older than what was reported as saved.
    assert (got.tree['a'] == got.step).all()
    assert got.extra == {'position': got.step}
    assert got.step >= int(printed[-1] if printed else last + 1)
    last = got.step
    leftover = [p.name for p in (tmp_path / 'run/checkpoints').iterdir()
                if 'tmp' in p.name]
    assert not leftover


@pytest.mark.parametrize('background', [False, True])
def test_m15_a_full_disk_loses_no_whole_checkpoint(tmp_path, background):
  """No file may grow past 64 KB, as on a disk without room: the write fails,
  says so, and the one before is there."""
  script = textwrap.dedent(f"""
      import resource, signal
      import numpy as np
      from mmr1 import checkpoint
      c = checkpoint.Checkpoints({str(tmp_path)!r}, background={background})
      c.save('s', 1, {{'a': np.full(1 << 10, 1.0)}}, {{}})
      c.wait()
      signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
      resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
      noise = np.random.default_rng(0).normal(size=1 << 16)
      c.save('s', 2, {{'a': noise}}, {{}})
      c.wait()
      """)
  ended = subprocess.run(
      [sys.executable, '-c', script], capture_output=True, text=True,
      cwd=pathlib.Path(__file__).parent.parent,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
  assert ended.returncode == 1
  last = ended.stderr.strip().splitlines()
  said = next(line for line in reversed(last) if 'ValueError' in line)
  assert 's_2 could not be written' in said
  assert "Whole ones of 's': [1]" in said
  again = checkpoint.Checkpoints(tmp_path).restore('s', {'a': np.zeros(1 << 10)})
  assert again.step == 1 and (again.tree['a'] == 1).all()


def test_keep_and_best(tmp_path):
  c = checkpoint.Checkpoints(tmp_path, keep=2)
  tree = {'a': jnp.ones(2)}
  for step, metric in enumerate([0.1, 0.9, 0.3, None, 0.9, 0.2, None]):
    c.save('s', step, tree, {}, metric=metric)
  c.save('s_2', 11, tree, {})  # a stage whose name extends another's
  # The last two, and step 4: the later of the two best.
  assert c.steps('s') == [4, 5, 6] and c.steps('s_2') == [11]
  fresh = checkpoint.Checkpoints(tmp_path, keep=2)
  assert fresh.best('s') == 4 and fresh.best('s_2') is None
  assert fresh.restore('s', tree, step='best').step == 4
  assert fresh.restore('s_2', tree, step='best') is None


def test_a_metric_may_come_later(tmp_path):
  tree = {'a': jnp.ones(2)}
  c = checkpoint.Checkpoints(tmp_path, keep=1)
  for step, metric in enumerate([0.1, 0.9, 0.3]):
    c.save('s', step, tree, {'at': step})
    c.score('s', step, metric)
    assert c.metric('s', step) == metric
  assert c.steps('s') == [1, 2]
  c = checkpoint.Checkpoints(tmp_path, keep=1)
  assert c.best('s') == 1 and c.metric('s', 2) == 0.3
  assert c.restore('s', tree, step='best').extra == {'at': 1}
  c.save('s', 2, tree, {})  # a replaced checkpoint has no metric yet
  assert c.metric('s', 2) is None


def test_m15_what_could_not_be_read_does_not_displace_what_is_saved(tmp_path):
  """After falling back from 9 to 3, step 4 must stay."""
  tree = {'a': jnp.ones(2)}
  c = checkpoint.Checkpoints(tmp_path, keep=1)
  c.save('s', 3, tree, {}, metric=0.5)
  c.save('s', 9, tree, {}, metric=0.1)
  for path in (tmp_path / 'checkpoints' / 's_9').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  c = checkpoint.Checkpoints(tmp_path, keep=1)
  with pytest.warns(UserWarning, match='Unreadable checkpoint'):
    assert c.restore('s', tree).step == 3
  c.save('s', 4, tree, {})
  assert checkpoint.Checkpoints(tmp_path).restore('s', tree).step == 4


def test_done(tmp_path):
  c = checkpoint.Checkpoints(tmp_path, keep=3)
  for step in range(4):
    c.save('s', step, {'a': jnp.ones(2)}, {}, metric=-step)
  assert c.done('s') is None
  c.finish('s', {'step': 3, 'accuracy': 0.5})
  again = checkpoint.Checkpoints(tmp_path)
  assert again.done('s') == {'step': 3, 'accuracy': 0.5}
  assert again.done('t') is None
  assert c.steps('s') == [0, 3]  # the best and the last


def test_background(tmp_path):
  c = checkpoint.Checkpoints(tmp_path, keep=2, background=True)
  for step in range(4):
    c.save('s', step, {'a': np.full((64, 64), step)}, {})
  c.wait()
  got = c.restore('s', {'a': np.zeros((64, 64), int)})
  assert got.step == 3 and (got.tree['a'] == 3).all()
  assert c.steps('s') == [2, 3]
  c.close()


def config(**changes):
  return resolve.Section({'seed': 0, 'rl': {'lr': 1e-4, 'names': ('a',)},
                          **changes})


class TestWorkdir:

  def test_m15_continue_or_refuse(self, tmp_path):
    path = tmp_path / 'runs' / 'x'
    first = workdir_lib.Workdir(path, config())
    assert not first.continued
    assert json.loads((path / 'config.json').read_text())['rl']['lr'] == 1e-4
    assert workdir_lib.Workdir(path, config()).continued
    with pytest.raises(ValueError) as error:
      workdir_lib.Workdir(path, config(seed=1, rl={'lr': 1e-4}))
    assert 'seed: 0 -> 1' in str(error.value)
    assert "rl.names: ('a',) -> (absent)" in str(error.value)
    assert 'rl.lr' not in str(error.value) and '--fresh' in str(error.value)

  def test_a_run_may_go_on_elsewhere(self, tmp_path):
    first = workdir_lib.Workdir(tmp_path, config(mesh={'fsdp': 4}))
    assert first.moved == []
    assert not workdir_lib.Workdir(tmp_path, config(mesh={'fsdp': 4})).moved
    second = workdir_lib.Workdir(tmp_path, config(mesh={'fsdp': 8}))
    assert second.continued and second.moved == ['mesh.fsdp: 4 -> 8']
    # It is that of the next comparison.
    assert not workdir_lib.Workdir(tmp_path, config(mesh={'fsdp': 8})).moved
    with pytest.raises(ValueError, match='seed: 0 -> 1'):
      workdir_lib.Workdir(tmp_path, config(seed=1, mesh={'fsdp': 4}))
    assert 8 == json.loads(
        (tmp_path / 'config.json').read_text())['mesh']['fsdp']

  def test_fresh_wipes(self, tmp_path):
    workdir_lib.Workdir(tmp_path, config())
    (tmp_path / 'checkpoints' / 's_1').mkdir(parents=True)
    (tmp_path / 'metrics.jsonl').write_text('{}\n')
    new = workdir_lib.Workdir(tmp_path, config(seed=3), fresh=True)
    assert not new.continued
    assert [p.name for p in tmp_path.iterdir()] == ['config.json']
    assert workdir_lib.Workdir(tmp_path, config(seed=3)).continued

  @pytest.mark.parametrize('fresh', [False, True])
  def test_a_folder_that_is_not_ours(self, tmp_path, fresh):
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(ValueError, match='no config.json'):
      workdir_lib.Workdir(tmp_path, config(), fresh=fresh)
    assert (tmp_path / 'thesis.tex').exists()
    with pytest.raises(ValueError, match='is a file'):
      workdir_lib.Workdir(tmp_path / 'thesis.tex', config())

  def test_killed_while_creating(self, tmp_path):
    (tmp_path / '.config.json.tmp').write_text('{"se')
    assert not workdir_lib.Workdir(tmp_path, config()).continued
    assert workdir_lib.Workdir(tmp_path, config()).continued


def test_remote_workdir(remote):
  """The folder rule and the logs on gs://: kept locally, uploaded whole."""
  path = 'gs://bucket/runs/x'
  assert not workdir_lib.Workdir(path, config()).continued
  assert workdir_lib.Workdir(path, config()).continued
  assert [p.name for p in (remote / 'runs/x').iterdir()] == ['config.json']
  console = rich_console.Console(file=io.StringIO())
  for step in (1, 2, 3):
    logger = log.Logger(path, console=console)  # as after a restart
    logger.truncate('s', min(step - 1, 1))
    logger.write('s', step, {'loss': step})
    logger.samples('s', step, [{'image': Image.new('RGB', (8, 8))}])
    logger.close()
    assert logger.errors == 0, console.file.getvalue()
  rows = log.read_rows(f'{path}/metrics.jsonl')
  assert [row['step'] for row in rows] == [1, 3]  # 2 was cut
  assert (remote / 'runs/x/events/s').is_dir()
  assert len(list((remote / 'runs/x/samples/images').iterdir())) == 1
  workdir_lib.Workdir(path, config(seed=1), fresh=True)
  assert [p.name for p in (remote / 'runs/x').iterdir()] == ['config.json']


def test_m23_a_remote_that_fails_loses_no_rows(remote, monkeypatch):
  path, console = 'gs://bucket/runs/x', rich_console.Console(file=io.StringIO())
  first = log.Logger(path, console=console, tensorboard=False)
  first.write('s', 1, {'loss': 1.0})
  first.close()
  def down(*_):
    raise OSError('no network')
  # Reading fails: what is there must not be replaced by less.
  with monkeypatch.context() as patch:
    patch.setattr(log.workdir_lib, 'copy', down)
    with pytest.raises(OSError, match='no network'):
      log.Logger(path, console=console)
  # Writing fails: the run goes on, and says where the rows are.
  second = log.Logger(path, console=console, tensorboard=False)
  second.write('s', 2, {'loss': 1.0})
  monkeypatch.setattr(log.workdir_lib, 'copy', down)
  second.close()
  said = console.file.getvalue().replace('\n', '')
  kept = pathlib.Path(said.split('upload from ')[1].split(')')[0])
  assert [r['step'] for r in log.read_rows(kept / 'metrics.jsonl')] == [1, 2]
  assert len(log.read_rows(f'{path}/metrics.jsonl')) == 1
  epath.Path(kept).rmtree()
