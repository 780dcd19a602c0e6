"""Stage merge: what it writes is the sum of task vectors, and a model of the
run as any other."""

import contextlib
import json
import pathlib
import shutil
import tracemalloc
import types

from etils import epath
import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import transformers

from configs import common
import mmr1
from mmr1 import fusing
from mmr1 import lineage
from mmr1 import merging
from mmr1 import optim
from mmr1 import parents
from mmr1 import release
from mmr1 import resolve
from mmr1 import trees
from mmr1.models import checkpoints
from mmr1.models import lora
from mmr1.stages import merge
from tests import conftest

DEPTH = 3
LANGUAGE = dict(
    model_type='qwen2', vocab_size=768, hidden_act='silu', rms_norm_eps=1e-6,
    tie_word_embeddings=True, rope_theta=10000.0, **(
        conftest.TEXT | dict(num_hidden_layers=DEPTH)))


def language(folder, params=None, seed=0, dtype='float32', **sizes):
  """A folder of a language model alone: its parameters."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(LANGUAGE | sizes))
  module, structs = checkpoints.describe(folder, param_dtype='float32')
  if params is None:
    params = drawn(structs, seed)
  checkpoints.save(folder, module, params, dtype=dtype)
  return params


def seeing(folder, words=None, depth=DEPTH):
  """A folder of a small model that sees; `words`: of its language model."""
  shutil.copytree(
      conftest.ROOT / 'mmr1' / 'assets' / 'tiny', folder,
      ignore=shutil.ignore_patterns('*.safetensors'))
  config = json.loads((folder / 'config.json').read_text())
  config['text_config'].update(conftest.TEXT, num_hidden_layers=depth)
  config['text_config']['rope_parameters']['mrope_section'] = [2, 3, 3]
  config['vision_config'].update(conftest.VISION)
  (folder / 'config.json').write_text(json.dumps(config))
  module, structs = checkpoints.describe(folder, param_dtype='float32')
  params = drawn(structs, 2)
  checkpoints.save(folder, module, params | ({} if words is None else {
      'language': words}))


def drawn(structs, seed, scale=0.3):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda x: scale * rng.normal(size=x.shape).astype(np.float32), structs)


def moved(params, seed, scale):
  return jax.tree.map(np.add, params, drawn(params, seed, scale))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A base, a model that sees and one that reasons (in bfloat16)."""
  root = tmp_path_factory.mktemp('parents')
  base = language(root / 'base')
  language(root / 'reasoning', moved(base, 1, 0.01), dtype='bfloat16')
  seeing(root / 'vision', moved(base['language'], 3, 0.02))
  return root


def tensors(folder):
  """{hub's name: f64 array}."""
  return {name: x.astype(np.float64) for name, x in safetensors.numpy.load_file(
      str(pathlib.Path(folder) / 'model.safetensors')).items()}


def config(shrink, folders, **changes):
  c = shrink(common.get_base())
  c.name, c.model.path = 'merge', str(folders / 'vision')
  c.evaluate_base = False
  c.data.patches = 32
  c.tasks.digits.max_digits = 3
  c.merge.base = str(folders / 'base')
  c.merge.parents = dict(vision='base', reasoning=str(folders / 'reasoning'))
  c.merge.rule.kwargs = dict(prior='exponential')
  c.merge.share.examples, c.merge.share.prompts_per_batch = 3, 2
  c.fused = common.overlay(c.merge)
  c.stages = ('fused',)
  c.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in changes.items()})
  return c


# A language model's layers into a model that sees.


@pytest.fixture(scope='module')
def run(shrink, folders, tmp_path_factory):
  """The folder of a run that merged and then evaluated; no optimiser is made
  in it."""
  path = tmp_path_factory.mktemp('run') / 'workdir'
  c = config(shrink, folders)
  c.again = common.overlay(
      c.evaluate, init='previous', examples=6, prompts_per_batch=2,
      max_new_tokens=8)
  c.stages = ('fused', 'again')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(optim, 'make', None)
    results = mmr1.run(c, str(path), quiet=True)
  return path, c, results


