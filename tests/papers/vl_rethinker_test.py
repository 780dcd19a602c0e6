"""VL-Rethinker by hand: waits, forced rethinking, replay of samples."""

import collections
import json

import numpy as np
import pytest

from mmr1 import advantages
from mmr1 import records
from mmr1 import types
from mmr1.papers import vl_rethinker as paper
from mmr1.rewards import score


def rng(seed=0):
  return np.random.default_rng(seed)


# Rewards.


@pytest.mark.parametrize('said, want', [
    ('', 0), ('Wait', 0), ('Wait, no.', 1), ('wait a moment', 1),
    ('WAIT, wait a bit. Alternatively, wait.', 3), ('Wait. Wait!', 0),
    ('wait,wait,', 2)])
def test_waits_by_hand(said, want):
  assert paper.waits(said) == want


@pytest.mark.parametrize('correct, valid, waited, want', [
    (1, 1, 0, 1), (1, 1, 1, 1.1), (1, 1, 2, 1.1), (1, 1, 3, .4), (1, 1, 4, .2),
    (1, 1, 5, 0), (1, 1, 6, -.1), (1, 1, 99, -.1),
    (0, 1, 0, 0), (0, 1, 1, 0), (0, 1, 9, 0), (0, 0, 0, -.1), (0, 0, 2, -.1),
    (1, 0, 0, -.1), (1, 0, 1, -.1), (1, 0, 9, -.1)])
def test_the_table_of_rewards(correct, valid, waited, want):
  assert paper.shaped(bool(correct), bool(valid), waited) == want


def test_the_released_form_pays_a_right_answer_without_its_format():
  kw = dict(form='released')
  assert paper.shaped(True, False, 1, **kw) == 1.1
  assert paper.shaped(True, False, 0, **kw) == -.1
  assert paper.shaped(True, False, 3, **kw) == -.1
  assert paper.shaped(False, False, 1, **kw) == -.1
  assert paper.shaped(True, True, 3, **kw) == .4
  with pytest.raises(ValueError, match="form='x'.*'valid', 'released'"):
    paper.shaped(True, True, 1, form='x')


def sample(said, gold='7', *, truncated=False, kinds=(1, 1)):
  return records.Sample(
      text=said, tokens=(1,) * len(kinds), kinds=kinds, length=len(kinds),
      truncated=truncated, example=records.Example(uid=0, answer=gold), uid=0,
      group=0, slot=0)


@pytest.mark.parametrize('said, kw, want', [
    (r'3+4 is \boxed{7}.', {}, 1), (r'3+4 is \boxed{8}.', {}, 0),
    (r'Wait, 3+4 is \boxed{7}.', {}, 1.1),
    (r'Wait, 3+4 is \boxed{7}.', dict(native_waits=False), 1),
    (r'Wait, wait, wait, it is \boxed{7}.', {}, .4),
    (r'Wait, 3+4 is \boxed{8}.', {}, 0),
    # The last box counts.
    (r'\boxed{8}? Wait, \boxed{7}', {}, 1.1),
    (r'\boxed{7}? No, \boxed{8}', {}, 0),
    # No box; five waits are in order, six are not.
    ('7', {}, -.1), ('<answer>7</answer>', {}, -.1), (r'\boxed{}', {}, -.1),
    ('wait ' * 5 + r'\boxed{7}', {}, 1), ('wait ' * 6 + r'\boxed{7}', {}, -.1),
    ('wait ' * 6 + r'\boxed{8}', {}, -.1),
    ('wait ' * 6 + r'\boxed{7}', dict(most_waits=6), 1)])
def test_outcomes_by_hand(said, kw, want):
  assert paper.outcome(sample(said), {}, **kw) == want


def test_a_response_that_did_not_end_is_not_valid():
  one = sample(r'Wait, \boxed{7}, so', truncated=True)
  assert paper.outcome(one, {}) == -.1
  assert paper.outcome(one, {}, form='released') == 1.1


def test_no_bonus_where_the_wait_was_put_in():
  assert paper._FORCED == types.KIND_FORCED
  one = r'7? Wait, yes, \boxed{7}'
  forced = (types.KIND_SAMPLED, types.KIND_FORCED, types.KIND_SAMPLED)
  assert paper.outcome(sample(one), {}) == 1.1
  assert paper.outcome(sample(one, kinds=forced), {}) == 1
  three = r'Wait, wait, wait, \boxed{7}'
  assert paper.outcome(sample(three, kinds=forced), {}) == 1
  assert paper.outcome(sample(three, gold=None), {}) is None


def test_a_config_can_name_it():
  scorer = score.Scorer({'outcome': score.Reward(
      paper.outcome, kwargs=dict(form='released'))})
  hostile = ['wait' * 10**5, '\\boxed{' * 10**5, '{' * 10**6, '']
  got = scorer.score(
      [sample(x) for x in hostile], 1, len(hostile), {})
  assert not got.failures and (got.columns == -.1).all()


