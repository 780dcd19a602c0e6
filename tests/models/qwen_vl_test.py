"""The Qwen VLs against transformers: tower, decoder, weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from transformers import vision_utils

from mmr1 import forward
from mmr1 import types
from mmr1.models import checkpoints
from mmr1.models import qwen3_vl_weights
from mmr1.models import qwen_vl
from mmr1.models import qwen_vl_weights
from mmr1.sampling import keys
from mmr1.sampling import sample
from tests import measured
from tests import small
from tests.models import conftest
from tests.models import passes

T = 5
P, S = 96, 900
FAMILIES = tuple(conftest.ORACLES)


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
  return request.param


@pytest.fixture(scope='module')
def oracle(family):
  return conftest.ORACLES[family]


@pytest.fixture(scope='module')
def rows(oracle):
  """Text; an image; three of different sizes, one cell high, then wide; a
  video longer than it is wide and an image; two videos and an image."""
  return [
      oracle.row(9, seed=1),
      oracle.row(3, (32, 40), 4, seed=2),
      oracle.row(2, (24, 24), 1, (8, 50), 2, (64, 8), 3, seed=3),
      oracle.row(2, (4, 4, 4, 1.5), 2, (20, 20), 4, seed=4),
      oracle.row(1, (2, 4, 6, 0.5), 2, (17, 50), 1, (3, 2, 4, 1.0), 4, seed=5)]


@pytest.fixture(scope='module')
def models(family, saved):
  """Logits are compared where the head is tied, greedy tokens where not."""
  return {tied: checkpoints.load(saved(family, tied))
          for tied in (True, False)}


@pytest.fixture(scope='module')
def batch(oracle, rows):
  """Every row padded: more tokens and patch slots than the longest needs."""
  return oracle.prompts(rows, p=P, s=S)


@pytest.fixture(scope='module')
def two(oracle, batch):
  return oracle.completions(batch, 2, T)


@pytest.fixture(scope='module')
def weight(two):
  return passes.weight_of(two, conftest.VOCAB)


@pytest.fixture(scope='module')
def reference(models, batch, two, weight):
  return passes.gradient(*models[True], batch, two, weight)


@pytest.fixture(scope='module')
def logits(reference):
  return np.asarray(reference[0][1])


def other(models, **run):
  """The same model, run differently."""
  module, params = models[True]
  return qwen_vl.build(dataclasses.replace(module.config, **run)), params


@pytest.mark.parity
def test_m3_m4_logits_equal_transformers(family, oracle, rows, two, logits):
  """Each row alone and unpadded there; in one padded batch here."""
  tokens, _, mask = map(np.asarray, two)
  for n, row in enumerate(rows):
    for g in range(2):
      length = mask[n, g].sum()
      with torch.no_grad():
        expected = oracle.logits(
            oracle.model(True), row, tokens[n, g, :length]).numpy()
      assert np.abs(expected).max() > 1
      measured.logits(family, n, logits[n, g, :length + 1], expected)


def test_m4_untied_logits_equal_transformers(oracle, rows, models, batch, two):
  got = np.asarray(passes.forward(*models[False], batch, *two))
  tokens = np.asarray(two[0])
  for n, row in enumerate(rows):
    with torch.no_grad():
      expected = oracle.logits(oracle.model(False), row, tokens[n, 0])
    np.testing.assert_allclose(got[n, 0], expected, atol=1e-4, rtol=0)


@pytest.mark.parity
def test_gradients_equal_torch(family, oracle, rows, models, two, weight,
                               reference):
  model = oracle.model(True)
  model.zero_grad()
  tokens, _, mask = map(np.asarray, two)
  for n, row in enumerate(rows):
    for g in range(2):
      length = mask[n, g].sum()
      out = oracle.logits(model, row, tokens[n, g, :length])
      torch.sum(
          out * torch.tensor(np.asarray(weight[n, g, :length + 1]))).backward()
  names = qwen3_vl_weights if family == 'qwen3_vl' else qwen_vl_weights
  measured.record(family, 'gradient', passes.check_gradients(
      names, models[True][0].config, model, reference[1]))


@pytest.mark.parity
def test_m1_m4_greedy_tokens_equal_generate(family, oracle, rows, models):
  """64 of them; transformers finds the positions by its own rule, v5."""
  batch = oracle.prompts(rows, p=P, s=S, rule='v5')
  got = np.asarray(passes.greedy(*models[False], batch, 64))
  for n, row in enumerate(rows):
    inputs = oracle.inputs(row)
    del inputs['position_ids']
    if oracle.rate:
      inputs['second_per_grid_ts'] = torch.tensor(
          [span[3] for span in row.spans if span[3] is not None])
    model = oracle.model(False)
    model.model.rope_deltas = None
    expected = model.generate(
        **inputs, attention_mask=torch.ones_like(inputs['input_ids']),
        max_new_tokens=64, do_sample=False, pad_token_id=0)
    assert got[n].tolist() == expected[0, len(row.tokens):].tolist()
    assert len(set(got[n].tolist())) > 3
  measured.record(family, 'greedy', got.shape[1])


@pytest.mark.parametrize('run', [
    pytest.param({'remat': 'layer'}, marks=pytest.mark.slow),
    {'layers': 'scan', 'remat': 'layer', 'query_chunk': 50}], ids=str)
def test_scan_remat_and_chunks_change_nothing(family, models, batch, two,
                                              weight, reference, logits, run):
  (value, got), grads = passes.gradient(
      *other(models, **run), batch, two, weight)
  # The sum over Qwen3-VL's logits nearly cancels: theirs alone are compared.
  if family != 'qwen3_vl':
    np.testing.assert_allclose(value, reference[0][0], rtol=1e-5)
  keep = passes.real(two)
  np.testing.assert_allclose(np.asarray(got)[keep], logits[keep], atol=5e-5,
                             rtol=0)
  expected = passes.leaves(reference[1])
  for path, got in passes.leaves(grads).items():
    scale = np.abs(expected[path]).max()
    np.testing.assert_allclose(got, expected[path], atol=1e-5 * scale, rtol=0,
                               err_msg=path)


def test_m3_order_and_padding_contents_change_nothing(
    models, batch, two, weight, logits):
  """Rows in another order; garbage, not zeros, wherever something is padded:
  the masks must hide it."""
  order = jnp.asarray([2, 0, 4, 3, 1])
  again, some = jax.tree.map(lambda x: x[order], (batch, two))
  vision = again.media['vision']
  hidden = (vision.segment == 0)[..., None]
  again = again.replace(
      tokens=jnp.where(again.mask, again.tokens, 7),
      positions=jnp.where(again.mask[..., None], again.positions, 9),
      media={'vision': vision.replace(
          patches=jnp.where(hidden, 5.0, vision.patches),
          position=jnp.where(hidden, 3, vision.position),
          extent=jnp.where(hidden, 2, vision.extent))})
  some = (jnp.where(some[2], some[0], 11), *some[1:])
  (_, got), _ = passes.gradient(*models[True], again, some, weight)
  keep = passes.real(some)
  np.testing.assert_allclose(np.asarray(got)[keep], logits[order][keep],
                             atol=1e-5, rtol=0)


def test_m6_media_that_are_all_padding(oracle, rows, models, two, weight,
                                       logits):
  """The tower's gradient is 0, not NaN."""
  text = oracle.prompts(rows[:1] * 5, p=P, s=S)
  (_, got), grads = passes.gradient(*models[True], text, two, weight)
  np.testing.assert_allclose(np.asarray(got)[0, :, 0], logits[0, :, 0],
                             atol=1e-5, rtol=0)
  for path, x in passes.leaves(grads).items():
    assert np.all(np.isfinite(x)), path
    assert np.all(x == 0) == path.startswith('visual/'), path


