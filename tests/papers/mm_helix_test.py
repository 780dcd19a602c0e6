"""MM-HELIX by hand: gate, losses, traces; its config. Two steps of its stage."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import columns
from mmr1 import types
from mmr1.data.tasks import puzzles
from mmr1.losses import reduce
from mmr1.losses import terms
from mmr1.papers import mm_helix
from tests.papers import runs


def hybrid(*own, trace=1.0, **kw):
  """(own advantages, gate) of one group, whose trace is last."""
  rewards = np.asarray([*own, trace], float)[None, :, None]
  expert = np.arange(len(own) + 1)[None] == len(own)
  advantage, extra = mm_helix.hybrid(
      rewards, columns.Tokens(expert=expert), **kw)
  gate = extra['gate']
  assert gate.shape == rewards.shape and advantage[0, -1, 0] == 0
  assert len(np.unique(gate)) == 1
  return advantage[0, :-1, 0], gate[0, 0, 0]


@pytest.mark.parametrize('own, gate', [
    ((1, .1, 0, 0, .1), 1), ((1, .1, 1, 0, 0), 0), ((.1,) * 5, 1),
    ((0,) * 5, 1), ((1,) * 5, 0), ((1 - 1e-9, 1, 0, 0, 0), 0)])
def test_the_gate_by_hand(own, gate):
  got, found = hybrid(*own)
  assert found == gate
  # The trace moves no statistic: GRPO over own samples, 0 where all are equal.
  np.testing.assert_allclose(got, advantages.grpo(
      np.asarray(own, float)[None, :, None])[0, :, 0])
  assert got.any() == (len({*own}) > 1)


@pytest.mark.parametrize('threshold, gates', [
    (0, (0, 0, 0)), (2, (1, 1, 0)), (6, (1, 1, 1))])
def test_thresholds_from_grpo_to_imitation(threshold, gates):
  for own, gate in zip(((0,) * 5, (1, 0, 0, 0, 0), (1,) * 5), gates):
    assert hybrid(*own, threshold=threshold)[1] == gate


def test_a_group_without_a_trace_has_no_gate():
  _, extra = mm_helix.hybrid(
      np.zeros((2, 3, 1)), columns.Tokens(expert=np.asarray(
          [[False] * 3, [False, False, True]])))
  assert extra['gate'][:, 0, 0].tolist() == [0, 1]


def block(gate, kind, n=1):
  kind = np.tile(np.asarray(kind, np.int8), (n, 1, 1))
  shape = kind.shape
  return types.Block(
      prompts=None, mask=jnp.asarray(kind > 0), advantage=jnp.zeros((
          n, shape[1], 1)), completions=types.Completions(
              tokens=jnp.zeros(shape, jnp.int32), kind=jnp.asarray(kind),
              positions=jnp.zeros((*shape, 3), jnp.int32)),
      extra={'gate': jnp.asarray(gate, jnp.float32).reshape(n, -1, 1),
             'per_prompt': jnp.full((n, shape[1], 1), 1 / shape[1])})


KIND = [[1, 1, 0], [1, 1, 1], [4, 4, 4]]


def guided(logp, blocks):
  scores = types.Scores(logp=logp, entropy=jnp.zeros_like(logp))
  return reduce.finish(*mm_helix.guided(scores, blocks, {}))


def test_the_loss_by_hand():
  """Trace log p = -.2, -.4, -1.2: .6; a closed gate: 0."""
  logp = jnp.asarray([[[-9., -9, jnp.nan], [-9, -9, -9], [-.2, -.4, -1.2]]])
  assert guided(logp, block([1, 1, 1], KIND)) == pytest.approx(.6)
  assert guided(logp, block([0, 0, 0], KIND)) == 0
  grad = jax.grad(guided)(logp, block([1, 1, 1], KIND))
  np.testing.assert_allclose(
      grad, [[[0, 0, 0], [0, 0, 0], [-1 / 3] * 3]], atol=1e-7)
  assert not jax.grad(guided)(logp, block([0, 0, 0], KIND)).any()


def test_the_mean_is_over_prompts_with_open_and_closed_gates():
  logp = jnp.tile(jnp.asarray([[[0.] * 3, [0] * 3, [-.2, -.4, -1.2]]]),
                  (2, 1, 1))
  assert guided(logp, block([1, 1, 1, 0, 0, 0], KIND, 2)) == pytest.approx(.3)
  # A short trace weighs as much as a long one, and a prompt without a trace
  # as much as one with a closed gate.
  two = block([1] * 6, KIND, 2)
  for last, loss in ([4, 0, 0], (.6 + .2) / 2), ([0, 0, 0], .6 / 2):
    kinds = np.asarray([KIND, [*KIND[:2], last]], np.int8)
    assert guided(logp, two.replace(mask=jnp.asarray(kinds > 0))) == (
        pytest.approx(loss))


def shared_block(gate):
  """Two samples of 2 and 4 tokens with advantages that make CLIP .5 and -.5
  (the ratio is 1), and a trace of 3."""
  one = block(gate, [[1, 1, 0, 0], [1, 1, 1, 1], [4, 4, 4, 0]])
  return one.replace(advantage=jnp.asarray([[[.5], [-.5], [0.]]]))


SHARED_LOGP = jnp.asarray([[[-1., -2, 0, 0], [-1.] * 4, [-.2, -.4, -1.2, 0]]])


def test_one_normaliser_by_hand():
  """Z = 2 + 4 + 3. CLIP sums to 2 x .5 - 4 x .5 = -1, the trace to -1.8:
  (1 + 1.8) / 9 = .311111; with a closed gate 1 / 9."""
  scores = types.Scores(
      logp=SHARED_LOGP, entropy=jnp.zeros_like(SHARED_LOGP))
  for gate, loss in (1, .311111), (0, 1 / 9):
    total, count = mm_helix.shared(scores, shared_block([gate] * 3), {})
    assert count == 9
    assert reduce.finish(total, count) == pytest.approx(loss, abs=1e-6)
  # The first terms of eq. 1 to 4 on the same: samples cancel, .6 is left.
  own = terms.policy(scores, shared_block([1] * 3), {},
                     reduction={'mode': 'seq_mean'})
  assert reduce.finish(*own) == pytest.approx(0)
  assert guided(SHARED_LOGP, shared_block([1] * 3)) == pytest.approx(.6)


def test_a_term_without_its_gate_says_so():
  bare = block([1, 1, 1], KIND).replace(extra={})
  with pytest.raises(ValueError, match='mm_helix:hybrid'):
    guided(jnp.zeros((1, 3, 3)), bare)


def test_elicited_traces_doubt_and_end_right():
  examples = [puzzles.puzzles(0, 'train', i, levels=(1, 2)) for i in range(60)]
  made, counts = mm_helix.elicited(examples, None, 'base', rounds=2)
  again, _ = mm_helix.elicited(examples[::-1], None, 'base', rounds=2)
  assert counts == {'wrong': 0} and len(made) == 60
  assert [x.completions for x in made] == [x.completions for x in again[::-1]]
  assert 10 < sum('?' in x.completions[0] or 'heck' in x.completions[0] or
                  'Hmm' in x.completions[0] for x in made) < 60
  for example in made:
    assert example.completions[0].endswith(
        f'<answer>{example.answer}</answer>')
    for fact in example.meta['facts']:
      assert fact in example.completions[0]


def test_a_trace_that_the_verifier_refuses_is_left_out():
  one = puzzles.puzzles(0, 'train', 0, kinds=('container',), levels=(1, 1))
  bad = dataclasses.replace(one, uid=1, answer=str(int(one.answer) + 1))
  made, counts = mm_helix.elicited([one, bad], None, 'base')
  assert [x.uid for x in made] == [one.uid] and counts == {'wrong': 1}


# The stage and the config.


@pytest.fixture(scope='module')
def taken(shrink, open_run, tmp_path_factory):
  c = shrink(runs.config('mm_helix'))
  c.traces.size, c.rewards.result.fn = 24, 'tests.own:even'
  c.rewards.result.weight = 1.0  # 1 and 0, the format is never met
  one = runs.trainer(
      c, open_run, tmp_path_factory.mktemp('mm_helix') / 'run',
      samples_per_prompt=6, max_new_tokens=112, prompts_per_step=4,
      experts_required=False,
      advantage__kwargs__threshold=3)
  return Stepped(one, *runs.take(one, one.start.state, range(2)))


class Stepped(NamedTuple):
  trainer: Any
  state: types.TrainState
  steps: list[runs.Taken]


def test_prompts_that_are_solved_too_little_imitate(taken):
  one, _, steps = taken
  gates = []
  for step in steps:
    gate, result = step.block.extra['gate'][..., 0], step.rewards['result']
    wanted = (result[:, :5] == 1).sum(1) < 3
    np.testing.assert_array_equal(gate, np.tile(wanted[:, None], 6))
    own = advantages.grpo(
        (result + .1 * step.rewards['format'])[:, :5, None])[..., 0]
    np.testing.assert_allclose(step.block.advantage[:, :5, 0], own, atol=1e-6)
    assert not step.block.advantage[:, 5].any()
    logp = runs.of_tokens(runs.distributions(
        one, step.before.params['policy'], step.block.prompts,
        step.block.completions), step.block.completions.tokens)
    trace = step.block.completions.kind[:, 5] == types.KIND_EXPERT
    nll = -(np.where(trace, logp[:, 5], 0).sum(1) / trace.sum(1))
    assert step.metrics['loss/guided'] == pytest.approx(
        (gate[:, 0] * nll).mean(), rel=1e-4)
    assert step.metrics['advantage/gate/mean'] == pytest.approx(gate.mean())
    gates += gate[:, 0].tolist()
  assert {*gates} == {0, 1}


def test_a_prompt_without_a_trace_has_grpos_objective(taken, monkeypatch):
  one = taken.trainer
  whole = one.rollouts._lanes.take

  def take():  # every other prompt lost its trace
    pairs, broken = whole()
    return [(example if i % 2 else dataclasses.replace(
        example, completions=()), encoded)
            for i, (example, encoded) in enumerate(pairs)], broken
  monkeypatch.setattr(one.rollouts._lanes, 'take', take)
  programs = one._ctx.compiles.count
  _, steps = runs.take(one, taken.state, range(2, 4))
  gates = np.concatenate([x.block.extra['gate'][1::2, 0, 0] for x in steps])
  assert {*gates} == {0, 1}
  assert steps[-1].programs == programs  # nothing new is compiled
  for step in steps:
    kind, gate = step.block.completions.kind, step.block.extra['gate'][:, 0, 0]
    assert not kind[::2, 5].any() and not gate[::2].any()
    assert (kind[1::2, 5] == types.KIND_EXPERT).any(-1).all()
    # No reward is asked about what is not there, and no metric counts it.
    assert np.isnan(step.rewards['result'][::2, 5]).all()
    assert not np.isnan(step.rewards['result'][:, :5]).any()
    assert step.metrics['reward/none_frac'] == 0
    assert step.metrics['reward/result/mean'] == pytest.approx(
        np.nanmean(step.rewards['result']))
    assert step.metrics['response_length/mean'] == pytest.approx(
        step.block.completions.kind[:, :5].astype(bool).sum(-1).mean())
    assert not step.block.mask[::2, 5].any()
    own = advantages.grpo((step.rewards['result'] + .1 * step.rewards['format'])
                          [:, :5, None])[..., 0]
    np.testing.assert_allclose(step.block.advantage[:, :5, 0], own, atol=1e-6)
    logp = runs.of_tokens(runs.distributions(
        one, step.before.params['policy'], step.block.prompts,
        step.block.completions), step.block.completions.tokens)
    trace = kind[1::2, 5] == types.KIND_EXPERT
    nll = -(np.where(trace, logp[1::2, 5], 0).sum(1) / trace.sum(1))
    assert step.metrics['loss/guided'] == pytest.approx(
        (gate[1::2] * nll).sum() / len(gate), rel=1e-4)


def test_the_papers_numbers_at_7b():
  final, plans = runs.commanded('mm_helix', [], 'qwen2_5_vl_7b')
  stage, plan = final.mm_helix, plans['mm_helix']
  assert (stage.prompts_per_step, stage.samples_per_prompt, stage.experts) == (
      128, 6, 1)
  assert stage.advantage.kwargs.threshold == 2 and stage.kl.coefficient == 0
  assert plan.weights == pytest.approx(dict(result=.9, format=.1))


def test_the_ablations_change_what_they_say():
  found = [runs.commanded('mm_helix', given)[0].mm_helix.advantage.kwargs
           .threshold for given in runs.ablations('mm_helix')]
  assert found == [0, 6, 2, 2]


def test_the_shared_normaliser_replaces_both_terms():
  final, plans = runs.commanded('mm_helix', [], 'shared')
  assert [term.name for term in plans['mm_helix'].objective.terms] == ['shared']
  assert final.mm_helix.experts == 1