# Forced rethinking.


TEXT = ('I see 3,4.\n\nThe answer is 8. Wait, I look.\n\n3+4=7, so\n'
        '\\boxed{7}. Wait, \\boxed{8}')


@pytest.mark.parametrize('said, want', [
    # Before the last Wait, then the last box, the first `answer`, the last
    # blank line of what is left.
    (TEXT, 'I see 3,4.'),
    ('a\n\nb Wait c \\boxed{7}', 'a'), ('3+4=7. \\boxed{7}', '3+4=7. '),
    ('x Wait y Wait z', 'x Wait y '), ('\\boxed{1} \\boxed{2}', '\\boxed{1} '),
    ('the answer, the answer', 'the '), ('a\n\nb\n\nc', 'a\n\nb'),
    ('a Wait \\boxed{7}', 'a '), ('\\boxed{7} Wait', ''),
    # Case counts.
    ('wait, Answer', 'wait, Answer'), ('plain', 'plain'), ('', ''),
    ('Wait', '')])
def test_cuts_by_hand(said, want):
  assert paper.cut(said, rng(), share=1.0) == want
  assert paper.cut(said, rng(), share=0.0) == said


def test_a_cut_leaves_a_beginning_and_is_made_half_of_the_time():
  parts = ['Wait', '\\boxed{7}', 'answer', '\n\n', 'x y ', '3+4=7. ']
  draw, whole = rng(1), 0
  for i in range(400):
    said = 'I see. ' + ''.join(draw.choice(parts, 8)) + ' Wait'
    left = paper.cut(said, rng(i))
    assert said.startswith(left) and left == paper.cut(said, rng(i))
    whole += left == said
    # The first `answer` goes with all behind it, the last of the others.
    assert left == said or 'answer' not in left
  assert 160 < whole < 240  # 200 +- 10


def test_triggers_by_their_probabilities():
  for correct, own, other in ((True, paper.VERIFY, paper.CORRECT),
                              (False, paper.CORRECT, paper.VERIFY)):
    draw = rng(2)
    seen = collections.Counter(
        paper.trigger(correct, draw) for _ in range(4000))
    assert other not in seen
    # .5 x .4, .5 x .6, .5; the deviation is .008 at most.
    for name, want in zip((*paper.NEUTRAL, own), (.2, .3, .5)):
      assert seen[name] / 4000 == pytest.approx(want, abs=.03)
  assert paper.trigger(True, rng(), neutral=0.0) == paper.VERIFY
  assert paper.trigger(False, rng(), neutral=0.0) == paper.CORRECT
  assert paper.trigger(True, rng(), neutral=1.0, plain=1.0) == '\n\nWait'
  # As many numbers are drawn whatever comes of them.
  one, two = rng(3), rng(3)
  paper.trigger(True, one, neutral=0.0)
  paper.trigger(False, two, neutral=1.0)
  assert one.random() == two.random()


def test_every_trigger_but_the_plainest_counts_as_one_wait():
  assert [paper.waits(x) for x in (
      *paper.NEUTRAL, paper.VERIFY, paper.CORRECT)] == [0, 1, 1, 1]
  # It does when the policy goes on with a comma.
  assert paper.waits(paper.NEUTRAL[0] + ', no') == 1


def test_candidates_by_hand():
  correct = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
  done = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool)
  lengths = np.array([[10, 11, 5, 5], [10, 10, 10, 11]])
  got = paper.candidates(
      correct, done, lengths, rng(), longest=10, dropped=0.0)
  # One is too long, one did not end; 3/4 right is above .7, so the wrong one
  # is not asked again, 1/2 is not.
  assert got.tolist() == [[True, False, False, False],
                          [True, True, True, False]]
  assert not paper.candidates(
      correct, done, lengths, rng(), longest=10, dropped=1.0).any()
  many = np.ones((100, 20), bool)
  share = paper.candidates(
      many, many, many, rng(4), longest=10).mean()
  assert share == pytest.approx(.65, abs=.04)  # +- .011


def test_what_is_kept_by_hand():
  correct = np.array([[0, 1, 1, 1, 1, 1, 1, 1]], bool)
  new = np.array([[99, 30, 31, 1023, 1024, 99, 99, 99]])
  waited = np.array([[1, 1, 4, 5, 1, 1, 1, 1]])
  # Wrong; not above 30; good; too many waits; not below 1024; good; two it is.
  assert np.flatnonzero(paper.kept(correct, new, waited)[0]).tolist() == [2, 5]
  assert np.flatnonzero(paper.kept(
      correct, new, waited, per_prompt=9)[0]).tolist() == [2, 5, 6, 7]
  # Groups by themselves.
  both = paper.kept(*(np.repeat(x, 2, 0) for x in (correct, new, waited)))
  assert both.sum(1).tolist() == [2, 2]
  # A wrong continuation never replaces its response.
  assert not paper.kept(~np.ones((2, 3), bool), np.full((2, 3), 99),
                        np.ones((2, 3), int)).any()


