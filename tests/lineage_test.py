"""Stages with adapters: where they start, what they keep, how they leave."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import peft
import pytest
import torch
import transformers

from configs import common
import mmr1
from mmr1 import checkpoint
from mmr1 import forward
from mmr1 import lineage
from mmr1 import log
from mmr1 import loop
from mmr1 import release
from mmr1 import resolve
from mmr1 import trees
from mmr1 import types
from mmr1.models import checkpoints
from mmr1.models import lora
from mmr1.sampling import sample
from tests import small
from tests.stages import families_test

BASE = {'fc': {'kernel': np.eye(4, dtype=np.float32)},
        'norm': np.ones(4, np.float32)}


def stage(rank=0, init='previous', alpha=4.0, targets=('fc/.*',), train=()):
  return {'kind': 'sft', 'init': init, 'lora': {
      'rank': rank, 'alpha': alpha, 'targets': targets, 'train': train}}


def models(stages, saved=None):
  config = resolve.Section({'seed': 0, 'stages': tuple(stages), **stages})
  return lineage.Lineage(
      config, saved, BASE, lambda: BASE,
      lambda path: jax.tree.map(lambda x: x + len(path), BASE))


def finish(chain, name, change):
  """The stage ends with what it started from, its trained leaves changed."""
  start = chain.start(name)
  section = chain.config[name]
  trained = (lora.trains(start, section.lora.train) if section.lora.rank else
             jax.tree.map(lambda _: True, start))
  ended = jax.tree.map(
      lambda x, on: jnp.full_like(x, change) if on else x, start, trained)
  state = types.TrainState(
      step=jnp.int32(7), params={'policy': ended}, opt={})
  chain.checkpoints.save(name, 7, state, {},
                         only=lineage.stored(section, start))
  chain.checkpoints.finish(name, {'step': 7})
  return ended


def stored(folder, name):
  """Names of the arrays in a checkpoint."""
  (path,) = (folder / 'checkpoints').glob(f'{name}_*')
  return json.loads((path / 'extra' / 'metadata').read_text())['arrays'].keys()


def test_a_chain_of_stages_by_hand(tmp_path):
  """Full, rank 2, rank 2 on, rank 1, full: 2 x 2 and 1 x 1 of adapters."""
  saved = checkpoint.Checkpoints(tmp_path)
  chain = models({
      'full': stage(), 'two': stage(2, train=('norm',)), 'on': stage(2),
      'one': stage(1), 'end': stage()}, saved)
  assert [chain.goes_on(s) for s in chain.config.stages] == [
      False, False, True, False, False]
  assert [chain.footing(s) for s in ('two', 'on', 'one')] == [
      'full', 'full', 'on']
  finish(chain, 'full', 3.0)
  two = finish(chain, 'two', 0.5)
  assert set(stored(tmp_path, 'two')) == {
      'step', 'params/policy/norm', 'params/policy/fc/lora_a',
      'params/policy/fc/lora_b'}
  # It goes on with what it has: W = 3, norm .5, a = b = .5, scale 4 / 2.
  start = chain.start('on')
  for name, leaf in trees.named(two).items():
    np.testing.assert_array_equal(trees.named(start)[name], leaf)
  assert np.unique(start['fc']['kernel']) == 3 and start['norm'][0] == 0.5
  finish(chain, 'on', 1.0)
  assert 'params/policy/norm' not in stored(tmp_path, 'on')
  # Another rank: W = 3 + 2 (1 * 1 + 1 * 1) = 7 under new adapters.
  start = chain.start('one')
  assert np.unique(start['fc']['kernel']) == 7 and start['norm'][0] == 0.5
  assert start['fc']['lora_a'].shape == (4, 1)
  assert not start['fc']['lora_b'].any()
  finish(chain, 'one', -1.0)
  # No adapters: W = 7 + 4 * 1 = 11, and a checkpoint of everything.
  start = chain.start('end')
  assert set(trees.named(start)) == {'fc/kernel', 'norm'}
  assert np.unique(start['fc']['kernel']) == 11
  finish(chain, 'end', 2.0)
  assert set(stored(tmp_path, 'end')) == {
      'step', 'params/policy/norm', 'params/policy/fc/kernel'}
  assert np.unique(chain.params('end')['fc']['kernel']) == 2
  with pytest.raises(ValueError, match="holds no 'params/policy/norm'"):
    models({'full': stage(), 'on': stage(2, train=('norm',))}, saved).params(
        'on')
  saved.close()


@pytest.mark.parametrize('second, goes_on', [
    (stage(2), True), (stage(2, targets=('fc/kernel',)), True),
    (stage(2, train=('norm',)), True), (stage(1), False),
    (stage(2, alpha=2.0), False), (stage(2, init='base'), False),
    (stage(2, init='/folder'), False), (stage(), False)])
def test_what_goes_on(second, goes_on):
  """The same rank, alpha and kernels, however the regexes are written."""
  assert models({'a': stage(2), 'b': second}).goes_on('b') == goes_on


def test_folders_and_stages_that_make_no_model():
  chain = models({'a': stage(2, init='/x'), 'data': {
      **stage(), 'kind': 'collect'}, 'b': stage(init='previous')})
  assert chain.source('b') == 'a' and chain.footing('a') == '/x'
  assert chain.start('a')['norm'][0] == 1 + len('/x')
  # A run of an earlier version has no such section.
  old = lineage.Lineage(resolve.Section({
      'stages': ('a',), 'a': {'kind': 'sft', 'init': 'base'}}), None, BASE,
                        lambda: BASE)
  assert old.start('a').keys() == BASE.keys()
  assert old.shapes('a') is BASE


# A whole run, text-only: there is less to compile.


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return families_test.write('qwen3', tmp_path_factory.mktemp('model') / 'm')


@pytest.fixture(scope='module', autouse=True)
def quick():
  """Compiling is most of the time."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def config(folder, shrink, tmp_path_factory):
  """Imitation, then rl on the same adapters and moments."""
  c = shrink(common.get_base(), model__path=str(folder))
  c.evaluate_base = False
  c.evaluation.examples = 2
  c.stages = ('imitate', 'grpo')
  data = tmp_path_factory.mktemp('data') / 'train.jsonl'
  data.write_text(''.join(json.dumps(dict(
      problem=f'What is {i} + 0?', answer=str(i),
      completion=f'<think>{i}+0={i}</think><answer>{i}</answer>')) + '\n'
      for i in range(40)))
  c.data.path = str(data)
  adapters = dict(rank=4, alpha=6.0)
  c.imitate = common.overlay(
      c.sft, steps=6, rows_per_step=4, max_new_tokens=32, checkpoint_every=2,
      optimizer=dict(lr=2e-2), lora=adapters)
  c.grpo = common.overlay(
      c.rl, steps=2, prompts_per_step=4, samples_per_prompt=4,
      max_new_tokens=8, checkpoint_every=1, optimizer=dict(lr=1e-2),
      lora=adapters, carry=('optimizer',), kl=dict(coefficient=0.1))
  c.rewards.own = dict(fn='tests.own:even', weight=1.0, in_pool=False,
                       limit_s=5.0, kwargs=dict())
  c.rl.rewards = ('own',)
  return c


