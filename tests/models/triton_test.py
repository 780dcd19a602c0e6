"""The Pallas kernel for GPUs, interpreted, against XLA's attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.models import attention
from mmr1.models import sight
from mmr1.models import triton
from tests.models import attending

N, G = 2, 2


def draws(t, p, heads, kv_heads, d, dtype=np.float32):
  """(query, keys and values of the completions and of the prompt)."""
  rng = np.random.default_rng(t)
  draw = lambda *shape: jnp.asarray(2 * rng.normal(size=shape), dtype)
  return draw(N, G, t, heads, d), [
      *(draw(N, G, kv_heads, t, d) for _ in range(2)),
      *(draw(N, kv_heads, p, d) for _ in range(2))]


def group():
  """Ragged completions, packed, that all read the whole prompt but for a
  window; queries, keys and heads fill no block."""
  query, arrays = draws(70, 100, 4, 2, 12)
  rng = np.random.default_rng(0)
  real = np.arange(70) < np.array([[[70], [41]], [[66], [1]]])
  prompt = np.arange(100) >= np.array([[[3]], [[72]]])
  segment = jnp.asarray(np.sort(rng.integers(0, 3, (N, G, 70))))
  places = 100 - np.array([[[3]], [[72]]]) + np.arange(70)
  window = dict(window=60, sliding=jnp.asarray(True))
  own = sight.Sight(keys=jnp.asarray(real), causal=True,
                    segments=(segment, segment), **window)
  before = sight.Sight(
      keys=jnp.asarray(prompt), **window, places=(
          jnp.asarray(np.broadcast_to(places, (N, G, 70))),
          jnp.asarray(np.cumsum(prompt, -1) - 1)))
  return query, arrays, (own, before), real, 5.0


def pictures(slide):
  """Prompts of Gemma 3: tokens of an image see each other both ways, which a
  window cuts or does not."""
  query, arrays = draws(130, 0, 2, 1, 16)
  real = np.arange(130) >= np.array([[[0], [9]], [[66], [129]]])
  blocks = np.zeros((N, 130), int)
  blocks[0, 5:90], blocks[0, 90:100], blocks[1, 100:] = 1, 2, 3
  own = sight.Sight(
      keys=jnp.asarray(real), causal=True, window=20, sliding=True,
      blocks=jnp.asarray(blocks), blocks_slide=slide)
  return query, arrays, (own, None), real, None


@pytest.mark.parametrize('make', [
    group, functools.partial(pictures, True),
    functools.partial(pictures, False)])
def test_kernel_is_xla_in_values_and_gradients(make):
  query, arrays, sights, real, cap = make()
  weight = real[..., None, None] * np.random.default_rng(1).normal(
      size=query.shape)
  given = query, arrays, sights, weight
  expected = attending.both_ways(*given, cap=cap)
  got = attending.both_ways(*given, kernel=triton, cap=cap)
  assert len(got) == 6
  for a, b in zip(got, expected):
    assert attending.error(a, b) < 5e-6


def test_blocks_that_nobody_sees_are_not_read():
  """Of 4 blocks of queries and keys: causal, a window of 65, 70 padded keys."""
  t = 256
  own = sight.Sight(keys=jnp.arange(t)[None, None] >= 70, causal=True,
                    window=65, sliding=True)
  shape = jnp.zeros((1, 1, 1, t, 8))
  part = triton._part(attention.Source(shape, shape, own), (1, 1, t), t, 0)
  for_queries, for_keys = triton._ranges(part)
  np.testing.assert_array_equal(
      for_queries[0], [[0, 0], [1, 2], [1, 3], [2, 4]])
  np.testing.assert_array_equal(for_keys[0], [[0, 0], [1, 3], [2, 4], [3, 4]])


def test_the_kernel_compiles_down_to_triton():
  """Without a GPU: lowered for CUDA, forward, gradient of queries, of keys."""
  query, arrays = draws(70, 100, 4, 2, 80, jnp.bfloat16)
  seen = sight.Sight(keys=jnp.ones((N, G, 70), bool), causal=True)

  def loss(query, arrays):
    return jnp.sum(attention.attend(
        query, attending.sources(arrays, (seen, sight.Sight())),
        precision='default', chunk=99, backend='triton', cap=30.0)**2)
  card = jax.sharding.AbstractMesh(
      (1,), ('data',), (jax.sharding.AxisType.Auto,),
      abstract_device=jax.sharding.AbstractDevice(
          'NVIDIA H100 80GB HBM3', 132, 'gpu'))
  with jax.sharding.use_abstract_mesh(card):
    text = jax.jit(jax.grad(loss, (0, 1))).trace(query, arrays).lower(
        lowering_platforms=('cuda',)).as_text()
  for name in ('forward', 'query', 'key'):
    assert text.count(f'attention_{name}_kernel') >= 2, name  # of both sources
