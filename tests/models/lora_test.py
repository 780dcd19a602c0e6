"""Adapters: by hand, in a whole model, and against PEFT."""

import copy
import json
import pathlib
import re
import warnings

import flax.linen as nn
import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from mmr1 import forward
from mmr1 import trees
from mmr1.models import checkpoints
from mmr1.models import decoder_weights
from mmr1.models import layers
from mmr1.models import lora
from tests import small
from tests.models import passes
from tests.models import text_decoder_test as text
from tests.stages import families_test

RANK, ALPHA = 3, 4.0  # a scale that no power of two is near
EVERYWHERE = ('.*',)


def inject(params, targets=EVERYWHERE, rank=RANK):
  return lora.inject(params, jax.random.key(1), rank=rank, alpha=ALPHA,
                     targets=targets)


def grown(params, size=0.3):
  """The same with b as large as a trained one would hardly be."""
  rng = np.random.default_rng(0)
  return jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.asarray(size * rng.normal(size=x.shape), x.dtype)
      if trees.name_of(path).endswith(lora.B) else x, params)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_layer_without_adapter_is_flaxs_own(bias, dtype):
  own = layers.dense(40, 'fc', bias=bias, dtype=jnp.dtype(dtype),
                     precision='default')
  other = nn.Dense(40, use_bias=bias, dtype=dtype, name='fc',
                   kernel_init=nn.initializers.normal(0.02))
  x = np.random.default_rng(0).normal(size=(2, 5, 24)).astype(np.float32)
  params, expected = (m.init(jax.random.key(3), x) for m in (own, other))
  assert trees.named(params).keys() == trees.named(expected).keys()
  for name, leaf in trees.named(params).items():
    np.testing.assert_array_equal(leaf, trees.named(expected)[name])
  a, b = own.apply(params, x), other.apply(params, x)
  assert a.dtype == b.dtype == dtype
  np.testing.assert_array_equal(a, b)


def test_a_layer_by_hand():
  # x = (1, 2), W = ((1, 0, 2), (0, 1, 0)): x W = (1, 2, 2). a = (3, -1) of
  # rank 1: x a = 3 - 2 = 1, times alpha / r = 4 / 1, times b = (1, 0, -2):
  # (4, 0, -8). With the bias (0, 0, .5): (5, 2, -5.5).
  params = {
      'kernel': jnp.asarray([[1.0, 0, 2], [0, 1, 0]]),
      'bias': jnp.asarray([0, 0, 0.5]), 'lora_a': jnp.asarray([[3.0], [-1]]),
      'lora_b': jnp.asarray([[1.0, 0, -2]]), 'lora_scale': jnp.asarray(4.0)}
  layer = layers.dense(3, 'fc', bias=True, dtype='float32', precision='highest')
  x = jnp.asarray([[1.0, 2.0]])
  apply = lambda params: layer.apply({'params': params}, x)
  np.testing.assert_array_equal(apply(params), [[5, 2, -5.5]])
  # W + 4 a b = ((1 + 12, 0, 2 - 24), (0 - 4, 1, 0 + 8)).
  merged = lora.merge(params)
  assert set(merged) == {'kernel', 'bias'}
  np.testing.assert_array_equal(merged['kernel'], [[13, 0, -22], [-4, 1, 8]])
  np.testing.assert_array_equal(apply(merged), [[5, 2, -5.5]])
  # Slopes (1, 1, 1): d b = 4 (x a) = 4 each; d a = 4 x^T (b . 1) = 4 (-1)
  # (1, 2).
  grads = jax.grad(lambda p: apply(p).sum())(params)
  np.testing.assert_array_equal(grads['lora_b'], [[4, 4, 4]])
  np.testing.assert_array_equal(grads['lora_a'], [[-4], [-8]])