@pytest.fixture(scope='module')
def run(config, tmp_path_factory):
  path = tmp_path_factory.mktemp('lora') / 'run'
  mmr1.run(config, path, quiet=True, defaults=common.get_base())
  return path


@pytest.fixture(scope='module')
def opened(run, folder):
  """(the run's models, module, base)."""
  module, base = checkpoints.load(folder)
  config_ = resolve.Section(
      resolve.from_json((run / 'config.json').read_text()))
  saved = checkpoint.Checkpoints(run, read_only=True)
  return lineage.Lineage(config_, saved, base, lambda: base), module, base


def rows(path, name):
  return [row for row in log.read_rows(path / 'metrics.jsonl')
          if row['stage'] == name and 'loss' in row]


def test_m21_only_adapters_train_and_are_kept(run, opened):
  models_, _, base = opened
  adapters = {f'language/layers/{layer}/{leaf}' for layer in (
      'q', 'k', 'v', 'o', 'mlp/gate', 'mlp/up', 'mlp/down')
              for leaf in (lora.A, lora.B)}
  for name in ('imitate', 'grpo'):
    found = stored(run, name)
    assert {k for k in found if k.startswith('params/')} == {
        f'params/policy/{k}' for k in adapters}
    # First and second moments of each; counts have no name of a parameter.
    moments = [k for k in found if k.startswith('opt/') and 'language' in k]
    assert len(moments) == 2 * len(adapters)
    ended = models_.params(name)
    below = trees.named(lora.without(ended))
    assert below.keys() == trees.named(base).keys()
    for leaf, value in trees.named(base).items():
      np.testing.assert_array_equal(below[leaf], value, err_msg=leaf)
    assert all(np.abs(x).max() > 0 for k, x in trees.named(ended).items()
               if k.endswith(lora.B))
  a, b = (models_.params(name)['language']['layers']['q'][lora.B]
          for name in ('imitate', 'grpo'))
  assert (a != b).any()


