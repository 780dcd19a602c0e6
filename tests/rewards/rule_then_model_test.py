"""A rule where it says yes, else a reward model."""

import math

import numpy as np
import pytest

from mmr1.rewards import combine

NAMES = ('rule', 'true', 'model')
WEIGHTS = {'rule': 1.0, 'true': 0.0, 'model': 0.0}
NAN = math.nan


def combined(rows, names=NAMES, weights=None, **kwargs):
  made, metrics, state = combine.rule_then_model(
      np.asarray([rows], np.float64), names, {}, None,
      weights=weights or {name: WEIGHTS.get(name, 0.0) for name in names},
      **kwargs)
  assert state is None and made.shape == (1, len(rows), 1)
  return made[0, :, 0], metrics


def test_the_hybrid_by_hand():
  # Right: 1. Wrong with s = 1.3: sigma = .785835. Without an answer: sigma(0).
  made, metrics = combined([[1, 1, -3.], [0, 0, 1.3], [NAN, 1, 0.]])
  np.testing.assert_allclose(made, [1, .785835, .5], atol=1e-6)
  # (.047426 + .785835 + .5) / 3: of the model alone, whatever the rule said.
  assert metrics == {'reward/model/unit': pytest.approx(.444420, abs=1e-6)}


def test_an_exact_match_is_worth_more_than_any_score():
  said = np.linspace(-40, 36, 50)
  made, _ = combined([[1, 1, s] for s in said] + [[0, 0, s] for s in said])
  assert (made[:50] == 1).all() and (made[50:] < 1).all()


def test_the_other_forms():
  rows = [[1, 1, -3.], [0, 0, 1.3], [NAN, 1, 0.]]
  np.testing.assert_array_equal(combined(rows, form='model')[0], [-3, 1.3, 0])
  np.testing.assert_array_equal(combined(rows, form='rule')[0], [1, 0, NAN])
  # The rule alone needs no model, and the model no rule.
  made, metrics = combined(
      [[1.0], [0.0]], ('rule',), {'rule': 1.0}, form='rule')
  np.testing.assert_array_equal(made, [1, 0])
  assert not metrics
  assert combined([[2.0]], ('model',), {'model': 0.0}, form='model')[0] == 2


def test_no_value_stays_none_and_other_columns_are_added():
  weights = {'rule': 1.0, 'format': 0.5, 'model': 0.0}
  made, _ = combined([[0, 1, NAN], [1, 1, NAN], [0, 0, 0.], [0, NAN, 0.]],
                     ('rule', 'format', 'model'), weights)
  np.testing.assert_array_equal(made, [NAN, 1.5, .5, .5])


@pytest.mark.parametrize('kwargs, said', [
    (dict(form='mean'), "form='mean'"), (dict(rule='outcome'), "'outcome'")])
def test_m22_what_it_refuses(kwargs, said):
  with pytest.raises(ValueError, match=said):
    combined([[1, 1, 0.]], **kwargs)