def test_m6_all_masked_rows_are_finite(models, batch, two, weight):
  vision = batch.media['vision']
  nothing = batch.replace(
      mask=jnp.zeros_like(batch.mask), media={'vision': vision.replace(
          segment=jnp.zeros_like(vision.segment))})
  empty = (*two[:2], jnp.zeros_like(two[2]))
  (value, _), grads = passes.gradient(*models[True], nothing, empty, weight)
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(x)) for x in passes.leaves(grads).values())


@pytest.mark.parity
@pytest.mark.parametrize('tied', [True, False])
def test_m20_saved_folder_opens_in_transformers(family, oracle, models, rows,
                                                tmp_path, tied):
  module, params = models[tied]
  checkpoints.save(tmp_path, module, params)
  model, report = (
      transformers.AutoModelForImageTextToText.from_pretrained(
          tmp_path, output_loading_info=True, attn_implementation='eager'))
  assert not report['missing_keys'] and not report['unexpected_keys']
  with torch.no_grad():
    np.testing.assert_array_equal(
        oracle.logits(model.eval(), rows[1]),
        oracle.logits(oracle.model(tied), rows[1]))
  passes.check_equal(checkpoints.load(tmp_path)[1], params)
  measured.record(family, 'export', 0)


@pytest.mark.parity
def test_bfloat16_is_near_float32(family, models, batch, two, logits):
  module, params = other(models, compute_dtype='bfloat16')
  params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
  got = np.asarray(passes.forward(module, params, batch, *two))
  _, most = passes.check_bfloat16(got, logits, two)
  measured.record(family, 'bf16', most)


