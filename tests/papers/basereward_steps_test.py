"""BaseReward's stages on a random model: what voters say of a response is what a
plain forward says, and the hybrid of it trains the policy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmr1
from mmr1 import forward
from mmr1 import guard
from mmr1 import log
from mmr1 import pairwise
from mmr1 import release
from mmr1 import resolve
from mmr1 import runner
from mmr1 import score_judges
from mmr1 import training
from mmr1 import trees
from mmr1 import types
from mmr1.sampling import sample
from mmr1.stages import reward_model
from mmr1.stages import rl
from tests.papers import runs

N, G, T, STEPS = 2, 4, 8, 2
VOTERS = ('voter', 'second')


def small_config(shrink, **flat):
  c = shrink(runs.config('basereward'))
  c.reward_model.update(dict(
      steps=STEPS, pairs_per_step=4, examples=6, pairs_per_batch=4))
  c.reward_model.optimizer.update(dict(lr=0.02, warmup_steps=0))
  for name in ('rule', 'true'):  # the model meets no format
    c.rewards[name].fn = 'tests.own:even'
  c.evaluate_base = False
  c.basereward.update(dict(
      steps=STEPS, prompts_per_step=N, samples_per_prompt=G, max_new_tokens=T,
      samples_every=1, init='base'))
  c.judges.model.params = VOTERS
  c.stages = (*VOTERS, 'basereward')
  c.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in flat.items()})
  return c


def opened(c, folder):
  final = resolve.finalise(c)
  _, plans = runner.plan(final)
  return runner.open_run(
      final, str(folder), quiet=True, interrupt=guard.Interrupt()), plans


@pytest.fixture(scope='module')
def run(shrink, tmp_path_factory):
  """(trainer, its steps, the rollouts): after a whole run, in its folder, the
  steps once more."""
  folder = tmp_path_factory.mktemp('basereward') / 'run'
  mmr1.run(small_config(shrink), folder, quiet=True)
  ctx, plans = opened(small_config(shrink), folder)
  one = rl.Trainer(
      ctx, 'basereward', ctx.config.basereward, plans['basereward'])
  made, score = [], one.score
  one.score = lambda rollout, looks, k: made.append(
      (rollout, score(rollout, looks, k))) or made[-1][1]
  _, steps = runs.take(one, one.start.state, range(STEPS))
  yield one, steps, made
  ctx.close()


def by_hand(ctx, params, example, response):
  """s of a response, closed by eos: one prompt, one completion, no padding."""
  shape, eos = ctx.shape(), ctx.processor.eos_id
  ids = np.asarray([*response, eos], np.int32)[None, None]
  prompts = shape.collate([shape.encode(example, 0)[1]])
  prefix = ctx.policy.prompt_pass(params, prompts)
  hidden = ctx.policy.apply(
      params, prefix, prompts.mask, ids,
      sample.text_positions(prompts.next_position, ids.shape),
      jnp.ones(ids.shape, bool), None, method='completion_pass')
  head = jax.device_get(params['scalars']['reward'])
  h = np.asarray(hidden, np.float64)[0, 0, -1]
  x = h @ head['hidden_0']['kernel'] + head['hidden_0']['bias']
  x = x / (1 + np.exp(-x))
  return float((x @ head['kernel'] + head['bias'])[0])


def test_the_column_is_the_mean_of_what_voters_say(run):
  one, steps, made = run
  ctx, (rollout, scored) = one._ctx, made[0]
  host = rollout.host
  said = np.zeros((2, N, G))
  for v, name in enumerate(VOTERS):
    params = ctx.params(name)
    for n in range(N):
      for g in range(G):
        response = host.tokens[n, g][host.kind[n, g] != types.KIND_PAD]
        response = [x for x in response if x != ctx.processor.eos_id]
        said[v, n, g] = by_hand(
            ctx, params, rollout.prompted.pairs[n][0], response)
  column = scored.columns[..., scored.names.index('model')]
  np.testing.assert_allclose(column, said.mean(0), atol=2e-4)
  assert np.ptp(column) > 1e-3 and np.abs(said[0] - said[1]).max() > 1e-3
  assert scored.metrics['judge/model/std'] == pytest.approx(
      said.std(0).mean(), abs=1e-3)
  # sigma(s), or 1 where the rule says yes; of an open problem it says nothing.
  rule = scored.columns[..., scored.names.index('rule')]
  true = scored.columns[..., scored.names.index('true')]
  open_ = np.asarray([
      e.member.name == 'open' for e, _ in rollout.prompted.pairs])
  assert sorted(open_) == [False, True]
  np.testing.assert_array_equal(np.isnan(rule).all(1), open_)
  np.testing.assert_array_equal(rule[~open_], true[~open_])
  wanted = np.where(rule == 1, 1, 1 / (1 + np.exp(-column)))
  assert steps[0].metrics['reward/mean'] == pytest.approx(
      wanted.mean(), rel=1e-5)
  assert steps[0].metrics['reward/model/unit'] == pytest.approx(
      (1 / (1 + np.exp(-column))).mean(), rel=1e-5)


def test_the_run_says_so_and_steps_compile_nothing(run):
  one, steps, _ = run
  rows = {(row['stage'], row['step']): row
          for row in log.read_rows(one._ctx.path / 'metrics.jsonl')
          if 'grad_norm' in row}
  for k, step in enumerate(steps):
    row = rows['basereward', k + 1]
    for name in ('reward/model/mean', 'reward/true/mean', 'loss'):
      assert row[name] == pytest.approx(step.metrics[name], rel=1e-5)
  assert steps[0].programs == steps[1].programs
  # The policy has the head, which nothing trains.
  kept = trees.named(one.start.state.opt)
  assert not any('scalars' in name for name in kept)


def test_voters_learn_and_differ(run):
  ctx = run[0]._ctx
  first, second = (jax.device_get(ctx.params(name)) for name in VOTERS)
  heads = [tree['scalars']['reward'] for tree in (first, second)]
  for head in heads:
    for name in ('hidden_0/kernel', 'hidden_0/bias', 'kernel'):
      assert np.any(trees.named(head)[name])
    # Nothing of the loss depends on b2: its gradient is 0 to the bit.
    assert not np.any(head['bias'])
  assert not np.array_equal(heads[0]['hidden_0']['kernel'],
                            heads[1]['hidden_0']['kernel'])
  assert not np.any(jax.device_get(
      ctx.base_params())['scalars']['reward']['kernel'])
  for name in VOTERS:
    end = ctx.checkpoints.done(name)['eval']
    assert end['eval/n'] == 6 and 0 <= end['eval/pair_accuracy'] <= 1
    assert end['eval/order_diff_max'] < 1e-5
    assert {'eval/seen/pair_accuracy', 'eval/told/pair_accuracy'} < end.keys()
    card = json.loads((ctx.path / 'eval' / f'{name}_2.json').read_text())
    lines = (ctx.path / 'eval' / f'{name}_2.jsonl').read_text().splitlines()
    assert card['n'] == len(lines) == 6 and card['ties'] == 'half'
    assert np.mean([row['chosen'] > row['rejected'] for row in map(
        json.loads, lines)]) == end['eval/pair_accuracy']


def test_m21_what_voters_freeze_stays_and_owns_nothing(run):
  ctx = run[0]._ctx
  assert ctx.config.voter.optimizer.freeze == ('visual/.*',)
  base, after = (trees.named(jax.device_get(tree)) for tree in (
      ctx.base_params(), ctx.params('voter')))
  assert base.keys() == after.keys()
  moved = {name for name, x in after.items() if (x != base[name]).any()}
  frozen = {name for name in base if name.startswith('visual/')}
  assert frozen and not moved & frozen
  # Of the head's last bias nothing depends, and the head over words is unread.
  assert {name for name in base if name.startswith('language/layers')} <= moved
  learner = reward_model.learner(ctx, 'voter', ctx.config.voter)
  own = trees.named(learner.start.state.opt)
  assert any('scalars' in name for name in own)
  assert not any('visual' in name for name in own)


# The update.


@pytest.fixture(scope='module')
def block(run):
  """Four pairs, of which one is told."""
  ctx = run[0]._ctx
  section = ctx.config.voter
  shape = ctx.shape(section.instruction)
  source = reward_model._open(section, ctx.config, 'train', {})
  pairs = [shape.encode(source[i], i) for i in range(4)]
  assert {not e.images for e, _ in pairs} == {True, False}
  return jax.tree.map(jnp.asarray, pairwise.assemble(
      pairs, shape, section.max_new_tokens))


def updated(run, block, **flat):
  """(metrics, parameters) after one update of the first voter."""
  ctx = run[0]._ctx
  values = {**ctx.config.voter.as_dict(), **flat}
  section = resolve.Section(values, 'voter')
  learner = reward_model.learner(ctx, 'voter', section)
  _, knobs = reward_model.objective_of(section, 'voter', ctx.config)
  state, metrics = learner.update(
      learner.start.state, (block,), training.traced(knobs), 0)
  return {name: float(x) for name, x in jax.device_get(metrics).items()
          }, jax.device_get(state.params['policy'])


def test_m3_a_pair_is_whole_in_any_number_of_chunks(run, block):
  whole, params = updated(run, block)
  parts, again = updated(run, block, chunks_per_step=2)
  for name in ('loss', 'grad_norm', 'term/bradley_terry/accuracy',
               'term/bradley_terry/ahead'):
    assert parts[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6)
  assert whole['loss'] == pytest.approx(np.log(2))  # a new head says 0
  del params, again


def test_no_logits_are_made(run, block):
  """[.., V] is the width of nothing in a reward model's update."""
  ctx = run[0]._ctx
  vocab = ctx.policy.module.config.vocab
  traced = jax.make_jaxpr(lambda p: forward.reward(
      ctx.policy, p, block.prompts, block.completions))(ctx.base_params())
  widths = {x.aval.shape[-1] for e in traced.jaxpr.eqns for x in e.outvars
            if x.aval.shape}
  assert vocab not in widths