@pytest.mark.parametrize('scan', [False, True])
def test_m21_no_gradient_of_a_frozen_kernel_is_computed(scan):
  """Two layers of [24, 24]: without the kernel's gradient no product of that
  shape is left in the program."""
  layer = layers.dense(24, 'fc', bias=False, dtype='float32',
                       precision='highest')
  params = inject({'kernel': jnp.zeros((2, 24, 24))})
  x = jnp.ones((5, 24))

  def loss(train, frozen):
    def step(p, x, _, flag):
      return layer.apply({'params': p}, x), None
    merged = trees.merge(train, frozen)
    return layers.fold(step, merged, x, [None] * 2 if not scan else None,
                       [False] * 2, scan=scan, remat='none')[0].sum()

  def products(mask):
    halves = trees.partition(params, mask)
    program = jax.jit(jax.grad(loss)).lower(*halves).compile().as_text()
    return re.findall(r'= f32\[(?:24,24|1,24,24)\]\S* (?:dot|custom-call)\(',
                      program)

  every = jax.tree.map(lambda _: True, params)
  assert products(every) and not products(lora.trains(params, ()))


def logp(policy, params, block):
  return np.asarray(small.logp(
      policy, params, block.prompts, block.completions, block.mask,
      jnp.float32(1))[0])


@pytest.fixture(scope='module')
def block():
  return small.block(small.prompts(), 4, 6)


def test_new_adapters_change_no_bit_and_are_all_read(block):
  base = small.params()
  params = inject(base)
  policy = small.policy(layers='scan')
  np.testing.assert_array_equal(
      logp(policy, params, block), logp(policy, base, block))
  after = grown(params)
  merged = lora.merge(after)
  assert trees.named(merged).keys() == trees.named(base).keys()
  got = logp(policy, after, block)
  assert np.abs(got - logp(policy, base, block)).max() > 1
  np.testing.assert_allclose(got, logp(policy, merged, block), atol=1e-4)
  # No adapter stands beside a kernel that no layer reads.
  traced = jax.make_jaxpr(lambda params: forward.logp_and_hidden(
      policy, params, block.prompts, block.completions, block.mask,
      jnp.float32(1)))(after)
  _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True, False])
  names = list(trees.named(after))
  assert [name for name, on in zip(names, used) if not on] == []


def test_stacked_layers_take_adapters():
  """`param` would refuse the leaves that a fresh stack lacks."""
  folder = pathlib.Path(layers.__file__).parent
  wrong = [path.name for path in folder.glob('*.py')
           if re.search(r'param\([^)]*stacked_init', path.read_text())
           and path.name != 'layers.py']
  assert not wrong, f'{wrong}: write layers.stacked(self, name, block, ...)'


def test_what_is_drawn():
  """a within 1 / sqrt(in); the same whatever else is a target."""
  params = {'x': {'kernel': jnp.zeros((2, 400, 8))},
            'y': {'kernel': jnp.zeros((25, 8))}, 'z': jnp.zeros(3)}
  both, one = inject(params), inject(params, ('y/.*',))
  assert set(trees.named(one)) == {
      'x/kernel', 'y/kernel', 'y/lora_a', 'y/lora_b', 'y/lora_scale', 'z'}
  np.testing.assert_array_equal(both['y']['lora_a'], one['y']['lora_a'])
  a = np.asarray(both['x']['lora_a'])
  assert a.shape == (2, 400, RANK) and (a[0] != a[1]).any()
  assert 0.98 / 20 < np.abs(a).max() <= 1 / 20
  # Uniform in +-w has a standard deviation of w / sqrt(3).
  assert a.std() == pytest.approx(1 / 20 / 3**0.5, rel=0.05)
  assert both['x']['lora_scale'].tolist() == pytest.approx([ALPHA / RANK] * 2)
  assert not both['x']['lora_b'].any()


