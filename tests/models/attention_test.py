"""Attention over several sources of keys, against one query at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import sharding
from mmr1.models import attention
from mmr1.models import products
from mmr1.models import sight
from tests.models import attending
from tests.models import splash_test


def naive(query, sources):
  """One query head at a time, sources concatenated and repeated."""
  n, g, t, heads, width = query.shape
  out = np.zeros(query.shape)
  for i, j, q, h in np.ndindex(n, g, t, heads):
    scores, values = [], []
    for key, value, mask in sources:
      own = key.ndim == 5
      kv = h * key.shape[-3] // heads
      key, value = ((key[i, j, kv], value[i, j, kv]) if own else
                    (key[i, kv], value[i, kv]))
      mask = np.broadcast_to(mask, (n, g, t, len(key)))[i, j, q]
      scores.append((key[mask] @ query[i, j, q, h]) / np.sqrt(width))
      values.append(value[mask])
    scores, values = np.concatenate(scores), np.concatenate(values)
    weights = np.exp(scores - scores.max())
    out[i, j, q, h] = weights @ values / weights.sum()
  return out


@pytest.fixture(scope='module')
def example():
  """Queries [2, 3, 5, 6, 8], own keys and keys of the prompt, 2 heads."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32) * 2
  own = (draw(2, 3, 2, 5, 8), draw(2, 3, 2, 5, 8), np.tri(5, dtype=bool))
  mask = rng.random((2, 1, 1, 5)) < 0.6
  prompt = (draw(2, 2, 5, 8), draw(2, 2, 5, 8), mask)
  return draw(2, 3, 5, 6, 8), own, prompt


def call(query, sources, chunk=9):
  """`attend` with masks as arrays."""
  def visible(mask):
    mask = jnp.asarray(mask)
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return lambda rows: mask if mask.shape[2] == 1 else mask[:, :, rows]
  return attention.attend(
      query, [attention.Source(k, v, visible(mask)) for k, v, mask in sources],
      precision='highest', chunk=chunk)


def test_attend_is_one_softmax_over_all_sources(example):
  query, own, prompt = example
  for sources in ([own], [own, prompt], [prompt, own]):
    np.testing.assert_allclose(
        call(query, sources), naive(query, sources), atol=1e-5)


def test_attend_in_chunks_changes_nothing(example):
  """5 queries; chunks of 3 leave a padded one. Values and gradients."""
  query, own, prompt = example

  def run(chunk):
    def loss(query, key):
      sources = [(key, *own[1:]), prompt]
      return jnp.sum(call(query, sources, chunk)**2)
    return jax.value_and_grad(loss, (0, 1))(query, own[0])

  for a, b in zip(jax.tree.leaves(run(3)), jax.tree.leaves(run(9))):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize('name', ['group', 'window', 'packed', 'frames'])
def test_the_gradient_by_hand_is_that_of_the_products(name, monkeypatch):
  """Of a group and its prompt, in windows, capped; in chunks of 16 queries."""
  monkeypatch.setattr(products, '_CACHED_SCORES', 1)
  query, arrays, sights, weight, cap = splash_test.example(name)
  expected, got = (attending.both_ways(
      query, arrays, sights, weight, kernel=kernel, cap=cap)
                   for kernel in (attending.Plain, None))
  assert len(got) == 6
  for a, b in zip(got, expected):
    assert attending.error(a, b) < 3e-6


def test_the_gradient_keeps_nothing_of_the_size_of_the_scores():
  """What the forward pass leaves for it grows with T, not with T * U."""
  def kept(t):
    keys = jax.ShapeDtypeStruct((1, 1, 2, t, 8), jnp.float32)
    pull = jax.eval_shape(
        lambda q, k, v: jax.vjp(functools.partial(
            products._attention, how=products.How('highest', t, 1.0, None)),
                                q, (attention.Source(k, v, sight.Sight()),))[1],
        jax.ShapeDtypeStruct((1, 1, t, 2, 8), jnp.float32), keys, keys)
    return sum(x.size for x in jax.tree.leaves(pull))
  assert 0 < kept(512) == 2 * kept(256)


def test_attend_ignores_masked_values_however_large(example):
  query, own, (key, value, mask) = example
  hidden = ~np.broadcast_to(mask[:, 0, :, :, None], key.shape)
  loud = (np.where(hidden, 1e4, key), np.where(hidden, -1e4, value), mask)
  np.testing.assert_allclose(
      call(query, [own, loud]), call(query, [own, (key, value, mask)]),
      atol=1e-6)


def test_m8_attend_with_extreme_scores_stays_finite(example):
  query, own, prompt = example
  out, gradient = jax.value_and_grad(
      lambda q: jnp.sum(call(q, [own, prompt])))(jnp.asarray(query) * 1e4)
  assert np.isfinite(out) and np.all(np.isfinite(gradient))


def test_m6_attend_with_nothing_visible_is_finite(example):
  query, (key, value, mask), _ = example
  nothing = [(key, value, np.zeros_like(mask))]
  out, gradient = jax.value_and_grad(
      lambda q: jnp.sum(call(q, nothing)))(jnp.asarray(query))
  assert np.isfinite(out) and np.all(np.isfinite(gradient))


