"""ARES's moments of high entropy by hand: windows, triggers, thresholds."""

import math

import numpy as np
import pytest

from mmr1 import records
from mmr1.papers.ares import entropy as ares_entropy

H = [.1, .2, 2, 1, .4, .1, .1, .1]
NAN = np.nan


def test_windows_by_hand():
  """Paper: (.1 + .2 + 2 + 1) / 4 ...; sorted, .95 of the way is 3.8 of 4:
  .875 + .8 (.9 - .875). Code: what follows token 0 is the paper's window 1; the
  last four get the mean of .9, .875, .4, .175."""
  want = [.825, .9, .875, .4, .175]
  np.testing.assert_allclose(ares_entropy.window_means(H, form='paper'), want)
  assert ares_entropy.level(H, form='paper') == pytest.approx(.895)
  np.testing.assert_allclose(
      ares_entropy.window_means(H), want[1:] + [.5875] * 4)
  # Sorted: .9 is the last of 8, .875 before it, .95 * 7 = 6.65.
  assert ares_entropy.level(H) == pytest.approx(.875 + .65 * .025)


def test_a_window_says_nothing_of_its_own_token():
  far = np.zeros(9)
  far[4] = 8.0
  code = ares_entropy.window_means(far, 3)
  assert code[:6].tolist() == [0, 8 / 3, 8 / 3, 8 / 3, 0, 0]
  paper = ares_entropy.window_means(far, 3, 'paper')
  assert paper.tolist() == [0, 0, 8 / 3, 8 / 3, 8 / 3, 0, 0]


@pytest.mark.parametrize('length, code, paper', [
    (0, 0, 0), (1, 1, 0), (3, 3, 0), (4, 4, 1), (5, 5, 2), (9, 9, 6)])
def test_short_responses(length, code, paper):
  entropy = np.arange(1.0, length + 1)
  means = ares_entropy.window_means(entropy)
  assert len(means) == code
  assert len(ares_entropy.window_means(entropy, form='paper')) == paper
  if length <= 4:  # nothing is followed by four
    assert means.tolist() == [1.0] * length
  assert math.isnan(ares_entropy.level(entropy)) == (length == 0)
  assert math.isnan(ares_entropy.level(entropy, form='paper')) == (length < 4)


def test_entropy_of_the_likeliest_by_hand():
  """.5 log 2 + .2 log 5 + .1 log 10 = .898719, the tail's .2 log 5 more."""
  logp = np.log([.5, .2, .1])
  assert ares_entropy.topk_entropy(logp) == pytest.approx(1.220607, abs=1e-6)
  assert ares_entropy.topk_entropy(logp, tail=False) == pytest.approx(
      1.220607 - .2 * math.log(5), abs=1e-6)


def test_entropy_of_a_part_is_below_that_of_all():
  rng = np.random.default_rng(0)
  p = np.sort(rng.dirichlet(np.full(40, .2), 50))[:, ::-1]
  p = np.maximum(p, 1e-300)
  whole = -(p * np.log(p)).sum(-1)
  last = np.zeros(50)
  for k in (1, 2, 10, 39):
    part = ares_entropy.topk_entropy(np.log(p[:, :k]))
    assert (part <= whole + 1e-9).all() and (part >= last - 1e-9).all()
    last = part
  np.testing.assert_allclose(last, whole, atol=1e-9)  # a tail of one token
  # A sure token has none; nor has what cannot be.
  assert ares_entropy.topk_entropy(np.array([0.0, -np.inf])) == 0


# Triggers.


PIECES = ('Wait', ' so', ' x', ' 3', 'then', '.', ' But', '\n')


def test_triggers_are_whole_tokens():
  assert ares_entropy.trigger_positions(PIECES) == [0, 1, 4, 6]
  assert ares_entropy.trigger_positions(
      (' WAIT\n', 'wait,', 'so far', 'al', '', 'BECAUSE')) == [0, 5]
  assert ares_entropy.trigger_positions(PIECES, ['x', '3']) == [2, 3]
  # Some of the code's, all as a stripped token would be.
  assert {'wait', 'check', 'so', 'because', 'then', 'but'} <= set(
      ares_entropy.TRIGGERS)
  assert all(word == word.strip().lower() for word in ares_entropy.TRIGGERS)


def test_moments_by_hand():
  """Triggers 0, 1, 4, 6. What follows 0 has mean .9, 1 .875; after 4 come three
  tokens, after 6 one. Their padded .5875 counts for nothing."""
  got = ares_entropy.high_entropy(PIECES, H, .5)
  assert got.number == 2 and got.cost == pytest.approx(.4 + .375)
  got = ares_entropy.high_entropy(PIECES, H, .875)
  assert got.number == 2 and got.cost == pytest.approx(.025)  # at it counts
  got = ares_entropy.high_entropy(PIECES, H, .89)
  assert got.number == 1 and got.cost == pytest.approx(.01)
  assert ares_entropy.high_entropy(PIECES, H, 2.0) == (0, 0.0)
  # The paper's windows begin at .825, .9 and, of 4, .175; above, not at.
  paper = lambda tau: ares_entropy.high_entropy(PIECES, H, tau, form='paper')
  assert paper(.8).number == 2 and paper(.175).number == 2
  assert paper(.17).number == 3
  # Without a list: .9, .875, .4, .175 of four tokens with a window.
  assert ares_entropy.high_entropy(PIECES, H, .39, triggers=None).number == 3


