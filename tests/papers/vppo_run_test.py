"""VPPO: two steps of its stage, against numpy and passes of their own."""

import functools
import math

import jax
import numpy as np
import pytest

from configs import vppo as config
from tests.papers import two_steps


@pytest.fixture(scope='module', params=[None, 'paper'],
                ids=lambda x: x or 'default')
def variant(request):
  return request.param


@pytest.fixture(scope='module')
def run(variant, shrink, open_run, tmp_path_factory):
  c = two_steps.small_stage(
      shrink(config.get_config(variant)), 'vppo', reward='seldom')
  return two_steps.take(c, 'vppo', open_run, tmp_path_factory.mktemp('vppo'))


def divergence(run, update, prompts):
  """KL(own || masked) over the vocabulary."""
  p, q = (two_steps.distributions(run, update.start, x, update.block)
          for x in (update.block.prompts, prompts))
  with np.errstate(invalid='ignore'):  # -inf of banned tokens, in both
    return np.where(np.isfinite(p), np.exp(p) * (p - q), 0).sum(-1)


def weights(s, mask):
  """alpha x keep of one minibatch, row by row."""
  rows = [(i, row) for i, row in np.ndenumerate(mask.any(-1)) if row]
  means = {i: s[i][mask[i]].mean() for i, _ in rows}
  low, high = min(means.values()), max(means.values())
  place = {i: (x - low) / (high - low) for i, x in means.items()}
  top = 0.9 + 0.1 / (np.mean(list(place.values())) + 1e-8)
  made = np.zeros(s.shape)
  for i, n in place.items():
    kept = np.argsort(np.where(mask[i], -s[i], np.inf), kind='stable')
    kept = kept[:math.ceil(round(0.4 * mask[i].sum(), 6))]
    made[i][kept] = 0.9 + n * (top - 0.9)
  return made


def test_the_look_is_the_rollouts_policy_under_black_patches(run, variant):
  for update in run.updates:
    block, mask = update.block, update.block.completions.kind > 0
    prompts = two_steps.masked(run, block.prompts, 0.5)
    want = two_steps.log_probs(run, update.start, prompts, block)
    np.testing.assert_allclose(
        block.extra['view/masked'], want, atol=1e-5)
    own = two_steps.log_probs(run, update.start, block.prompts, block)
    np.testing.assert_allclose(
        block.old[block.mask], own[block.mask], atol=1e-5)
    assert np.abs(own - want).max() > 0.01
    if variant == 'paper':
      np.testing.assert_allclose(
          block.extra['pair/masked'], np.where(
              mask, divergence(run, update, prompts), 0), atol=1e-5)


def dependency(block, variant):
  return (block.extra['pair/masked'] if variant == 'paper'
          else two_steps.k3(block.old, block.extra['view/masked']))


def test_the_weights_are_of_the_whole_minibatch(run, variant):
  """Though it is updated in chunks and is half of a step."""
  for update in run.updates:
    block = update.block
    want = weights(np.float64(dependency(block, variant)), block.mask)
    np.testing.assert_allclose(block.weight, want, atol=2e-3)
    np.testing.assert_array_equal(block.weight > 0, want > 0)
    live = block.mask.any(-1)
    assert live.any() and not block.weight[~live].any()
    assert len(np.unique(np.round(block.weight, 3))) > 3
    # alpha has mean 1 over the responses.
    assert block.weight.max(-1)[live].mean() == pytest.approx(1, abs=1e-5)
  # Some groups found no better one: their rows are there and are masked.
  assert any(not x.block.mask.any((1, 2)).all() for x in run.updates)


def test_what_is_logged_and_minimised_by_numpy(run):
  for update in run.updates:
    block, got = update.block, update.metrics
    mean = functools.partial(two_steps.mean, mask=block.mask)
    logp = two_steps.log_probs(run, update.params, block.prompts, block)
    parts = {'policy': mean(block.weight * two_steps.clipped(
        logp, block.old, block.advantage, 0.2, 0.28, 3.0)),
             'entropy': -0.06 * mean(logp)}
    want = {'loss': sum(parts.values()),
            'view/masked/drop': mean(logp - block.extra['view/masked']),
            **{f'loss/{name}': x for name, x in parts.items()}}
    assert {name: got[name] for name in want} == pytest.approx(
        want, rel=1e-3, abs=1e-5)
    assert {name for name in got if name.startswith('loss')} == set(want) - {
        'view/masked/drop'}
  for metrics, pair in zip(run.metrics, (run.updates[:2], run.updates[2:])):
    assert metrics['weight/perception/mean'] == pytest.approx(np.mean([
        two_steps.mean(x.block.weight, x.block.mask) for x in pair]), rel=1e-5)


def test_groups_that_do_not_vary_are_asked_for_again(run):
  assert max(x['select/rounds'] for x in run.metrics) > 1
  for update in run.updates:
    live = update.block.mask.any((1, 2))
    assert not (update.block.prompts.uid[live] % 2).any()


def test_a_second_step_compiles_nothing(run):
  assert run.compiled[0] == run.compiled[1]
  assert all(x['update/skipped'] == 0 for x in run.metrics)


def test_a_blind_policy_weighs_all_alike(run, variant):
  """Its images become zeros: what differs between both passes is rounding."""
  merger = run.state.params['policy']['visual']['merger']
  merger['fc2'] = jax.tree.map(lambda x: x * 0, merger['fc2'])
  before = len(run.updates)
  run.trainer.step(run.state, 2)
  made = run.updates[before:]
  del run.updates[before:]
  for update in made:
    mask, weight = update.block.mask, update.block.weight
    assert np.abs(dependency(update.block, variant)[mask]).max() < 1e-6
    assert set(np.unique(weight)) <= {0.0, 1.0}
    np.testing.assert_array_equal(
        weight.sum(-1), np.ceil(0.4 * mask.sum(-1) - 1e-6))
  assert any(x.block.mask.any() for x in made)