def test_a_number_added_to_b2_changes_no_loss(run, block):
  ctx = run[0]._ctx
  params = ctx.params('voter')

  def loss(params):
    said = forward.reward(ctx.policy, params, block.prompts, block.completions)
    terms, knobs = reward_model.objective_of(
        ctx.config.voter, 'voter', ctx.config)
    total, count = terms[0].fn(types.Scores(
        None, None, reward=said[..., None]), block, knobs)
    return total / count

  def shifted(by):
    head = params['scalars']['reward']
    return {**params, 'scalars': {'reward': {
        **head, 'bias': head['bias'] + by}}}
  both = [jax.jit(jax.value_and_grad(loss))(shifted(by)) for by in (0., 3.)]
  assert float(both[0][0]) == pytest.approx(float(both[1][0]), rel=1e-5)
  for name, leaf in trees.named(both[0][1]).items():
    np.testing.assert_allclose(
        trees.named(both[1][1])[name], leaf, atol=1e-4, err_msg=name)
    if name == 'scalars/reward/bias':
      assert not np.any(leaf)


# Judges that say a number.


def test_a_response_is_closed_and_what_cannot_be_read_is_none(run):
  one, _, made = run
  judge, (rollout, scored) = one.judges._judges['model'], made[0]
  processor = one._ctx.processor
  tokens, kind = judge.closed(
      processor, np.array([[[5, 9, 8], [6, 7, 8], [4, 4, 4]]]),
      np.array([[2, 0, 3]]), np.array([[True, True, False]]))
  eos, pad = processor.eos_id, processor.pad_id
  assert tokens.shape == (1, 3, T + 1)
  assert tokens[0, :, :4].tolist() == [
      [5, 9, eos, pad], [eos, pad, pad, pad], [eos, pad, pad, pad]]
  np.testing.assert_array_equal(kind != types.KIND_PAD, [[
      [i < n for i in range(T + 1)] for n in (3, 1, 1)]])
  # None is no value: the prompt that is too long has no score, not 0.
  host, examples = rollout.host, [e for e, _ in rollout.prompted.pairs]
  lengths = (host.kind != 0).sum(-1) - host.done
  long = examples[1].__class__(uid=1, question='7' * 200)
  values, failed = judge([examples[0], long], host.tokens, lengths)
  assert failed.tolist() == [[False] * G, [True] * G]
  assert np.isnan(values[1]).all()
  np.testing.assert_allclose(
      values[0], scored.columns[0, :, scored.names.index('model')], atol=1e-5)


