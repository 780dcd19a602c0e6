"""Selection: what is kept, what is counted, when more is asked for."""

import subprocess
import sys

import numpy as np
import pytest

from mmr1 import select

ADVANTAGE = np.zeros((4, 3, 1))
# Means 0, 1/3, 1, 2/3.
ACCURACY = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1]])
META = {'truncated': np.zeros((4, 3), bool)}


def call(fn, accuracy=ACCURACY, meta=META, **kw):
  state = {'kept': 1}
  keep, counts, more, after = fn(
      {'accuracy': accuracy}, ADVANTAGE[:len(accuracy)], meta, state,
      np.random.default_rng(0), **kw)
  assert after == {'kept': 1} and keep.dtype == bool
  return keep, counts, more


def groups(keep):
  assert np.all(keep.all(1) == keep.any(1))
  return keep.all(1).tolist()


def test_keep_all():
  keep, counts, more = call(select.keep_all)
  assert keep.shape == (4, 3) and keep.all() and not counts and not more


def test_all_right_and_all_wrong_groups_go():
  keep, counts, more = call(select.drop_zero_std, column='accuracy')
  assert groups(keep) == [False, True, False, True]
  # Two places of the batch are free.
  assert counts['select/zero_std_groups'] == 2 and more is True


def test_bounds_on_the_mean():
  keep, counts, _ = call(
      select.drop_zero_std, column='accuracy', low=0.01, high=0.5)
  assert groups(keep) == [False, True, False, False]
  assert counts == {
      'select/zero_std_groups': 2, 'select/out_of_range_groups': 1,
      'select/surplus_groups': 0}


def test_says_when_groups_are_short_and_drops_the_surplus():
  kw = dict(column='accuracy')
  assert call(select.drop_zero_std, groups=3, **kw)[2] == 1
  keep, counts, more = call(select.drop_zero_std, groups=2, **kw)
  assert groups(keep) == [False, True, False, True] and not more
  keep, counts, more = call(select.drop_zero_std, groups=1, **kw)
  assert groups(keep) == [False, True, False, False] and not more
  assert counts['select/surplus_groups'] == 1


def test_m7_no_variance_in_fp32():
  accuracy = np.full((2, 8), 0.9, np.float32)
  accuracy[1, 0] = np.nextafter(np.float32(0.9), np.float32(1))
  keep, _, _ = call(select.drop_zero_std, accuracy, column='accuracy')
  assert not keep.any()


def test_m13_missing_values_are_not_zeros():
  accuracy = np.array([[1, np.nan, 1], [np.nan] * 3, [0, np.nan, 1]])
  keep, counts, _ = call(select.drop_zero_std, accuracy, column='accuracy')
  assert groups(keep) == [False, False, True]
  assert counts['select/zero_std_groups'] == 2


def test_integer_and_bool_columns():
  keep, _, _ = call(
      select.drop_zero_std, ACCURACY.astype(bool), column='accuracy')
  assert groups(keep) == [False, True, False, True]


def test_drop_truncated():
  truncated = np.zeros((4, 3), bool)
  truncated[1, 2] = truncated[3, 0] = True
  keep, counts, more = call(
      select.drop_truncated, meta={'truncated': truncated})
  np.testing.assert_array_equal(keep, ~truncated)
  assert counts == {'select/truncated_rows': 2} and not more


def test_errors_say_what_is_wrong():
  with pytest.raises(ValueError, match="'acc' is not among.*'accuracy'"):
    call(select.drop_zero_std, column='acc')
  with pytest.raises(ValueError, match='groups must be at least 1, got 0'):
    call(select.drop_zero_std, column='accuracy', groups=0)
  with pytest.raises(ValueError, match='first two axes must agree'):
    call(select.drop_truncated, meta={'truncated': np.zeros(3, bool)})


def test_never_imports_jax():
  code = 'import sys, mmr1.select; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def saturated(rewards, state=None, **kwargs):
  rewards = np.asarray(rewards)
  return select.drop_saturated(
      {'overall': rewards}, rewards[..., None],
      {'uid': np.arange(10, 10 + len(rewards))}, state or {},
      np.random.default_rng(0), **kwargs)


# High and without spread; high; without spread; neither.
GROUPS = [[.95, .95, .96], [.8, 1., 1.], [.4, .4, .42], [.2, .5, .9]]


def test_saturated_groups_in_both_forms():
  keep, counts, more, state = saturated(GROUPS)
  np.testing.assert_array_equal(keep.all(1), [False, False, False, True])
  assert (keep.all(1) == keep.any(1)).all() and not more
  assert counts == {'select/saturated_groups': 3, 'select/banned': 1}
  # Only prompts that all samples follow are banned, in either form.
  assert state == {'banned': [10]}
  keep, counts, _, state = saturated(GROUPS, either=False)
  np.testing.assert_array_equal(keep.all(1), [False, True, True, True])
  assert state == {'banned': [10]} and counts['select/saturated_groups'] == 1


def test_banned_prompts_stay_banned_and_the_state_is_not_changed():
  before = {'banned': [3, 10]}
  *_, state = saturated(GROUPS, before)
  assert state == {'banned': [3, 10]}
  *_, state = saturated(GROUPS[1:], before)
  assert state == {'banned': [3, 10]} and before == {'banned': [3, 10]}
  *_, state = saturated(GROUPS, ban=False)
  assert not state
