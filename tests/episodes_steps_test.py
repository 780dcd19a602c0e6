"""Two steps of rl and of sft with an environment, through the stages (M18)."""

import json

import jax
import numpy as np
from PIL import Image
import pytest

from configs import common
from mmr1 import environments
from mmr1 import trees
from mmr1 import types
from mmr1.stages import evaluate
from mmr1.stages import sft
from tests import small
from tests.papers import runs

N, G, T, TURN = 2, 4, 128, 16
# The model of the tests never ends a turn by itself.
ENDS = tuple('aeinorst0123456789.')


def config(shrink, stop=ENDS, **kwargs):
  """`kwargs`: of the environment."""
  c = shrink(common.get_base())
  c.name, c.stages = 'asked', ('grpo',)
  common.small_digits(c)
  c.environments.own = common.environment(
      'tests.own_env:Asking', max_turns=4, turn_tokens=TURN,
      observation_tokens=40, observation_patches=16, images=2, stop=stop,
      **kwargs)
  c.rewards.result.fn = 'tests.own:even'
  c.rl.env = 'own'
  c.grpo = common.overlay(c.rl)
  return c


@pytest.fixture(scope='module')
def made(shrink, open_run, tmp_path_factory):
  c = config(shrink)
  c.rl.advantage = dict(fn='mmr1.credit:by_turn', kwargs=dict(
      gamma=1.0, norm='group'))
  c.rl.kl.coefficient = .1
  one = runs.trainer(
      c, open_run, tmp_path_factory.mktemp('asked') / 'run', max_new_tokens=T,
      chunks_per_minibatch=2, length_buckets=(64,), optimizer__lr=.02)
  state, steps = runs.take(one, one.start.state, range(2))
  return one, steps, state


def test_m1_sampler_and_trainer_agree_on_every_turn(made):
  for step in made[1]:
    assert step.metrics['sampler/logp_diff_max'] < 1e-4
  turn = made[1][0].block.completions.turn
  assert turn.max() >= 1
  assert made[1][0].programs == made[1][1].programs  # M28


def test_m18_observations_are_in_nothing_that_trains(made):
  one, steps, _ = made
  block = steps[1].block
  kinds = block.completions.kind
  assert (kinds == types.KIND_OBSERVATION).any()
  assert not block.mask[kinds != types.KIND_SAMPLED].any()
  assert not block.advantage[kinds != types.KIND_SAMPLED].any()
  said = (kinds == types.KIND_SAMPLED).sum((-1))
  assert steps[1].metrics['response_length/mean'] == said.mean()


def test_credit_of_turns_reaches_their_tokens(made):
  block = made[1][0].block
  for i, j in np.ndindex(N, G):
    numbers = block.completions.turn[i, j]
    for k in range(numbers.max() + 1):
      assert len({*block.advantage[i, j][numbers == k].tolist()}) == 1
  assert np.unique(block.advantage).size > 3


def test_metrics_and_samples_tell_of_episodes(made):
  metrics = made[1][0].metrics
  # Slots 0 and 2 have two turns and one picture, 1 and 3 one turn.
  assert metrics['env/turns'] == 1.5 and metrics['env/calls'] == .5
  assert metrics['env/images'] == .5 and metrics['env/errors'] == 0
  assert metrics['env/answer_frac'] == 1 and metrics['env/length_frac'] == 0
  assert metrics['response_length/clip_frac'] == 0


def test_what_is_cut_is_counted_by_its_limit(shrink, open_run, tmp_path):
  """Under a cap with no room for a second picture: every other episode ends by
  the limit, the cap is on all of its tokens, and clip_frac says so."""
  one = runs.trainer(config(shrink, turns=4), open_run, tmp_path / 'run',
                     max_new_tokens=64)
  _, (step,) = runs.take(one, one.start.state, range(1))
  metrics, kinds = step.metrics, step.block.completions.kind
  whole = (kinds != types.KIND_PAD).sum(-1)
  cut = sum(metrics[f'env/{end}_frac'] for end in environments.LIMITS)
  assert metrics['response_length/clip_frac'] == pytest.approx(cut) and cut > 0
  assert cut == pytest.approx(1 - metrics['env/answer_frac'])
  assert metrics['env/tokens_max'] == whole.max() <= 64
  assert metrics['env/tokens'] == whole.mean()
  assert metrics['response_length/max'] < whole.max()


