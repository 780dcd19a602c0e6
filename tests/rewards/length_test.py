"""Overlong shaping by hand."""

import types

import pytest

from mmr1.rewards import length
from mmr1.rewards import score


@pytest.mark.parametrize('tokens, want', [
    # L_max 20, buffer 8: 0 up to 12, then -(L - 12) / 8, -1 from 20 on.
    (0, 0), (10, 0), (12, 0), (13, -0.125), (16, -0.5), (20, -1), (99, -1)])
def test_worked_numbers(tokens, want):
  sample = types.SimpleNamespace(length=tokens)
  assert length.overlong(sample, {}, max_length=20, buffer=8) == want


@pytest.mark.parametrize('kwargs', [
    dict(max_length=20, buffer=0), dict(max_length=20, buffer=21)])
def test_m22_contradictions_are_errors(kwargs):
  with pytest.raises(ValueError, match='1 <= buffer <= max_length'):
    length.overlong(types.SimpleNamespace(length=3), {}, **kwargs)


def test_a_config_can_name_it():
  reward = score.Reward(
      length.overlong, kwargs=dict(max_length=20, buffer=8), weight=0.5)
  assert score.Scorer({'overlong': reward}).weights == {'overlong': 0.5}


@pytest.mark.parametrize('tokens, want', [(0, 0), (5, .25), (20, 1), (99, 1)])
def test_rising(tokens, want):
  sample = types.SimpleNamespace(length=tokens)
  assert length.rising(sample, {}, full=20) == want


def test_rising_needs_a_length():
  with pytest.raises(ValueError, match='full=0'):
    length.rising(types.SimpleNamespace(length=3), {}, full=0)
