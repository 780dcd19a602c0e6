"""VL-Rethinker by hand: waits and forced rethinking."""

import collections
import dataclasses

import numpy as np
import pytest

from configs import vl_rethinker as config_file
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
    # blank line of what is left, of which the white space at its end goes too.
    (TEXT, 'I see 3,4.'),
    ('a\n\nb Wait c \\boxed{7}', 'a'), ('3+4=7. \\boxed{7}', '3+4=7. '),
    ('x Wait y Wait z', 'x Wait y '), ('\\boxed{1} \\boxed{2}', '\\boxed{1} '),
    ('the answer, the answer', 'the '), ('a\n\nb\n\nc', 'a\n\nb'),
    ('a Wait \\boxed{7}', 'a '), ('\\boxed{7} Wait', ''),
    # Case counts, but not of `answer`.
    ('wait, but', 'wait, but'), ('plain', 'plain'), ('', ''),
    ('I see 3,4.\nAnswer: 8', 'I see 3,4.\n'), ('x ANSWER, answer', 'x '),
    ('a \n \n\nb Wait', 'a'), ('a \n\n \n\n', 'a'),
    ('Wait', '')])
def test_cuts_by_hand(said, want):
  assert paper.cut(said, rng(), share=1.0) == want
  assert paper.cut(said, rng(), share=0.0) == said


def test_a_cut_leaves_a_beginning_and_is_made_half_of_the_time():
  parts = ['Wait', '\\boxed{7}', 'Answer', '\n\n', 'x y ', '3+4=7. ']
  draw, whole = rng(1), 0
  for i in range(400):
    said = 'I see. ' + ''.join(draw.choice(parts, 8)) + ' Wait'
    left = paper.cut(said, rng(i))
    assert said.startswith(left) and left == paper.cut(said, rng(i))
    whole += left == said
    # The first `answer` goes with all behind it, the last of the others.
    assert left == said or 'answer' not in left.lower()
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
  # Wrong; not above 30; good; too many waits, but the second of its group; not
  # below 1024; the others are too late.
  assert np.flatnonzero(paper.kept(correct, new, waited)[0]).tolist() == [2]
  assert np.flatnonzero(paper.kept(
      correct, new, waited, per_prompt=3)[0]).tolist() == [2, 5]
  assert np.flatnonzero(paper.kept(
      correct, new, waited, per_prompt=9)[0]).tolist() == [2, 5, 6, 7]
  # Groups by themselves.
  both = paper.kept(*(np.repeat(x, 2, 0) for x in (correct, new, waited)))
  assert both.sum(1).tolist() == [1, 1]
  # A wrong continuation never replaces its response.
  assert not paper.kept(~np.ones((2, 3), bool), np.full((2, 3), 99),
                        np.ones((2, 3), int)).any()


def test_other_marks_and_triggers():
  marks = (('Wait', 'last'), ('</think>', 'last'))
  said = '<think>3+4=8.</think> <answer>8</answer>'
  assert paper.cut(said, rng(), share=1.0, marks=marks) == '<think>3+4=8.'
  texts = ('a', 'b', 'c', 'd')
  seen = {paper.trigger(right, rng(i), texts=texts)
          for i in range(50) for right in (True, False)}
  assert seen == {*texts}


def test_an_answer_block_in_place_of_a_box():
  said = '<think>Wait, 7.</think> <answer>7</answer>'
  assert paper.outcome(sample(said), {}) == -.1
  assert paper.outcome(sample(said), {}, boxed=False) == 1.1
  assert paper.outcome(sample(r'\boxed{7}'), {}, boxed=False) == -.1
  assert paper.waited(sample(said + ' wait'), {}) == 2


def test_edits_of_a_rollout():
  """Group 1 has 3 of 4 right: its wrong one is not asked."""
  columns = {'correct': np.array([[0., 1, np.nan, 0], [1, 1, 1, 0]])}
  meta = dict(done=np.ones((2, 4), bool), lengths=np.full((2, 4), 5))
  samples = [dataclasses.replace(sample('a Wait b'), group=n, slot=g)
             for n in range(2) for g in range(4)]
  def make(*address):
    return np.random.default_rng([7, *address])
  kw = dict(longest=5, dropped=0.0)
  got = paper.rethink(samples, columns, meta, make, share=1.0, **kw)
  assert set(got) == {(n, g) for n in range(2) for g in range(4)} - {(1, 3)}
  assert {edit.said for edit in got.values()} == {'a '}
  for (n, g), edit in got.items():
    wrong = paper.VERIFY if columns['correct'][n, g] != 1 else paper.CORRECT
    assert edit.put in (*paper.NEUTRAL, paper.VERIFY, paper.CORRECT)
    assert edit.put != wrong
  # A sample's edit does not depend on who else is there.
  assert paper.rethink(samples[5:6], columns, meta, make, share=1.0, **kw) == {
      (1, 1): got[1, 1]}
  assert not paper.rethink(samples, columns, meta, make, queries=0.0, **kw)


def test_what_replaces_its_response():
  meta = dict(asked=np.array([[1, 1, 0, 1]], bool), done=np.ones((1, 4), bool),
              new=np.full((1, 4), 40))
  after = {'correct': np.array([[1., 0, 1, np.nan]]), 'waits': np.ones((1, 4))}
  assert paper.rethought({}, after, meta).tolist() == [[True, False, False,
                                                        False]]
  assert not paper.rethought({}, after, {
      **meta, 'done': np.zeros((1, 4), bool)}).any()


@pytest.mark.parametrize('option, updates', [
    ('', 1), ('ssr', 1), ('filter', 2), ('grpo', 2)])
def test_an_update_is_of_512_responses_at_scale(option, updates):
  c = config_file.get_config(f'qwen2_5_vl_7b,{option}')
  assert c.rl.minibatches_per_step == updates
  responses = c.rl.prompts_per_step * c.rl.samples_per_prompt
  kept = responses if c.rl.replay.fn is None else c.rl.replay.rows
  assert kept // updates == 512
  assert c.rewards.correct.kwargs.boxed and c.rewards.outcome.kwargs.boxed
  assert not config_file.get_config().rewards.correct.kwargs.boxed
