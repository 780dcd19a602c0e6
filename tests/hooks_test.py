"""Hooks: schedules by hand, resumability, no mutation."""

import math

import pytest

from mmr1 import hooks

KNOBS = {'coef/kl': 0.1, 'temperature': 1.0}


def at(hook, step, knobs=KNOBS, **kw):
  before = dict(knobs)
  after, state = hook(knobs, {}, {}, {}, step, knob='coef/kl', **kw)
  assert knobs == before and state == {}
  assert after['temperature'] == 1.0 and list(after) == list(knobs)
  return after['coef/kl']


def test_constant():
  assert at(hooks.constant, 7, value=0.5) == 0.5


def test_linear():
  kw = dict(start=1.0, end=0.0, steps=4, begin=2)
  # Flat to step 2, then a quarter a step, flat from step 6.
  got = [at(hooks.linear, i, **kw) for i in range(8)]
  assert got == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_cosine():
  kw = dict(start=0.0, end=2.0, steps=4)
  # 1 - cos(pi / 4) = .292893.
  got = [at(hooks.cosine, i, **kw) for i in range(6)]
  assert got == pytest.approx([0, 0.292893, 1, 1.707107, 2, 2], abs=1e-6)


def test_exponential():
  kw = dict(start=0.3, factor=math.exp(-1), steps=4)
  # .3 e^(-step / 4); it goes on after `steps`.
  got = [at(hooks.exponential, i, **kw) for i in (0, 2, 4, 8)]
  assert got == pytest.approx([.3, .181959, .110364, .040601], abs=1e-6)
  # Half a step: 2 at step 3, until then another value, or that one.
  kw = dict(start=2.0, factor=0.5, steps=1, begin=3)
  got = [at(hooks.exponential, i, before=0.0, **kw) for i in range(6)]
  assert got == [0, 0, 0, 2, 1, .5]
  assert [at(hooks.exponential, i, **kw) for i in (0, 2, 3, 4)] == [2, 2, 2, 1]


@pytest.mark.parametrize('kw, says', [
    (dict(factor=0.0, steps=1), 'factor=0.0.*above 0'),
    (dict(factor=-1.0, steps=1), 'factor=-1.0'),
    (dict(factor=math.nan, steps=1), 'factor=nan'),
    (dict(factor=0.5, steps=0), 'steps >= 1, got 0')])
def test_exponential_refuses(kw, says):
  with pytest.raises(ValueError, match=says):
    at(hooks.exponential, 5, start=1.0, **kw)


def adaptive(state, metrics, knobs=KNOBS):
  after, state = hooks.adaptive_kl(
      knobs, state, {}, metrics, 3, knob='coef/kl', metric='kl', target=0.1,
      horizon=100.0, samples=50)
  assert after['coef/kl'] == state['coef/kl']
  return after['coef/kl'], state


def test_adaptive_kl():
  value, state = adaptive({}, {})  # nothing measured yet
  assert value == 0.1
  # Error .11 / .1 - 1 = .1: x (1 + .1 * 50 / 100).
  value, state = adaptive(state, {'kl': 0.11})
  assert value == pytest.approx(0.105)
  # Error 4, clipped to .2: x 1.1; the knob's own value is not read again.
  value, state = adaptive(state, {'kl': 0.5}, {'coef/kl': 9.0})
  assert value == pytest.approx(0.1155)
  # Error -1, clipped to -.2: x .9.
  value, state = adaptive(state, {'kl': 0.0})
  assert value == pytest.approx(0.10395)
  # A skipped update measured nothing.
  assert adaptive(state, {'kl': None}) == (value, state)


def test_errors_say_what_is_wrong():
  with pytest.raises(ValueError, match="'coef/k'.*'coef/kl', 'temperature'"):
    hooks.constant(KNOBS, {}, {}, {}, 0, knob='coef/k', value=1.0)
  # A controller that never sees its metric would never move (M22).
  with pytest.raises(ValueError, match="no metric 'kl'.*'kl_ref', 'loss'"):
    adaptive({'coef/kl': 0.1}, {'loss': 1.0, 'kl_ref': 0.1})
  with pytest.raises(ValueError, match='target=0.0, horizon=8.0.*above 0'):
    hooks.adaptive_kl(KNOBS, {}, {}, {}, 0, knob='coef/kl', metric='kl',
                      target=0.0, horizon=8.0, samples=4)
  with pytest.raises(ValueError, match='steps >= 1, got 0'):
    hooks.linear(KNOBS, {}, {}, {}, 0, knob='coef/kl', start=1.0, end=0.0,
                 steps=0)
