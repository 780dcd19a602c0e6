"""VL-Rethinker's stage on the tests' random model, and its config."""

import json

import jax
import numpy as np
import pytest

from mmr1 import types
from mmr1.papers import vl_rethinker as paper
from mmr1.papers import vl_rethinker_replay as replay
from tests.papers import runs

N, G, T = 4, 4, 16
HALF = N * G // 2


def right(sample, knobs, **kwargs):
  """In place of answers: of the last group some are right, whatever the model
  says; the others are all right, and have no advantage."""
  del knobs, kwargs
  return float(sample.group < 3 or sum(sample.tokens) % 3 == 0)


right.range = (0.0, 1.0)


def _ended(meta):
  """As if responses had ended, which those of a random model hardly do."""
  return {**meta, 'done': np.ones_like(meta['done'])}


def rethink(samples, columns, meta, rng, **kw):
  return paper.rethink(samples, columns, _ended(meta), rng, **kw)


def rethink_early(samples, columns, meta, rng, **kw):
  """The same of every prompt, from the first space on."""
  return rethink(samples, columns, meta, rng, **{
      **kw, 'queries': 1.0, 'marks': ((' ', 'first'),)})


def rethought(before, after, meta, **kw):
  return paper.rethought(before, after, _ended(meta), **kw)


def begun(arg, shrink, open_run, folder, **flat):
  c = shrink(runs.config('vl_rethinker', arg))
  for name in ('outcome', 'correct'):
    c.rewards[name].fn, c.rewards[name].kwargs = f'{__name__}:right', {}
  if not arg:
    c.rl.revise.fn = f'{__name__}:rethink'
    c.rl.revise.kwargs = dict(
        longest=T, queries=1.0, share=1.0, neutral=0.5,
        marks=((' ', 'first'),), texts=(' hmm',) * 4)
    c.rl.revise.keep = dict(fn=f'{__name__}:rethought', kwargs=dict(least=0))
  rows = {} if arg == 'grpo' else dict(
      replay__capacity=HALF, replay__rows=HALF)
  return runs.trainer(
      c, open_run, folder, prompts_per_step=N, samples_per_prompt=G,
      max_new_tokens=T, optimizer__lr=1e-2, **rows, **flat)


@pytest.fixture(scope='module')
def made(shrink, open_run, tmp_path_factory):
  """(trainer, its steps, what a checkpoint would have had after two)."""
  one = begun(None, shrink, open_run, tmp_path_factory.mktemp('vlr') / 'run')
  state, steps = runs.take(one, one.start.state, range(2))
  kept = (json.dumps(one.state()), jax.tree.map(np.array, state),
          {name: np.array(x) for name, x in one.arrays().items()})
  _, more = runs.take(one, state, range(2, 4))
  return one, steps + more, kept


def test_responses_that_went_on_and_are_right_replace_what_they_were(made):
  kept = 0
  for step in made[1]:
    forced = (step.block.completions.kind == types.KIND_FORCED).any(-1)
    assert forced.mean() == pytest.approx(step.metrics['revise/kept'])
    assert step.metrics['revise/asked'] >= step.metrics['revise/kept']
    assert (step.rewards['correct'][forced] == 1).all()
    # 1 of which half of the group can be: two a prompt at most.
    assert forced.sum(1).max() <= 2
    kept += forced.sum()
  assert kept


