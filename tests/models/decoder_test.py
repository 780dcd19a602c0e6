"""The three passes of a decoder against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import types
from mmr1.models import checkpoints
from mmr1.models import decoder
from mmr1.models import qwen_vl
from tests.models import passes

T = 6


@pytest.fixture(scope='module')
def model(folders):
  return checkpoints.load(folders[True])


@pytest.fixture(scope='module')
def batch(oracle):
  """Text, an image, a video and an image."""
  return oracle.prompts([
      oracle.row(9, seed=1), oracle.row(3, (32, 40), 4, seed=2),
      oracle.row(2, (3, 4, 8, 1.5), 2, (20, 20), 4, seed=4)], p=48, s=11 * 36)


@pytest.fixture(scope='module')
def three(oracle, batch):
  return oracle.completions(batch, 3, T)


@pytest.fixture(scope='module')
def logits(model, batch, three):
  return np.asarray(passes.forward(*model, batch, *three))


@pytest.mark.parametrize('layers', ['unrolled', 'scan'])
def test_m1_decode_equals_completion_pass(model, batch, three, layers):
  module, params = model
  module = qwen_vl.build(dataclasses.replace(module.config, layers=layers))
  variables = {'params': params}
  tokens, positions, mask = three

  @jax.jit
  def both(params):
    prefix = module.apply(variables, batch, method='prompt_pass')
    whole = module.apply(variables, prefix, batch.mask, tokens, positions,
                         mask, method='completion_pass')

    def step(cache, t):
      hidden, cache = module.apply(
          variables, prefix, batch.mask, cache, tokens[:, :, t],
          positions[:, :, t], t, method='decode')
      return cache, hidden

    cache = decoder.init_cache(module.config, *tokens.shape, jnp.float32)
    _, steps = jax.lax.scan(step, cache, jnp.arange(T))
    return whole, jnp.moveaxis(steps, 0, 2)

  whole, steps = both(params)
  keep = np.asarray(mask)
  np.testing.assert_allclose(np.asarray(steps)[keep], np.asarray(whole)[keep],
                             atol=1e-5, rtol=0)


def test_a_scan_over_layers_does_not_write_the_cache(model, batch, three):
  """It would copy the whole of it for every token: the layers' keys of one
  token leave the scan, and one update in place writes them."""
  module, params = model
  module = qwen_vl.build(dataclasses.replace(module.config, layers='scan'))
  tokens, positions, _ = three

  def step(params, cache):
    prefix = module.apply({'params': params}, batch, method='prompt_pass')
    return module.apply(
        {'params': params}, prefix, batch.mask, cache, tokens[:, :, 0],
        positions[:, :, 0], 5, method='decode')

  cache = decoder.init_cache(module.config, *tokens.shape[:2], 23, jnp.float32)
  jaxpr = jax.make_jaxpr(step)(params, cache).jaxpr
  scans = [e for e in jaxpr.eqns if e.primitive.name == 'scan']
  assert any(23 in v.aval.shape for e in scans for v in e.invars)  # it reads
  assert not any(23 in v.aval.shape for e in scans for v in e.outvars)
  written = [e for e in jaxpr.eqns
             if e.primitive.name == 'dynamic_update_slice'
             and 23 in e.outvars[0].aval.shape]
  assert len(written) == 2  # keys and values


def test_causality(model, batch, three, logits):
  """A later token changes nothing before it, and something after."""
  changed = (three[0].at[:, 0, 3].add(1), *three[1:])
  got = np.asarray(passes.forward(*model, batch, *changed))
  np.testing.assert_array_equal(got[:, :, :4], logits[:, :, :4])
  np.testing.assert_array_equal(got[:, 1:], logits[:, 1:])  # other members
  assert np.abs(got[:, 0, 4:] - logits[:, 0, 4:]).max(-1).min() > 1e-3


def test_m6_media_that_are_absent(oracle, model, three, logits):
  """Text without media reads as text beside them."""
  batch = oracle.prompts([oracle.row(9, seed=1)] * 3, p=48, media=False)
  got = np.asarray(passes.forward(*model, batch, *three))
  np.testing.assert_allclose(got[0], logits[0], atol=1e-5, rtol=0)


def test_unknown_tower_and_bad_slots_are_errors(model, batch):
  module, params = model
  vision = batch.media['vision']
  with pytest.raises(ValueError, match=r"\['sound'\].*only 'vision'"):
    module.apply({'params': params}, batch.replace(media={'sound': vision}))
  short = jax.tree.map(lambda x: x[:, :-4], vision).replace(slot=vision.slot)
  with pytest.raises(ValueError, match='multiple of the 36'):
    module.apply({'params': params}, batch.replace(media={'vision': short}))


def test_law_1_prompt_keys_are_never_repeated(oracle, model):
  """Nothing in forward or gradient has axes P, d and the group at once."""
  module, params = model
  batch = oracle.prompts([oracle.row(17), oracle.row(13)], media=False)
  completions = oracle.completions(batch, 5, 7)

  def loss(params):
    return jnp.sum(passes.logits_of(module, params, batch, *completions))

  jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
  shapes = set(passes.shapes_in(jaxpr.jaxpr))
  assert any({5, 17} <= set(s) for s in shapes)  # the scores
  assert not [s for s in shapes if {5, 17, 12} <= set(s)]
  assert not [s for s in shapes if {5 * 2, 17, 12} <= set(s)]


def test_packed_documents_equal_separate_rows(model):
  """P = 0: two documents in one row, kept apart by segments."""
  module, params = model
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
          method='completion_pass', segment=segment))(segment))[0]
  np.testing.assert_allclose(packed[:5], first[:5], atol=1e-5)
  np.testing.assert_allclose(packed[5:], second[:3], atol=1e-5)