def test_rows_in_seats_read_their_own_prompt():
  """2 shards of 3 prompts and 4 rows; two seats a prompt, one of them empty.

  Shard 0: rows 0 and 3 read prompt 2, row 1 reads prompt 0, row 2 prompt 1.
  """
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32) * 2
  prompt_of = np.array([[2, 0, 1, 2], [0, 0, 1, 1]])
  seat = np.array([[4, 0, 2, 5], [1, 0, 3, 2]])
  row = np.zeros((2, 6), np.int32)
  np.put_along_axis(row, seat, np.arange(4)[None], axis=1)
  query, keys, values = draw(2, 4, 1, 6, 8), draw(6, 2, 5, 8), draw(6, 2, 5, 8)
  mask = rng.random((6, 5)) < 0.6
  own = (draw(2, 4, 2, 3, 8), draw(2, 4, 2, 3, 8), np.tri(3, dtype=bool)[2:])
  seats = attention.Seats(row=jnp.asarray(row), seat=jnp.asarray(seat))

  def run(keys, values):
    return attention.attend(query, [
        attention.Source(*own[:2], lambda rows: own[2][None, None]),
        attention.Source(keys, values, lambda rows: mask[:, None, None],
                         seats)], precision='highest', chunk=9)

  # Each row a prompt of its own: what no pass of ours would ever build.
  index = (prompt_of + np.array([[0], [3]])).ravel()
  lone = lambda x: x.reshape((8, 1) + x.shape[2:])
  expected = naive(lone(query), [
      (*map(lone, own[:2]), own[2]),
      (keys[index], values[index], mask[index][:, None, None])])
  np.testing.assert_allclose(
      run(keys, values).reshape(8, 1, 1, 6, 8), expected, atol=1e-5)


BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32


def chosen(platform, monkeypatch, *, g=4, t=256, p=256, d=128, dtype=BFLOAT16,
           backend='auto', cap=None, **see):
  """What `attend` would run for G completions of one prompt on `platform`."""
  monkeypatch.setattr(attention, '_platform', lambda partition: platform)
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  query = jax.ShapeDtypeStruct((2, g, t, 4, d), dtype)
  own = jax.ShapeDtypeStruct((2, g, 2, t, d), dtype)
  prompt = jax.ShapeDtypeStruct((2, p, 2, d), dtype)
  return attention.choose(backend, query, [
      attention.Source(own, own, sight.Sight(
          keys=jnp.ones((1, 1, t), bool), **{'causal': True, **see})),
      attention.Source(prompt, prompt, sight.Sight())],
      precision='default', cap=cap)


@pytest.mark.parametrize('platform, asked, expected', [
    ('cpu', {}, 'xla'), ('rocm', {}, 'xla'),
    ('tpu', {}, 'splash'), ('tpu', dict(dtype=FLOAT32, cap=3.0), 'splash'),
    ('tpu', dict(g=1, p=0, causal=False), 'splash'),
    ('tpu', dict(t=1), 'xla'), ('tpu', dict(t=64), 'xla'),
    ('tpu', dict(dtype=jnp.float16), 'xla'),
    ('tpu', dict(p=0, blocks=1), 'xla'),
    ('tpu', dict(backend='xla'), 'xla'), ('cpu', dict(backend='splash'),
                                          'splash'),
    ('cuda', {}, 'triton'), ('cuda', dict(p=0), 'cudnn'),
    ('cuda', dict(g=1), 'cudnn'), ('cuda', dict(p=0, cap=3.0), 'triton'),
    ('cuda', dict(dtype=FLOAT32), 'xla'), ('cuda', dict(t=1), 'xla'),
    ('cuda', dict(t=64), 'xla'), ('cuda', dict(g=1, t=64), 'xla'),
    ('cuda', dict(backend='xla'), 'xla'),
])
def test_auto_takes_the_kernel_of_the_platform_that_fits(
    platform, asked, expected, monkeypatch):
  assert chosen(platform, monkeypatch, **asked) == expected


def test_auto_needs_the_mesh_of_several_devices(monkeypatch):
  """A kernel cannot be divided by the partitioner: without a mesh XLA's."""
  assert chosen('tpu', monkeypatch) == 'splash'
  query = jax.ShapeDtypeStruct((2, 1, 256, 4, 128), BFLOAT16)
  keys = jax.ShapeDtypeStruct((2, 1, 4, 256, 128), BFLOAT16)
  ask = dict(precision='default', cap=None)
  sources = [attention.Source(keys, keys, sight.Sight())]
  monkeypatch.setattr(jax, 'device_count', lambda: 4)
  assert attention.choose('auto', query, sources, **ask) == 'xla'
  told = sharding.default().partition
  assert attention.choose(
      'auto', query, sources, **ask, partition=told) == 'splash'


def test_a_kernel_needs_to_know_what_is_seen():
  query = jnp.ones((1, 1, 4, 2, 8), BFLOAT16)
  keys = jnp.ones((1, 1, 2, 4, 8), BFLOAT16)
  opaque = attention.Source(
      keys, keys, lambda rows: jnp.ones((1, 1, 1, 1), bool))
  for backend in ('splash', 'triton'):
    with pytest.raises(ValueError, match='must be a mmr1.models.sight.Sight'):
      attention.attend(query, [opaque], precision='default', chunk=9,
                       backend=backend)