def test_the_loss_falls(run):
  losses = [row['loss'] for row in rows(run, 'imitate')]
  assert len(losses) == 6 and losses[-1] < losses[0] - 0.5, losses


def test_m1_two_steps_of_rl(run):
  first, second = rows(run, 'grpo')
  for row in (first, second):
    assert row['sampler/logp_diff_max'] < 1e-4 and row['update/skipped'] == 0
    assert row['grad_norm'] > 0 and row['ratio/first'] == 1
  # The reference is where the stage started, adapters included.
  assert abs(first['kl']) < 1e-7 and second['kl'] > 1e-5


class Killed(Exception):
  pass


def test_m15_killed_in_both_stages_it_ends_the_same(
    config, run, tmp_path, monkeypatch):
  moments = [('imitate', 4), ('grpo', 1)]
  save = loop._save

  def die(ctx, name, done, *args):
    save(ctx, name, done, *args)
    if moments[:1] == [(name, done)]:
      moments.pop(0)
      raise Killed
  monkeypatch.setattr(loop, '_save', die)
  path = tmp_path / 'run'
  for _ in range(2):
    with pytest.raises(Killed):
      mmr1.run(config, path, quiet=True)
  mmr1.run(config, path, quiet=True)
  for name in ('imitate', 'grpo'):
    timeless = [[{k: v for k, v in row.items()
                  if not k.startswith(('time', 'tokens_per_s', 'compile'))}
                 for row in rows(each, name)] for each in (run, path)]
    assert timeless[0] == timeless[1]
    a, b = (arrays(each, name) for each in (run, path))
    assert a.keys() == b.keys()
    for key, value in a.items():
      np.testing.assert_array_equal(value, b[key], err_msg=key)


def arrays(path, name):
  """What is in the checkpoint that a stage ended with."""
  names = stored(path, name)
  (file,) = (path / 'checkpoints').glob(f'{name}_*')
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as opener:
    return opener.restore(file, args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(dict.fromkeys(names, 0), restore_args={
            key: ocp.RestoreArgs(restore_type=np.ndarray)
            for key in names}))).state


# What leaves the run.


