"""Operations, counted in what jax traced and by formula."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mmr1 import forward
from mmr1.planning import costs
from tests import small


def counted(fn, *arguments, trips=1):
  return costs.operations(jax.make_jaxpr(fn)(*arguments), trips)


def test_products_in_loops_and_branches():
  """[3, 4] x [4, 5]: 2 * 60; scanned 7 times; the dearer of two branches."""
  x, w = jnp.ones((3, 4)), jnp.ones((4, 5))
  assert counted(lambda: x @ w) == 120
  assert counted(lambda: jax.lax.scan(
      lambda c, _: (c, x @ w), 0, length=7)) == 840
  assert counted(lambda flag: jax.lax.cond(
      flag, lambda: x @ w, lambda: (x @ w) + (x @ w)), True) == 240
  assert counted(lambda: jax.lax.while_loop(
      lambda c: c[0, 0] < 9, lambda c: c + (x @ w)[:, :4], x), trips=3) == 360
  assert counted(jax.jit(lambda: jax.checkpoint(jnp.dot)(x, w))) == 120


def test_branches_that_the_model_knows_how_often_it_takes():
  """The dear branch in one of four turns: (240 + 3 * 120) / 4."""
  x, w = jnp.ones((3, 4)), jnp.ones((4, 5))

  def run(flag):
    with jax.named_scope('share_1_of_4'):
      return jax.lax.cond(flag, lambda: x @ w, lambda: (x @ w) + (x @ w))
  assert counted(run, True) == 150


def test_a_batched_product():
  """Two products [3, 4] x [4, 5] side by side."""
  assert counted(
      functools.partial(jnp.einsum, 'bij,bjk->bik'), jnp.ones((2, 3, 4)),
      jnp.ones((2, 4, 5))) == 240


@pytest.fixture(scope='module')
def traced():
  """The tiny model's passes over 2 prompts, G = 3, T = 4: what is counted, and
  the formula with the masked half of the scores, which XLA's attention does
  compute."""
  policy, tree = small.policy(layers='scan', remat='layer'), small.params()
  prompts = small.prompts(small.MIXED[1:3])
  block = small.block(prompts, 3, 4)
  c, p, s = policy.module.config, prompts.tokens.shape[1], (
      prompts.media['vision'].patches.shape[1])
  parts = costs.forward(c, costs.Work(
      prompts=2, group=3, length=4, prompt=p, patches=s, head=24))
  pairs = p * p + 3 * (4 * p + 16)
  parts['scores'] = 4 * c.heads * c.head_width * c.depth * 2 * pairs
  forward_ = counted(
      lambda tree: forward.logp_and_hidden(
          policy, tree, block.prompts, block.completions, block.mask,
          jnp.float32(1.0)), tree)
  gradient = counted(lambda tree: small._gradient(
      policy, tree, (block,), small.knobs(), 1, None), tree)
  return parts, forward_, gradient


def test_the_formula_is_what_a_forward_pass_computes(traced):
  parts, forward_, _ = traced
  assert forward_ == pytest.approx(sum(parts.values()), rel=.01)


def test_the_formula_is_what_a_gradient_computes(traced):
  parts, _, gradient = traced
  formula = sum(costs.gradient(parts, 'layer').values())
  assert gradient == pytest.approx(formula, rel=.1)


def test_a_gradient_is_three_passes_and_what_is_made_again():
  parts = dict(prompt=1.0, completions=2.0, scores=4.0, head=8.0, tower=16.0)
  assert costs.gradient(parts, 'none') == dict(
      prompt=3, completions=6, scores=12, head=32, tower=48)
  assert costs.gradient(parts, 'layer') == dict(
      prompt=4, completions=8, scores=16, head=32, tower=64)
  assert costs.gradient(parts, 'dots') == dict(
      prompt=3, completions=6, scores=16, head=32, tower=48)
