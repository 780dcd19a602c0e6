"""LUFFY by hand: advantages over mixed groups, the shaped term, its config.

Steps are in luffy_steps_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import columns
from mmr1 import types
from mmr1.losses import surrogate
from mmr1.losses import terms
from mmr1.papers import luffy
from tests.papers import runs

P = np.asarray([.9, .1, .01])
T_MAX = 8


def group(*rewards, expert=0):
  """(rewards [1, G, 1], tokens that say which is the demonstration)."""
  kind = np.zeros((1, len(rewards)), bool)
  kind[0, expert] = True
  return np.asarray(rewards, float)[None, :, None], columns.Tokens(expert=kind)


def test_advantages_of_a_mixed_group_by_hand():
  """[1 (demonstration), 0, 0, 1, 0, 0, 0, 0]: the mean of all is 2/8, that of
  the group's own samples 1/7."""
  rewards, tokens = group(1, 0, 0, 1, 0, 0, 0, 0)
  np.testing.assert_allclose(
      advantages.dr_grpo(rewards, tokens)[0, :, 0],
      [.75, -.25, -.25, .75, -.25, -.25, -.25, -.25])
  np.testing.assert_allclose(
      luffy.split_mean(rewards, tokens)[0, :, 0],
      [.857143, -.142857, -.142857, .857143] + [-.142857] * 4, atol=1e-6)
  # Where nothing is right but the demonstration GRPO learns from none of the
  # samples: 1 - 1/8 and -1/8 with it in the mean, 1 and 0 without.
  rewards, tokens = group(0, 0, 0, 0, 0, 0, 0, 1, expert=7)
  assert advantages.dr_grpo(rewards, tokens)[0, :, 0].tolist() == (
      [-.125] * 7 + [.875])
  assert luffy.split_mean(rewards, tokens)[0, :, 0].tolist() == [0] * 7 + [1]
  assert not advantages.dr_grpo(rewards[:, :7], tokens).any()


def test_the_mean_of_own_samples_leaves_out_what_has_no_value():
  nan = np.nan
  # Own values 0 and 1, mean 1/2; a sample without any value gets 0.
  rewards, tokens = group(0, nan, 1, 1, expert=3)
  np.testing.assert_allclose(
      luffy.split_mean(rewards, tokens)[0, :, 0], [-.5, 0, .5, .5])
  # Two columns are centred by themselves and summed.
  two = np.concatenate([rewards, [[[1.], [3.], [nan], [2.]]]], -1)
  np.testing.assert_allclose(
      luffy.split_mean(two, tokens)[0, :, 0], [-.5 - 1, 1, .5, .5])
  # .9 eight times is exactly no variance; with no sample the mean is 0.
  assert not luffy.split_mean(*group(*[.9] * 8)).any()
  rewards, tokens = group(1, nan, nan)
  assert luffy.split_mean(rewards, tokens).tolist() == [[[0], [0], [0]]]
  with pytest.raises(ValueError, match="'split_mean' needs tokens.expert"):
    luffy.split_mean(rewards, columns.Tokens())


def block(**changes):
  """Row 0: a demonstration of three tokens with probabilities `P` and A = .75;
  row 1: two sampled tokens, (old, new) = (.5, .6), (.4, .4), A = -.25."""
  kind = np.zeros((1, 2, T_MAX), np.int8)
  kind[0, 0, :3], kind[0, 1, :2] = types.KIND_EXPERT, types.KIND_SAMPLED
  def wide(expert, own):
    values = np.full((1, 2, T_MAX), np.nan, np.float32)  # where padded
    values[0, 0, :3], values[0, 1, :2] = expert, own
    return jnp.asarray(values)
  made = types.Block(
      prompts=None, completions=types.Completions(
          tokens=None, kind=jnp.asarray(kind), positions=None),
      mask=jnp.asarray(kind > 0),
      advantage=jnp.asarray([[[.75], [-.25]]]),
      old=wide(0.0, np.log([.5, .4])))
  return types.Scores(
      logp=wide(np.log(P), np.log([.6, .4])), entropy=None), made.replace(
          **changes)


LENGTH = dict(mode='constant', rows='none', length=float(T_MAX))


def policy(scores, made, reduction, **kw):
  return terms.policy(
      scores, made, {}, surrogate=surrogate.linear, reduction=reduction, **kw)