def test_what_lies_behind_the_tokens_is_not_read():
  for form in ares_entropy.FORMS:
    whole, padded = (ares_entropy.high_entropy(PIECES, x, .5, form=form)
                     for x in (H, [*H, 9.0, NAN, 9.0]))
    assert padded == whole


def test_the_order_of_tokens_counts():
  """Stub: a mean of entropies, or a count of triggers, knows no order."""
  rng = np.random.default_rng(0)
  pieces = np.array(['wait', 'x', 'y', 'z', 'u'] * 8)
  entropy = rng.exponential(1.0, 40)
  found = set()
  for _ in range(30):
    order = rng.permutation(40)
    found.add(ares_entropy.high_entropy(pieces[order], entropy[order], 1.2))
  assert len({count.number for count in found}) > 3
  # Nor does a stub that looks at the trigger's own entropy pass.
  own = np.where(pieces == 'wait', 9.0, 0.0)
  assert ares_entropy.high_entropy(pieces, own, .1).number == 0
  after = np.roll(own, 1)
  assert ares_entropy.high_entropy(pieces, after, .1).number == 8


def test_thresholds():
  levels = [1.0, 4.0, 2.0, NAN]
  assert ares_entropy.threshold(levels) == 2
  assert ares_entropy.threshold(levels, 1.5) == pytest.approx(1.505)
  assert ares_entropy.threshold(levels, 1.5, 'paper') == pytest.approx(7 / 3)
  assert ares_entropy.threshold([NAN], 1.2) == 1.2
  assert ares_entropy.threshold([]) == ares_entropy.START
  tau = 0.0
  for _ in range(300):  # .99^300 = .049 is left of where it began
    tau = ares_entropy.threshold([2.0], tau)
  assert tau == pytest.approx(2 * (1 - .99**300))


@pytest.mark.parametrize('call, words', [
    (lambda: ares_entropy.window_means(H, form='log'), "form='log'"),
    (lambda: ares_entropy.window_means(H, 0), 'width=0'),
    (lambda: ares_entropy.window_means([H]), r'\(1, 8\)'),
    (lambda: ares_entropy.window_means([*H, NAN]), 'not finite'),
    (lambda: ares_entropy.high_entropy(PIECES, H[:3], 1.0), '3 entropies of 8'),
    (lambda: ares_entropy.topk_entropy(np.array([.5, .2])), 'above 0'),
    (lambda: ares_entropy.topk_entropy(np.array([NAN])), 'nan'),
    (lambda: ares_entropy.threshold([1.0], decay=2.0), 'decay=2.0'),
])
def test_what_is_wrong_is_said(call, words):
  with pytest.raises(ValueError, match=words):
    call()


# Probes and the hook.


def response(pieces):
  return records.Sample(
      text=''.join(pieces), tokens=tuple(range(len(pieces))),
      kinds=(1,) * len(pieces), length=len(pieces), truncated=False,
      example=records.Example(uid=0), uid=0, group=0, slot=0,
      pieces=tuple(pieces))


def test_probes_read_their_own_tokens_only():
  """What a look has behind the last token is 0 and no entropy."""
  said, padded = response(PIECES), np.array([*H, 0, 0, 0])
  for width in (2, 4):
    want = ares_entropy.high_entropy(PIECES, H, .5, width=width)
    given = dict(threshold=.5, width=width)
    assert ares_entropy.moments(said, padded, **given) == want.number
    assert ares_entropy.soft_cost(said, padded, **given) == pytest.approx(
        want.cost)
    assert ares_entropy.highest(said, padded, width=width) == pytest.approx(
        ares_entropy.level(H, width))
  assert ares_entropy.highest(response([]), padded) is None
  # A list of its own; () is ours.
  assert ares_entropy.moments(said, padded, threshold=.3, triggers=(
      'nothing',)) == 0 < ares_entropy.moments(
          said, padded, threshold=.3, triggers=())


def test_the_hook_moves_every_knob_and_keeps_tau():
  """Medians 2 and 4: 2, then .99 * 2 + .01 * 4."""
  knobs = {'a/threshold': 1.5, 'b/threshold': 1.5, 'c': 3.0}
  give = dict(knob=('a/threshold', 'b/threshold'))
  level = lambda *x: {'level': np.array([x])}
  once, state = ares_entropy.followed(
      knobs, {}, level(1.0, 2.0, NAN, 9.0), {}, 0, **give)
  assert once == {'a/threshold': 2, 'b/threshold': 2, 'c': 3}
  twice, state = ares_entropy.followed(
      knobs, state, level(4.0), {}, 1, **give)
  assert twice['b/threshold'] == state['tau'] == pytest.approx(2.02)
  assert knobs['a/threshold'] == 1.5
  alone, _ = ares_entropy.followed(
      knobs, {}, level(7.0), {}, 0, knob='a/threshold')
  assert alone == {**knobs, 'a/threshold': 7}
  with pytest.raises(ValueError, match="no column 'height'"):
    ares_entropy.followed(
        knobs, {}, level(1.0), {}, 0, column='height', **give)
