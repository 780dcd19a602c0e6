"""SophiaVL-R1 by hand: outcomes by type, trust and annealing."""

import math

import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import hooks
from mmr1 import records
from mmr1 import sockets
from mmr1.papers import sophiavl_r1
from mmr1.rewards import length
from mmr1.rewards import score
from mmr1.rewards import steps

NAMES = ('outcome', 'format', 'thinking')
WEIGHTS = dict(outcome=1.0, format=0.0, thinking=0.0)
RULE = [1.0, 1, 0, 0]
HALF = math.exp(-.5)  # the decay at step T / 2


def rewards(rule, think, *, weights=WEIGHTS, fmt=1.0, **kw):
  """(rewards [G], metrics) of one group."""
  columns = np.stack(np.broadcast_arrays(rule, fmt, think), -1).astype(
      float)[None]
  total, says, state = sophiavl_r1.trust(
      columns, NAMES, {}, {'kept': 1}, weights=weights, **kw)
  assert state == {'kept': 1} and total.shape == (1, len(rule), 1)
  return total[0, :, 0], says


def test_a_judge_that_prefers_wrong_answers_by_hand():
  """mu_c .5, mu_w .8: gamma e^-.3 = .740818; x .3 e^-.5 = .134799."""
  got, says = rewards(RULE, [.4, .6, .9, .7], decay=HALF)
  np.testing.assert_allclose(
      got, [1.053919, 1.080879, .121319, .094359], atol=1e-6)
  assert says['reward/trust/mean'] == pytest.approx(.740818, abs=1e-6)
  assert says['reward/trust/weight'] == pytest.approx(.134799, abs=1e-6)
  assert says['reward/trust/flat_frac'] == 0
  np.testing.assert_allclose(
      advantages.grpo(got[None, :, None])[0, :, 0],
      [.841360, .890004, -.841360, -.890004], atol=2e-6)


def test_a_judge_that_prefers_right_answers_by_hand():
  got, says = rewards(RULE, [.9, .7, .4, .6], decay=HALF)
  np.testing.assert_allclose(
      got, [1.163763, 1.127371, .072784, .109176], atol=1e-6)
  assert says['reward/trust/mean'] == 1
  assert says['reward/trust/weight'] == pytest.approx(.181959, abs=1e-6)


@pytest.mark.parametrize('gap, gamma', [(.713, .49), (.301, .74), (.1, .905)])
def test_gammas_of_the_paper(gap, gamma):
  _, says = rewards([1, 0], [.1, .1 + gap])
  assert says['reward/trust/mean'] == pytest.approx(gamma, abs=2e-3)


@pytest.mark.parametrize('step, factor, weight', [
    (0, 1, .3), (750, .606531, .181959), (1500, .367879, .110364)])
def test_the_decay_is_moved_by_a_hook(step, factor, weight):
  kwargs = dict(alpha=.3, decay=1.0)
  knobs, _ = hooks.exponential(
      {'combine/decay': 1.0}, {}, {}, {}, step, knob='combine/decay',
      start=1.0, factor=math.exp(-1), steps=1500)
  assert knobs['combine/decay'] == pytest.approx(factor, abs=1e-6)
  bound = sockets.Bound(
      sophiavl_r1.trust, kwargs, {'decay': 'combine/decay'})
  columns = np.array([[[1.0, 1, 1], [0.0, 1, 0]]])
  got, says, _ = bound(
      columns, NAMES, knobs, {}, weights=WEIGHTS, knobs=knobs)
  assert says['reward/trust/weight'] == pytest.approx(weight, abs=1e-6)
  assert got[0, 0, 0] == pytest.approx(1 + weight, abs=1e-6)


@pytest.mark.parametrize('rule', [
    [1] * 4, [0] * 4, [.9, .95, 1, 1], [.1, 0, .05, .1]])