def test_the_loss_by_hand():
  """f = p / (p + .1) = [.9, .5, .090909]; the demonstration's losses are
  -.75 f = [-.675, -.375, -.068182], the samples' .25 [1.2, 1] = [.3, .25]."""
  scores, made = block()
  off, count = luffy.shaped(scores, made, {})
  assert off == pytest.approx(-1.118182, abs=1e-6) and count == 3
  on, own = policy(scores, made, terms.TOKEN_MEAN)
  assert on == pytest.approx(.55, abs=1e-6) and own == 2
  # Over all 5 tokens -.113636, over the longest completion -.071023.
  assert (off + on) / (count + own) == pytest.approx(-.113636, abs=1e-6)
  off, count = luffy.shaped(scores, made, {}, reduction=LENGTH)
  on, own = policy(scores, made, LENGTH)
  assert count == own == 0 and off + on == pytest.approx(-.071023, abs=1e-6)
  # As the config has it, per row: half of that.
  rows = {**LENGTH, 'rows': 'all'}
  parts = [luffy.shaped(scores, made, {}, reduction=rows),
           policy(scores, made, rows)]
  assert sum(total / count for total, count in parts) == pytest.approx(
      -.071023 / 2, abs=1e-6)
  # Weight p is the ablation: -.75 [.9, .1, .01].
  off, _ = luffy.shaped(scores, made, {}, shape=False)
  assert off == pytest.approx(-.7575, abs=1e-6)
  off, _ = luffy.shaped(scores, made, {}, gamma=0.01)
  # .75 (.9 / .91 + .1 / .11 + .5)
  assert off == pytest.approx(-1.798577, abs=1e-6)


def grads(fn, at):
  return np.asarray(jax.grad(fn)(jnp.asarray(at, jnp.float32)))


def test_weights_of_the_gradients_by_hand():
  """Of -A f, with A = 1: by log p it is -.1 p / (p + .1)^2 = -[.09, .25,
  .082645], largest at p = gamma; by p -.1 / (p + .1)^2 = -[.1, 2.5,
  8.264463]."""
  scores, made = block(advantage=jnp.ones((1, 2, 1)))
  def by(change, **kw):
    def loss(x):
      logp = scores.logp.at[0, 0, :3].set(change(x))
      return luffy.shaped(scores.replace(logp=logp), made, {}, **kw)[0]
    return loss
  shaped = grads(by(lambda x: x), np.log(P))
  np.testing.assert_allclose(shaped, [-.09, -.25, -.082645], atol=1e-6)
  np.testing.assert_allclose(
      grads(by(jnp.log), P), [-.1, -2.5, -8.264463], rtol=1e-5)
  # Without shaping the weight is p: the rare token learns 8.26 times less.
  plain = grads(by(lambda x: x, shape=False), np.log(P))
  np.testing.assert_allclose(plain, -P, rtol=1e-6)
  assert shaped[2] / plain[2] == pytest.approx(8.264463, rel=1e-5)


def test_samples_and_padding_are_in_no_term_of_demonstrations():
  """Nor demonstrations in the policy's, with whatever is old there."""
  scores, made = block()
  for fn in (luffy.shaped, luffy.imitation):
    whole = jax.grad(lambda logp, fn=fn: fn(
        scores.replace(logp=logp), made, {})[0])(scores.logp)
    assert np.isfinite(whole).all() and whole[0, 0, :3].all()
    assert not whole[0, 0, 3:].any() and not whole[0, 1].any()
  own = jax.grad(lambda logp: policy(
      scores.replace(logp=logp), made, terms.TOKEN_MEAN)[0])(scores.logp)
  np.testing.assert_allclose(own[0, 1, :2], [.3, .25], rtol=1e-6)
  assert not own[0, 0].any() and not own[0, 1, 2:].any()
  # A demonstration that `select` dropped is not there.
  none = made.replace(mask=made.mask.at[0, 0].set(False))
  for fn in (luffy.shaped, luffy.imitation):
    assert fn(scores, none, {}) == (0, 0)


@pytest.mark.parametrize('old', [0.0, -50.0, 3.0, np.nan, np.inf, None])
def test_nothing_of_a_demonstration_depends_on_old(old):
  scores, made = block()
  other = None if old is None else made.old.at[0, 0].set(old)
  changed = made.replace(old=other)
  for fn in (luffy.shaped, luffy.imitation):
    def loss(logp, made, fn=fn):
      return fn(scores.replace(logp=logp), made, {})[0]
    a, b = (jax.value_and_grad(loss)(scores.logp, x) for x in (made, changed))
    assert a[0] == b[0]
    np.testing.assert_array_equal(a[1], b[1])
  if old is not None:
    keep = dict(reduction=terms.TOKEN_MEAN, surrogate=surrogate.linear)
    assert terms.policy(scores, made, {}, **keep) == terms.policy(
        scores, changed, {}, **keep)
    means, tops = terms.policy_metrics(
        scores, changed, {}, surrogate=surrogate.linear)
    # Ratios of samples alone: (1.2 + 1) / 2, at most 1.2.
    assert means['ratio/mean'][0] / means['ratio/mean'][1] == pytest.approx(1.1)
    assert tops['ratio/max'] == pytest.approx(1.2)


