"""ReVisual-R1 by hand: how responses are written, and which of them train."""

import time

import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import hooks
from mmr1 import records
from mmr1.papers import revisual_r1
from mmr1.rewards import combine
from mmr1.rewards import score


def sample(said='', *, tokens=1):
  return records.Sample(
      text=said, tokens=(1,), kinds=(1,), length=tokens, truncated=False,
      example=records.Example(uid=0, answer='7'), uid=0, group=0, slot=0)


# Rewards.


@pytest.mark.parametrize('kw, tokens, want', [
    ({}, 8000, 1), ({}, 8092, 1), ({}, 8142, .75), ({}, 8192, .5),
    ({}, 8292, 0), ({}, 9999, 0), ({}, 0, 1),
    (dict(alpha=.001, delta=.95), 8142, 1),
    (dict(alpha=.001, delta=.95), 8192, .95),
    (dict(alpha=.001, delta=.95), 8692, .45),
    (dict(alpha=.001, delta=.95), 9142, 0)])
def test_efficient_length_by_hand(kw, tokens, want):
  got = revisual_r1.efficient_length(
      sample(tokens=tokens), {}, budget=8192, **kw)
  assert got == pytest.approx(want)


@pytest.mark.parametrize('said, want', [
    ('', 0), ('3+4=7.', 0), ('Wait, let me check.', .6), ('WAIT.', .3),
    # A phrase counts once; part of a word is none.
    ('Wait, wait, wait.', .3), ('The waiter awaits.', 0),
    ('Hmm. Actually, a mistake.', .5),
    ('Wait. Let me verify. Double-check. A mistake.', 1)])
def test_self_critic_by_hand(said, want):
  assert revisual_r1.self_critic(sample(said), {}) == pytest.approx(want)


@pytest.mark.parametrize('said, want', [
    ('', 0), ('Wait, let me check.', 0), ('Back to the image.', .5),
    ('In the image I see a cat.', .3), ('in the imagery', 0),
    ('Look at the image again. Back to the image. I see.', 1)])
def test_image_revisit_by_hand(said, want):
  assert revisual_r1.image_revisit(sample(said), {}) == pytest.approx(want)


@pytest.mark.parametrize('said, want', [
    ('', 1), ('One two. Three four.', 1),
    # A sentence said twice, of fewer than five words.
    ('It is 7. So it is. It is 7.', .9), ('It is 7. it  is 7.', .9),
    
    # Of its five 5-grams it-is-7-it-is and is-7-it-is-7 come twice.
    ('It is 7.\nIt is 7.\n\nIt is 7.', .8 - .05 * 2),
    # 3.5 ends no sentence.
    ('3.5 and 4.5', 1),
    # a b c d e and b c d e f come twice: two 5-grams, no sentence.
    ('a b c d e f, then a b c d e f', .9),
    ('as I said, 7', .9), ('as mentioned, as I said, as I said', .8),
    ('Yes. ' * 9 + 'x y z', .5 - .05 * 1),
    ('as mentioned, a b c d e f g. ' * 9, 0)])
def test_repetition_by_hand(said, want):
  assert revisual_r1.repetition(sample(said), {}) == pytest.approx(
      want, abs=1e-12)


def test_more_repetition_never_earns_more():
  texts = ['It is 7. ' * n for n in range(1, 30)]
  got = [revisual_r1.repetition(sample(said), {}) for said in texts]
  assert got == sorted(got, reverse=True) and got[0] == 1
  assert got[-1] == pytest.approx(1 - .5 - .15)


@pytest.mark.parametrize('weights, want', [
    (dict(accuracy=.8, self_critic=.05, image_revisit=.05, repetition=.05,
          length=.05), .89),
    (dict(accuracy=.85, self_critic=.05, image_revisit=0.0, repetition=.1,
          length=0.0), .955)])
