"""The weights that sample: what is cast, and that it changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict
import pytest

from mmr1 import trees
from mmr1.sampling import keys
from mmr1.sampling import publish
from mmr1.sampling import sample
from tests import small

KEY = keys.step_key(0, 1, 5)


def make(policy, **changes):
  return publish.make(config_dict.ConfigDict({
      'rows': None, 'cache_chunk': None, 'shrink': False, 'dtype': None,
      'layers': None, 'entropy': True, 'tensor': None,
      **changes}), policy)


def run(sampler, params, batch):
  return sampler(
      params, batch, KEY, sample.knobs(max_new_tokens=8), jnp.int32(0),
      group=3, length=8)


def test_m1_weights_in_the_compute_dtype_sample_the_same_bits():
  params, batch = small.params(), small.prompts()
  sampler = make(small.policy(compute_dtype='bfloat16'))
  published = sampler.publish(params)
  dtypes = {name: leaf.dtype for name, leaf in trees.named(published).items()}
  assert dtypes['language/embed'] == dtypes[
      'language/layers/mlp/up/kernel'] == jnp.bfloat16
  assert dtypes['language/norm/weight'] == dtypes[
      'visual/merger/fc1/bias'] == jnp.float32
  size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  assert size(published) < 0.52 * size(params)
  one, two = run(sampler, published, batch), run(sampler, params, batch)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
    np.testing.assert_array_equal(a, b)


def test_nothing_is_copied_where_nothing_is_cast():
  params = small.params()
  published = make(small.policy()).publish(params)
  for a, b in zip(jax.tree.leaves(published), jax.tree.leaves(params)):
    assert a is b


def test_another_dtype_samples_from_another_model():
  params, batch = small.params(), small.prompts()
  sampler = make(small.policy(), dtype='bfloat16')
  assert sampler.policy.module.config.compute_dtype == 'bfloat16'
  found = run(sampler, sampler.publish(params), batch)
  exact = run(make(small.policy()), params, batch)
  same = np.asarray(found.completions.tokens == exact.completions.tokens)
  first = same[..., 0]  # the same noise: most first tokens agree
  assert first.mean() > 0.7
  gap = np.abs(np.asarray(found.logp - exact.logp))[..., 0][first]
  assert 1e-3 < gap.max() < 0.1


@pytest.mark.parametrize('changes, message', [
    (dict(dtype='int8'), r"sampler\.dtype: got 'int8'; allowed"),
    (dict(rows=0), r'sampler\.rows: got 0; allowed'),
    (dict(cache_chunk=-1), r'sampler\.cache_chunk: got -1; allowed')])
def test_m22_what_is_not_allowed_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    make(small.policy(), **changes)


def test_sampler_tensor_must_divide():
  with pytest.raises(ValueError, match=r'sampler.tensor: got 3 on a mesh of '
                     r'.*allowed are multiples of mesh.tensor'):
    make(small.policy(), tensor=3)