def test_imitation_by_hand():
  """-(ln .9 + ln .1 + ln .01) = .105361 + 2.302585 + 4.605170 = 7.013116, with
  any advantage."""
  scores, made = block()
  for advantage in (made.advantage, 0 * made.advantage):
    total, count = luffy.imitation(
        scores, made.replace(advantage=advantage), {})
    assert total == pytest.approx(7.013116, abs=1e-5) and count == 3


def test_an_advantage_of_another_shape_is_refused():
  scores, made = block(advantage=jnp.ones((1, 2, 3)))
  with pytest.raises(ValueError, match='block.advantage'):
    luffy.shaped(scores, made, {})


# The config.


@pytest.mark.parametrize('option', [None, 'split', 'multitask'])
def test_the_papers_numbers_at_7b(option):
  arg = ','.join(filter(None, ('qwen2_5_vl_7b', option)))
  final, plans = runs.commanded('luffy', (), arg)
  stage, objective = final.luffy, plans['luffy'].objective
  assert final.stages == ('luffy',) and stage.data == 'train'
  # 8 = 7 sampled and one demonstration; 128 prompts, 64 an update.
  assert (stage.samples_per_prompt, stage.experts) == (8, 1)
  assert (stage.prompts_per_step, stage.minibatches_per_step) == (128, 2)
  assert stage.epochs_per_step == 1 and stage.old == 'recompute'
  assert stage.optimizer.lr == 1e-6 and stage.optimizer.lr_decay == 'constant'
  assert stage.optimizer.weight_decay == 1e-2
  assert final.evaluation.max_new_tokens == 8192
  assert final.data.prompt_tokens == 1024
  assert (stage.max_new_tokens, stage.steps) == (8192, 500)
  assert stage.temperature == 1.0 and final.evaluation.temperature == .6
  assert (stage.policy.surrogate, stage.policy.reduce) == ('linear', 'constant')
  # Sums over 8,192 tokens of micro-batches of 64 rows.
  assert stage.policy.length == 128 and stage.policy.rows == 'all'
  assert stage.policy.kwargs.as_dict() == {}  # no clip
  assert stage.entropy.coefficient == 1e-3
  assert stage.entropy.reduce == 'token_mean'
  assert stage.kl.coefficient == 0 and not objective.reference
  assert stage.rewards == ('result',)  # no format term
  third = 'imitation' if option == 'multitask' else 'shaped'
  assert [term.name for term in objective.terms] == ['policy', 'entropy', third]
  assert objective.knobs[f'coef/{third}'] == 1
  if third == 'shaped':
    assert objective.knobs['shaped/gamma'] == .1
    assert final.terms.shaped.kwargs.shape is True
  # The group's mean, no deviation; or that of the group's own samples.
  rewards, tokens = group(1, 0, 0, 1, 0, 0, 0, 0)
  np.testing.assert_allclose(
      plans['luffy'].advantage(rewards, tokens)[0, :2, 0],
      [.857143, -.142857] if option else [.75, -.25], atol=1e-6)
  # -.071023 is of two rows.
  scores, made = block()
  knobs = objective.knobs
  totals = {term.name: term.fn(scores, made, knobs)
            for term in objective.terms if term.name != 'entropy'}
  assert totals['policy'][1] == 2 * 8192 / 64
  # The baseline's SFT loss is a mean over the demonstration's 3 tokens.
  assert totals[third][1] == (3 if third == 'imitation' else 2 * 8192 / 64)


def test_the_ablations_change_what_they_say():
  every = [runs.commanded('luffy', given) for given in runs.ablations('luffy')]
  plain, *rest = [plan['luffy'].objective for _, plan in [
      runs.commanded('luffy', ()), *every]]
  scores, made = block()
  def losses(objective):
    return {term.name: float(term.fn(scores, made, objective.knobs)[0])
            for term in objective.terms if term.name != 'entropy'}
  assert len(rest) == 4
  assert losses(plain) == pytest.approx(
      dict(policy=.55, shaped=-1.118182), abs=1e-5)
  assert losses(rest[0]) == pytest.approx(
      dict(policy=.55, shaped=-.7575), abs=1e-5)
  assert losses(rest[1]) == pytest.approx(
      dict(policy=.55, shaped=-1.798577), abs=1e-5)
  # GRPO of what was sampled.
  assert losses(rest[2]) == pytest.approx(dict(policy=.55), abs=1e-5)
  assert every[2][0].luffy.experts == 0
  # With the clip a ratio of 1.5 counts as 1.2, where A = .25.
  wider = scores.replace(logp=scores.logp.at[0, 1, 0].set(np.log(.75)))
  gain = made.replace(advantage=-made.advantage)
  for objective, wanted in ((plain, -.25 * (1.5 + 1)),
                            (rest[3], -.25 * (1.2 + 1))):
    policy_term, = (x for x in objective.terms if x.name == 'policy')
    total, _ = policy_term.fn(wider, gain, objective.knobs)
    assert total == pytest.approx(wanted, abs=1e-5)
