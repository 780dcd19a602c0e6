"""The model against transformers, and its two passes against each other."""

import dataclasses
import functools
import json

import jax
from jax.extend import core as extend_core
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmr1 import types
from mmr1.models import checkpoints
from mmr1.models import qwen2_5_vl
from mmr1.models import qwen_vl_weights
from tests.models import passes

T = 6


@pytest.fixture(scope='module')
def rows(oracle):
  """Text, one image, three images of different sizes, video + image."""
  return [
      oracle.row(9, seed=1),
      oracle.row(3, (32, 40), 4, seed=2),
      oracle.row(2, (24, 24), 1, (17, 50), 2, (64, 8), 3, seed=3),
      oracle.row(2, (3, 4, 8, 1.5), 2, (20, 20), 4, seed=4)]


@pytest.fixture(scope='module')
def models(folders):
  return {tied: checkpoints.load(folders[tied]) for tied in (True, False)}


@pytest.fixture(scope='module')
def batch(oracle, rows):
  """Every row padded: more tokens and patch slots than the longest needs."""
  return oracle.prompts(rows, p=64, s=20 * 36)


@pytest.fixture(scope='module')
def three(oracle, batch):
  return oracle.completions(batch, 3, T)


@pytest.fixture(scope='module')
def weight(three):
  return passes.weight_of(three, 200)


@pytest.fixture(scope='module')
def reference(models, batch, three, weight):
  return passes.gradient(*models[True], batch, three, weight)


@pytest.fixture(scope='module')
def logits(reference):
  return np.asarray(reference[0][1])


def test_m3_m4_logits_equal_transformers(oracle, rows, models, three, logits):
  """Each row alone and unpadded there; in one padded batch, G = 3, here."""
  tokens, _, mask = map(np.asarray, three)
  for n, row in enumerate(rows):
    for g in range(3):
      length = mask[n, g].sum()
      with torch.no_grad():
        expected = oracle.logits(
            oracle.model(True), row, tokens[n, g, :length]).numpy()
      assert np.abs(expected).max() > 1
      np.testing.assert_allclose(
          logits[n, g, :length + 1], expected, atol=1e-4, rtol=0)


def test_m4_untied_logits_equal_transformers(oracle, rows, models, batch,
                                             three):
  got = np.asarray(passes.forward(*models[False], batch, *three))
  tokens = np.asarray(three[0])
  for n, row in enumerate(rows):
    with torch.no_grad():
      expected = oracle.logits(oracle.model(False), row, tokens[n, 0])
    np.testing.assert_allclose(got[n, 0], expected, atol=1e-4, rtol=0)


def test_gradients_equal_torch(oracle, rows, models, three, weight,
                               reference):
  module, params = models[True]
  model = oracle.model(True)
  model.zero_grad()
  tokens, _, mask = map(np.asarray, three)
  for n, row in enumerate(rows):
    for g in range(3):
      length = mask[n, g].sum()
      out = oracle.logits(model, row, tokens[n, g, :length])
      torch.sum(
          out * torch.tensor(np.asarray(weight[n, g, :length + 1]))).backward()
  passes.check_gradients(
      qwen_vl_weights, module.config, model, reference[1])


def other(models, **run):
  """The same model, run differently."""
  module, params = models[True]
  return qwen2_5_vl.build(
      dataclasses.replace(module.config, **run)), params


@pytest.mark.parametrize('run', [
    pytest.param({'remat': 'layer'}, marks=pytest.mark.slow),
    {'layers': 'scan', 'remat': 'layer', 'query_chunk': 5}], ids=str)
def test_scan_remat_and_chunks_change_nothing(models, batch, three, weight,
                                       reference, run):
  (value, _), grads = passes.gradient(
      *other(models, **run), batch, three, weight)
  np.testing.assert_allclose(value, reference[0][0], rtol=1e-5)
  expected = passes.leaves(reference[1])
  for path, got in passes.leaves(grads).items():
    scale = np.abs(expected[path]).max()
    np.testing.assert_allclose(got, expected[path], atol=1e-5 * scale, rtol=0,
                               err_msg=path)


def test_m1_greedy_tokens_equal_generate(oracle, rows, models):
  """32 of them; transformers finds the positions by its own rule, v5."""
  batch = oracle.prompts(rows, p=64, s=20 * 36, rule='v5')
  got = np.asarray(passes.greedy(*models[False], batch, 32))
  # (Tied and this random, the model would repeat one token.)
  for n, row in enumerate(rows):
    inputs = oracle.inputs(row)
    del inputs['position_ids']
    seconds = [span[3] for span in row.spans if span[3] is not None]
    if seconds:
      inputs['second_per_grid_ts'] = torch.tensor(seconds)
    model = oracle.model(False)
    model.model.rope_deltas = None
    expected = model.generate(
        **inputs, attention_mask=torch.ones_like(inputs['input_ids']),
        max_new_tokens=32, do_sample=False, pad_token_id=0)
    assert got[n].tolist() == expected[0, len(row.tokens):].tolist()
    assert len(set(got[n].tolist())) > 3


