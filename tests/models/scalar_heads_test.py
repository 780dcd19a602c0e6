"""The form of heads of one number: by hand, in files, and where they start."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.models import checkpoints
from mmr1.models import lora
from mmr1.models import scalar_heads
from mmr1 import trees
from tests import small

HEAD = scalar_heads.Head(layers=2, activation='silu', bias=True)


def test_two_layers_by_hand():
  # W1 rows [1, 0], [.5, 1] on h = [1, -2], b1 = [0, .1]: [1, -1.4]; z sigma(z):
  # [.731059, -.276943]; 2 x .731059 + .276943 + .5.
  params = {
      'hidden_0': {'kernel': jnp.asarray([[1., .5], [0., 1.]]),
                   'bias': jnp.asarray([0., .1])},
      'kernel': jnp.asarray([[2.], [-1.]]), 'bias': jnp.asarray([.5])}
  h = jnp.asarray([[1., -2.]])
  said = lambda **kw: float(scalar_heads.apply(
      params, h, HEAD._replace(**kw), 'highest')[0])
  assert said() == pytest.approx(2.239060, abs=1e-6)
  # Without an activation it is one linear layer: 2 x 1 + 1.4 + .5.
  assert said(activation='none') == pytest.approx(3.9, abs=1e-6)
  # 2 tanh 1 - tanh(-1.4) + .5 = 1.523188 + .885352 + .5.
  assert said(activation='tanh') == pytest.approx(2.908540, abs=1e-6)


def test_bfloat16_states_are_scored_in_float32():
  params = {'kernel': jnp.ones((4, 1))}
  h = jnp.asarray([256., 1., 1., 1.], jnp.bfloat16)  # their sum has 9 bits
  assert float(scalar_heads.apply(
      params, h, scalar_heads.Head(), 'default')) == 259


@pytest.mark.parametrize('layers', [1, 2, 3, 5])
def test_a_new_head_says_0_and_all_of_it_can_learn(layers):
  head = HEAD._replace(layers=layers)
  new = scalar_heads.zeros(8, head)
  drawn = scalar_heads.drawn(new, jax.random.key(0), lambda name, x: x)
  h = jax.random.normal(jax.random.key(1), (5, 8))
  say = lambda params: scalar_heads.apply(params, h, head, 'highest')
  assert not np.any(say(drawn))
  assert trees.named(drawn).keys() == trees.named(new).keys()
  # One step moves the last layer, and the next one all of them.
  target = jnp.arange(5.0)
  loss = lambda params: jnp.square(say(params) - target).sum()
  once = jax.tree.map(lambda x, g: x - .01 * g, drawn, jax.grad(loss)(drawn))
  for name, leaf in trees.named(jax.grad(loss)(once)).items():
    assert np.any(leaf), name
  if layers > 1:  # with zeros everywhere nothing but the bias would
    stuck = trees.named(jax.grad(loss)(new))
    assert [name for name, leaf in stuck.items() if np.any(leaf)] == ['bias']
  # Drawn once: a head that has learned is left as it is.
  again = scalar_heads.drawn(once, jax.random.key(2), lambda name, x: x)
  assert jax.tree.all(jax.tree.map(np.array_equal, again, once))


def test_draws_are_the_keys():
  new = scalar_heads.zeros(8, HEAD)
  a, b, c = (scalar_heads.drawn(new, jax.random.key(k), lambda name, x: x)
             ['hidden_0']['kernel'] for k in (0, 0, 1))
  assert np.array_equal(a, b) and not np.array_equal(a, c)
  assert np.abs(a).max() <= 8**-.5 and not np.array_equal(a[0], a[1])


def test_heads_have_no_adapters():
  params = {**small.params(), 'scalars': {
      'reward': scalar_heads.zeros(32, HEAD)}}
  assert not any(name.startswith('scalars') for name in lora.chosen(
      params, ('.*',)))


def test_a_folder_says_what_its_head_is(tmp_path):
  policy = small.policy(scalars=('reward',), reward_head=HEAD)
  params = {**small.params(), 'scalars': {'reward': jax.tree.map(
      lambda x: jnp.asarray(np.random.default_rng(0).normal(size=x.shape),
                            jnp.float32), scalar_heads.zeros(32, HEAD))}}
  checkpoints.save(tmp_path, policy.module, params)
  assert json.loads((tmp_path / 'config.json').read_text())['reward_head'] == (
      HEAD._asdict())
  module, again = checkpoints.load(tmp_path, scalars=('reward',))
  assert module.config.reward_head == HEAD
  assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
  with pytest.raises(ValueError, match='model.reward_head'):
    checkpoints.load(tmp_path, scalars=('reward',), reward_head=HEAD._replace(
        activation='tanh'))


def test_the_head_is_not_the_embedding(tmp_path):
  """A tied model whose embedding changes says something else only because its
  states do: the head's own numbers stay."""
  checkpoints.save(tmp_path, small.policy().module, small.params())
  _, params = checkpoints.load(
      tmp_path, scalars=('reward',), reward_head=HEAD)
  own = {name for name in trees.named(params) if name.startswith('scalars/')}
  assert own == {'scalars/reward/' + name for name in (
      'hidden_0/kernel', 'hidden_0/bias', 'kernel', 'bias')}
  assert params['scalars']['reward']['kernel'].shape == (32, 1)
  assert not np.any(params['scalars']['reward']['kernel'])
  assert np.any(params['language']['embed'])


@pytest.mark.parametrize('change, said', [
    (dict(layers=0), 'layers: got 0'),
    (dict(activation='swish'), "activation: got 'swish'")])
def test_m22_what_a_head_cannot_be(change, said):
  with pytest.raises(ValueError, match=said):
    scalar_heads.check(HEAD._replace(**change))