def test_random_parameters(saved):
  """Of the family with every kind of layer."""
  module, loaded = checkpoints.load(saved('qwen3_vl', False))
  params = passes.leaves(
      qwen_vl.init_params(module.config, jax.random.key(0)))
  assert {k: x.shape for k, x in params.items()} == {
      k: x.shape for k, x in passes.leaves(loaded).items()}
  for path, x in params.items():
    if path.endswith('weight'):
      assert np.all(x == 1), path
    elif path.endswith('bias'):
      assert np.all(x == 0), path
    else:
      assert abs(x.std() - 0.02) < 2e-3, path
  kernel = params['language/layers/q/kernel']
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01  # layers differ


# What Qwen3-VL has and the others have not.


@pytest.fixture(scope='module')
def deep(saved):
  return checkpoints.load(saved('qwen3_vl', False))


@pytest.fixture(scope='module')
def policy(deep):
  return forward.Policy(
      qwen_vl.build(dataclasses.replace(deep[0].config, layers='scan')),
      (conftest.IMAGE, conftest.VIDEO, conftest.START, conftest.END), 7, 0,
      64)


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_m1_m2_sampler_and_trainer_agree(deep, policy, temperature):
  """On text, images and videos; no placeholder is ever sampled."""
  oracle = conftest.ORACLES['qwen3_vl']
  batch = oracle.prompts([
      oracle.row(5), oracle.row(2, (24, 8), 3),
      oracle.row(1, (8, 40), 2, (2, 4, 4, 0.5), 1)])
  rollout = sample.sample(
      policy, deep[1], batch, keys.step_key(0, 1, 5),
      sample.knobs(temperature=temperature, max_new_tokens=12), jnp.int32(0),
      group=3, length=12)
  mask = np.asarray(rollout.completions.kind) == types.KIND_SAMPLED
  trained, _ = small.logp(
      policy, deep[1], batch, rollout.completions, mask, temperature)
  np.testing.assert_allclose(rollout.logp, trained, atol=2e-5, rtol=0)
  tokens = np.asarray(rollout.completions.tokens)[mask]
  assert len(set(tokens)) > 20 and not np.isin(tokens, policy.banned).any()


@functools.partial(jax.jit, static_argnums=0)
def prefix_of(module, params, batch):
  return module.apply({'params': params}, batch, method='prompt_pass')


@pytest.mark.parametrize('layers', ['unrolled', 'scan'])
def test_maps_are_added_after_their_layer_at_cells_alone(deep, layers):
  """Keys of layer 0 do not know of the maps; those of layer 1 know the first
  alone, and only at the image's cells and behind."""
  module, params = deep
  oracle = conftest.ORACLES['qwen3_vl']
  batch = oracle.prompts([oracle.row(3, (8, 24), 4)], media=True)
  module = qwen_vl.build(dataclasses.replace(module.config, layers=layers))

  def keys(*silent):
    """f32[L, P] without these maps: what a merger without weights gives."""
    visual = params['visual'] | {
        f'deepstack_{k}': jax.tree.map(
            np.zeros_like, params['visual'][f'deepstack_{k}']) for k in silent}
    return np.asarray(prefix_of(
        module, params | {'visual': visual}, batch).keys)[:, 0, 0]

  whole = keys()
  for silent, first in ((0, 1), (1, 2)):
    change = np.abs(keys(silent) - whole).max(-1)
    assert not change[:first].any()
    assert not change[first, :4].any()  # text and <|vision_start|>
    assert change[first, 4:7].min() > 1e-3  # three cells
    # One layer on, text behind has seen them.
    assert not change[first, 7:].any()
    if first + 1 < len(change):
      assert change[first + 1, 7:].min() > 1e-4


