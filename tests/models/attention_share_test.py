"""How much words look at images, against one query at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mmr1.models import attention
from mmr1.models import attention_share
from mmr1.models import checkpoints
from mmr1.models import sight
from tests import small
from tests.models import conftest

N, P, H, K, D = 2, 11, 4, 2, 8


def naive(query, keys, seen, image, text, asks):
  """One query head at a time, in float64."""
  total = np.zeros(len(query))
  for n, t in zip(*np.nonzero(asks)):
    of_heads = []
    for h in range(query.shape[2]):
      kv = h * keys.shape[1] // query.shape[2]
      score = keys[n, kv] @ query[n, t, h] / np.sqrt(D)
      weight = np.where(seen[n, t], np.exp(score - score.max()), 0)
      v, w = (weight[mask[n]].sum() for mask in (image, text))
      of_heads.append(v / (v + w))
    total[n] += np.mean(of_heads)
  return total


@pytest.fixture(scope='module')
def example():
  rng = np.random.default_rng(0)
  query = rng.normal(size=(N, P, H, D)) * 2
  keys = rng.normal(size=(N, K, P, D))
  mask = np.ones((N, P), bool)
  mask[1, :3] = False  # left-padded
  slot = np.full((N, P), -1)
  slot[0, 2:5], slot[1, 5:7] = [0, 1, 2], [0, 1]
  return query, keys, mask, slot


def test_marks(example):
  """Rows: w w i i i w w w w w w, and . . . w w i i w w w w."""
  *_, mask, slot = example
  image, text, asks = attention_share.marks(mask, slot)
  assert (image == (slot >= 0)).all()
  assert text.sum(1).tolist() == [8, 6] and not text[1, :3].any()
  # Words that come before the image cannot see it.
  assert np.nonzero(asks[0])[0].tolist() == [5, 6, 7, 8, 9, 10]
  assert np.nonzero(asks[1])[0].tolist() == [7, 8, 9, 10]


@pytest.mark.parametrize('chunk', [99, 4])
def test_the_share_is_that_of_one_softmax(example, chunk):
  query, keys, mask, slot = example
  marked = attention_share.marks(mask, slot)
  source = attention.Source(
      jnp.float32(keys)[:, None], None,
      sight.Sight(keys=jnp.asarray(mask)[:, None], causal=True))
  got = jax.jit(functools.partial(
      attention_share.share, chunk=chunk, scale=None, cap=None,
      precision='highest', backend='auto', partition=None))(
          jnp.float32(query)[:, None], [source], marked=marked)
  seen = np.tri(P, dtype=bool) & mask[:, None]
  np.testing.assert_allclose(
      got, naive(query, keys, seen, *marked), rtol=1e-5)


def test_no_program_holds_the_weights_of_all_layers():
  """Depth 3, 26 x 26 weights of 2 heads: 3 of them are nowhere stacked."""
  policy, tree = small.policy(depth=3), small.params(depth=3)
  jaxpr = jax.make_jaxpr(lambda tree, prompts: policy.apply(
      tree, prompts, method='attention_share'))(tree, small.prompts())
  shapes = {*small.shapes_in(jaxpr.jaxpr)}
  p = small.prompts().tokens.shape[1]
  assert any(shape[-2:] == (1, p) or shape[-1:] == (p,) for shape in shapes)
  assert not any(shape[0] == 3 and shape.count(p) > 1 for shape in shapes
                 if shape)


@pytest.mark.parametrize('layers', ['unrolled', 'scan'])
def test_against_transformers(oracle, folders, layers):
  """Its attention weights of every layer, put together as the paper says."""
  rows = [oracle.row(9, seed=1), oracle.row(3, (32, 40), 4, seed=2),
          oracle.row(2, (24, 24), 5, (8, 40), 3, seed=3)]
  module, tree = checkpoints.load(folders[True], layers=layers)
  sums, counts = module.apply(
      {'params': tree}, oracle.prompts(rows, p=60), method='attention_share')
  assert np.asarray(counts).tolist()[0] == 0  # without an image
  model = transformers.AutoModelForImageTextToText.from_pretrained(
      folders[True], attn_implementation='eager')
  for i, one in enumerate(rows[1:], 1):
    model.model.rope_deltas = None
    with torch.no_grad():
      weights = model(**oracle.inputs(one), output_attentions=True).attentions
    image = np.array([t == conftest.IMAGE for t in one.tokens])
    asks = ~image & (np.cumsum(image) > 0)
    assert counts[i] == asks.sum()
    assert len(weights) == len(sums)
    for layer, of_layer in zip(weights, np.asarray(sums)):
      layer = layer[0].double().numpy()[:, asks]  # [H, Q, K]
      v, t = layer[..., image].sum(-1), layer[..., ~image].sum(-1)
      np.testing.assert_allclose(
          of_layer[i], (v / (v + t)).mean(0).sum(), rtol=1e-4)


def test_without_media_it_is_an_error():
  with pytest.raises(ValueError, match='none of the prompts has media'):
    small.policy().apply(small.params(), small.prompts(media=False),
                         method='attention_share')
