"""LUFFY's stage on the tests' random model, which earns nothing by itself."""

import dataclasses
import json
import logging

from etils import epath
import jax
import numpy as np
import pytest

from mmr1 import records
from mmr1 import types
from mmr1.data import encode
from mmr1.stages import collect
from tests.papers import runs

N, G, T = 2, 8, 64


def begun(arg, shrink, open_run, folder, **flat):
  c = shrink(runs.config('luffy', arg))
  c.traces.size = 12
  if arg:  # samples of a group differ
    c.rewards.hard.fn = 'tests.own:even'
  return runs.trainer(
      c, open_run, folder, samples_per_prompt=G, max_new_tokens=T, **flat)


@pytest.fixture(scope='module')
def made(shrink, open_run, tmp_path_factory):
  """{argument: (trainer, its two steps)}; 'kept': what a checkpoint of 'split'
  between them would hold."""
  result = {}
  for arg in (None, 'multitask', 'split'):
    one = begun(arg, shrink, open_run, tmp_path_factory.mktemp('luffy') / 'run')
    state, first = runs.take(one, one.start.state, range(1))
    result['kept'] = json.dumps(one.state()), jax.tree.map(np.array, state)
    result[arg] = one, first + runs.take(one, state, range(1, 2))[1]
  return result


def lines(one):
  """What the collect stage wrote."""
  return [json.loads(line) for line in epath.Path(
      one._ctx.files['traces']).read_text().splitlines()]


@pytest.mark.parametrize('arg', [None, 'split', 'multitask'])
def test_the_last_of_every_group_is_the_trace_of_its_problem(made, arg):
  one, steps = made[arg]
  traces = {line['completion']: line for line in lines(one)}
  for step in steps:
    completions, seen = step.block.completions, set()
    for row in step.samples:
      place = row['group'], row['slot']
      kind, ids = completions.kind[place], completions.tokens[place]
      if row['slot'] < G - 1:
        assert set(kind) == {types.KIND_SAMPLED}  # it never ends by itself
        continue
      line = traces[row['completion']]
      assert (line['problem'], line['answer']) == (row['prompt'], row['answer'])
      wanted = encode.encode_completion(
          line['completion'], one._ctx.processor)
      np.testing.assert_array_equal(ids[:len(wanted)], wanted)
      assert (ids[len(wanted):] == one._ctx.processor.pad_id).all()
      np.testing.assert_array_equal(
          kind, types.KIND_EXPERT * (np.arange(T) < len(wanted)))
      assert row['length'] == len(wanted) and not row['truncated']
      seen.add(line['completion'])
    assert len(seen) == N
    # It stands where a sample would.
    np.testing.assert_array_equal(
        completions.positions[:, -1], completions.positions[:, 0])
    np.testing.assert_array_equal(step.block.mask, completions.kind > 0)


def test_it_is_scored_as_a_sample_is_and_in_the_groups_mean(made):
  """The format is never met, but by the demonstration: A = 1 - 1/8 and -1/8."""
  for step in made[None][1]:
    np.testing.assert_array_equal(
        step.rewards['hard'], np.tile([0.] * 7 + [1.], (N, 1)))
    np.testing.assert_allclose(
        step.block.advantage[..., 0], np.tile([-.125] * 7 + [.875], (N, 1)))
    assert step.metrics['reward/hard/mean'] == 1 / 8


@pytest.mark.parametrize('arg', ['split', 'multitask'])
def test_own_samples_are_compared_with_each_other(made, arg):
  for step in made[arg][1]:
    rewards = step.rewards['hard']
    tokens, kind = (step.block.completions.tokens, step.block.completions.kind)
    np.testing.assert_array_equal(
        rewards, (tokens * (kind > 0)).sum(-1) % 2 == 0)
    np.testing.assert_allclose(
        step.block.advantage[..., 0],
        rewards - rewards[:, :-1].mean(1, keepdims=True), atol=1e-6)


def demonstrations(one, step):
  """log p of the demonstrations' tokens, by another pass; their mask."""
  block = step.block
  logp = runs.of_tokens(runs.distributions(
      one, step.before.params['policy'], block.prompts, block.completions),
                        block.completions.tokens)
  mask = block.completions.kind == types.KIND_EXPERT
  return np.where(mask, logp, 0), mask


