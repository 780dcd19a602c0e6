"""The model of pictures: patches, groups, conditions, adapters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.models import dit
from mmr1.models import lora
from tests.models import passes

CONFIG = dit.Config(size=8, patch=2, channels=3, source=True, width=16,
                    layers=2, heads=2, vocabulary=9, tokens=3)
N, G = 2, 3


@pytest.fixture(scope='module')
def params():
  """Random everywhere: new ones have gates of 0, and nothing would show."""
  params = dit.init(CONFIG, jax.random.key(0))
  keys = iter(jax.random.split(jax.random.key(1), 200))
  return jax.tree.map(
      lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)


@pytest.fixture(scope='module')
def given():
  rng = np.random.default_rng(0)
  return (jnp.float32(rng.normal(size=(N, G, 8, 8, 3))),
          jnp.float32(rng.random((N, G))),
          jnp.int32(rng.integers(1, 9, (N, 3))),
          jnp.float32(rng.normal(size=(N, 8, 8, 3))))


@jax.jit
def velocity(params, *given):
  return dit.DiT(CONFIG).apply({'params': params}, *given)


def test_patches_are_rows_of_squares_and_back(given):
  x = given[0]
  cut = dit.patches(x, 2)
  assert cut.shape == (N, G, 16, 12)
  # The second patch of the first row: pixels (0..1, 2..3).
  np.testing.assert_array_equal(cut[1, 2, 1], x[1, 2, :2, 2:4].reshape(-1))
  np.testing.assert_array_equal(dit.pictures(cut, 2, (8, 8, 3)), x)


def test_new_parameters_say_nothing(given):
  new = dit.init(CONFIG, jax.random.key(0))
  assert not np.asarray(velocity(new, *given)).any()
  # And are as large as their inputs ask for.
  kernel = np.asarray(new['layer_0']['q']['kernel'])
  assert abs(kernel.std() - 16**-0.5) < 0.03


def test_samples_of_a_group_do_not_see_each_other(params, given):
  """The gradient of one by the others' pixels and times is 0."""
  x, t, *rest = given
  by_x, by_t = jax.jit(jax.grad(
      lambda x, t: velocity(params, x, t, *rest)[1, 2].sum(), (0, 1)))(x, t)
  other = np.ones((N, G), bool)
  other[1, 2] = False
  assert not np.asarray(by_x)[other].any() and np.asarray(by_x)[~other].any()
  assert not np.asarray(by_t)[other].any() and np.asarray(by_t)[~other].any()


def test_a_group_is_its_samples_one_by_one(params, given):
  x, t, condition, source = given
  whole = velocity(params, x, t, condition, source)
  for n in range(N):
    for g in range(G):
      np.testing.assert_allclose(
          whole[n, g], velocity(
              params, x[n:n + 1, g:g + 1], t[n:n + 1, g:g + 1],
              condition[n:n + 1], source[n:n + 1])[0, 0], atol=2e-5)


def test_everything_given_is_read(params, given):
  x, t, condition, source = given
  whole = np.asarray(velocity(params, *given))
  for other in ((x, t + 0.1, condition, source),
                (x, t, condition.at[:, 2].set(0), source),
                (x, t, condition, source + 0.5)):
    assert np.abs(np.asarray(velocity(params, *other)) - whole).max() > 1e-3


def test_the_source_is_as_further_channels(params, given):
  """A sum of two products is one product of both, side by side."""
  x, *_, source = given
  beside = jnp.concatenate([x, jnp.broadcast_to(source[:, None], x.shape)], -1)
  kernels = [params[name]['kernel'].reshape(2, 2, 3, -1)
             for name in ('patches', 'source')]
  joined = jnp.concatenate(kernels, 2).reshape(24, -1)
  apart = dit.patches(x, 2) @ params['patches']['kernel'] + (
      dit.patches(source, 2) @ params['source']['kernel'])[:, None]
  np.testing.assert_allclose(
      dit.patches(beside, 2) @ joined, apart, atol=1e-5)


def test_new_adapters_change_nothing_and_merge(params, given):
  adapted = lora.inject(
      params, jax.random.key(2), rank=2, alpha=4.0,
      targets=('layer_.*/(q|k|v|o)/kernel',))
  np.testing.assert_array_equal(
      velocity(adapted, *given), velocity(params, *given))
  adapted = jax.tree_util.tree_map_with_path(
      lambda path, x: x + 0.1 if 'lora_b' in str(path) else x, adapted)
  moved = velocity(adapted, *given)
  assert np.abs(np.asarray(moved - velocity(params, *given))).max() > 1e-3
  np.testing.assert_allclose(
      velocity(lora.merge(adapted), *given), moved, atol=1e-4)


def test_computing_layers_again_changes_nothing(params, given):
  again = dit.DiT(dataclasses.replace(CONFIG, remat=True))
  loss = lambda model: jax.jit(jax.grad(lambda p: jnp.sum(
      model.apply({'params': p}, *given)**2)))(params)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
      loss(again), loss(dit.DiT(CONFIG)))


def test_every_product_has_the_precision_of_the_config(params, given):
  """Those of attention too."""
  c = dataclasses.replace(CONFIG, precision='highest')
  found = list(passes.precisions_in(jax.make_jaxpr(
      lambda params: dit.DiT(c).apply({'params': params}, *given))(
          params).jaxpr))
  assert len(found) > 10 and {*found} == {(jax.lax.Precision.HIGHEST,) * 2}
