"""The detector: what sees what, and what its queries are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1.models import detector
from tests.models import passes

CONFIG = detector.Config(size=16, patch=4, width=16, heads=2, encoder=1,
                         decoder=1, queries=6, classes=3)
B = 3


@pytest.fixture(scope='module')
def params():
  made = detector.init(CONFIG, jax.random.key(0))
  keys = iter(jax.random.split(jax.random.key(1), 300))
  return jax.tree.map(
      lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), made)


@pytest.fixture(scope='module')
def net(params):
  return detector.Detector(CONFIG).bind({'params': params})


@pytest.fixture(scope='module')
def images():
  return jnp.float32(np.random.default_rng(0).normal(size=(B, 16, 16, 3)))


@pytest.fixture(scope='module')
def prompts():
  return jnp.float32(np.random.default_rng(1).normal(size=(3, 16)))


KNOWN = jnp.ones(3, bool)


@jax.jit
def detect(params, images, prompts, known):
  net = detector.Detector(CONFIG).bind({'params': params})
  return net.detect(net.features(images), prompts, known)


@pytest.fixture(scope='module')
def found(params, images, prompts):
  return detect(params, images, prompts, KNOWN)


def test_shapes_and_ranges(found):
  assert found.boxes.shape == (2, B, 6, 4) and found.logits.shape == (
      2, B, 6, 3)
  assert ((0 < found.boxes) & (found.boxes < 1)).all()


def test_queries_are_the_best_patches_best_first(found):
  """So that the last ones are those that selection ranked lowest."""
  scores, index = np.asarray(found.scores), np.asarray(found.index)
  for row, of in zip(scores, index):
    np.testing.assert_array_equal(row[of], np.sort(row)[::-1][:6])
  # The encoder's logits are the selection's own.
  np.testing.assert_allclose(
      found.logits[0].max(-1), np.take_along_axis(scores, index, 1), rtol=1e-5)


def test_pictures_do_not_see_each_other(params, images, prompts, found):
  others = detect(params, images.at[jnp.asarray([0, 2])].add(1.0), prompts,
                  KNOWN)
  np.testing.assert_allclose(others.boxes[:, 1], found.boxes[:, 1], atol=1e-5)
  np.testing.assert_allclose(
      others.logits[:, 1], found.logits[:, 1], atol=1e-4)
  assert np.abs(np.asarray(others.logits - found.logits))[:, 0].max() > 1e-2


def test_a_class_without_a_prompt_is_not_there(params, images, prompts):
  """Its logits are -inf, and whatever stands in its place changes nothing."""
  known = jnp.asarray([True, False, True])
  one, two = (detect(params, images, p, known)
              for p in (prompts, prompts.at[1].set(7.0)))
  assert np.isneginf(one.logits[..., 1]).all()
  assert np.isfinite(one.logits[..., [0, 2]]).all()
  np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-6)


def test_prompts_decide_what_is_found(params, images, prompts, found):
  other = detect(params, images, prompts[::-1], KNOWN)
  np.testing.assert_allclose(
      other.logits[0].max(-1), found.logits[0].max(-1), atol=1e-4)
  assert np.abs(np.asarray(other.logits - found.logits))[0].max() > 1e-2


def test_a_prompt_is_read_inside_its_box(net, images):
  """By the gradient: patches outside do not count, nor other boxes."""
  features = net.features(images)
  boxes = jnp.float32([[[.375, .375, .25, .25], [.8, .8, .3, .3]]] * B)
  by_patch = np.asarray(jax.jit(jax.grad(
      lambda f: net.prompts(f, boxes)[0, 0].sum()))(features))
  seen = np.abs(by_patch).max(-1)
  assert not seen[1:].any()
  at = detector.centres(CONFIG)
  # Half of .25 and half a patch, .125 each, around the middle.
  inside = (np.abs(at - .375) <= .25 + 1e-6).all(-1)
  np.testing.assert_array_equal(seen[0] > 0, inside)
  assert 0 < inside.sum() < 16


def test_boxes_begin_around_their_patches():
  """New parameters correct nothing."""
  made = detect(detector.init(CONFIG, jax.random.key(0)),
                jnp.zeros((B, 16, 16, 3)), jnp.ones((3, 16)), KNOWN)
  want = np.concatenate([detector.centres(CONFIG)[made.index[0]],
                         np.full((6, 2), .3)], -1)
  for layer in made.boxes:
    np.testing.assert_allclose(layer[0], want, atol=1e-4)


def test_alike_is_a_scaled_cosine(net, params):
  x = 3 * params['names'][1]
  got = net.alike(x)
  assert int(np.argmax(got)) == 1
  assert float(got[1]) == pytest.approx(
      float(np.exp(params['temperature'])), rel=1e-5)


def test_every_product_has_the_precision_of_the_config(params, images):
  """Those of attention and of class names too."""
  c = dataclasses.replace(CONFIG, precision='highest')
  found = list(passes.precisions_in(jax.make_jaxpr(
      lambda params: detector.Detector(c).apply(
          {'params': params}, images, jnp.full((B, 3, 4), .5)))(
              params).jaxpr))
  assert len(found) > 10 and {*found} == {(jax.lax.Precision.HIGHEST,) * 2}