@pytest.mark.parametrize('layers', ['unrolled', 'scan'])
def test_m1_decode_equals_completion_pass(models, batch, three, layers):
  module, params = other(models, layers=layers)
  variables = {'params': params}
  tokens, positions, mask = three

  @functools.partial(jax.jit, compiler_options=passes.QUICK)
  def both(params):
    prefix = module.apply(variables, batch, method='prompt_pass')
    whole = module.apply(variables, prefix, batch.mask, tokens, positions,
                         mask, method='completion_pass')

    def step(cache, t):
      hidden, cache = module.apply(
          variables, prefix, batch.mask, cache, tokens[:, :, t],
          positions[:, :, t], t, method='decode')
      return cache, hidden

    cache = qwen2_5_vl.init_cache(module.config, *tokens.shape, jnp.float32)
    _, steps = jax.lax.scan(step, cache, jnp.arange(T))
    return whole, jnp.moveaxis(steps, 0, 2)

  whole, steps = both(params)
  keep = np.asarray(mask)
  np.testing.assert_allclose(np.asarray(steps)[keep], np.asarray(whole)[keep],
                             atol=1e-5, rtol=0)


def test_m3_order_and_padding_contents_change_nothing(
    models, batch, three, weight, logits):
  """Rows in another order; garbage, not zeros, wherever something is padded:
  the masks must hide it. (That a row alone and unpadded gives the same is in
  the comparison with transformers.)"""
  order = jnp.asarray([2, 0, 3, 1])
  again, some = jax.tree.map(lambda x: x[order], (batch, three))
  vision = again.media['vision']
  hidden = (vision.segment == 0)[..., None]
  again = again.replace(
      tokens=jnp.where(again.mask, again.tokens, 7),
      positions=jnp.where(again.mask[..., None], again.positions, 9),
      media={'vision': vision.replace(
          patches=jnp.where(hidden, 5.0, vision.patches),
          position=jnp.where(hidden, 3, vision.position))})
  some = (jnp.where(some[2], some[0], 11), *some[1:])
  (_, got), _ = passes.gradient(*models[True], again, some, weight)
  keep = passes.real(some)
  np.testing.assert_allclose(np.asarray(got)[keep], logits[order][keep],
                             atol=1e-5, rtol=0)


def test_causality(models, batch, three, weight, logits):
  """A later token changes nothing before it, and something after."""
  changed = (three[0].at[:, 0, 3].add(1), *three[1:])
  (_, got), _ = passes.gradient(*models[True], batch, changed, weight)
  got = np.asarray(got)
  np.testing.assert_array_equal(got[:, :, :4], logits[:, :, :4])
  np.testing.assert_array_equal(got[:, 1:], logits[:, 1:])  # other members
  assert np.abs(got[:, 0, 4:] - logits[:, 0, 4:]).max(-1).min() > 1e-3


@pytest.mark.parametrize('media', [True, False])
def test_m6_all_text(oracle, rows, models, three, weight, logits, media):
  """Media that is all padding, or absent: the tower's gradient is 0."""
  module, params = models[True]
  text = oracle.prompts(rows[:1] * 4, p=64, s=20 * 36, media=media)
  (_, got), grads = passes.gradient(module, params, text, three, weight)
  keep = np.asarray(three[2])[0]
  np.testing.assert_allclose(np.asarray(got)[0, :, 1:][keep],
                             logits[0, :, 1:][keep], atol=1e-5, rtol=0)
  for path, x in passes.leaves(grads).items():
    assert np.all(np.isfinite(x)), path
    assert np.all(x == 0) == path.startswith('visual/'), path


def test_m6_all_masked_rows_are_finite(models, batch, three, weight):
  vision = batch.media['vision']
  nothing = batch.replace(
      mask=jnp.zeros_like(batch.mask), media={'vision': vision.replace(
          segment=jnp.zeros_like(vision.segment))})
  empty = (*three[:2], jnp.zeros_like(three[2]))
  (value, _), grads = passes.gradient(*models[True], nothing, empty, weight)
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(x)) for x in passes.leaves(grads).values())


def test_unknown_tower_and_bad_slots_are_errors(models, batch):
  module, params = models[True]
  vision = batch.media['vision']
  with pytest.raises(ValueError, match=r"\['sound'\].*only 'vision'"):
    module.apply({'params': params}, batch.replace(media={'sound': vision}))
  short = jax.tree.map(lambda x: x[:, :-4], vision).replace(slot=vision.slot)
  with pytest.raises(ValueError, match='multiple of the 36'):
    module.apply({'params': params}, batch.replace(media={'vision': short}))