def test_losses_are_sums_over_64_tokens_of_16_rows(made):
  """7 of 8 rows at ratio 1 and A = -1/8: the policy's is 7/8 x 1/8 = .109375;
  that of the demonstrations is -.875 f(p)."""
  one, steps = made[None]
  for step in steps:
    logp, mask = demonstrations(one, step)
    p = np.exp(logp)
    shaped = -.875 * (p / (p + .1))[mask].sum() / (N * G * T)
    metrics = step.metrics
    assert metrics['loss/policy'] == pytest.approx(.109375, rel=1e-5)
    assert metrics['loss/shaped'] == pytest.approx(shaped, rel=1e-4)
    assert metrics['term/shaped'] == metrics['loss/shaped'] < 0
    # The entropy's mean is over all tokens.
    assert metrics['loss/entropy'] == pytest.approx(
        -1e-3 * metrics['entropy'], rel=1e-5)
    assert metrics['loss'] == pytest.approx(sum(
        metrics[f'loss/{name}'] for name in ('policy', 'shaped', 'entropy')),
                                            abs=1e-7)


def test_the_baseline_imitates(made):
  one, steps = made['multitask']
  for step in steps:
    logp, mask = demonstrations(one, step)
    wanted = -logp[mask].mean()  # not over all rows, as the policy's
    assert step.metrics['term/imitation'] == pytest.approx(wanted, rel=1e-4)
    assert step.metrics['loss/imitation'] == pytest.approx(wanted, rel=1e-4)
    assert 'loss/shaped' not in step.metrics
    # The rest is GRPO: own samples sum to 0.
    assert step.metrics['loss/policy'] == pytest.approx(0, abs=1e-6)
  assert 'loss/imitation' not in made['split'][1][0].metrics


@pytest.mark.parametrize('arg', [None, 'split', 'multitask'])
def test_what_is_said_of_sampling_leaves_demonstrations_out(made, arg):
  one, steps = made[arg]
  for step in steps:
    metrics = step.metrics
    # The sampler knows nothing of these tokens (0), the policy finds them
    # unlikely: in a comparison they would stand out.
    logp, mask = demonstrations(one, step)
    assert logp[mask].mean() < -1 and not step.block.extra[
        'sampler_logp'][mask].any()
    assert metrics['sampler/logp_diff_max'] < 1e-4
    assert metrics['ratio/max'] == metrics['ratio/mean'] == 1
    assert metrics['kl_old'] == 0
    assert metrics['clip_frac/low'] == metrics['clip_frac/high'] == 0
    # Samples fill the cap, demonstrations are shorter.
    assert mask.sum(-1).max() < T
    assert metrics['response_length/mean'] == T
    assert metrics['response_length/max'] == T
    assert metrics['response_length/clip_frac'] == 1


@pytest.mark.parametrize('arg', [None, 'split', 'multitask'])
def test_steps_train_and_compile_nothing_new(made, arg):
  _, (first, second) = made[arg]
  assert first.programs == second.programs
  for step in (first, second):
    assert step.metrics['update/skipped'] == 0
    assert step.metrics['grad_norm'] > 0
    assert np.isfinite(list(step.metrics.values())).all()
    assert step.block.ref is None and 'kl' not in step.metrics
  assert not runs.same(first.before.params, second.before.params)
  assert first.block.prompts.uid.tolist() != second.block.prompts.uid.tolist()


def test_without_demonstrations_nothing_is_learnt_and_with_them_something_is(
    made, shrink, open_run, tmp_path):
  """No sample earns anything: GRPO's gradient is exactly 0. The entropy's
  bonus, which needs no reward, is left out of both."""
  one = begun(None, shrink, open_run, tmp_path / 'run', experts=0, terms=(),
              entropy__coefficient=0.0)
  state, (step,) = runs.take(one, one.start.state, range(1))
  assert not step.rewards['hard'].any() and not step.block.advantage.any()
  assert (step.block.completions.kind == types.KIND_SAMPLED).all()
  assert step.metrics['grad_norm'] == 0
  assert runs.same(step.before.params, runs.copied(state).params)

  luffy, _ = made[None]
  plan = luffy.plan
  try:
    luffy.plan = dataclasses.replace(plan, objective=plan.objective._replace(
        knobs={**plan.objective.knobs, 'coef/entropy': 0.0}))
    _, (step,) = runs.take(luffy, state, range(2, 3))
    assert step.metrics['loss/entropy'] == 0 < step.metrics['grad_norm']
  finally:
    luffy.plan = plan