def test_the_layers_are_the_sum_of_task_vectors(run, folders):
  """In float64, from the files: norms, coefficients and every tensor."""
  path, *_ = run
  record = json.loads((path / 'merged' / 'fused.json').read_text())
  base, v, r = (tensors(folders / name) if name != 'reasoning' else {
      key: x.float().double().numpy() for key, x in
      safetensors.torch.load_file(folders / name / 'model.safetensors').items()}
      for name in ('base', 'vision', 'reasoning'))
  made = tensors(path / 'merged' / 'fused')
  share = np.array(record['share'])
  assert ((0 < share) & (share < 1)).all()
  w = merging.visual_prior('exponential', DEPTH, share=share)
  seen = set()
  for l in range(DEPTH):
    names = [name for name in base if name.startswith(f'model.layers.{l}.')]
    assert len(names) == 12  # 7 kernels, 3 biases, 2 norms
    nv, nr = (sum(((x[name] - base[name])**2).sum() for name in names)
              for x in (v, r))
    np.testing.assert_allclose(
        [record['squared_norms'][key][l] for key in ('vision', 'reasoning')],
        [nv, nr], rtol=1e-5)
    c = w[l] * nv / (w[l] * nv + (1 - w[l]) * nr)
    np.testing.assert_allclose(
        [record['coefficients'][key][l] for key in ('vision', 'reasoning')],
        [c, 1 - c], rtol=1e-5)
    for name in names:
      np.testing.assert_allclose(
          made[name], base[name] + c * (v[name] - base[name])
          + (1 - c) * (r[name] - base[name]), atol=1e-6, err_msg=name)
    seen |= {*names}
  # A stub that copies a parent would not be between them.
  assert 0.01 < record['coefficients']['vision'][0] < 0.99
  # Tower, connector, embeddings and final norm: to the bit.
  rest = {*made} - seen
  assert rest == {*v} - seen and any('visual' in name for name in rest)
  for name in rest:
    np.testing.assert_array_equal(made[name], v[name])


def test_it_is_a_model_of_the_run(run):
  path, c, results = run
  assert [*results] == ['fused', 'again']
  # The stage after it takes it for the previous model, and sees the same.
  assert results['again'] == results['fused']
  rows = [json.loads(line)
          for line in (path / 'metrics.jsonl').read_text().splitlines()]
  row = next(row for row in rows if row['stage'] == 'fused')
  record = json.loads((path / 'merged' / 'fused.json').read_text())
  assert row['merge/alpha'] == pytest.approx(
      merging.fit_decay(record['share']))
  assert row['merge/vision/mean'] + row['merge/reasoning/mean'] == (
      pytest.approx(1))
  assert row['merge/kept_layers'] == 0
  assert row['eval/accuracy'] == results['fused']['eval/accuracy']
  assert json.loads((path / 'DONE' / 'fused.json').read_text())['step'] == 0
  assert (path / 'eval' / 'fused_0.json').exists()


def test_m20_its_export_opens_in_transformers(run, tmp_path):
  path, *_ = run
  told = release.export(str(path), str(tmp_path / 'out'))
  assert told.startswith('fused, step 0')
  model = transformers.AutoModelForImageTextToText.from_pretrained(
      tmp_path / 'out')
  assert len(model.model.language_model.layers) == DEPTH
  for name, x in tensors(path / 'merged' / 'fused').items():
    np.testing.assert_array_equal(tensors(tmp_path / 'out')[name], x)


def test_m15_a_kill_before_the_end_leaves_the_same(run):
  """DONE missing and the folder half-written: made again, to the bit."""
  path, c, results = run
  folder = path / 'merged' / 'fused'
  whole = (folder / 'model.safetensors').read_bytes()
  (folder / 'config.json').unlink()
  (folder / 'model.safetensors').write_bytes(whole[:1000])
  for name in ('DONE/fused.json', 'DONE/again.json', 'FINISHED'):
    (path / name).unlink()
  assert mmr1.run(c, str(path), quiet=True) == results
  assert (folder / 'model.safetensors').read_bytes() == whole
  # Finished, it is not made again.
  when = (folder / 'model.safetensors').stat().st_mtime_ns
  mmr1.run(c, str(path), quiet=True)
  assert (folder / 'model.safetensors').stat().st_mtime_ns == when


# Stages of the run as parents.


@pytest.fixture(scope='module')
def trained(shrink, folders, tmp_path_factory):
  """A run that trains two models, one by adapters, and merges them with what
  both are of: all of it, tower and embeddings included."""
  path = tmp_path_factory.mktemp('trained') / 'workdir'
  c = config(shrink, folders, merge__base='base', sft__rows_per_step=2,
             sft__steps=1, sft__max_new_tokens=48, sft__optimizer__lr=0.02)
  c.traces = common.overlay(
      c.collect, engine='mmr1.data.traces:solved', size=6)
  c.whole = common.overlay(c.sft, init='base', data='traces')
  c.adapted = common.overlay(
      c.sft, init='base', data='traces', lora=dict(rank=2, train=('visual/.*',)))
  c.fused = common.overlay(
      c.merge, parents=dict(vision='whole', reasoning='adapted'),
      leaves=('language/.*', 'visual/blocks/.*'),
      rule=dict(fn='interpolation', kwargs=dict(
          weights=dict(vision=0.75, reasoning=0.25))))
  c.stages = ('traces', 'whole', 'adapted', 'fused')
  mmr1.run(c, str(path), quiet=True)
  return path, c