def shapes_in(jaxpr):
  """Shapes of every value of a jaxpr, nested ones included."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield variable.aval.shape
    for inner in extend_core.jaxprs_in_params(equation.params):
      yield from shapes_in(inner)


def test_law_1_prompt_keys_are_never_repeated(oracle, models):
  """Nothing in forward or gradient has axes P, d and the group at once."""
  module, params = models[True]
  batch = oracle.prompts([oracle.row(17), oracle.row(13)], media=False)
  completions = oracle.completions(batch, 5, 7)

  def loss(params):
    return jnp.sum(passes.logits_of(module, params, batch, *completions))

  jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
  shapes = set(shapes_in(jaxpr.jaxpr))
  assert any({5, 17} <= set(s) for s in shapes)  # the scores
  assert not [s for s in shapes if {5, 17, 12} <= set(s)]
  assert not [s for s in shapes if {5 * 2, 17, 12} <= set(s)]


def test_packed_documents_equal_separate_rows(models):
  """P = 0: two documents in one row, kept apart by segments."""
  module, params = models[True]
  variables = {'params': params}
  empty = types.Prompts(
      tokens=jnp.zeros((1, 0), jnp.int32), mask=jnp.zeros((1, 0), bool),
      positions=jnp.zeros((1, 0, 3), jnp.int32),
      next_position=jnp.zeros((1,), jnp.int32), media={}, uid=jnp.arange(1))
  prefix = module.apply(variables, empty, method='prompt_pass')
  a, b = [3, 1, 4, 1, 5], [9, 2, 6]
  tokens = jnp.asarray([[a + b, a + [0] * 3, b + [0] * 5]])
  places = jnp.asarray([[[0, 1, 2, 3, 4, 0, 1, 2], [*range(8)], [*range(8)]]])
  segment = jnp.asarray([[[1] * 5 + [2] * 3, [1] * 8, [1] * 8]])
  packed, first, second = np.asarray(jax.jit(
      lambda segment: module.apply(
          variables, prefix, empty.mask, tokens,
          jnp.repeat(places[..., None], 3, -1), jnp.ones((1, 3, 8), bool),
          method='completion_pass', segment=segment),
      compiler_options=passes.QUICK)(segment))[0]
  np.testing.assert_allclose(packed[:5], first[:5], atol=1e-5)
  np.testing.assert_allclose(packed[5:], second[:3], atol=1e-5)


def test_bfloat16_is_near_float32(models, batch, three, logits):
  module, params = other(models, compute_dtype='bfloat16')
  got = np.asarray(passes.forward(module, params, batch, *three))
  passes.check_bfloat16(got, logits, three)


def test_config_layouts_agree(folders):
  """The hub's flat config.json with rope_scaling, and transformers 5's."""
  nested = json.loads((folders[True] / 'config.json').read_text())
  flat = {**nested, **nested['text_config']}
  del flat['text_config'], flat['rope_parameters']
  flat |= {
      'model_type': 'qwen2_5_vl', 'rope_theta': 1e6,
      'rope_scaling': {'type': 'mrope', 'mrope_section': [1, 2, 3]}}
  a = qwen2_5_vl.Config.from_hf(nested)
  b = qwen2_5_vl.Config.from_hf(flat)
  assert dataclasses.replace(a, hf='') == dataclasses.replace(b, hf='')
  assert (a.head_width, a.vision.window_patches, a.tied) == (12, 36, True)


@pytest.mark.parametrize('section, change, message', [
    ('text_config', {'use_sliding_window': True}, 'sliding window'),
    ('text_config', {'hidden_size': 50}, 'multiple'),
    ('text_config', {'rope_parameters': {
        'rope_type': 'yarn', 'rope_theta': 1e6}}, "'yarn' is not supported"),
    ('text_config', {'rope_parameters': {
        'mrope_section': [2, 2, 3], 'rope_theta': 1e6}}, 'half the head'),
    ('vision_config', {'out_hidden_size': 7}, 'out_hidden_size 7'),
    ('vision_config', {'window_size': 4}, 'no merged cell')])
def test_config_errors(folders, section, change, message):
  hf = json.loads((folders[True] / 'config.json').read_text())
  hf[section] |= change
  with pytest.raises(ValueError, match=message):
    qwen2_5_vl.Config.from_hf(hf)
  with pytest.raises(ValueError, match="layers='loop'"):
    qwen2_5_vl.Config.from_hf(
        json.loads((folders[True] / 'config.json').read_text()),
        layers='loop')


def test_random_parameters(models):
  config = models[False][0].config
  params = passes.leaves(qwen2_5_vl.init_params(config, jax.random.key(0)))
  expected = passes.leaves(models[False][1])
  assert {k: x.shape for k, x in params.items()} == {
      k: x.shape for k, x in expected.items()}
  for path, x in params.items():
    if path.endswith('weight'):
      assert np.all(x == 1)
    elif path.endswith('bias'):
      assert np.all(x == 0)
    else:
      assert abs(x.std() - 0.02) < 2e-3, path
  kernel = params['language/layers/q/kernel']
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01  # layers differ
