"""Columns, metrics and failures of a step (M10, M13)."""

import dataclasses
import math as std_math
import os
import sys
import time

import numpy as np
import pytest

from mmr1 import records
from mmr1.rewards import choice
from mmr1.rewards import combine
from mmr1.rewards import format as format_reward
from mmr1.rewards import math
from mmr1.rewards import score

BOMB = '9^{9^{9^{9}}}'


def reward_of(values, bounds=(0.0, 1.0)):
  """A reward that looks its value up by slot; an Exception is raised."""
  def fn(sample, knobs):
    value = values[sample.slot]
    if isinstance(value, Exception):
      raise value
    return value
  fn.range = bounds
  return score.Reward(fn)


def scored(make, values, **kwargs):
  samples = [make('some text', slot=i) for i in range(len(values))]
  scorer = score.Scorer({'r': reward_of(values, **kwargs)}, workers=2)
  return scorer.score(samples, 1, len(values), {})


def test_columns_are_in_order_of_names_and_samples(make, tagged):
  texts = [tagged('15'), tagged('7'), '15', tagged('15')]
  samples = [make(t, uid=i // 2, slot=i % 2) for i, t in enumerate(texts)]
  scorer = score.Scorer({
      'z_math': score.Reward(math.verify, weight=2.0),
      'a_format': score.Reward(format_reward.think_answer),
  }, workers=3)
  got = scorer.score(samples, 2, 2, {})
  assert got.names == ('z_math', 'a_format')
  # [n, g, k]; '15' without tags has no strict answer.
  np.testing.assert_array_equal(
      got.columns, [[[1, 1], [0, 1]], [[0, 0], [1, 1]]])
  assert got.columns.dtype == np.float64
  assert got.metrics == {
      'reward/z_math/mean': 0.5, 'reward/a_format/mean': 0.75,
      'reward/error_frac': 0.0, 'reward/timeout_frac': 0.0,
      'reward/none_frac': 0.0}
  assert scorer.weights == {'z_math': 2.0, 'a_format': 1.0}


def test_m13_zero_is_a_value_none_is_not(make):
  got = scored(make, [0.0, None, 1, False])
  np.testing.assert_array_equal(got.columns[0, :, 0], [0, np.nan, 1, 0])
  # Mean over the three present values: (0 + 1 + 0) / 3.
  assert got.metrics['reward/r/mean'] == pytest.approx(1 / 3)
  assert got.metrics['reward/none_frac'] == 0.25
  assert got.metrics['reward/error_frac'] == 0.0
  assert not got.failures
  nothing = scored(make, [None, None])
  assert 'reward/r/mean' not in nothing.metrics
  assert nothing.metrics['reward/none_frac'] == 1.0


def test_m13_combine():
  nan = np.nan
  columns = np.array([[[1., 2.], [0., nan], [nan, nan], [nan, 0.]]])
  got, says, state = combine.weighted_sum(
      columns, ('a', 'b'), {}, 'state', weights={'a': 0.5, 'b': 2.0})
  # .5*1 + 2*2; .5*0 with b missing; nothing; 2*0 with a missing.
  np.testing.assert_array_equal(got, [[[4.5], [0.], [nan], [0.]]])
  assert state == 'state' and says == {}
  # A column of weight 0 is logged only: it neither counts nor rescues a row.
  got, _, _ = combine.weighted_sum(
      columns, ('a', 'b'), {}, None, weights={'a': 1.0, 'b': 0.0})
  np.testing.assert_array_equal(got, [[[1.], [0.], [nan], [nan]]])
  with pytest.raises(ValueError, match='weights are for'):
    combine.weighted_sum(columns, ('a', 'b'), {}, None, weights={'a': 1.0})
  with pytest.raises(ValueError, match='shape'):
    combine.weighted_sum(columns, ('a',), {}, None, weights={'a': 1.0})
  with pytest.raises(ValueError, match='finite'):
    combine.weighted_sum(
        columns, ('a', 'b'), {}, None, weights={'a': 1.0, 'b': nan})


def test_m10_exceptions_are_counted_shown_and_masked(make):
  got = scored(make, [1.0, KeyError('box'), 0.0, 1.0])
  np.testing.assert_array_equal(got.columns[0, :, 0], [1, np.nan, 0, 1])
  assert got.metrics['reward/error_frac'] == 0.25
  assert got.metrics['reward/none_frac'] == 0.0
  assert got.metrics['reward/r/mean'] == pytest.approx(2 / 3)
  (failure,) = got.failures
  assert (failure.name, failure.index, failure.kind) == ('r', 1, 'error')
  assert "KeyError: 'box'" in failure.message  # with its traceback
  assert 'Traceback' in failure.message and 'some text' in failure.message


def test_m10_a_reward_that_always_fails_stops_the_run(make):
  errors = [KeyError('first'), KeyError('second')]
  with pytest.raises(RuntimeError, match=r"'r' failed on all 2(.|\n)*first"):
    scored(make, errors)
  assert scored(make, [errors[0], None]).metrics['reward/error_frac'] == 0.5


@pytest.mark.parametrize('value', [
    1.0000001, -0.1, float('nan'), float('inf'), '1', [1.0], 1j,
    np.array([1.0, 2.0])])
def test_m10_values_outside_of_the_range_are_errors(value, make):
  got = scored(make, [value, 1.0])
  np.testing.assert_array_equal(got.columns[0, :, 0], [np.nan, 1])
  assert got.metrics['reward/error_frac'] == 0.5
  assert 'RangeError' in got.failures[0].message
  assert 'some text' in got.failures[0].message
  with pytest.raises(RuntimeError, match='RangeError'):
    scored(make, [value])


def test_m10_declared_ranges_hold_their_ends(make):
  got = scored(make, [-2.0, 5.0, np.float32(1.5)], bounds=(-2.0, 5.0))
  np.testing.assert_array_equal(got.columns[0, :, 0], [-2, 5, 1.5])


def test_m10_a_time_out_scores_zero_and_is_counted(make, tagged):
  gold = r'\sqrt{2}'
  texts = [tagged(BOMB), tagged('2^{1/2}'), tagged(gold), tagged('7')]
  samples = [make(t, gold, slot=i) for i, t in enumerate(texts)]
  scorer = score.Scorer(
      {'m': score.Reward(math.verify, {'limit_s': 1.0})}, workers=2)
  got = scorer.score(samples, 1, 4, {})
  np.testing.assert_array_equal(got.columns[0, :, 0], [0, 1, 1, 0])
  assert got.metrics['reward/timeout_frac'] == 0.25
  assert got.metrics['reward/error_frac'] == 0.0
  assert got.metrics['reward/m/mean'] == 0.5
  assert got.failures[0].kind == 'timeout' and BOMB in got.failures[0].message
  # Nothing but time-outs is the model's doing and does not stop the run.
  only = scorer.score([make(texts[0], gold)], 1, 1, {})
  assert only.metrics['reward/timeout_frac'] == 1.0
  assert only.columns[0, 0, 0] == 0.0


def test_m10_decided_answers_start_no_process(make, tagged, monkeypatch):
  def forbidden():
    raise AssertionError('a process was asked for')
  monkeypatch.setattr(math.pool, 'shared', forbidden)
  samples = [make(tagged(a), slot=i) for i, a in enumerate(
      ['15', '7', '7+8', 'x', BOMB, '9' * 5000])]
  start = time.monotonic()
  got = score.Scorer({'m': score.Reward(math.verify)}).score(
      samples, 1, 6, {})
  assert time.monotonic() - start < 1
  np.testing.assert_array_equal(got.columns[0, :, 0], [1, 0, 0, 0, 0, 0])


POOLED = '''
import os, time

def by_slot(sample, knobs, *, parent):
  assert os.getpid() != parent and dict(knobs) == {'a': 1.0}
  if sample.slot == 1: time.sleep(60)
  if sample.slot == 2: os._exit(1)
  if sample.slot == 3: raise KeyError('box')
  return 1.0
by_slot.range = (0.0, 1.0)
'''


def test_m10_a_pooled_reward_can_hang_die_and_raise(
    make, tmp_path, monkeypatch):
  (tmp_path / 'pooled_reward.py').write_text(POOLED)
  monkeypatch.syspath_prepend(tmp_path)
  import pooled_reward  # pylint: disable=g-import-not-at-top
  reward = score.Reward(
      pooled_reward.by_slot, {'parent': os.getpid()}, in_pool=True,
      limit_s=0.5)
  samples = [make('some text', slot=i, choices=('x',)) for i in range(4)]
  got = score.Scorer({'p': reward}).score(samples, 1, 4, {'a': 1.0})
  np.testing.assert_array_equal(got.columns[0, :, 0], [1, 0, 0, np.nan])
  assert got.metrics['reward/timeout_frac'] == 0.25
  assert got.metrics['reward/error_frac'] == 0.5
  assert [f.kind for f in got.failures] == ['timeout', 'error', 'error']
  assert "KeyError: 'box'" in got.failures[2].message
  sys.modules.pop('pooled_reward')


def test_group_rewards_see_one_group_at_a_time(make):
  def rank(samples, knobs):
    if len(samples[0].text) == 9:
      raise ValueError('nine')
    longest = max(len(s.text) for s in samples)
    return [None if not s.text else knobs['scale'] * len(s.text) / longest
            for s in samples]
  rank.group = True
  rank.range = (0.0, 2.0)
  texts = ['aa', 'aaaa', '', 'a', '123456789', 'a']
  samples = [make(t, uid=i // 2) for i, t in enumerate(texts)]
  scorer = score.Scorer({'rank': score.Reward(rank)})
  got = scorer.score(samples, 3, 2, {'scale': 2.0})
  # 2*2/4, 2*4/4 | none, 2*1/1 | the call failed: both are masked.
  np.testing.assert_array_equal(
      got.columns[..., 0], [[1, 2], [np.nan, 2], [np.nan, np.nan]])
  assert got.metrics['reward/error_frac'] == pytest.approx(2 / 6)
  assert got.metrics['reward/none_frac'] == pytest.approx(1 / 6)
  assert got.failures[0].index == 4

  def short(samples, knobs):
    return [1.0]
  short.group, short.range = True, (0.0, 1.0)
  with pytest.raises(RuntimeError, match='must return 2 values'):
    score.Scorer({'short': score.Reward(short)}).score(samples, 3, 2, {})


def test_user_errors(make):
  def bare(sample, knobs):
    return 0.0
  with pytest.raises(ValueError, match='declares no range'):
    score.Scorer({'bare': score.Reward(bare)})
  bare.range = (0.0, std_math.inf)
  with pytest.raises(ValueError, match='finite'):
    score.Scorer({'bare': score.Reward(bare)})
  bare.range = (0.0, 1.0)
  with pytest.raises(ValueError, match='importe?d? by a worker'):
    score.Scorer({'bare': score.Reward(bare, in_pool=True)})
  with pytest.raises(ValueError, match='strcit.*signature'):
    score.Scorer({'m': score.Reward(math.verify, {'strcit': True})})
  with pytest.raises(ValueError, match='no rewards'):
    score.Scorer({})
  with pytest.raises(ValueError, match='weight'):
    score.Scorer({'c': score.Reward(choice.letter, weight=std_math.nan)})
  scorer = score.Scorer({'f': score.Reward(format_reward.think_answer)})
  with pytest.raises(ValueError, match='expected 4'):
    scorer.score([make('')] * 3, 2, 2, {})
  with pytest.raises(ValueError, match='group 0 mixes'):
    scorer.score([make('', uid=i % 2) for i in range(4)], 2, 2, {})


def test_m25_a_reward_cannot_change_a_sample(make):
  def vandal(sample, knobs):
    sample.example.meta['x'] = 1
    return 1.0
  vandal.range = (0.0, 1.0)
  with pytest.raises(RuntimeError, match='TypeError'):
    score.Scorer({'v': score.Reward(vandal)}).score([make('')], 1, 1, {})

  def rename(sample, knobs):
    sample.text = 'better'
    return 1.0
  rename.range = (0.0, 1.0)
  with pytest.raises(RuntimeError, match='FrozenInstanceError'):
    score.Scorer({'v': score.Reward(rename)}).score([make('')], 1, 1, {})
  assert dataclasses.replace(make(''), text='x').text == 'x'


def test_members_are_judged_by_their_own_rewards(make):
  """A reward does not see them, and what it would do to them counts nowhere."""
  def of(name, rewards):
    return records.Member(name=name, rewards=rewards)
  samples = []
  for i, member in enumerate((of('a', ('r',)), of('b', ('s',)), of('c', ()),
                              records.Member())):
    for slot in range(2):
      one = make('text', uid=i, slot=slot)
      samples.append(dataclasses.replace(
          one, example=dataclasses.replace(one.example, member=member)))
  def group(part, knobs):
    return [float(len(part))] * 2
  group.group, group.range = True, (0.0, 2.0)
  scorer = score.Scorer({'r': reward_of([1.0, None]), 's': score.Reward(group)})
  got = scorer.score(samples, 4, 2, {})
  nan = np.nan
  np.testing.assert_array_equal(got.columns[..., 0], [
      [1, nan], [nan, nan], [nan, nan], [1, nan]])
  np.testing.assert_array_equal(got.columns[..., 1], [
      [nan, nan], [2, 2], [nan, nan], [2, 2]])
  assert got.metrics['reward/none_frac'] == 2 / 8  # of 8 calls
  # One that fails on all that it sees stops the run, as ever.
  failing = score.Scorer({'r': reward_of([RuntimeError('no')] * 2),
                          's': score.Reward(group)})
  with pytest.raises(RuntimeError, match="'r' failed on all 4 samples"):
    failing.score(samples, 4, 2, {})
  # And one that sees nothing does not.
  assert not failing.score(samples[2:4], 1, 2, {}).failures


def test_a_sample_that_is_not_there_is_shown_to_no_reward(make):
  """The second group has two of three; group rewards see those alone."""
  seen = []

  def ranks(samples, knobs):
    seen.append([sample.text for sample in samples])
    return [float(i) for i in range(len(samples))]
  ranks.group, ranks.range = True, (0.0, 2.0)
  samples = [make(str(i), uid=i // 3) for i in range(6)]
  samples[4] = dataclasses.replace(
      samples[4], text='', tokens=(), kinds=(), length=0)
  scorer = score.Scorer({
      'one': score.Reward(_number), 'all': score.Reward(ranks)})
  scored = scorer.score(samples, 2, 3, {})
  np.testing.assert_array_equal(scored.columns, [
      [[0, 0], [1, 1], [2, 2]], [[3, 0], [np.nan, np.nan], [5, 1]]])
  assert seen == [['0', '1', '2'], ['3', '5']]
  assert scored.metrics['reward/one/mean'] == 11 / 5
  assert scored.metrics['reward/none_frac'] == 0


def _number(sample, knobs):
  del knobs
  return float(sample.text)


_number.range = (0.0, 5.0)