def test_bfloat16_kernels_have_float32_adapters():
  params = inject({'kernel': jnp.ones((8, 8), jnp.bfloat16)})
  assert {x.dtype.name for name, x in params.items() if 'lora' in name} == {
      'float32'}
  merged = lora.merge(grown(params))
  assert merged['kernel'].dtype == jnp.bfloat16


@pytest.mark.parametrize('dtype, copies', [('float32', 0), ('bfloat16', 1)])
def test_a_merge_holds_few_copies(dtype, copies):
  """Float32 arrays of the kernel's size besides the old and the new one."""
  params = grown(inject({'kernel': jnp.ones((4, 64, 32), dtype)}))
  steps = jax.make_jaxpr(lora.merge)(params).eqns
  assert [step.primitive.name for step in steps] in (['jit'], ['pjit'])
  memory = jax.jit(lora.merge).lower(params).compile().memory_analysis()
  wide = 4 * 4 * 64 * 32
  assert memory.temp_size_in_bytes <= copies * wide + 1024


PARAMS = {'mlp': {'up': {'kernel': np.zeros((8, 4))}, 'norm': np.zeros(8)},
          'q': {'kernel': np.zeros((8, 8)), 'bias': np.zeros(8)},
          # A head of one number: no layer that could have an adapter.
          'value': {'kernel': np.zeros((8, 1))}}


@pytest.mark.parametrize('kw, message', [
    (dict(targets=('q/kernal',)), 'lora.targets: .q/kernal.*Nearest: q/kernel'),
    (dict(targets=('mlp/norm',)), 'matches no parameter'),
    (dict(targets=('value/kernel',)), 'matches no parameter'),
    (dict(targets=('(',)), 'is not a regular expression'),
    (dict(rank=5), r"lora.rank: got 5, but 'mlp/up/kernel' is \[8, 4\].*most 4"
     ),
])
def test_m22_what_cannot_be(kw, message):
  with pytest.raises(ValueError, match=message):
    inject(PARAMS, **kw)


def test_what_trains():
  params = inject(PARAMS, ('q/.*',), rank=5)
  on = lambda more: [k for k, v in trees.named(
      lora.trains(params, more)).items() if v]
  assert on(()) == ['q/lora_a', 'q/lora_b']
  assert on(('.*norm', 'q/bias')) == [
      'mlp/norm', 'q/bias', 'q/lora_a', 'q/lora_b']
  with pytest.raises(ValueError, match="lora.train: 'q/kernel' has an adapter"):
    lora.trains(params, ('q/.*',))
  with pytest.raises(ValueError, match='lora.train: .nothing. matches no'):
    lora.trains(params, ('nothing',))


# Against PEFT.


def opened(model, folder):
  """The torch model with the adapters of a folder; nothing may be missing."""
  with warnings.catch_warnings():
    warnings.filterwarnings('error', message='.*missing adapter keys')
    return peft.PeftModel.from_pretrained(
        copy.deepcopy(model), str(folder), is_trainable=True)


def saved(module, params, folder):
  checkpoints.save_adapter(folder, module, params, alpha=ALPHA, base='/base')
  return json.loads((folder / 'adapter_config.json').read_text())