@pytest.fixture(scope='module')
def question():
  """10 tokens of a prompt and 6 of an answer."""
  ids = np.random.default_rng(0).integers(0, 700, 16)
  prompts = types.Prompts(
      tokens=jnp.asarray(ids[None, :10], jnp.int32),
      mask=jnp.ones((1, 10), bool),
      positions=jnp.asarray(np.arange(10)[:, None].repeat(3, 1)[None]),
      next_position=jnp.asarray([10]), media={}, uid=jnp.arange(1))
  answer = ids[10:].reshape(1, 1, 6).astype(np.int32)
  completions = types.Completions(
      tokens=jnp.asarray(answer), kind=jnp.ones(answer.shape, jnp.int8),
      positions=sample.text_positions(prompts.next_position, answer.shape))
  return ids, prompts, completions


def torch_logits(model, ids):
  with torch.no_grad():
    out = model.eval()(input_ids=torch.tensor(ids[None]))
  return out.logits[0, 9:-1].numpy()


def test_m20_adapter_and_merged_folders_are_the_model(
    run, opened, folder, question, tmp_path):
  models_, module, base = opened
  told = release.export_adapter(str(run), str(tmp_path / 'peft'))
  assert told.startswith('adapters of grpo, step 2, as float32: ')
  assert str(folder) in told
  told = release.export(str(run), str(tmp_path / 'merged'))
  assert told.startswith('grpo, step 2, adapters merged, as float32: ')
  ids, *asked = question
  policy = forward.Policy(module, (), -1, 0)
  ours, before = (
      np.asarray(small.logits(policy, params, *asked, 1.0))[0, 0]
      for params in (models_.params('grpo'), base))
  config_ = json.loads((tmp_path / 'peft' / 'adapter_config.json').read_text())
  assert (config_['r'], config_['lora_alpha']) == (4, 6)
  kind = transformers.AutoModelForCausalLM
  with warnings.catch_warnings():
    warnings.filterwarnings('error', message='.*missing adapter keys')
    adapted = peft.PeftModel.from_pretrained(
        kind.from_pretrained(config_['base_model_name_or_path']),
        str(tmp_path / 'peft'))
  merged = kind.from_pretrained(tmp_path / 'merged')
  for name, model in (('peft', adapted), ('merged', merged)):
    off = np.abs(torch_logits(model, ids) - ours).max()
    print(f'{name}: {off:.2e} of {np.abs(ours).max():.2f}')
    assert off < 1e-5
  assert np.abs(ours - before).max() > 0.1


@pytest.fixture
def changed(run, tmp_path):
  """(stage's keys) -> a copy of the run whose grpo was configured so."""
  def make(**lora_keys):
    path = tmp_path / 'changed'
    shutil.copytree(run, path)
    file = path / 'config.json'
    values = json.loads(file.read_text())
    values['grpo']['lora'].update(lora_keys)
    file.write_text(json.dumps(values))
    return str(path)
  return make


def test_m20_adapters_on_another_stage_need_its_export(
    changed, tmp_path, folder):
  """With another alpha grpo's adapters stand on the merged imitation."""
  path = changed(alpha=8.0)
  out = str(tmp_path / 'out')
  with pytest.raises(ValueError, match='--stage=imitate --out=<folder>'):
    release.export_adapter(path, out)
  with pytest.raises(ValueError, match=f'--base: {folder} is not what'):
    release.export_adapter(path, out, base=str(folder))
  release.export(path, str(tmp_path / 'imitate'), stage='imitate')
  release.export_adapter(path, out, base=str(tmp_path / 'imitate'))
  made = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert made['base_model_name_or_path'] == str(tmp_path / 'imitate')


def test_m22_what_is_more_or_less_than_adapters(changed, run, tmp_path):
  out = str(tmp_path / 'out')
  with pytest.raises(ValueError, match='--base has no effect.*folder already'):
    release.export_adapter(str(run), out, base=str(run))
  path = changed(train=['language/norm/weight'])
  with pytest.raises(ValueError, match="'grpo' also trained .*lora.train"):
    release.export_adapter(path, out)
  shutil.rmtree(path)
  with pytest.raises(ValueError, match="'grpo' has none, its lora.rank is 0"):
    release.export_adapter(changed(rank=0), out)
  assert not (tmp_path / 'out').exists()
