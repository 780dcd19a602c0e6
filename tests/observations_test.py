"""What a tool says inside a completion is read, and never trained on (M18)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import types
from mmr1.sampling import sample
from tests import noise
from tests import small

N, G, T = 1, 2, 8
KINDS = np.array([1, 1, 2, 2, 2, 1, 1, 1], np.int8)  # 2: an observation


@pytest.fixture(scope='module', params=['qwen2_5_vl', 'qwen3_vl', 'internvl'])
def case(request, tmp_path_factory):
  """(policy, parameters, a block whose tokens 2 to 4 were observed)."""
  policy, params, _, prompts = noise.opened(
      request.param, tmp_path_factory.mktemp('model') / 'm')
  rng = np.random.default_rng(0)
  kind = np.broadcast_to(KINDS, (N, G, T))
  draw = lambda: jnp.asarray(-rng.random((N, G, T)) * 3, jnp.float32)
  return policy, params, types.Block(
      prompts=jax.tree.map(jnp.asarray, prompts),
      completions=types.Completions(
          tokens=jnp.asarray(rng.integers(5, 200, (N, G, T)), jnp.int32),
          kind=jnp.asarray(kind), positions=sample.text_positions(
              jnp.asarray(prompts.next_position), (N, G, T))),
      mask=jnp.asarray(kind == types.KIND_SAMPLED),
      advantage=jnp.asarray(rng.normal(size=(N, G, T)), jnp.float32),
      old=draw(), ref=draw(), extra={'sampler_logp': draw()})


def gradient(case, block):
  policy, params, _ = case
  return small.gradient(params, [block], policy_=policy)


def test_m18_observations_are_in_no_loss_ratio_or_kl(case):
  """Whatever is said of those tokens, values and gradients stay, to the bit."""
  _, _, block = case
  grads, metrics = gradient(case, block)
  seen = block.completions.kind == types.KIND_OBSERVATION
  other = lambda x, value: jnp.where(seen, value, x)
  again, more = gradient(case, dataclasses.replace(
      block, advantage=other(block.advantage, 1e3), old=other(block.old, -50.0),
      ref=other(block.ref, 50.0),
      extra={'sampler_logp': other(block.extra['sampler_logp'], -9.0)}))
  small.close(grads, again, 0)
  assert metrics.keys() == more.keys()
  for name, value in metrics.items():
    np.testing.assert_array_equal(value, more[name], err_msg=name)
  assert any(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(grads))


def test_m18_observations_are_read(case):
  """Tokens before them do not know of them; those behind do."""
  policy, params, block = case
  tokens = np.array(block.completions.tokens)
  tokens[:, :, 3] += 1
  score = lambda completions: np.asarray(small.logp(
      policy, params, block.prompts, completions, block.mask, 1.0)[0])
  change = np.abs(score(block.completions) - score(
      block.completions.replace(tokens=jnp.asarray(tokens))))[..., KINDS == 1]
  assert not change[..., :2].any() and (change[..., 2:] > 1e-6).all()