def test_leaf_by_leaf_is_as_of_whole_models(trained, open_run):
  path, c = trained
  ctx, _ = open_run(c, path)
  base, a, b, made = (trees.named(jax.device_get(
      lora.merge(ctx.params(name))))
                      for name in ('base', 'whole', 'adapted', 'fused'))
  changed = set()
  for name, x in made.items():
    if name.startswith(('language/', 'visual/blocks/')):
      expected = base[name] + 0.75 * (a[name] - base[name]) + 0.25 * (
          b[name] - base[name])
      np.testing.assert_allclose(x, expected, atol=1e-6, err_msg=name)
      changed |= {name} if np.abs(x - a[name]).max() > 1e-4 else set()
    else:
      np.testing.assert_array_equal(x, a[name], err_msg=name)
  assert {'language/embed', 'language/norm/weight', 'language/layers/q/kernel',
          'visual/blocks/qkv/kernel'} <= changed


def test_a_stage_after_it_trains_what_it_made():
  config = resolve.Section({
      'stages': ('a', 'fused', 'b'), 'a': {'kind': 'sft', 'init': 'base'},
      'fused': {'kind': 'merge'}, 'b': {'kind': 'rl', 'init': 'previous'}})
  models = lineage.Lineage(
      config, types.SimpleNamespace(
          root=epath.Path('run'), done=lambda name: {'step': 0}),
      None, folder=lambda path: {'from': path})
  assert models.source('b') == 'fused'
  assert models.start('b') == {'from': 'run/merged/fused'}


def test_norms_are_of_the_layers_that_were_trained(trained):
  path, _ = trained
  record = json.loads((path / 'merged' / 'fused.json').read_text())
  for norms in record['squared_norms'].values():
    assert len(norms) == DEPTH and min(norms) > 0
  # Two runs of Adam's first step on the same rows point the same way.
  assert min(record['cosines']['vision, reasoning']) > 0


# Memory.


def test_memory_is_that_of_a_few_layers(tmp_path):
  """24 layers of 2 MiB: a model has 48 MiB, the largest tensor .5 MiB."""
  sizes = dict(num_hidden_layers=24, hidden_size=128, intermediate_size=1024,
               num_attention_heads=4, num_key_value_heads=4, vocab_size=64)
  for i, name in enumerate(('base', 'vision', 'reasoning')):
    language(tmp_path / name, seed=i, **sizes)
  module, structs = checkpoints.describe(
      tmp_path / 'base', param_dtype='float32')
  assert trees.count(structs['language']['layers']) * 4 > 40 * 2**20
  section = types.SimpleNamespace(
      leaves=('language/layers/.*',), rest='vision', embeddings='vision',
      where='fused')
  settings = resolve.Section(dict(stages=(), model=dict(
      param_dtype='float32', scalars=(), path='')))
  with contextlib.ExitStack() as stack:
    family = fusing.Family({name: stack.enter_context(parents.opened(
        settings, None, module, str(tmp_path / name)))
                            for name in ('base', 'vision', 'reasoning')},
                           section, module, structs)
    tracemalloc.start()
    try:
      grams = family.grams()
      coefficients = merging.closed_form(merging.Measured({
          name: grams[:-1, i, i] for i, name in enumerate(family.parents)}))
      family.write(epath.Path(tmp_path / 'out'), coefficients, 'float32')
      _, peak = tracemalloc.get_traced_memory()
    finally:
      tracemalloc.stop()
  assert grams.shape == (25, 2, 2) and (grams[:-1, 0, 0] > 0).all()
  # One tensor of each model, their sum and difference, what is being read and
  # written: a dozen of .5 MiB, a seventh of one model, whatever its depth.
  assert peak < 14 * 2**19
  made, (b, v, r) = tensors(tmp_path / 'out'), (
      tensors(tmp_path / name) for name in ('base', 'vision', 'reasoning'))
  name = 'model.layers.23.mlp.down_proj.weight'
  c = grams[23, 0, 0] / np.trace(grams[23])
  np.testing.assert_allclose(
      made[name], b[name] + c * (v[name] - b[name])
      + (1 - c) * (r[name] - b[name]), atol=1e-6)
  np.testing.assert_array_equal(
      made['model.embed_tokens.weight'], v['model.embed_tokens.weight'])


# What cannot be merged.