def test_m6_no_picture_anywhere(shrink, open_run, tmp_path):
  """Problems of words, and an environment that may show pictures and does
  not: the tower's gradient is 0 and nothing is compiled again."""
  (tmp_path / 'words.jsonl').write_text('\n'.join(
      json.dumps(dict(problem=f'{i}+1=?', answer=i + 1)) for i in range(16)))
  c = config(shrink, pictures=False)
  c.data.path = str(tmp_path / 'words.jsonl')
  c.grpo.optimizer.freeze = ()
  one = runs.trainer(
      c, open_run, tmp_path / 'run', max_new_tokens=T, optimizer__lr=.02)
  state, steps = runs.take(one, one.start.state, range(2))
  for step in steps:
    assert step.metrics['env/images'] == 0 and step.metrics['env/calls'] == .5
    assert all(map(np.isfinite, step.metrics.values()))
    assert step.metrics['sampler/logp_diff_max'] < 1e-4
  assert steps[1].metrics['grad_norm'] > 0
  assert steps[0].programs == steps[1].programs
  before, after = (trees.named(tree.params['policy']) for tree in (
      steps[0].before, runs.copied(state)))
  moved = {name for name, x in after.items() if (x != before[name]).any()}
  assert moved and not any(name.startswith('visual/') for name in moved)


def test_pictures_have_a_gradient_of_their_own(made):
  """Blank ones would train other parameters."""
  one, steps, _ = made
  policy, block = one._ctx.policy, jax.tree.map(np.asarray, steps[0].block)
  params = steps[0].before.params['policy']
  terms = one.plan.objective.terms
  knobs = {'temperature': 1.0, **{k: v for k, v in one.plan.knobs.items()}}
  knobs = {k: np.float32(v) for k, v in knobs.items()}

  def gradient(block):
    return small.gradient(params, [jax.tree.map(jax.numpy.asarray, block)],
                          knobs, policy_=policy, terms=terms)[0]
  media = block.completions.media['vision']
  blank = block.replace(completions=block.completions.replace(media={
      'vision': media.replace(patches=0 * media.patches)}))
  a, b = gradient(block), gradient(blank)
  gap = [np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (a, b)))]
  assert max(gap) > 1e-5


