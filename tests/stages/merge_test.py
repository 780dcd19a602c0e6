"""Stage merge: what it writes is the sum of task vectors, and a model of the
run as any other."""

import json
import pathlib
import shutil
import tracemalloc
import types

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import transformers

from configs import common
import mmr1
from mmr1 import fusing
from mmr1 import merging
from mmr1 import optim
from mmr1 import parents
from mmr1 import release
from mmr1 import resolve
from mmr1 import runner
from mmr1 import trees
from mmr1.models import checkpoints
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
  vision = root / 'vision'
  shutil.copytree(
      conftest.ROOT / 'mmr1' / 'assets' / 'tiny', vision,
      ignore=shutil.ignore_patterns('*.safetensors'))
  config = json.loads((vision / 'config.json').read_text())
  config['text_config'].update(conftest.TEXT, num_hidden_layers=DEPTH)
  config['text_config']['rope_parameters']['mrope_section'] = [2, 3, 3]
  config['vision_config'].update(conftest.VISION)
  (vision / 'config.json').write_text(json.dumps(config))
  module, structs = checkpoints.describe(vision, param_dtype='float32')
  params = drawn(structs, 2)
  params['language'] = moved(base['language'], 3, 0.02)
  checkpoints.save(vision, module, params)
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