# Selective sample replay.


def test_probabilities_by_hand():
  outcome = np.array([[1.0] * 6 + [0.0] * 2])
  a = advantages.dr_grpo(outcome[..., None])[0, :, 0]
  np.testing.assert_allclose(a, [.25] * 6 + [-.75] * 2)
  np.testing.assert_allclose(
      paper.probabilities(a), [1 / 12] * 6 + [.25] * 2)
  np.testing.assert_allclose(
      paper.probabilities(np.array([.25, -.75, .5]), floor=1e-4),
      [.166700, .499967, .333333], atol=1e-6)
  np.testing.assert_allclose(
      paper.probabilities(np.array([1.0, 2, 0]), power=2.0), [.2, .8, 0])
  assert paper.probabilities(np.zeros(3)).tolist() == [0, 0, 0]
  with pytest.raises(ValueError, match='power=0.0'):
    paper.probabilities(np.ones(2), power=0.0)


def test_fifo():
  assert paper.fifo([1, 2, 3], [4, 5], 4) == [2, 3, 4, 5]
  assert paper.fifo([], [1, 2, 3], 2) == [2, 3]
  assert paper.fifo([1], [], 2) == [1]
  assert paper.fifo([1], [2], 0) == []
  old = [1, 2]
  paper.fifo(old, [3], 2)
  assert old == [1, 2]


def test_a_full_rollout_needs_no_replay():
  """Of the 70 halves 15 have both wrong ones, of .75 / 2 each, and 20 the
  first of them only, of .75 / 1.5: (15 x .375 + 20 x .5) / 70 = .2232. The six
  right ones share the rest of 1 - 2 x .2232: .0923."""
  a = np.array([.25] * 6 + [-.75] * 2)
  seen = collections.Counter()
  for seed in range(1000):
    got = paper.replayed(a, np.ones(4), rng(seed))
    assert len(got.current) == 4 and len(got.old) == 0
    seen.update(got.current.tolist())
  total = sum(seen.values())
  assert seen[6] / total == pytest.approx(.2232, abs=.03)
  assert seen[0] / total == pytest.approx(.0923, abs=.02)


def test_a_half_effective_rollout_is_drawn_by_its_advantages():
  a = np.array([0, .25, 0, -.75, 0, 0, 0, 0])
  seen = collections.Counter()
  for seed in range(1000):
    got = paper.replayed(a, np.array([.25, .75, .5]), rng(seed))
    assert len(got.current) == len(got.old) == 2
    seen.update(('now', i) for i in got.current.tolist())
    seen.update(('old', i) for i in got.old.tolist())
  share = {key: n / 2000 for key, n in seen.items()}
  assert set(share) == {
      ('now', 1), ('now', 3), ('old', 0), ('old', 1), ('old', 2)}
  want = {('now', 1): .25, ('now', 3): .75, ('old', 0): .1667,
          ('old', 1): .5, ('old', 2): .3333}
  assert share == pytest.approx(want, abs=.04)


@pytest.mark.parametrize('size, whole', [(1, 7), (3, 2), (4, 1), (8, 0)])
def test_whole_copies_come_first(size, whole):
  """8 are needed: of 3 kept ones two copies, then 2 by chance."""
  got = paper.replayed(np.zeros(16), np.full(size, .5), rng())
  assert len(got.current) == 0 and len(got.old) == 8
  count = np.bincount(got.old, minlength=size)
  assert (count >= whole).all() and count.sum() == 8
  assert got.old[:whole * size].tolist() == [*range(size)] * whole


def test_uniform_groups_train_on_what_was_kept():
  """After steps without any advantage there are still N / 2 items, A != 0."""
  kept = []
  first = [1, 1, 0, 0]
  for step, outcome in enumerate([first, [1] * 4, [0] * 4, [1] * 4]):
    groups = np.array([outcome, [1] * 4, [0] * 4], float)
    a = advantages.dr_grpo(groups[..., None])[..., 0].ravel()
    items = [dict(a=float(x), logp=-1.0 - step) for x in a]
    new = [one for one in items if one['a']]
    kept = json.loads(json.dumps(paper.fifo(kept, new, len(a) // 2)))
    got = paper.replayed(a, np.array([one['a'] for one in kept]), rng(step))
    train = [items[i] for i in got.current] + [kept[i] for i in got.old]
    assert len(train) == 6 and all(one['a'] for one in train)
    # They keep the log-probs of the step that made them.
    assert all(one['logp'] == -1.0 for one in train)
  assert len(kept) == 4


def test_nothing_to_train_on_is_an_end():
  got = paper.replayed(np.zeros(8), np.zeros(0), rng())
  assert got.current.size == got.old.size == 0
  # Nothing kept: what there is.
  got = paper.replayed(np.array([.5, -.5, 0, 0, 0, 0]), np.zeros(0), rng())
  assert len(got.current) == 2 and not got.old.size
