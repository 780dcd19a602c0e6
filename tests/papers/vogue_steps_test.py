"""VOGUE's stage in both readings, on the tests' random model.

Three steps of each, over which the chance of the noisy branch goes 1, .5, 0.
"""

import re

import jax
import numpy as np
import pytest

from configs import common
from mmr1 import types
from tests.papers import runs

N, G, T = 2, 4, 8
STEPS = 3


def begun(arg, shrink, open_run, folder, change=lambda c: None):
  """(a trainer, its first state), of a model that looks at its pictures."""
  c = shrink(runs.config('vogue', arg))
  c.rewards.result.fn = 'tests.own:even'
  c.hooks.anneal.kwargs.steps = STEPS - 1
  c.views.noisy.kwargs.noise = 0.4  # `code` has another
  change(c)
  one = runs.trainer(c, open_run, folder)
  # Else a token is all that decides about the next.
  more = re.compile(r"language.*layers.*'[vo]'.*kernel")
  attending = jax.tree_util.tree_map_with_path(
      lambda path, x: 10 * x if more.search(jax.tree_util.keystr(path)) else x,
      one.start.state.params['policy'])
  return one, one.start.state.replace(params={'policy': attending})


@pytest.fixture(scope='module')
def made(shrink, open_run, tmp_path_factory):
  """{reading: (trainer, its steps)}."""
  result = {}
  for arg in ('paper', 'code'):
    one, state = begun(arg.replace('paper', ''), shrink, open_run,
                       tmp_path_factory.mktemp('vogue') / arg)
    result[arg] = one, runs.take(one, state, range(STEPS))[1]
  return result


def shaped(rewards, entropy, visual):
  """The paper's advantage, of rewards f64[rows, G]."""
  base = (rewards - rewards.mean(1, keepdims=True)) / (
      rewards.std(1, ddof=1, keepdims=True) + 1e-6)
  base = np.where(np.ptp(rewards, 1)[:, None] == 0, 0, base)[..., None]
  cap = np.abs(base) / 2
  return base, base + np.minimum(cap, .4 * entropy) + np.minimum(cap, visual)


def test_rows_are_pairs_of_branches(made):
  _, steps = made['paper']
  for step, plain in zip(steps, made['code'][1]):
    prompts, raw = step.block.prompts, plain.block.prompts
    assert prompts.uid.tolist() == [
        uid for uid in raw.uid.tolist() for _ in range(2)]
    np.testing.assert_array_equal(prompts.tokens[::2], prompts.tokens[1::2])
    # The released code's reading has the data's pictures: so has row 2n.
    (media,), (data,) = prompts.media.values(), raw.media.values()
    np.testing.assert_array_equal(media.patches[::2], data.patches)
    moved = np.abs(media.patches[1::2] - data.patches).mean(-1)
    assert (moved[data.segment > 0] > .2).all()
    assert not moved[data.segment == 0].any()
    assert step.block.completions.tokens.shape == (2 * N, G, T)


