"""Names, counts, selection, norms of trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmr1 import trees

PARAMS = {
    'vision': {'blocks': {'qkv': {'kernel': np.ones((2, 3, 4), np.float32)}}},
    'language': {'embed': np.full((5, 2), 2.0, np.float32),
                 'norm': {'weight': np.ones(2, np.float32)}},
}


def test_names():
  assert list(trees.named(PARAMS)) == [
      'language/embed', 'language/norm/weight', 'vision/blocks/qkv/kernel']
  state = optax.sgd(0.1, momentum=0.9).init({'a': jnp.ones(2)})
  assert list(trees.named(state)) == ['0/trace/a']
  assert trees.names({'a': [1, 2], 'b': None}) == {
      'a': ['a/0', 'a/1'], 'b': None}


def test_count():
  # 2*3*4 + 5*2 + 2 = 36.
  assert trees.count(PARAMS) == 36
  assert trees.count(jax.eval_shape(lambda: PARAMS)) == 36


def test_select_matches_whole_names():
  mask = trees.select(PARAMS, ('vision/.*', '.*/embed'))
  assert trees.named(mask) == {
      'language/embed': True, 'language/norm/weight': False,
      'vision/blocks/qkv/kernel': True}
  assert not any(jax.tree.leaves(trees.select(PARAMS, ())))


@pytest.mark.parametrize('pattern', ['vision', 'visoin/.*', '('])
def test_m22_a_pattern_that_matches_nothing(pattern):
  with pytest.raises(ValueError, match='rl.freeze') as error:
    trees.select(PARAMS, ('language/.*', pattern), 'rl.freeze')
  assert repr(pattern) in str(error.value)


def test_global_norm_is_that_of_optax():
  # sqrt(24 * 1 + 10 * 4 + 2) = sqrt(66)
  np.testing.assert_allclose(trees.global_norm(PARAMS), 66 ** 0.5, rtol=1e-6)
  np.testing.assert_array_equal(
      trees.global_norm(PARAMS), optax.tree.norm(PARAMS))
  assert trees.global_norm({}) == 0.0
  # 1000 ones in bfloat16: its own sum would stop at 256.
  wide = {'a': jnp.ones(1000, jnp.bfloat16)}
  np.testing.assert_allclose(trees.global_norm(wide), 1000 ** 0.5, rtol=1e-6)


def test_cast_leaves_integers():
  tree = trees.cast({'a': jnp.ones(2), 'b': jnp.ones(2, jnp.int8)}, 'bfloat16')
  assert (tree['a'].dtype, tree['b'].dtype) == (jnp.bfloat16, jnp.int8)


def test_partition_and_merge():
  mask = trees.select(PARAMS, ('language/.*',))
  language, rest = trees.partition(PARAMS, mask)
  # Whole branches are absent, not empty.
  assert list(language) == ['language'] and list(rest) == ['vision']
  mixed, other = trees.partition(
      PARAMS, trees.select(PARAMS, ('language/embed',)))
  assert list(trees.named(mixed)) == ['language/embed']
  assert list(other['language']) == ['norm']
  for pair in ((language, rest), (rest, language), (mixed, other)):
    merged = trees.merge(*pair)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b,
                                            merged, PARAMS)))
  all_of_it, nothing = trees.partition(PARAMS, jax.tree.map(
      lambda _: True, PARAMS))
  assert nothing == {} and trees.merge(all_of_it, {}).keys() == PARAMS.keys()


def test_merge_refuses_overlap():
  with pytest.raises(ValueError, match="'embed'"):
    trees.merge(PARAMS, {'language': {'embed': 1}})
