"""One, two and eight devices: the same samples, gradients and metrics."""

import concurrent.futures
import multiprocessing
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import sharding


def run_on(counts, rows):
  """In a process of its own: [(shards, tokens, logp, gradient, metrics)]."""
  from mmr1 import compiles
  from mmr1.sampling import keys
  from mmr1.sampling import sample
  from tests import small
  sharding.cpu_devices(max(counts))
  devices = jax.devices()
  assert len(devices) == max(counts)
  prompts = small.prompts(
      [small.MIXED[i % 4] for i in range(rows)], uid=range(rows))
  nobody = small.prompts([([], [], [])] * rows)
  block = small.block(prompts, 2, 4)
  policy = small.policy(depth=1)
  found = []

  def refill(params, prompts, step, cap=4):
    return small.rollout(
        params, prompts, keys.step_key(0, 1, step), policy_=policy, group=2,
        length=4, max_new_tokens=cap,
        decoding=sample.Decoding(rows=4, cache_chunk=3))[0]
  for count in counts:
    with mock.patch.object(jax, 'devices', lambda: devices[:count]):
      params = sharding.everywhere(small.params(depth=1))
      spread = sharding.spread(block)
      rollout, _ = small.rollout(
          params, spread.prompts, keys.step_key(0, 1, 2),
          policy_=policy, group=2, length=4)
      # In rows that are refilled, on every device from its own prompts. A call
      # with no prompt at all leaves all programs (M28).
      refill(params, sharding.spread(nobody), 2)
      counter = compiles.CompileCounter()
      refill(params, spread.prompts, 4, cap=2)
      refilled = refill(params, spread.prompts, 2)
      counter.close()
      assert counter.count == 0
      np.testing.assert_array_equal(
          refilled.completions.tokens, rollout.completions.tokens)
      assert len(refilled.logp.addressable_shards) == count
      grads, metrics = small.gradient(params, (spread,), policy_=policy)
    # Of what went in and of what came out: (devices, rows on each).
    shards = [(len(x.addressable_shards), x.addressable_shards[0].data.shape[0])
              for x in (spread.prompts.media['vision'].patches, rollout.logp)]
    found.append((shards, *jax.tree.map(np.asarray, (
        rollout.completions.tokens, rollout.logp, grads, metrics))))
  return found


@pytest.fixture(scope='module')
def found():
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    return pool.submit(run_on, (1, 2, 8), 8).result()


def test_m3_devices_change_nothing(found):
  one = found[0]
  assert len(np.unique(one[1])) > 5
  for other in found[1:]:
    np.testing.assert_array_equal(other[1], one[1])
    np.testing.assert_allclose(other[2], one[2], atol=1e-5, rtol=0)
    for part in (3, 4):
      for a, b in zip(jax.tree.leaves(other[part]), jax.tree.leaves(one[part])):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


def test_images_and_completions_are_divided(found):
  """Eight prompts: 8 on one device, 4 on each of two, 1 on each of eight."""
  for (shards, *_), expected in zip(found, [(1, 8), (2, 4), (8, 1)]):
    assert shards == [expected, expected]


def test_rows_that_do_not_divide_are_on_every_device():
  eight = [mock.sentinel.device] * 8
  with mock.patch.object(jax, 'devices', lambda: eight):
    assert sharding.shards(16) == 8 and sharding.shards(12) == 1
  # One device divides everything; nothing is changed on the way.
  tree = {'a': np.arange(6).reshape(3, 2), 'b': np.ones(3)}
  spread = sharding.spread(tree)
  np.testing.assert_array_equal(spread['a'], tree['a'])


def test_everywhere_has_buffers_of_its_own():
  x = jnp.arange(4.0)
  y = sharding.everywhere({'x': x})['x']
  jax.jit(lambda v: v + 1, donate_argnums=0)(y)
  assert x.tolist() == [0, 1, 2, 3] and y.is_deleted()


def test_devices_stay_where_jax_has_started():
  before = len(jax.devices())
  sharding.cpu_devices(before + 1)
  sharding.cpu_devices(0)
  assert len(jax.devices()) == before