def test_m26_what_no_episode_can_begin_with_is_skipped(
    shrink, open_run, tmp_path, caplog):
  """One problem of sixteen has no picture to crop: nobody stumbles over it,
  and it is counted and named."""
  Image.new('RGB', (32, 32)).save(tmp_path / 'one.png')
  lines = [dict(problem=f'{i}+1=?', answer=i + 1, image='one.png')
           for i in range(16)]
  del lines[5]['image']
  (tmp_path / 'data.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  c = config(shrink)
  c.data.path = c.data.eval_path = str(tmp_path / 'data.jsonl')
  c.environments.own = common.environment(
      'mmr1.envs.crop:Crop', max_turns=4, turn_tokens=TURN, stop=(),
      observation_tokens=40, observation_patches=16, images=2,
      rule='mmr1.papers.vlm_r3:region')
  c.evaluation.env, c.evaluation.examples = 'own', 16
  one = runs.trainer(c, open_run, tmp_path / 'run')
  seen = {example.question for _ in range(8)
          for example, _ in one.rollouts.take()[0].pairs}
  assert len(seen) == 15 and one.rollouts.broken == 1
  assert 'data.jsonl:6: no episode: there is no picture' in caplog.text
  held_out = evaluate.Evaluation(one._ctx, one._ctx.config.evaluation)
  held_out._open()
  assert len(held_out._pairs) == 15 and [
      one.where.rpartition('/')[2] for one in held_out._broken] == [
          'data.jsonl:6']


def test_evaluation_plays_too(shrink, open_run, tmp_path):
  c = config(shrink, fails=2, spread=2)
  c.evaluation.env, c.evaluation.max_new_tokens = 'own', T
  # Two batches, the last of one problem.
  c.evaluation.examples, c.evaluation.prompts_per_batch = 5, 4
  ctx, _ = open_run(c, tmp_path / 'run')
  one = evaluate.Evaluation(ctx, ctx.config.evaluation)
  metrics = one(ctx.params('base'), 'base', 0)
  assert metrics['eval/env/turns'] >= 1 and 'eval/env/calls_sampled' in metrics
  rows = (ctx.path / 'eval' / 'base_0.jsonl').read_text()
  assert '"end": "' in rows and '"turns": [["assistant"' in rows
  rows = [row for row in map(json.loads, rows.splitlines())
          if row['decoding'] == 'sampled']
  said = [sum(role == 'assistant' for role, _ in row['turns']) for row in rows]
  assert len({*said}) > 1  # else any weights would do
  assert metrics['eval/env/turns_sampled'] == pytest.approx(np.mean(said))
  assert metrics['eval/truncated_frac_sampled'] == pytest.approx(sum(
      metrics[f'eval/env/{end}_frac_sampled'] for end in environments.LIMITS))


@pytest.fixture
def imitating(shrink, tmp_path):
  from tests.stages import sft_test
  c = config(shrink, stop=())
  c.data.path = sft_test.write(tmp_path, sft_test.THOUGHTS)
  lines = (tmp_path / 'train.jsonl').read_text().splitlines()
  # Each twice; of the first the environment would go on.
  (tmp_path / 'train.jsonl').write_text('\n'.join(
      f'{line[:-1]}, "turns": {json.dumps(turns)}}}' for line in lines
      for turns in (['So.'], ['What?', 'So.'])) + '\n')
  c.sft.env = 'own'
  c.imitate = common.overlay(
      c.sft, steps=2, rows_per_step=4, max_new_tokens=T)
  c.stages = ('imitate',)
  return c


def test_sft_learns_what_the_assistant_says(
    imitating, open_run, tmp_path, capfd):
  ctx, plans = open_run(imitating, tmp_path / 'run')
  taken, original = [], sft.loop.train

  def train(ctx, stage, section, state, source, take_step, stored, **kw):
    for k in range(2):
      step = take_step(state, k)
      state = step.state
      taken.append(jax.device_get((dict(step.metrics), step.batch[0])))
  sft.loop.train = train
  try:
    sft.run(ctx, 'imitate', ctx.config.imitate, plans['imitate'])
  finally:
    sft.loop.train = original
  (metrics, block), (_, again) = taken
  kinds = block.completions.kind
  assert (kinds == types.KIND_OBSERVATION).any((1, 2)).all()
  np.testing.assert_array_equal(block.mask, kinds == types.KIND_EXPERT)
  assert np.abs(block.completions.media['vision'].patches).max() > 0
  assert np.isfinite(metrics['loss']) and again.mask.any()
  # M26: what would end otherwise is left out, counted and named.
  assert taken[-1][0]['data/dropped_long'] >= 1
  printed = ''.join(capfd.readouterr())
  assert 'train.jsonl:' in printed and 'the environment goes on' in printed


@pytest.mark.parametrize('flat, match', [
    (dict(staleness=1, old='sampler'), 'staleness=1'),
    (dict(experts=1), 'experts=1'),
    (dict(advantage__fn='mmr1.returns:remax'), 'remax'),
])
def test_m22_what_hears_no_environment(shrink, open_run, tmp_path, flat, match):
  c = config(shrink)
  with pytest.raises(ValueError, match=rf'grpo\.(env|experts).*{match}'):
    runs.trainer(c, open_run, tmp_path / 'run', **flat)


@pytest.mark.parametrize('key, value, match', [
    ('max_turns', 0, 'at least 1'), ('limit_s', 0.0, 'above 0'),
    ('limit_s', float('inf'), 'got inf; .*at most 9'),
    ('stop', ('',), 'at least one'), ('turn_tokens', 0, 'at least 1')])
def test_m22_limits(shrink, open_run, tmp_path, key, value, match):
  c = config(shrink)
  c.environments.own[key] = value
  with pytest.raises(ValueError, match=match):
    runs.trainer(c, open_run, tmp_path / 'run')


def test_m22_a_stop_string_that_is_no_tuple(shrink, open_run, tmp_path):
  """('</a>') is '</a>', and that would be four strings of a letter."""
  with pytest.raises(ValueError, match=r"own.stop: .*\('</a>',\)"):
    runs.trainer(config(shrink, stop='</a>'), open_run, tmp_path / 'run')
