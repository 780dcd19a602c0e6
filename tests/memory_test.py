"""What the compiled update holds, read off XLA's program and its plan."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import trees
from mmr1 import update
from tests import small

# Sizes that no other axis has: V is Qwen2.5's vocabulary.
N, G, P, V, WIDTH = 2, 4, 37, 151_936, 32


@functools.cache
def program(*, vocab=small.VOCAB, t, head_chunk=20, **run):
  """The compiled gradient of all three terms, from shapes alone."""
  policy = small.policy(head_chunk, vocab=vocab, depth=1, **{
      'remat': 'layer', **run})
  params = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), small.params(depth=1))
  params['language']['embed'] = jax.ShapeDtypeStruct(
      (vocab, WIDTH), jnp.float32)
  rows = [small.row(5 + i, seed=i) for i in range(N)]
  block = jax.eval_shape(lambda: small.block(
      small.prompts(rows, p=P, media=False), G, t))
  return jax.jit(lambda p, b: update.gradient(
      policy, p, lambda x: x, (b,), small.plan().terms, small.knobs(),
      chunks=2)).lower(params, block).compile()


def shapes(compiled):
  """Shapes of all arrays of the program, those inside fusions included."""
  found = re.findall(r'\b[a-z]+\d+\[([\d,]+)\]', compiled.as_text())
  return {tuple(map(int, one.split(','))) for one in found}


def temporaries(compiled):
  return compiled.memory_analysis().temp_size_in_bytes


def test_law_1_no_logits_of_all_tokens_and_none_of_prompts():
  t, chunk = 33, 44
  compiled = program(vocab=V, t=t, head_chunk=chunk)
  big = {shape for shape in shapes(compiled) if V in shape}
  # The search finds logits: a chunk of tokens, the same number per prompt.
  assert any(math.prod(s) == V * chunk for s in big if WIDTH not in s), big
  for shape in big:
    # And the embedding with its gradient. Nothing more, above all no
    # [tokens, V]: a chunk of completions has N x G / 2 x T = 132 of them.
    assert math.prod(shape) <= V * max(chunk, WIDTH), shape
    assert P not in shape and t not in shape
  # All that exists at once: a few chunks of logits and gradients of the
  # embedding, less than the logits of all tokens alone.
  tokens = N * G * t
  assert temporaries(compiled) < 4 * V * tokens
  assert temporaries(compiled) > 4 * V * chunk


def test_temporaries_grow_at_most_linearly_with_t():
  """As run at scale: chunks of completions, layers that are recomputed, and
  attention by blocks of queries."""
  one, two = (temporaries(program(t=t, query_chunk=64)) for t in (256, 512))
  assert one < two <= 2 * one
  # The plan shows growth: without blocks of queries scores are [.., T, T].
  assert temporaries(program(t=512, query_chunk=1024)) > 2 * two


def products(remat, layers):
  """Matrix products (with weights, of attention) in the gradient."""
  policy = small.policy(depth=2, remat=remat, layers=layers)
  rows = [small.row(3, seed=i) for i in range(N)]
  block = small.block(small.prompts(rows, p=4, media=False), G, 6)
  jaxpr = jax.make_jaxpr(lambda p, b: update.gradient(
      policy, p, lambda x: x, (b,), small.plan().terms, small.knobs()))(
          small.params(), block)
  count = [0, 0]

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == 'dot_general':
        batched = bool(eqn.params['dimension_numbers'][1][0])
        count[batched] += 1
      for value in jax.tree.leaves(
          list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'jaxpr')
          or hasattr(x, 'eqns')):
        inner = getattr(value, 'jaxpr', value)
        if hasattr(inner, 'eqns'):
          walk(inner)
  walk(jaxpr.jaxpr)
  return count


@pytest.mark.parametrize('layers', ['unrolled', 'scan'])
def test_dots_recompute_attention_and_no_product_with_weights(layers):
  none, layer, dots = (products(remat, layers)
                       for remat in ('none', 'layer', 'dots'))
  assert dots[0] == none[0] < layer[0]
  assert none[1] < dots[1] == layer[1]


def test_dots_change_nothing():
  block = small.block(small.prompts([small.row(5), small.row(8, seed=1)], p=8,
                                    media=False), 2, 5)
  expected, got = (
      small.gradient(small.params(depth=1), (block,), policy_=small.policy(
          depth=1, **run)) for run in ({}, {'remat': 'dots'}))
  assert np.abs(expected[0]['language']['embed']).max() > 1e-3
  for name, x in trees.named(got[0]).items():
    want = trees.named(expected[0])[name]
    np.testing.assert_allclose(
        x, want, rtol=0, atol=1e-5 * np.abs(want).max(), err_msg=name)