def test_logits_and_gradients_equal_peft(tmp_path):
  """A text-only model: every product of its layers."""
  model = text.hf_model('qwen2')
  model.save_pretrained(tmp_path / 'base')
  module, params = checkpoints.load(tmp_path / 'base')
  params = grown(inject(params, ('language/layers/.*',)), 0.1)
  config = saved(module, params, tmp_path / 'peft')
  assert config['target_modules'] == [
      'down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj',
      'v_proj']
  assert (config['r'], config['lora_alpha']) == (RANK, ALPHA)
  assert config['base_model_name_or_path'] == '/base'
  rng = np.random.default_rng(0)
  row, extra = (rng.integers(0, text.VOCAB, n) for n in (7, text.T))
  shape = (1, 1, text.T)
  positions = np.broadcast_to(np.arange(7)[:, None], (7, 3))
  batch = small.types.Prompts(
      tokens=jnp.asarray(row[None], jnp.int32), mask=jnp.ones((1, 7), bool),
      positions=jnp.asarray(positions[None], jnp.int32), media={},
      next_position=jnp.asarray([7]), uid=jnp.arange(1))
  two = (jnp.asarray(extra.reshape(shape), jnp.int32),
         small.sample.text_positions(batch.next_position, shape),
         jnp.ones(shape, bool))
  weight = passes.weight_of(two, text.VOCAB)
  (_, got), grads = passes.gradient(module, params, batch, two, weight)
  theirs = opened(model, tmp_path / 'peft')
  out = text.hf_logits(theirs, row, extra)
  np.testing.assert_allclose(
      got[0, 0], out.detach().numpy(), atol=1e-5, rtol=0)
  torch.sum(out * torch.tensor(np.asarray(weight[0, 0]))).backward()
  expected = {name: p.grad for name, p in theirs.named_parameters()
              if p.grad is not None}
  assert len(expected) == 2 * 7 * 2
  table = {line.path.removesuffix('kernel'): line
           for line in decoder_weights.table(module.config)}
  for name, leaf in trees.named(grads).items():
    if not name.endswith((lora.A, lora.B)):
      continue
    line = table[name[:-len(lora.A)]]
    for x, tensor in zip(leaf, line.names):
      their = expected['base_model.model.' + tensor.replace(
          '.weight', f'.lora_{name[-1].upper()}.default.weight')].numpy().T
      np.testing.assert_allclose(
          x, their, atol=1e-4 * np.abs(their).max(), rtol=0, err_msg=name)


def test_m20_logits_equal_peft_with_vision(oracle, folders, tmp_path):
  """Adapters everywhere, the convolution of the patches included; and the
  merged folder has the same logits."""
  module, params = checkpoints.load(folders[True], layers='scan')
  params = grown(inject(params), 0.1)
  config = saved(module, params, tmp_path / 'peft')
  # 'merger.mlp.0' has no short name that means it alone.
  assert 'model.visual.merger.mlp.0' in config['target_modules']
  one = oracle.row(3, (24, 32), 2)
  batch = oracle.prompts([one])
  two = oracle.completions(batch, 1, 5)
  got = np.asarray(passes.forward(module, params, batch, *two))[0, 0]
  theirs = opened(oracle.model(True), tmp_path / 'peft')
  checkpoints.save(tmp_path / 'merged', module, lora.merge(params))
  merged = transformers.AutoModelForImageTextToText.from_pretrained(
      tmp_path / 'merged', attn_implementation='eager')
  extra = np.asarray(two[0])[0, 0]
  with torch.no_grad():
    plain = oracle.logits(oracle.model(True), one, extra).numpy()
    for model in (theirs.base_model.model, merged.eval()):
      expected = oracle.logits(model, one, extra).numpy()
      # Logits up to 12: two units in the last place of float32.
      np.testing.assert_allclose(got, expected, atol=2e-5, rtol=0)
      print(f'{np.abs(got - expected).max():.2e} of {np.abs(got).max():.1f}')
  assert np.abs(got - plain).max() > 0.1


@pytest.mark.parametrize('family', families_test.FAMILIES)
def test_modules_are_named_as_in_transformers(family):
  code, more = families_test.FAMILIES[family]
  config = dict(families_test.TEXT, **more)
  own = code.Config.from_hf(dict(config, model_type=family))
  _, names = checkpoints._FAMILIES[family]
  kind = (transformers.AutoModelForImageTextToText if 'vision_config' in more
          else transformers.AutoModelForCausalLM)
  with torch.device('meta'):
    model = kind.from_config(transformers.AutoConfig.for_model(
        family, **config))
  there = set(dict(model.named_parameters()))
  for line in names.table(own):
    assert {names.in_memory(name) for name in line.names} <= there, line