def test_m6_text_costs_no_maps(deep):
  """Without media the program is that of a model without deepstack."""
  module, params = deep
  oracle = conftest.ORACLES['qwen3_vl']
  batch = oracle.prompts([oracle.row(5)], media=False)
  config = dataclasses.replace(module.config, layers='scan')
  plain = dataclasses.replace(config, vision=dataclasses.replace(
      config.vision, deepstack=()))
  a, b = (str(jax.make_jaxpr(lambda params, m=qwen_vl.build(c): m.apply(
      {'params': params}, batch, method='prompt_pass'))(params))
          for c in (config, plain))
  assert a == b


def test_scan_holds_the_maps_once(deep):
  """No array of the program has maps for every layer, zeros or not."""
  module, params = deep
  oracle = conftest.ORACLES['qwen3_vl']
  batch = oracle.prompts([oracle.row(11, (24, 24), 8)])
  config = dataclasses.replace(module.config, layers='scan', depth=7)
  params = params | {'language': params['language'] | {'layers': jax.tree.map(
      lambda x: np.resize(x, (7, *x.shape[1:])),
      params['language']['layers'])}}

  def loss(params):
    return jnp.sum(qwen_vl.build(config).apply(
        {'params': params}, batch, method='prompt_pass').last)

  shapes = set(passes.shapes_in(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
  p = batch.tokens.shape[1]
  maps = [x for x in shapes if p in x and x[-1] == config.width]
  assert (2, 1, 1, p, 56) in maps
  # The layers' inputs, kept for the gradient, are there without maps too.
  assert not [x for x in maps if np.prod(x) > 7 * p * 56]


@pytest.mark.parametrize('grid', [(1, 6), (2, 10), (5, 5), (7, 3), (4, 4)])
def test_m4_resampled_positions_equal_transformers(grid):
  table = np.random.default_rng(0).normal(size=(25, 6)).astype(np.float32)
  index, weight = vision_utils.get_vision_interpolation_indices_and_weights(
      torch.tensor([(1, *grid)]), num_grid_per_side=5, align_corners=True)
  expected = (table[index.numpy()] * weight.numpy()[..., None]).sum(1)
  place = np.stack(np.meshgrid(
      *map(np.arange, grid), indexing='ij'), -1).reshape(-1, 2)
  got = qwen_vl.resample(
      jnp.asarray(table), jnp.asarray(place),
      jnp.broadcast_to(jnp.asarray(grid), place.shape))
  np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)


def test_resampling_by_hand():
  # A table of 4 x 4 with value 10 row + column, to one row of seven columns:
  # columns at 0, 0.5, ..., 3; a single row is the table's first.
  table = jnp.asarray([10.0 * i + j for i in range(4) for j in range(4)])
  place = jnp.asarray([[0, i] for i in range(7)])
  got = qwen_vl.resample(table[:, None], place, jnp.asarray([[1, 7]] * 7))
  assert got[:, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3]
  # Where padded both are 0: finite.
  zero = jnp.zeros((1, 2), jnp.int32)
  assert qwen_vl.resample(table[:, None], zero, zero).tolist() == [[0]]


def test_media_without_sizes_of_frames(deep):
  module, params = deep
  oracle = conftest.ORACLES['qwen3_vl']
  batch = oracle.prompts([oracle.row(2, (16, 16))])
  media = batch.media['vision'].replace(extent=None)
  with pytest.raises(ValueError, match='Media.extent is None'):
    module.apply({'params': params}, batch.replace(media={'vision': media}))
