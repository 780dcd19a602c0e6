"""RECAP's stage on the tests' random model: steps of three sources, one of them
of demonstrations, and the weights that go with the checkpoint."""

import copy
import functools
import json

import jax
import numpy as np
import pytest

from mmr1 import training
from mmr1 import types
from mmr1 import update
from mmr1.data import encode
from mmr1.data import packing
from mmr1.data import sources
from mmr1.papers import recap
from mmr1.stages import sft
from tests.papers import runs

N, G, T = 2, 4, 16
STEPS, CUT = 8, 4
# Members of the mixture; the last one's share is due first.
SUMS, READING, COPYING = range(3)
ORDER = (COPYING, READING, SUMS) * 3
OWN = {SUMS: {'accuracy', 'think'}, READING: {'read', 'alone'},
       COPYING: {'nll'}}
FIXED = dict(accuracy=2.0, think=1.0, read=2.0, alone=1.0, nll=1.0)


def begun(shrink, open_run, folder, **flat):
  c = shrink(runs.config('recap'))
  # The model meets no format; whether tokens sum to an even number varies.
  for name in ('accuracy', 'think', 'read', 'alone'):
    c.rewards[name].fn = 'tests.own:even'
  c.rewards.alone.fn = 'tests.own:flat'
  c.rl.combine.kwargs.update(window=1, temperature=1.0)
  return runs.trainer(c, open_run, folder, max_new_tokens=T, steps=STEPS,
                      optimizer__lr=.02, **flat)


def history(one):
  return copy.deepcopy(one.judging.state['combine'].get('history', {}))


@pytest.fixture(scope='module')
def made(shrink, open_run, tmp_path_factory):
  """(trainer, its steps, the history after each, what a checkpoint has after
  CUT of them: host state and arrays)."""
  one = begun(shrink, open_run, tmp_path_factory.mktemp('recap') / 'run')
  state, steps, histories = one.start.state, [], []
  for k in range(STEPS):
    if k == CUT:
      saved = json.dumps(one.state()), jax.tree.map(
          lambda x: jax.device_put(np.array(x), x.sharding), state)
    state, (step,) = runs.take(one, state, range(k, k + 1))
    steps.append(step)
    histories.append(history(one))
  return one, steps, histories, saved