def test_m15_a_stage_with_demonstrations_goes_on_where_it_stopped(made):
  one, steps = made['split']
  one.restore(json.loads(made['kept'][0]))
  state = jax.device_put(made['kept'][1], jax.tree.map(
      lambda x: x.sharding, one.start.state))
  _, (step,) = runs.take(one, state, range(1, 2))
  for a, b in zip(*(jax.tree.leaves((x.block, x.before.params))
                    for x in (step, steps[1]))):
    np.testing.assert_array_equal(a, b)


def test_m15_what_waits_has_its_demonstrations(shrink, open_run, tmp_path):
  one, two = (begun(None, shrink, open_run, tmp_path / name, staleness=1,
                    old='sampler') for name in ('one', 'two'))
  one.rollouts.next(one.start.state, 0)
  arrays, kept = one.rollouts.arrays(), json.loads(json.dumps(
      one.rollouts.state()))
  assert kept['sampled_at'] == [[0, 1]]
  two.rollouts.restore(kept)
  two.rollouts.take_back(arrays)
  a, b = (x.rollouts.next(x.start.state, 1) for x in (one, two))
  np.testing.assert_array_equal(a.host.tokens, b.host.tokens)
  np.testing.assert_array_equal(a.host.kind, b.host.kind)
  assert b.host.expert[:, -1].all() and not b.host.expert[:, :-1].any()
  texts = [[sample.text for sample in x.samples] for x in (a, b)]
  assert texts[0] == texts[1] and {
      *texts[1][G - 1::G]} <= {line['completion'] for line in lines(two)}


# What of a file can be used.


def written(folder, *completions):
  """A file of problems, each with what it is given as completions."""
  collect.write(epath.Path(folder), [
      records.Example(uid=i, question=f'What is {i}?', answer=str(i),
                      completions=(text,))
      for i, text in enumerate(completions)])
  return str(epath.Path(folder) / 'train.jsonl')


def reading(shrink, open_run, tmp_path, path, cap):
  c = shrink(runs.config('luffy'))
  c.data.path, c.data.eval_path = path, path
  c.luffy.data = 'train'
  return runs.trainer(
      c, open_run, tmp_path / 'run', max_new_tokens=cap).rollouts


def test_traces_that_are_too_long_or_missing_are_named(
    shrink, open_run, tmp_path, caplog):
  """Each digit is a token and eos one more: 8 fit, 9 do not."""
  texts = ['7', '7 7 7 7', '1' * 7, '1' * 8, '', '7']
  rollouts = reading(
      shrink, open_run, tmp_path, written(tmp_path / 'data', *texts), 8)
  with caplog.at_level(logging.WARNING):
    taken = [pair for _ in range(6) for pair in rollouts.take()[0].pairs]
  assert {example.completions[0] for example, _ in taken} == {
      '7', '7 7 7 7', '1' * 7}
  assert rollouts.broken == 2
  said = '\n'.join(caplog.messages)
  assert ('train.jsonl:4: cannot encode: a completion of 9 tokens, allowed '
          'are 8') in said
  assert 'train.jsonl:5: empty completion' in said


def test_records_without_completions_are_refused(shrink, open_run, tmp_path):
  (tmp_path / 'data.jsonl').write_text(
      '{"problem": "What is 1?", "answer": "1"}\n')
  with pytest.raises(ValueError, match='completion'):
    reading(shrink, open_run, tmp_path, str(tmp_path / 'data.jsonl'), 8).take()
  # Fewer of them than the stage needs.
  shape = dataclasses.replace(reading(
      shrink, open_run, tmp_path / 'other',
      written(tmp_path / 'two', '7', '7'), 8).shape, completions=2)
  broken = shape.encode(records.Example(
      uid=0, question='?', completions=('7',)), 0)
  assert '1 completions, 2 needed' in broken.reason


def test_the_worlds_have_no_traces():
  with pytest.raises(ValueError, match='procedural worlds have no traces'):
    runs.commanded('luffy', ('--config.luffy.data=train',))