def test_the_totals_by_hand(weights, want):
  """.8 + .05 (.3 + .1 + .9 + .5); .85 + .1 x .9 + .05 x .3."""
  columns = np.array([[[1, .3, .1, .9, .5]]])
  total, _, _ = combine.weighted_sum(
      columns, tuple(weights), {}, {}, weights=weights)
  assert total[0, 0, 0] == pytest.approx(want)


def test_configs_can_name_them_and_long_texts_take_no_time():
  scorer = score.Scorer({
      'critic': score.Reward(revisual_r1.self_critic),
      'revisit': score.Reward(revisual_r1.image_revisit),
      'repetition': score.Reward(revisual_r1.repetition),
      'length': score.Reward(revisual_r1.efficient_length,
                             kwargs=dict(budget=8192))})
  start = time.monotonic()
  for said in ('wait ' * 10**5, 'a' * 10**6, '. ' * 10**6, '\n ' * 10**6,
               'look at the image ' * 10**5, 'as ' * 10**6):
    got = scorer.score([sample(said)], 1, 1, {})
    assert not got.failures and np.isfinite(got.columns).all()
  assert time.monotonic() - start < 10


def test_the_coefficient_of_the_entropy():
  """0 for 140 updates, then .02 x .985^n."""
  got = [hooks.exponential(
      {'coef/entropy': 9.0}, {}, {}, {}, 140 + n, knob='coef/entropy',
      start=.02, factor=.985, steps=1, begin=140, before=0.0)[0][
          'coef/entropy'] for n in (-140, -1, 0, 50, 100)]
  assert got == pytest.approx([0, 0, .02, .0093938, .0044122], abs=1e-7)
  assert got[:2] == [0, 0]


# PAD.


SIZES = [.02, .2, .5, .98]


@pytest.mark.parametrize('kw, want', [
    ({}, [0, .201904, .798096, 0]),
    (dict(form='paper'), [0, .425557, .574443, 0]),
    (dict(form='paper', temperature=.3), [0, .268941, .731059, 0]),
    (dict(power=0.0), [0, .5, .5, 0]),
    (dict(power=1.0), [0, 2 / 7, 5 / 7, 0])])
def test_probabilities_by_hand(kw, want):
  got = revisual_r1.pad_probabilities(np.array(SIZES), **kw)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_bounds_are_outside_in_code_and_inside_in_the_paper():
  at = np.array([.03, .5, .97])
  assert revisual_r1.pad_probabilities(at).tolist() == [0, 1, 0]
  assert (revisual_r1.pad_probabilities(at, form='paper') > 0).all()
  # The defaults of the code.
  kw = dict(low=.05, high=.95)
  assert revisual_r1.pad_probabilities(
      np.array([.04, .5, .96]), **kw).tolist() == [0, 1, 0]


@pytest.mark.parametrize('form', revisual_r1.FORMS)
def test_probabilities_sum_to_1_and_rise_with_the_advantage(form):
  rng = np.random.default_rng(0)
  for _ in range(50):
    size = rng.random((4, 8)) * 2
    p = revisual_r1.pad_probabilities(size, form=form, temperature=1e-3)
    assert p.shape == size.shape and p.sum() == pytest.approx(1)
    order = np.argsort(size[p > 0])
    assert (np.diff(p[p > 0][order]) >= 0).all()
    assert ((p > 0) <= ((size >= .03) & (size <= .97))).all()
  bad = np.array([np.nan, np.inf, .5])
  assert revisual_r1.pad_probabilities(bad, form=form).tolist() == [0, 0, 1]
  assert not revisual_r1.pad_probabilities(np.zeros(3), form=form).any()


def counts(advantage, *, mask=None, seed=0, **kw):
  advantage = np.asarray(advantage, np.float32)[..., None]
  if mask is None:
    mask = np.ones(advantage.shape[:2] + (5,), bool)
  keep, said, more, state = revisual_r1.distil(
      {}, advantage, {'spoken': mask}, {'kept': 1},
      np.random.default_rng(seed), **kw)
  assert not more and state == {'kept': 1}
  assert said['select/drawn'] == keep.sum()
  assert said['select/distinct'] == (keep > 0).sum()
  return keep