def members(step):
  return {int(uid) // sources.UID_STRIDE for uid in step.block.prompts.uid}


def test_a_step_is_of_one_source_in_turn(made):
  _, steps, _, _ = made
  assert [members(step) for step in steps] == [{m} for m in ORDER[:STEPS]]
  uids = [int(uid) for step in steps for uid in step.block.prompts.uid]
  assert len({*uids}) == len(uids)


def test_demonstrations_are_not_sampled(made):
  _, steps, _, _ = made
  for member, step in zip(ORDER, steps):
    kind, metrics = step.block.completions.kind, step.metrics
    assert metrics['update/skipped'] == 0 and metrics['grad_norm'] > 0
    assert {name for name, x in step.rewards.items()
            if not np.isnan(x).all()} == OWN[member]
    assert ('reward/mean' in metrics) == (member != COPYING)
    assert ('group/zero_std_frac' in metrics) == (member != COPYING)
    assert 'time/sample_s' not in metrics
    if member == COPYING:
      assert kind.shape == (N, 1, T)
      assert set(np.unique(kind)) == {types.KIND_PAD, types.KIND_EXPERT}
      assert metrics['loss/policy'] == 0 < metrics['loss/imitation']
      assert all(row['completion'] == f'<answer>{row["answer"]}</answer>'
                 for row in step.samples)
    else:
      assert kind.shape == (N, G, T)
      assert set(np.unique(kind)) <= {types.KIND_PAD, types.KIND_SAMPLED}
      assert metrics['loss/imitation'] == 0
      assert metrics['ratio/max'] == 1
  # Those of either kind are compiled once.
  counts = [step.programs for step in steps]
  assert len(set(counts[1:])) == 1


def test_the_loss_of_a_demonstration_is_the_policys(made):
  one, steps, _, _ = made
  for step in steps[0], steps[3]:
    block = step.block
    logp = np.where(block.mask, runs.of_tokens(runs.distributions(
        one, step.before.params['policy'], block.prompts, block.completions),
                                               block.completions.tokens), 0)
    np.testing.assert_allclose(
        step.rewards['nll'], -logp.sum(-1) / block.mask.sum(-1), rtol=1e-4)
    # Weighed it is the loss, over tokens as in sft.
    assert step.metrics['loss/imitation'] == pytest.approx(
        step.metrics['reward/nll/weight'] * -logp.sum() / block.mask.sum(),
        rel=1e-4)


def test_only_the_objectives_of_a_step_get_a_value(made):
  _, steps, histories, _ = made
  before = {}
  for member, step, after in zip(ORDER, steps, histories):
    for name in {*before, *after}:
      if name in OWN[member]:
        value = np.nanmean(step.rewards[name])
        assert after[name] == [*before.get(name, []), value][-2:]
      else:
        assert after[name] == before[name]
    before = after
  assert {*before} == set().union(*OWN.values())


def test_weights_are_those_of_the_history_and_sum_to_k(made):
  _, steps, histories, _ = made
  moved = []
  for member, step, past in zip(ORDER, steps, histories):
    want = recap.objective_weights(past, falling={'nll'}, temperature=1.0)
    assert sum(want.values()) == pytest.approx(len(past))
    told = {name: step.metrics[f'reward/{name}/weight']
            for name in OWN[member]}
    assert told == {name: want[name] for name in told}
    moved += [abs(weight - 1) for weight in told.values()]
    advantage = step.block.advantage[..., 0]
    if member == COPYING:
      np.testing.assert_allclose(advantage, want['nll'], rtol=1e-6)
      continue
    total = sum(FIXED[name] * want[name] * step.rewards[name]
                for name in OWN[member])
    spread = total.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(
        advantage, (total - total.mean(1, keepdims=True)) / (spread + 1e-4),
        atol=1e-4)
  # A stub that keeps the weights at 1 is not this.
  assert max(moved) > .05


def gradient(one, params, terms, block, knobs):
  policy = one._ctx.policy
  made = jax.jit(functools.partial(
      update.gradient, policy, join=lambda x: x, terms=terms))
  return made(params, batch=(block,), knobs=training.traced(knobs))[0]


def test_the_gradient_is_that_of_sft_times_the_weight(made):
  """The line's own block, and one that the sft stage makes of the data."""
  one, steps, _, _ = made
  step, w = steps[3], steps[3].metrics['reward/nll/weight']
  params = step.before.params['policy']
  got = gradient(one, params, one.plan.objective.terms, step.block,
                 {**one.plan.knobs, 'temperature': 1.0})
  mixture, shape = one.rollouts._lanes.mixture, one.rollouts.shape
  pairs = [shape.encode(mixture[k], 0) for k in range(3 * N, 4 * N)]
  rows = [packing.Example(pair, encode.encode_completion(
      pair[0].completions[0], shape.processor)) for pair in pairs]
  block = sft.assemble(rows, shape, T)
  np.testing.assert_array_equal(
      block.completions.tokens, step.block.completions.tokens)
  want = gradient(one, params, (update.Term('nll', functools.partial(
      sft.terms.nll, reduction={'mode': 'token_mean'})),), block, sft.KNOBS)
  assert abs(w - 1) > .01
  for a, b in zip(*map(jax.tree.leaves, (got, want))):
    np.testing.assert_allclose(a, w * b, atol=1e-5)


def test_m15_it_goes_on_with_the_same_weights(
    made, shrink, open_run, tmp_path):
  """A second trainer from what a checkpoint has: the same to the last bit."""
  one, steps, histories, (saved, state) = made
  two = begun(shrink, open_run, tmp_path / 'again')
  two.learner._train_step = one.learner._train_step  # the same program
  two.restore(json.loads(saved))
  assert history(two) == histories[CUT - 1]
  _, again = runs.take(two, state, range(CUT, STEPS))
  for a, b in zip(steps[CUT:], again):
    assert runs.same(a.before.params, b.before.params)
    assert runs.same(a.block, b.block)
    assert {k: v for k, v in a.metrics.items() if 'weight' in k} == {
        k: v for k, v in b.metrics.items() if 'weight' in k}
  assert history(two) == histories[-1]
  assert json.loads(json.dumps(two.state(), allow_nan=False)) == two.state()