@pytest.mark.parametrize('flat', [
    dict(judges__model__memory='host'), dict(judges__model__chunks=2)])
def test_where_and_in_how_many_pieces_changes_nothing(run, shrink, flat):
  one, _, made = run
  rollout, scored = made[0]
  values = {**one.plan.judges['model'].section.as_dict(), **{
      key.rpartition('__')[2]: x for key, x in flat.items()}}
  asked = one.plan.judges['model'].__class__(
      'model', VOTERS, resolve.Section(values, 'judges.model'))
  judge = score_judges.Judge(one._ctx, asked, T)
  host = rollout.host
  values, _ = judge([e for e, _ in rollout.prompted.pairs], host.tokens,
                    (host.kind != 0).sum(-1) - host.done)
  np.testing.assert_allclose(
      values, scored.columns[..., scored.names.index('model')], atol=1e-5)


def test_a_judge_is_a_folder_of_an_export(run, shrink, tmp_path):
  """Another run reads it, whose policy has no head."""
  ctx = run[0]._ctx
  out = tmp_path / 'voter'
  release.export(str(ctx.path), str(out), stage='voter')
  c = small_config(shrink, judges__model__params=(str(out),))
  c.stages, c.model.scalars = ('basereward',), ()
  c.basereward.optimizer.freeze = ()
  other, plans = opened(c, tmp_path / 'run')
  assert 'scalars' not in other.base_params()
  judge = score_judges.Judge(other, plans['basereward'].judges['model'], T)
  rollout, _ = run[2][0]
  examples = [e for e, _ in rollout.prompted.pairs]
  response = np.asarray([[[5, 9, 8, 7]] * 2] * N)
  values, _ = judge(examples, response, np.full((N, 2), 4))
  wanted = by_hand(ctx, ctx.params('voter'), examples[0], [5, 9, 8, 7])
  np.testing.assert_allclose(values[0], wanted, atol=1e-4)
  other.close()