def test_the_pair_is_the_symmetric_kl_of_both_pictures(made):
  """On raw rows it is exactly 0, on noisy ones an independent pass over the
  whole vocabulary finds the same; the entropy is that of the own picture."""
  one, steps = made['paper']
  step = steps[1]
  block, params = step.block, step.before.params['policy']
  raw = jax.tree.map(lambda x: x[np.arange(2 * N) // 2 * 2], block.prompts)
  q, p = (runs.distributions(one, params, prompts, block.completions)
          for prompts in (block.prompts, raw))
  known = np.isfinite(q)
  assert not known.all()  # ids that are banned
  p, q = np.where(known, p, 0), np.where(known, q, 0)
  prob_p, prob_q = np.exp(p) * known, np.exp(q) * known
  u = (prob_p * (p - q)).sum(-1) / 2 + (prob_q * (q - p)).sum(-1) / 2
  pair, entropy = block.extra['pair/raw'], block.extra['entropy/raw']
  sampled = block.completions.kind == types.KIND_SAMPLED
  assert not pair[::2].any()
  np.testing.assert_allclose(pair[1::2], u[1::2] * sampled[1::2], rtol=2e-3,
                             atol=1e-6)
  assert np.median(u[1::2]) > 1e-3
  np.testing.assert_allclose(
      entropy, -(prob_q * q).sum(-1) * sampled, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
      block.extra['view/raw'], runs.of_tokens(p, block.completions.tokens)
      * sampled, atol=1e-4)


def test_the_bonus_is_that_of_the_row(made):
  """As by hand from what was logged: rewards, and what the look saw."""
  some = 0
  for step in made['paper'][1]:
    rewards = .9 * step.rewards['result'] + .1 * step.rewards['format']
    extra = step.block.extra
    base, wanted = shaped(rewards, extra['entropy/raw'], extra['pair/raw'])
    sampled = step.block.completions.kind == types.KIND_SAMPLED
    np.testing.assert_allclose(
        step.block.advantage, wanted * sampled, atol=1e-5)
    # Groups of the two branches have means of their own.
    np.testing.assert_allclose(base.sum(1), 0, atol=1e-5)
    some += (extra['pair/raw'] > 1e-3).sum()
  assert some > N * G * T


def test_one_of_each_pair_is_trained_on_and_the_hook_moves_which(made):
  shares = []
  for step in made['paper'][1]:
    kept = step.block.mask.any(-1)
    sampled = step.block.completions.kind == types.KIND_SAMPLED
    np.testing.assert_array_equal(step.block.mask, sampled & kept[..., None])
    assert (kept[::2] ^ kept[1::2]).all()
    shares.append(kept[1::2].mean())
    assert step.metrics['select/noisy_frac'] == shares[-1]
    # The loss is of those: every ratio is 1.
    advantage = np.broadcast_to(step.block.advantage, kept.shape + (T,))
    assert step.metrics['loss/policy'] == pytest.approx(
        -advantage[step.block.mask].mean(), abs=1e-5)
  assert shares[0] == 1 and 0 < shares[1] < 1 and shares[2] == 0
  # With the chance at 0 what is trained on has no visual bonus left, and
  # that of the entropy.
  last = made['paper'][1][2]
  assert not last.block.extra['pair/raw'][last.block.mask].any()
  base, _ = shaped(.9 * last.rewards['result'], 0, 0)
  gain = (last.block.advantage - base)[last.block.mask]
  assert (gain > 0).any() and (gain >= 0).all()


def test_the_released_code_looks_a_second_time_at_one_group(made):
  """The noisy pass is over the responses to the raw picture, under the picture
  that the other reading samples from."""
  one, steps = made['code']
  for k, step in enumerate(steps):
    block = step.block
    assert block.completions.tokens.shape == (N, G, T)
    assert 'pair/noisy' not in block.extra and block.mask.any(-1).all()
    raw, noisy = block.extra['sampler_logp'], block.extra['view/noisy']
    probs = np.exp(np.asarray([raw, noisy], np.float64))
    visual = (probs[0] - probs[1]) * np.log(probs[0] / probs[1]) / 2
    rewards = .9 * step.rewards['result'] + .1 * step.rewards['format']
    base, _ = shaped(rewards, 0, 0)
    chosen = probs[0]
    if k == 0:  # the chance is 1
      base = base + np.minimum(np.abs(base) / 2, visual)
      chosen = probs[1]
    wanted = base + np.minimum(
        np.abs(base) / 2, -.4 * chosen * np.log(chosen))
    if k != 1:
      np.testing.assert_allclose(
          block.advantage, wanted * block.mask, atol=1e-5)
  step, other = steps[0], made['paper'][1][0]
  noisy = jax.tree.map(lambda x: x[1::2], other.block.prompts)
  seen = runs.of_tokens(runs.distributions(
      one, step.before.params['policy'], noisy, step.block.completions),
                        step.block.completions.tokens)
  np.testing.assert_allclose(
      step.block.extra['view/noisy'], seen * step.block.mask, atol=1e-4)
  gap = step.block.extra['sampler_logp'] - step.block.extra['view/noisy']
  assert np.abs(gap[step.block.mask]).mean() > .01
  assert step.metrics['view/noisy/drop'] == pytest.approx(
      gap[step.block.mask].mean(), abs=1e-5)


@pytest.mark.parametrize('arg', ['paper', 'code'])
def test_steps_train_and_compile_nothing_new(made, arg):
  _, steps = made[arg]
  assert len({step.programs for step in steps}) == 1
  for step in steps:
    assert step.metrics['update/skipped'] == 0
    assert step.metrics['ratio/max'] == 1 and step.metrics['grad_norm'] > 0
    assert step.metrics['sampler/logp_diff_max'] < 1e-4
    assert np.isfinite(list(step.metrics.values())).all()
    assert 'kl' not in step.metrics and step.block.ref is None
  assert not runs.same(*(step.before.params for step in steps[:2]))
  # Other prompts, and other noise on their pictures.
  assert len({tuple(step.block.prompts.uid) for step in steps}) == STEPS


def test_an_augmentation_that_changes_nothing_has_no_uncertainty(
    made, shrink, open_run, tmp_path):
  def change(c):
    c.views.noisy = common.view('same')
  one, state = begun(None, shrink, open_run, tmp_path / 'run', change)
  rollout = one.rollouts.next(state, 0)
  seen = one.look(state, rollout)['raw']
  assert not np.asarray(seen.pair).any() and np.asarray(seen.entropy).any()
  # Two groups all the same, of other tokens.
  tokens = np.asarray(rollout.rollout.completions.tokens)
  assert (tokens[::2] != tokens[1::2]).any()
  (media,) = rollout.rollout.prompts.media.values()
  np.testing.assert_array_equal(media.patches[::2], media.patches[1::2])
  # The rows are otherwise those of the stage.
  np.testing.assert_array_equal(
      rollout.rollout.prompts.uid, made['paper'][1][0].block.prompts.uid)