def test_a_flat_group_has_no_signal(rule):
  """Where all are right or wrong the judge alone would say who is better."""
  got, says = rewards(rule, [.1, .9, .3, .7])
  np.testing.assert_array_equal(got, rule)
  assert says['reward/trust/flat_frac'] == 1
  assert says['reward/trust/weight'] == 0
  if len(set(rule)) == 1:
    assert not advantages.grpo(got[None, :, None]).any()


@pytest.mark.parametrize('rule', [[.9, .9, .9, .89], [.1, .1, .1, .11]])
def test_a_group_just_beside_is_not_flat(rule):
  got, _ = rewards(rule, [.2, .4, .6, .8])
  np.testing.assert_allclose(got - rule, [.06, .12, .18, .24])


def test_nobody_right_or_nobody_wrong():
  # Graded outcomes below .5: there is no one to compare with.
  _, says = rewards([.2, .4, .3, .2], [.9, .9, .9, .9])
  assert says['reward/trust/mean'] == 1
  _, says = rewards([.6, .8, .7, .6], [.9, .1, .9, .2])
  assert says['reward/trust/mean'] == 1


def test_responses_that_are_not_asked_about():
  """Outcomes below .2 are not judged in the code: mu_w is 0, gamma 1."""
  got, says = rewards(
      RULE, [.4, .6, .9, .7], decay=HALF, judge_min_outcome=.2)
  np.testing.assert_allclose(
      got, [1 + .4 * .181959, 1 + .6 * .181959, 0, 0], atol=1e-6)
  assert says['reward/trust/mean'] == 1
  assert says['reward/trust/weight'] == pytest.approx(.181959, abs=1e-6)
  # Graded outcomes: .3 is judged, 0 is not but counts in mu_w = .9 / 2.
  _, says = rewards([1, .3, 0], [.2, .9, .9], judge_min_outcome=.2)
  assert says['reward/trust/mean'] == pytest.approx(math.exp(.2 - .45))


def test_without_trust():
  got, says = rewards(RULE, [.4, .6, .9, .7], trusting=False)
  np.testing.assert_allclose(got, [1.12, 1.18, .27, .21])
  assert says['reward/trust/mean'] == 1


def test_scores_that_are_missing_are_in_no_mean():
  nan = np.nan
  got, says = rewards([1, 1, 0, 0], [.5, nan, .8, nan])
  assert says['reward/trust/mean'] == pytest.approx(math.exp(-.3))
  w = .3 * math.exp(-.3)
  np.testing.assert_allclose(got, [1 + .5 * w, 1, .8 * w, 0])
  # Nothing is known of the right ones, so nothing speaks against the judge.
  assert rewards([1, 0], [nan, .8])[1]['reward/trust/mean'] == 1
  # No outcome: no reward, neither right nor wrong.
  got, says = rewards([1, nan, 0], [.5, .9, .6])
  assert np.isnan(got[1]) and says['reward/trust/mean'] == pytest.approx(
      math.exp(-.1))
  got, says = rewards([nan, nan], [.5, .6])
  assert np.isnan(got).all() and says['reward/trust/weight'] == 0


def test_groups_are_judged_by_themselves():
  columns = np.array([[[1, 1, .2], [0, 1, .7]], [[1, 1, .7], [0, 1, .2]]])
  got, says, _ = sophiavl_r1.trust(columns, NAMES, {}, {}, weights=WEIGHTS)
  g = math.exp(-.5)
  np.testing.assert_allclose(
      got[..., 0], [[1 + .06 * g, .21 * g], [1.21, .06]])
  assert says['reward/trust/mean'] == pytest.approx((g + 1) / 2)


def test_other_rewards_keep_their_weights():
  got, _ = rewards(RULE, [.9, .7, .4, .6], fmt=.5, weights=dict(
      outcome=1.0, format=.1, thinking=0.0))
  np.testing.assert_allclose(got, [1.32, 1.26, .17, .23])