@pytest.mark.parametrize('flat, said', [
    (dict(judges__model__params=('base',), stages=('basereward',)),
     'never trained'),
    (dict(judges__model__params=()), 'name a stage or a folder'),
    (dict(judges__model__chunks=3), 'a divisor of the 4 responses'),
    (dict(judges__model__kind='number'), "allowed are \\('text', 'score'\\)"),
    (dict(model__scalars=()), r"model.scalars to \('reward',\)"),
    (dict(reward_model__terms=()), 'bradley_terry'),
    (dict(reward_model__ties='none'), "ties: got 'none'"),
    (dict(reward_model__mixture=()), 'at least one section of tasks'),
    (dict(reward_model__chunks_per_step=3), 'a pair is never divided'),
    (dict(reward_model__optimizer__freeze=('scalars/.*',)), 'is to train'),
    (dict(reward_model__lora__rank=2), 'must train in full'),
    (dict(model__reward_head__activation='swish'), "'swish'")])
def test_m22_what_cannot_work_is_named(shrink, tmp_path, flat, said):
  c = small_config(shrink, **flat)
  with pytest.raises(ValueError, match=said):
    ctx, plans = opened(c, tmp_path / 'run')
    try:
      rl.Trainer(ctx, 'basereward', ctx.config.basereward, plans['basereward'])
    finally:
      ctx.close()