def test_half_of_a_rollout_trains_and_all_of_it_has_an_advantage(made):
  stored, replayed = 0, 0
  for k, step in enumerate(made[1]):
    block, (again,) = step.block, step.more
    a, times = block.advantage[..., 0], block.times[..., 0]
    np.testing.assert_allclose(
        a, step.rewards['outcome'] - step.rewards['outcome'].mean(
            1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(times, replay.selected(
        {}, block.advantage, {}, None, made[0].judging._rng(k))[0])
    assert not times[a == 0].any()
    stored = min(stored + (a != 0).sum(), HALF)
    assert step.metrics['replay/stored'] == stored
    rows = again.mask.any((1, 2))
    assert rows.sum() == step.metrics['replay/rows'] == (
        HALF - times.sum() if stored else 0)
    assert (again.advantage[rows] != 0).all()
    replayed += rows.sum()
  assert replayed


def test_what_is_replayed_keeps_its_old_log_probs(made):
  """Of the step that made it, where parameters were others."""
  seen = {}
  for k, step in enumerate(made[1]):
    block, (again,) = step.block, step.more
    for n, g in np.ndindex(N, G):
      seen[tuple(block.completions.tokens[n, g]), k] = (
          block.old[n, g], float(block.advantage[n, g, 0]))
    for row in np.flatnonzero(again.mask.any((1, 2))):
      tokens = tuple(again.completions.tokens[row, 0])
      assert any(
          key[0] == tokens and np.array_equal(old, again.old[row, 0])
          and a == again.advantage[row, 0, 0]
          for key, (old, a) in seen.items())
  ratios = [step.metrics['ratio/max'] for step in made[1][1:]]
  assert max(ratios) > 1.0005


def test_the_loss_is_of_both_parts(made):
  """In the first step the policy is the old one: every ratio is 1."""
  step = made[1][0]
  blocks = [step.block, *step.more]
  tokens = sum((b.mask * (1 if b.times is None else b.times)).sum()
               for b in blocks)
  total = sum((-b.advantage * b.mask * (1 if b.times is None else b.times)
               ).sum() for b in blocks)
  assert step.metrics['loss/policy'] == pytest.approx(
      total / tokens, abs=1e-5)


def test_m15_goes_on_from_a_checkpoint_to_the_bit(
    made, shrink, open_run, tmp_path):
  state, held, arrays = made[2]
  two = begun(None, shrink, open_run, tmp_path / 'run')
  two.restore(json.loads(state))
  two.take_back({name: jax.device_put(x) for name, x in arrays.items()})
  held = jax.device_put(held, jax.tree.map(
      lambda x: x.sharding, two.start.state))
  _, steps = runs.take(two, held, range(2, 4))
  for got, want in zip(steps, made[1][2:]):
    assert runs.same((got.block, got.more), (want.block, want.more))
    assert got.metrics['loss'] == want.metrics['loss']
    assert runs.same(got.before.params, want.before.params)


# The config.


@pytest.mark.parametrize('arg, replays, revises', [
    (None, True, True), ('ssr', True, False), ('filter', False, False),
    ('grpo', False, False), ('qwen2_5_vl_7b', True, True)])
def test_options(arg, replays, revises):
  c = runs.config('vl_rethinker', arg)
  assert (c.rl.replay.fn is not None) == replays
  assert (c.rl.revise.fn is not None) == revises == bool(c.rl.terms)
  half = c.vl_rethinker.get('prompts_per_step') or c.rl.prompts_per_step
  if replays:
    assert c.rl.replay.rows == c.rl.replay.capacity == (
        half * c.rl.samples_per_prompt // 2)


def test_the_papers_numbers():
  c, _ = runs.commanded('vl_rethinker', [], 'qwen2_5_vl_7b')
  rl = c.vl_rethinker
  assert (rl.prompts_per_step * rl.samples_per_prompt, rl.replay.rows) == (
      1024, 512)
  assert rl.policy.kwargs.as_dict() == dict(eps_low=.2, eps_high=.35)
  assert (rl.optimizer.lr, rl.top_p, rl.temperature) == (1e-6, .95, 1.0)
  assert rl.revise.temperature == .9 and rl.kl.coefficient == 0
  assert rl.revise.kwargs.as_dict()['longest'] == 1024
  assert c.terms.imitation.coefficient == .05


@pytest.mark.parametrize(
    'given', runs.ablations('vl_rethinker'), ids=' '.join)
def test_ablations_of_the_docstring_are_taken(given):
  final, plans = runs.commanded('vl_rethinker', given)
  assert set(plans) == {'vl_rethinker'}
  for flag in given:  # the flag's value is what the stage or the library has
    key, _, value = flag.removeprefix('--config.').partition('=')
    place = final
    for part in key.replace('rl.', 'vl_rethinker.', 1).split('.')[:-1]:
      place = place[part]
    assert str(place.as_dict()[key.rpartition('.')[2]]) == value
