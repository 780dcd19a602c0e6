"""Heads of one number on a model: a critic's values, a reward model's."""

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import forward
from mmr1.models import checkpoints
from mmr1.models import tensor_files
from tests import small

N, G, T = 4, 3, 5
HEADS = ('value', 'reward')


@pytest.fixture(scope='module')
def policy():
  return small.policy(scalars=HEADS)


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(3)
  heads = {name: {'kernel': jnp.asarray(rng.normal(size=(32, 1)), jnp.float32)}
           for name in HEADS}
  heads['value']['bias'] = jnp.asarray([0.5])
  return {**small.params(), 'scalars': heads}


@pytest.fixture(scope='module')
def block():
  return small.block(small.prompts(), G, T)


def _score(policy, params, block):
  prefix = policy.prompt_pass(params, block.prompts)
  hidden = forward.hidden_states(
      policy, params, prefix, block.prompts, block.completions)
  return forward.score(policy, params, prefix, block, 1.0), hidden


score = jax.jit(_score, static_argnums=0)
reward = jax.jit(forward.reward, static_argnums=0)


def changed(block, t):
  """The same with other tokens at t."""
  tokens = np.array(block.completions.tokens)
  tokens[:, :, t] = (tokens[:, :, t] - 1) % 50 + 3
  return block.replace(completions=block.completions.replace(
      tokens=jnp.asarray(tokens)))


def test_law_2_a_value_is_that_of_the_state_before_the_token(
    policy, params, block):
  scores, hidden = score(policy, params, block)
  head = params['scalars']['value']
  expected = np.asarray(hidden) @ np.asarray(head['kernel'])[:, 0] + 0.5
  mask = np.asarray(block.mask)
  np.testing.assert_allclose(
      scores.value, np.where(mask, expected, 0), atol=1e-5)
  # Token 2 decides the values after it, and none up to it.
  other = np.asarray(score(policy, params, changed(block, 2))[0].value)
  same = np.abs(other - np.asarray(scores.value)) < 1e-6
  assert same[:, :, :3].all() and not same[:, :, 3:][mask[:, :, 3:]].any()
  # What else is scored does not know of the heads.
  plain, _ = score(small.policy(), small.params(), block)
  assert plain.value is None
  np.testing.assert_allclose(plain.logp, scores.logp, atol=1e-6)


def test_m3_a_reward_is_read_at_the_last_token_whatever_the_padding(
    policy, params, block):
  got = np.asarray(reward(policy, params, block.prompts, block.completions))
  assert got.shape == (N, G) and got.std() > 0.1
  longer = small.block(small.prompts(), G, T, array_t=T + 3)
  np.testing.assert_allclose(
      reward(policy, params, longer.prompts, longer.completions), got,
      atol=1e-5)
  lengths = np.asarray(forward.completion_mask(block.completions)).sum(-1)
  for t in range(T):
    moved = np.asarray(reward(
        policy, params, block.prompts, changed(block, t).completions))
    np.testing.assert_array_equal(np.abs(moved - got) > 1e-5, t < lengths)


def test_m6_a_completion_of_nothing_is_judged_at_the_prompts_end(
    policy, params, block):
  empty = block.completions.replace(
      kind=jnp.zeros_like(block.completions.kind))
  got = np.asarray(reward(policy, params, block.prompts, empty))
  last = np.asarray(policy.prompt_pass(params, block.prompts).last)
  expected = last @ np.asarray(params['scalars']['reward']['kernel'])
  np.testing.assert_allclose(got, np.repeat(expected, G, 1), atol=1e-5)


def test_heads_are_saved_and_start_at_zero(policy, params, tmp_path):
  checkpoints.save(tmp_path / 'plain', small.policy().module, small.params())
  module, fresh = checkpoints.load(tmp_path / 'plain', scalars=HEADS)
  assert module.config.scalars == HEADS
  assert not any(x.any() for x in jax.tree.leaves(fresh['scalars']))
  checkpoints.save(tmp_path / 'heads', policy.module, params)
  _, again = checkpoints.load(tmp_path / 'heads', scalars=HEADS)
  assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
  assert {'v_head.summary.weight', 'v_head.summary.bias', 'score.weight'} < {
      *tensor_files.find(epath.Path(tmp_path / 'heads'))}


def test_m22_an_unknown_head_is_refused(tmp_path):
  checkpoints.save(tmp_path, small.policy().module, small.params())
  with pytest.raises(ValueError, match=r"scalars=\('values',\).*'value'"):
    checkpoints.load(tmp_path, scalars=('values',))