def test_where_no_response_is_effective():
  """Uniform groups: the code trains on the batch as it is, of advantage 0."""
  zero = np.zeros((2, 4))
  assert counts(zero).tolist() == [[1] * 4] * 2
  assert counts(zero, form='paper').tolist() == [[0] * 4] * 2


def test_a_single_effective_response_is_all_that_is_drawn():
  one = np.zeros((2, 5))
  one[1, 2] = -.5
  got = counts(one)
  assert got[1, 2] == got.sum() == 15  # int(1.5 x 10)
  assert counts(one, form='paper').sum() == 1  # |E|
  odd = counts([[.5, 0, 0]])
  assert odd.tolist() == [[4, 0, 0]]  # int(4.5)


def test_how_many_are_drawn():
  rows = np.full((3, 4), .5)
  for seed in range(5):
    assert counts(rows, seed=seed).sum() == 18
    assert counts(rows, seed=seed, share=.5).sum() == 6
    assert counts(rows, seed=seed, form='paper').sum() == 12
    assert counts(rows, seed=seed, form='paper', share=.3).sum() == 4  # 3.6
  # With replacement: somebody is drawn twice, and somebody is not.
  got = counts(rows, form='paper')
  assert got.max() > 1 and got.min() == 0
  # The rng alone decides.
  assert (counts(rows, seed=3) == counts(rows, seed=3)).all()
  assert (counts(rows, seed=3) != counts(rows, seed=4)).any()


def test_they_are_drawn_by_their_probabilities():
  a = np.array([[.02, .2], [-.5, -.98]])
  total = sum(counts(a, seed=seed) for seed in range(1000))  # 6 draws each
  np.testing.assert_allclose(
      total / total.sum(), [[0, .201904], [.798096, 0]], atol=.02)


def test_advantages_of_tokens_are_averaged_over_those_that_train():
  mask = np.array([[[1, 1, 0], [1, 0, 0], [0, 0, 0]]], bool)
  a = np.array([[[.2, .6, 99], [-.5, np.nan, 0], [.5, .5, .5]]])
  np.testing.assert_allclose(
      revisual_r1.pad_sizes(a, mask), [[.4, .5, 0]], atol=1e-7)
  one = revisual_r1.pad_sizes(a[..., :1], mask)
  np.testing.assert_allclose(one, [[.2, .5, 0]], atol=1e-7)


@pytest.mark.parametrize('right, kept', [
    (4, 'both'), (3, 'wrong'), (1, 'wrong'), (5, 'right'), (7, 'right')])
def test_the_smaller_class_of_a_skewed_group_is_removed(right, kept):
  """Of 8: 3 right have A = 1.208 > .97, the wrong ones -.725."""
  outcome = np.array([[1.0] * right + [0.0] * (8 - right)])
  a = advantages.grpo(outcome[..., None])
  got = revisual_r1.pad_probabilities(np.abs(a[..., 0])) > 0
  if kept == 'both':
    assert got.all()
  else:
    np.testing.assert_array_equal(got, outcome == (kept == 'right'))
  # Without the division by the deviation nothing is above .97.
  a = advantages.dr_grpo(outcome[..., None])
  assert (revisual_r1.pad_probabilities(np.abs(a[..., 0])) > 0).all()


def test_what_is_wrong_is_said():
  with pytest.raises(ValueError, match="form='log'.*'code', 'paper'"):
    counts([[.5]], form='log')
  with pytest.raises(ValueError, match='temperature=0.0.*above 0'):
    counts([[.5]], temperature=0.0)
  with pytest.raises(ValueError, match='share=0.0'):
    counts([[.5]], share=0.0)
