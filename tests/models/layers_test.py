"""Rotary positions and the fold over layers, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.models import layers


def test_mrope_sections_by_hand():
  # Head width 8, theta 16: frequencies 1, 1/2, 1/4, 1/8. Sections (1, 1, 2):
  # the first turns with time 2, the second with height 4, the rest with
  # width 8: angles 2, 2, 2, 1.
  cos, sin = layers.mrope(
      jnp.asarray([2, 4, 8]), theta=16.0, sections=(1, 1, 2),
      dtype=jnp.float32)
  angles = [2, 2, 2, 1] * 2
  np.testing.assert_allclose(cos, np.cos(angles), atol=1e-6)
  np.testing.assert_allclose(sin, np.sin(angles), atol=1e-6)


def test_interleaved_axes_by_hand():
  # Two heights, one width among six: T H W T H T.
  assert layers.axes((3, 2, 1), 'interleaved').tolist() == [0, 1, 2, 0, 1, 0]
  # Qwen3-VL's 64: height 1, 4, ..., 58, width 2, 5, ..., 59, time the rest.
  axes = layers.axes((24, 20, 20), 'interleaved')
  assert np.flatnonzero(axes == 1).tolist() == list(range(1, 60, 3))
  assert np.flatnonzero(axes == 2).tolist() == list(range(2, 60, 3))
  assert len(axes) == 64
  # Theta 16, width 8: frequencies 1, 1/2, 1/4, 1/8 turn with 2, 4, 8, 2.
  cos, _ = layers.mrope(
      jnp.asarray([2, 4, 8]), theta=16.0, sections=(2, 1, 1),
      dtype=jnp.float32, order='interleaved')
  np.testing.assert_allclose(cos, np.cos([2, 2, 2, 0.25] * 2), atol=1e-6)


def test_llama3_frequencies_by_hand():
  # Context 8 pi: a frequency f turns 4 f times in it. More than 4 turns stay,
  # less than 1 are slowed down 8 times; 2.5 turns are half way.
  scaling = layers.Llama3(factor=8.0, low=1.0, high=4.0, context=8 * np.pi)
  got = scaling.stretch(np.float32([2, 1, 0.625, 0.25, 0.125]))
  np.testing.assert_allclose(
      got, [2, 1, 0.625 * (0.5 + 0.5 / 8), 0.25 / 8, 0.125 / 8], rtol=1e-6)
  # And they reach the angles: theta 16 and width 4, frequencies 1 and 1/4.
  cos, _ = layers.mrope(
      jnp.asarray([3, 3, 3]), theta=16.0, sections=(2, 0, 0),
      dtype=jnp.float32, scaling=scaling)
  np.testing.assert_allclose(cos, np.cos([3, 3 / 32] * 2), atol=1e-6)


def test_linear_scaling_by_hand():
  got = layers.Linear(8.0).stretch(np.float32([2, 0.25]))
  np.testing.assert_array_equal(got, [0.25, 1 / 32])


def test_norm_with_an_offset_by_hand():
  # rms(3, 4) = sqrt(12.5); fresh weights are 0 and multiply by one.
  norm = layers.RMSNorm(0.0, jnp.bfloat16, offset=True)
  x = jnp.float32([3, 4])
  fresh = norm.init(jax.random.key(0), x)
  got = norm.apply(jax.tree.map(lambda w: w + jnp.float32([0, 0.5]), fresh), x)
  expected = np.float32([3, 6]) / np.sqrt(np.float32(12.5))
  # Rounded once, at the end.
  np.testing.assert_array_equal(got, jnp.asarray(expected, jnp.bfloat16))


def test_axial_rope_by_hand():
  # Head width 8, theta 100: two frequencies 1, 1/10; row 3, column 5.
  cos, _ = layers.axial_rope(jnp.asarray([3, 5]), theta=100.0, width=8)
  np.testing.assert_allclose(cos, np.cos([3, 0.3, 5, 0.5] * 2), atol=1e-6)


def test_rotate_keeps_relative_positions():
  rng = np.random.default_rng(1)
  q, k = rng.normal(size=(2, 1, 1, 8)).astype(np.float32)

  def score(i, j):
    turned = [
        layers.rotate(x, *layers.mrope(
            jnp.full((1, 3), p), theta=1e4, sections=(2, 1, 1),
            dtype=jnp.float32)) for x, p in ((q, i), (k, j))]
    return np.sum(turned[0] * turned[1])

  np.testing.assert_allclose(score(7, 4), score(3, 0), rtol=1e-5)
  assert abs(score(7, 4) - score(7, 5)) > 1e-3
  # Half-split: (x1, x2) turned by 90 degrees is (-x2, x1).
  np.testing.assert_allclose(
      layers.rotate(jnp.asarray([[[1.0, 2.0]]]), jnp.zeros((1, 2)),
                    jnp.ones((1, 2))), [[[-2.0, 1.0]]])


def test_rms_norm_by_hand():
  # rms([3, 4, 0, 0]) = sqrt(25 / 4) = 2.5; weight 2.
  norm = layers.RMSNorm(0.0, 'float32')
  out = norm.apply({'params': {'weight': jnp.full(4, 2.0)}},
                   jnp.asarray([3.0, 4.0, 0.0, 0.0]))
  np.testing.assert_allclose(out, [2.4, 3.2, 0, 0], rtol=1e-6)


@pytest.mark.parametrize('remat', layers.REMAT)
def test_fold_scanned_equals_unrolled(remat):
  params = {'a': jnp.asarray([2.0, 3.0, 5.0])}
  extras = jnp.asarray([1.0, 10.0, 100.0])
  flags = [True, False, True]

  def step(layer, x, extra, flag):
    x = layer['a'] * x + extra
    return (jnp.where(flag, -x, x), x)

  # 1 -> 3 -> -3; 3 * -3 + 10 = 1; 5 + 100 = 105 -> -105.
  def run(params, scan):
    x, outs = layers.fold(step, params, jnp.asarray(1.0), extras, flags,
                          scan=scan, remat=remat)
    return x, jnp.stack(outs) if not scan else outs

  for scan in (False, True):
    x, outs = run(params, scan)
    assert float(x) == -105 and outs.tolist() == [3, 1, 105]
    # d x / d a: a0: (-5)(3)(-1) x 1, a1: (-5) x -3, a2: (-1) x 1.
    grads = jax.grad(lambda p: run(p, scan)[0])(params)['a']
    assert grads.tolist() == [15, 15, -1]


@pytest.mark.parametrize('remat', layers.REMAT)
@pytest.mark.parametrize('scan', [False, True])
def test_fold_adds_after_the_first_layers(scan, remat):
  params = {'a': jnp.asarray([2.0, 3.0, 5.0])}

  def step(layer, x, extra, flag):
    del extra, flag
    return layer['a'] * x, x

  # 1 -> 2 + 10 = 12 -> 36 + 100 = 136 -> 680.
  def run(add):
    return layers.fold(
        step, params, jnp.asarray(1.0), None if scan else [None] * 3,
        [False] * 3, scan=scan, remat=remat, add=add)

  x, seen = run(jnp.asarray([10.0, 100.0]))
  assert float(x) == 680 and list(map(float, seen)) == [1, 12, 136]
  # What is added after layer 0 goes through 3 and 5, after layer 1 through 5.
  grads = jax.grad(lambda add: run(add)[0])(jnp.asarray([10.0, 100.0]))
  assert grads.tolist() == [15, 5]


def test_unstack_gradient_is_one_concatenation():
  x = jnp.arange(12.0).reshape(4, 3)
  jaxpr = jax.make_jaxpr(jax.grad(lambda x: sum(
      jnp.sum(part * i) for i, part in enumerate(layers.unstack(x, 4)))))(x)
  names = [equation.primitive.name for equation in jaxpr.eqns]
  assert names.count('concatenate') == 1 and 'pad' not in names


@pytest.mark.parametrize('inputs, outputs', [(8, 32), (32, 8), (8, 8)])
def test_dense_is_a_product_whose_gradient_copies_the_narrower_factor(
    inputs, outputs):
  layer = layers.dense(
      outputs, 'fc', bias=True, dtype=jnp.float32, precision='highest')
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, inputs)).astype(np.float32)
  slope = rng.normal(size=(2, 3, outputs)).astype(np.float32)
  params = layer.init(jax.random.key(0), x)
  kernel = np.asarray(params['params']['kernel'], np.float64)

  def loss(params, x):
    return jnp.sum(layer.apply(params, x) * slope)

  np.testing.assert_allclose(layer.apply(params, x), x @ kernel, atol=1e-5)
  grads, dx = jax.grad(loss, (0, 1))(params, x)
  rows, slopes = x.reshape(-1, inputs), slope.reshape(-1, outputs)
  np.testing.assert_allclose(
      grads['params']['kernel'], rows.T.astype(float) @ slopes, atol=1e-5)
  np.testing.assert_allclose(grads['params']['bias'], slopes.sum(0), atol=1e-5)
  np.testing.assert_allclose(dx, slope @ kernel.T, atol=1e-5)
  # Row by row both factors are [6, ...]; XLA copies the first one transposed.
  firsts = [eqn.invars[0].aval.shape for eqn in _dots(
      jax.make_jaxpr(jax.grad(loss))(params, x).jaxpr)
            if eqn.params['dimension_numbers'][0] == ((0,), (0,))]
  assert firsts == [(6, min(inputs, outputs))]


def _dots(jaxpr):
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield eqn
    for inner in jax.tree.leaves(list(eqn.params.values())):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from _dots(inner)


def test_dense_keeps_the_dtype_of_activations():
  layer = layers.dense(
      4, 'fc', bias=False, dtype=jnp.bfloat16, precision='default')
  x = jnp.ones((2, 8), jnp.bfloat16)
  params = layer.init(jax.random.key(0), x)
  grads = jax.grad(lambda p: layer.apply(p, x).astype(jnp.float32).sum())(
      params)
  assert layer.apply(params, x).dtype == jnp.bfloat16
  assert grads['params']['kernel'].dtype == jnp.float32