@pytest.mark.parametrize('changes, message', [
    (dict(parents=dict()), 'fused.parents: empty'),
    (dict(parents=dict(base='base')), "fused.parents: 'base' is the name"),
    (dict(parents=dict(vision='base', reasoning='later')), 'later.*before'),
    (dict(base='base'), "fused.parents.vision: 'base' is fused.base as well"),
    (dict(parents=dict(vision='a', reasoning='a')),
     "parents.vision: 'a' is fused.parents.reasoning as well"),
    (dict(rest='sight'), "fused.rest: got 'sight'; allowed"),
    (dict(embeddings='sight'), "fused.embeddings: .*'base'"),
    (dict(share=dict(of='sight')), 'fused.share.of'),
    (dict(share=dict(examples=-1)), 'fused.share: got examples=-1'),
    (dict(share=dict(examples=0)), 'fused.rule: .*was not measured'),
    (dict(rule=dict(fn='closed_from')), 'closed_from.*Nearest: .*closed_form'),
    (dict(rule=dict(kwargs=dict(prior='cubic'))), "rule: .*prior='cubic'"),
    (dict(rule=dict(fn='fixed', kwargs=dict(share=0.1))), 'kwargs.share'),
])
def test_m22_errors_of_the_section(shrink, folders, changes, message):
  c = config(shrink, folders)
  c.later = common.overlay(c.sft)
  if 'parents' in changes:  # not over those of the family
    c.merge.parents = {}
  c.fused = common.overlay(c.merge, **changes)
  c.stages = ('fused', 'later')
  c.sft.data = 'x.jsonl'
  with pytest.raises(ValueError, match=message):
    merge.setup(resolve.finalise(c).fused, 'fused', resolve.finalise(c))


@pytest.mark.parametrize('key, sizes, message', [
    ('reasoning', dict(num_hidden_layers=2), 'depth is 2 there and 3 here'),
    ('reasoning', dict(num_key_value_heads=2), 'kv_heads is 2 there and 1'),
    ('base', dict(intermediate_size=64), 'mlp_width is 64 there and 48 here'),
    ('base', dict(model_type='qwen3', head_dim=16), 'qkv_bias is False there'),
])
def test_other_architectures_are_refused_at_the_start(
    shrink, folders, open_run, tmp_path, key, sizes, message):
  language(tmp_path / 'other', **sizes)
  c = config(shrink, folders)
  if key == 'base':
    c.fused.base = str(tmp_path / 'other')
  else:
    c.fused.parents[key] = str(tmp_path / 'other')
  where = 'fused.base' if key == 'base' else f'fused.parents.{key}'
  with pytest.raises(ValueError, match=f'{where}: .*{message}'):
    open_run(c, tmp_path / 'run')


def test_what_a_folder_lacks_is_named(shrink, folders, open_run, tmp_path):
  c = config(shrink, folders, fused__rest='reasoning')
  with pytest.raises(
      ValueError, match="parents.reasoning: .*'visual/.*' is absent there"):
    open_run(c, tmp_path / 'run')
  c = config(shrink, folders)
  c.fused.base = str(tmp_path / 'none')
  with pytest.raises(ValueError, match='fused.base: there is no .*none'):
    open_run(c, tmp_path / 'run')
  # Embeddings of another vocabulary are not needed, unless they are asked for.
  language(tmp_path / 'words', vocab_size=64)
  c.fused.base = str(tmp_path / 'words')
  open_run(c, tmp_path / 'fine')
  c.fused.embeddings = 'base'
  with pytest.raises(ValueError, match="fused.base: .*'language/embed' is"):
    open_run(c, tmp_path / 'run')


def test_a_stage_that_has_not_finished_is_named(
    shrink, folders, open_run, tmp_path):
  c = config(shrink, folders, sft__data='traces')
  c.traces = common.overlay(c.collect, engine='mmr1.data.traces:solved')
  c.first = common.overlay(c.sft)
  c.fused.parents.reasoning = 'first'
  c.stages = ('traces', 'first', 'fused')
  ctx, plans = open_run(c, tmp_path / 'run')
  with pytest.raises(ValueError, match="'first' has not finished"):
    merge.run(ctx, 'fused', ctx.config.fused, plans['fused'])


def test_rotary_positions_of_another_rate_are_told(folders, tmp_path):
  language(tmp_path / 'other', rope_theta=1e6)
  settings = resolve.Section(dict(model=dict(
      param_dtype='float32', scalars=(), path=str(folders / 'vision'))))
  told = parents.rotary_differs(settings, str(tmp_path / 'other'))
  assert told.startswith('theta 1000000.0 there, 10000.0 here')
  assert parents.rotary_differs(settings, str(folders / 'base')) is None
