"""Attention over several sources of keys, against one query at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.models import attention


def naive(query, sources):
  """One query head at a time, sources concatenated and repeated."""
  n, g, t, heads, width = query.shape
  out = np.zeros(query.shape)
  for i, j, q, h in np.ndindex(n, g, t, heads):
    scores, values = [], []
    for key, value, mask in sources:
      own = key.ndim == 5
      kv = h * key.shape[2] // heads
      key, value = ((key[i, j, kv], value[i, j, kv]) if own else
                    (key[i, :, kv], value[i, :, kv]))
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
  prompt = (draw(2, 5, 2, 8), draw(2, 5, 2, 8), mask)
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


def test_attend_ignores_masked_values_however_large(example):
  query, own, (key, value, mask) = example
  hidden = ~np.broadcast_to(mask[:, 0, 0, :, None, None], key.shape)
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
  query, keys, values = draw(2, 4, 1, 6, 8), draw(6, 5, 2, 8), draw(6, 5, 2, 8)
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