def test_what_is_wrong_is_said():
  for kw in (dict(outcome='exact'), dict(thinking='judge')):
    with pytest.raises(ValueError, match=r"no column '(exact|judge)'"):
      rewards(RULE, [0.0] * 4, **kw)
  with pytest.raises(ValueError, match="weight 0.3 of 'thinking'.*alpha"):
    rewards(RULE, [0.0] * 4, weights={**WEIGHTS, 'thinking': .3})


def sample(said, gold, *, tokens=1, **meta):
  example = records.Example(uid=0, answer=gold, meta=meta)
  return records.Sample(
      text=said, tokens=(1,), kinds=(1,), length=tokens, truncated=False,
      example=example, uid=0, group=0, slot=0)


def test_a_judge_by_length_is_trusted_less_than_one_by_steps():
  """Wrong answers ramble; their steps are false."""
  group = [sample('<think>3+4=7</think>', '7', tokens=10),
           sample('<think>3+4=8. Let me see. 3+4=9</think>', '7', tokens=30)]
  gammas = [rewards([1, 0], [judge(one, {}, **kw) for one in group])[1][
      'reward/trust/mean'] for judge, kw in (
          (steps.true_steps, {}), (length.rising, dict(full=40)))]
  assert gammas == [1, pytest.approx(math.exp(.25 - .75))]


def said(answer):
  return f'<think>I look.</think>\n<answer>{answer}</answer>'


@pytest.mark.parametrize('type_, gold, answer, kw, want', [
    ('numerical', '7', '7.0', {}, 1), ('numerical', '7', '8', {}, 0),
    (None, '7', '$7$', {}, 1), ('math', '1/2', '0.5', {}, 1),
    ('multiple choice', 'A,B', 'B,A', {}, 1),
    ('multiple choice', 'A,B', 'A', {}, 0),
    ('multiple choice', 'A,B', 'A,A', {}, 0),
    ('multiple-choice', 'A,B', 'A,A', dict(choices='released'), 1),
    (None, 'A', '(a)', {}, 1), (None, 'A', 'A,B', {}, 0),
    # One of two words is wrong; the case counts.
    ('OCR', 'no exit', 'no entry', {}, .606531),
    ('OCR', 'no exit', 'No exit', {}, .606531),
    ('OCR', '$5 off', '5 off', {}, 1),
    ('ocr', 'no exit', 'no entry', dict(transcript='negative'), -.5),
    # R-1 and R-L 2/3, R-2 1/2 (the red is shared).
    ('free-form', 'the red car', 'the red bus', {}, (2 / 3 + .5 + 2 / 3) / 3),
    ('Free-form', 'the red car', 'The red car.', {}, 1),
    # By the type and not by what the gold answer looks like.
    ('free-form', '7', '7.0', {}, 1 / 3 * (2 / 3 + 2 / 3)),
])
def test_outcomes_by_type(type_, gold, answer, kw, want):
  meta = {} if type_ is None else dict(problem_type=type_)
  got = sophiavl_r1.outcome(sample(said(answer), gold, **meta), {}, **kw)
  assert got == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize('type_', ['OCR', 'free-form', 'multiple choice', 'x'])
def test_without_the_format_nothing_is_earned(type_):
  for text in ('A', '<answer>A</answer>', said('A') + ' So A.',
               said('A').replace('</think>', ''), said('')):
    assert sophiavl_r1.outcome(
        sample(text, 'A', problem_type=type_), {}) == 0
  rest = said('A').removeprefix('<think>')
  one = sample(rest, 'A', problem_type=type_)
  assert sophiavl_r1.outcome(one, {}) == 0
  assert sophiavl_r1.outcome(one, {}, prefilled=True) > .5


def test_an_open_question_has_no_outcome():
  assert sophiavl_r1.outcome(sample(said('A'), None), {}) is None


def test_a_config_can_name_it():
  scorer = score.Scorer({'outcome': score.Reward(
      sophiavl_r1.outcome, kwargs=dict(transcript='negative'))})
  one = sample(said('so so'), 'yes yes', problem_type='OCR')
  made = scorer.score([one], 1, 1, {})
  assert made.columns.tolist() == [[[-1.0]]] and not made.failures
