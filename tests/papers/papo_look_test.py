"""PAPO on a small model: whose look it is, its gradient, a blind policy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import papo as config
from mmr1 import forward
from mmr1 import looks as looks_lib
from mmr1 import pixels
from mmr1 import resolve
from mmr1 import rl_setup
from mmr1 import trees
from mmr1 import types
from mmr1 import update
from mmr1 import views
from mmr1.losses import reduce
from mmr1.papers import papo
from tests import small

DEPTH, G, T = 1, 2, 5
KIND = pixels.Pixels(
    mean=(0.5,) * 3, std=(0.5,) * 3, patch=small.PATCH, frames=2)
LOOK = looks_lib.Look('masked', functools.partial(
    views.mask, pixels=KIND, black=0.6))


ROLLOUT, RECOMPUTE = (), (
    looks_lib.Look('masked', LOOK.fn, when='update', gradient=True),)


@pytest.fixture(scope='module')
def params():
  return small.params(depth=DEPTH)


@pytest.fixture(scope='module')
def later(params):
  """What training made of them."""
  other = small.params(seed=1, depth=DEPTH)
  return jax.tree.map(lambda x, y: x + 0.1 * y, params, other)


@pytest.fixture(scope='module')
def objective():
  """Policy, both entropies and the perception term."""
  c = resolve.finalise(config.get_config('no_ref'))
  return rl_setup.objective_of(c.papo, 'papo', c)


def policy():
  return small.policy(depth=DEPTH)


shown = jax.jit(LOOK.shown)


def passed(tree, block, prompts):
  """f32[N, G, T], log-probs after these prompts; no gradient."""
  return small.logp(policy(), tree, prompts, block.completions,
                    forward.completion_mask(block.completions), 1.0)[0]


def seen(tree, block):
  return passed(tree, block, shown(block.prompts))


@pytest.fixture(scope='module')
def block(params):
  """A text, images, a video; with the look of `params`, which made it."""
  prompts = small.prompts()
  prompts = prompts.replace(
      noise=looks_lib.noise(jax.random.key(7), prompts.uid))
  made = small.block(prompts, G, T)
  return made.replace(extra={**made.extra, 'view/masked': seen(params, made)})


@functools.partial(jax.jit, static_argnames=('terms', 'looks'))
def _gradient(tree, block, knobs, terms, looks):
  return update.gradient(policy(), tree, lambda x: x, (block,), terms, knobs,
                         chunks=2, looks=looks)


def gradient(objective, tree, block, looks=ROLLOUT, **coefficients):
  """Of the terms that are named, times these; and all metrics."""
  knobs = {'temperature': 1.0, **objective.knobs}
  knobs |= {name: 0.0 for name in knobs if name.startswith('coef/')}
  knobs |= {f'coef/{name}': x for name, x in coefficients.items()}
  return jax.device_get(_gradient(
      tree, block, {name: jnp.float32(x) for name, x in knobs.items()},
      objective.terms, looks))


def nothing(tree):
  return not any(np.any(x) for x in jax.tree.leaves(tree))


def blind(tree):
  """The same policy, whose images all become zeros."""
  tree = dict(tree, visual=dict(tree['visual']))
  merger = tree['visual']['merger']
  tree['visual']['merger'] = dict(
      merger, fc2=jax.tree.map(jnp.zeros_like, merger['fc2']))
  return tree


def mean(x, block):
  return np.asarray(x)[np.asarray(block.mask)].mean()


def test_a_look_of_the_rollout_is_fixed(objective, params, later, block):
  """Its log-probs are those of the policy that made it, whoever trains; the
  entropy of them has no gradient at all."""
  for tree in (params, later):
    moved, metrics = gradient(objective, tree, block, blind_entropy=1.0)
    assert nothing(moved)
    assert metrics['term/blind_entropy'] == pytest.approx(
        -mean(block.extra['view/masked'], block), rel=1e-5)


def test_recompute_is_of_who_trains_and_has_a_gradient(
    objective, params, later, block):
  want = -mean(seen(later, block), block)
  assert abs(want + mean(block.extra['view/masked'], block)) > 0.01
  moved, metrics = gradient(
      objective, later, block, RECOMPUTE, blind_entropy=1.0)
  assert metrics['term/blind_entropy'] == pytest.approx(want, rel=1e-5)
  assert trees.global_norm(moved) > 0.1


def test_recompute_is_the_gradient_of_both_passes(objective, later, block):
  """Along itself it is the slope of the loss, by differences."""
  terms = dict(perception=0.02, blind_entropy=0.03)
  slope, _ = gradient(objective, later, block, RECOMPUTE, **terms)
  size = float(trees.global_norm(slope))
  def loss(step):
    moved = jax.tree.map(lambda x, g: x + step / size * g, later, slope)
    return gradient(objective, moved, block, RECOMPUTE, **terms)[1]['loss']
  assert size > 0.01
  assert (loss(1e-3) - loss(-1e-3)) / 2e-3 == pytest.approx(size, rel=0.02)


def test_a_step_makes_the_picture_matter_more(objective, params, block):
  """Down -gamma k alone: mean k grows, by lr |gradient|^2 / gamma at first."""
  gamma, lr = 0.02, 0.02
  slope, before = gradient(objective, params, block, perception=gamma)
  stepped = jax.tree.map(lambda x, g: x - lr * g, params, slope)
  _, after = gradient(objective, stepped, block, perception=gamma)
  grown = before['term/perception'] - after['term/perception']  # they are -k
  square = float(trees.global_norm(slope))**2
  assert grown > 0
  assert grown == pytest.approx(lr * square / gamma, rel=0.1)


def test_a_blind_policy_has_no_perception(objective, params, block):
  """k is exactly 0, and its gradient for any gamma; as of a text's tokens."""
  text = block.replace(mask=block.mask.at[1:].set(False))
  for tree, given in ((blind(params), block), (params, text)):
    for gamma in (0.02, 50.0):
      moved, metrics = gradient(
          objective, tree, given, RECOMPUTE, perception=gamma)
      assert metrics['term/perception'] == metrics['loss'] == 0
      assert nothing(moved)
  moved, metrics = gradient(
      objective, params, block, RECOMPUTE, perception=0.02)
  assert metrics['term/perception'] < -0.01 and not nothing(moved)


def test_a_blind_policys_rollout_has_no_perception(params, block):
  """The same of a fixed look, which the same program made."""
  none = blind(params)
  own = passed(none, block, block.prompts)
  dark = block.replace(
      extra={**block.extra, 'view/masked': seen(none, block)})
  def loss(logp, gamma):
    return gamma * reduce.finish(*papo.perception(types.Scores(
        logp=logp, entropy=jnp.zeros_like(logp)), dark, {}))
  for gamma in (0.02, 50.0):
    value, slope = jax.value_and_grad(loss)(own, gamma)
    assert value == 0 and not np.any(slope)
  assert loss(passed(params, block, block.prompts), 0.02) != 0
