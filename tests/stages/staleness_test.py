"""Rollouts of older weights, and a reference that waits elsewhere."""

import json
import threading

import jax
import numpy as np
import pytest

from mmr1 import checkpoint


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(
      jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_reference_in_host_memory_changes_nothing(trainer):
  found = []
  for memory in ('device', 'host'):
    one = trainer(kl__coefficient=0.1, optimizer__lr=0.05,
                  reference_memory=memory)
    state, kls, refs = one.start.state, [], []
    for k in range(2):
      step = one.step(state, k)
      state = step.state
      kls.append(float(step.metrics['kl']))
      refs.append(np.asarray(step.batch[0].ref))
    found.append((kls, refs))
  assert found[0][0] == found[1][0] and found[0][0][1] > 1e-6
  for a, b in zip(found[0][1], found[1][1]):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('stale', [1, 2])
def test_staleness_samples_from_weights_that_many_versions_old(trainer, stale):
  """The tokens of step j are what the weights before step j - k sample with
  step j's noise, and the old log-probs are theirs."""
  def changed(k):
    return trainer(old='sampler', optimizer__lr=0.05, staleness=k)
  one, fresh = changed(stale), changed(0)
  state, versions, blocks, rows = one.start.state, [], [], []
  for k in range(4):
    versions.append(jax.tree.map(np.array, state))
    step = one.step(state, k)
    state = step.state
    blocks.append(jax.device_get(step.batch[0]))
    rows.append(jax.device_get(dict(step.metrics)))
  assert [row['sampler/staleness'] for row in rows] == [
      min(k, stale) for k in range(4)]
  differs = []
  for k, block in enumerate(blocks):
    start = jax.device_put(versions[max(0, k - stale)])
    again = jax.device_get(fresh.step(start, k).batch[0])
    np.testing.assert_array_equal(
        block.completions.tokens, again.completions.tokens)
    np.testing.assert_array_equal(block.old, again.old)
    differs.append(rows[k]['sampler/logp_diff_max'])
  # What corrects has something to correct, from the first stale step on.
  assert differs[0] < 1e-4 < 1e-3 < min(differs[1:])


def test_m15_staleness_goes_on_with_what_waits(trainer, tmp_path):
  one, two = (trainer(old='sampler', staleness=2) for _ in range(2))
  state = one.start.state
  for k in range(2):
    state = one.step(state, k).state
  store = checkpoint.Checkpoints(tmp_path / 'waiting', background=True)
  store.save('grpo', 2, state, one.state(), arrays=one.arrays())
  layout = two._layout
  found = store.restore('grpo', two.start.state, where=lambda x: (
      layout.rows(x) if x.ndim else layout.whole))
  two.restore(json.loads(json.dumps(found.extra)))
  two.take_back(found.arrays)
  store.close()
  other = found.tree
  for k in (2, 3):
    a, b = one.step(state, k), two.step(other, k)
    state, other = a.state, b.state
    assert same(*(jax.device_get((x.batch, dict(x.metrics))) for x in (a, b)))


def test_staleness_scores_while_the_next_is_sampled(trainer):
  """The rewards of step 0 are not there before step 1 was sampled."""
  one = trainer(old='sampler', staleness=1)
  rollouts, order = one.rollouts, []
  sample, call = rollouts.sample, rollouts.plan.scorer.call
  sampled = threading.Event()

  def slow(*args):
    assert sampled.wait(60)
    order.append('score')
    return call(*args)

  def seen(state, prompts, k, *more):
    made = sample(state, prompts, k, *more)
    order.append(f'sample {k}')
    if k == 1:
      sampled.set()
    return made
  rollouts.sample, rollouts.plan.scorer.call = seen, slow
  one.step(one.start.state, 0)
  assert order[:2] == ['sample 0', 'sample 1'] and order[2] == 'score'
