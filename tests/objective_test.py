"""From config sections to terms and knobs."""

import math

import jax.numpy as jnp
import pytest

from mmr1 import objective
from mmr1 import types
from tests import small
from tests.losses import blocks


def build(hooked=(), **changes):
  return objective.build(small.section(**changes), frozenset(hooked))


def names(built):
  return [term.name for term in built.terms]


def call(built, name, *, logp, old=None, ref=None, advantage=1.0, mask=None,
         entropy=None, **knobs):
  """(sum, count) of a term for one row of tokens."""
  def row(x):
    return None if x is None else jnp.asarray([[x]], jnp.float32)
  keep = jnp.asarray([[mask or [True] * len(logp)]])
  scores = types.Scores(
      logp=row(logp), entropy=row(entropy or [0.0] * len(logp)))
  block = types.Block(
      prompts=None, completions=blocks.UNPACKED, mask=keep,
      old=row(old), ref=row(ref),
      advantage=jnp.asarray([[[advantage]]], jnp.float32))
  term = next(t for t in built.terms if t.name == name)
  total, count = term.fn(scores, block, {**built.knobs, **knobs})
  return float(total), float(count)


def test_a_coefficient_of_0_removes_its_term():
  assert names(build()) == ['policy']
  assert build().knobs == {'coef/policy': 1.0}
  assert not build().reference and not build().reference_hidden
  every = build(kl__coefficient=0.1, entropy__coefficient=-0.2)
  assert names(every) == ['policy', 'kl', 'entropy']
  assert every.knobs == {
      'coef/policy': 1.0, 'coef/kl': 0.1, 'coef/entropy': -0.2}
  assert names(build(policy__coefficient=0.0)) == []


def test_the_reference_is_run_only_for_a_kl_term():
  assert build(kl__coefficient=0.1).reference
  assert not build(kl__coefficient=0.1).reference_hidden
  full = build(kl__coefficient=0.1, kl__estimator='full')
  assert full.reference and full.reference_hidden
  off = build(kl__estimator='full')
  assert not off.reference and not off.reference_hidden
  assert not build(entropy__coefficient=0.1).reference


def test_a_hooked_coefficient_stays():
  hooked = build(['coef/kl'])
  assert names(hooked) == ['policy', 'kl'] and hooked.reference
  assert hooked.knobs['coef/kl'] == 0.0
  assert names(build(['coef/entropy', 'policy/eps_low'])) == [
      'policy', 'entropy']


def test_m28_numbers_become_knobs_and_the_rest_is_bound():
  built = build(
      policy__kwargs=dict(eps_low=0.1, eps_high=0.4, dual_clip=3),
      kl__coefficient=0.1, kl__kwargs=dict(value_clamp=5.0))
  assert built.knobs == {
      'coef/policy': 1.0, 'policy/eps_low': 0.1, 'policy/eps_high': 0.4,
      'policy/dual_clip': 3.0, 'coef/kl': 0.1, 'kl/value_clamp': 5.0}
  bound = build(policy__kwargs=dict(delta=None))
  assert set(bound.knobs) == {'coef/policy'}


def test_a_clip_range_is_that_of_the_knobs():
  """r = [e^.5, 1] = [1.649, 1]; A = 1: -min(r, 1 + eps) - 1."""
  built = build(policy__kwargs=dict(eps_low=0.2, eps_high=0.2))
  args = dict(logp=[-1.0, -1.0], old=[-1.5, -1.0])
  assert call(built, 'policy', **args) == pytest.approx((-2.2, 2))
  assert call(built, 'policy', **args, **{'policy/eps_high': 0.5}) == (
      pytest.approx((-2.5, 2)))
  assert call(built, 'policy', **args, **{'policy/eps_high': 9.0}) == (
      pytest.approx((-math.exp(0.5) - 1, 2)))


def test_kl_by_hand():
  """d = ref - logp = [1, 0]: k3 = e - 2 = 0.718, k2 = 0.5, k1 = -1."""
  args = dict(logp=[-2.0, -1.0, -9.0], ref=[-1.0, -1.0, 0.0],
              mask=[True, True, False])
  for estimator, value in (('k3', math.e - 2), ('k2', 0.5), ('k1', -1.0)):
    built = build(kl__coefficient=0.1, kl__estimator=estimator)
    assert call(built, 'kl', **args) == pytest.approx((value, 2))


def test_kl_with_bias_correction_is_multiplied_by_the_ratio():
  """d = 1: k3 = e - 2; r = exp(-2 + 2.5) = 1.649; and without old r = 1."""
  built = build(kl__coefficient=0.1, kl__kwargs=dict(bias_correction=True))
  assert set(built.knobs) == {'coef/policy', 'coef/kl'}
  args = dict(logp=[-2.0], ref=[-1.0])
  assert call(built, 'kl', old=[-2.5], **args) == pytest.approx(
      (math.exp(0.5) * (math.e - 2), 1))
  assert call(built, 'kl', **args) == pytest.approx((math.e - 2, 1))


def test_entropy_is_rewarded():
  built = build(entropy__coefficient=0.1)
  assert call(built, 'entropy', logp=[-1.0, -3.0], entropy=[0.5, 0.25]) == (
      pytest.approx((-0.75, 2)))
  built = build(entropy__coefficient=0.1, entropy__source='sampled')
  assert call(built, 'entropy', logp=[-1.0, -3.0], entropy=[0.5, 0.25]) == (
      pytest.approx((-4.0, 2)))


@pytest.mark.parametrize('changes, count', [
    (dict(policy__reduce='token_mean'), 2),
    (dict(policy__reduce='seq_mean'), 1),
    (dict(policy__reduce='seq_sum', policy__rows='all'), 1),
    # One row times a length: the cap of the stage, or what is said.
    (dict(policy__reduce='constant', max_new_tokens=40), 40),
    (dict(policy__reduce='constant', policy__length=7.0), 7),
    (dict(policy__reduce='constant', policy__rows='none'), 0)])
def test_reduce(changes, count):
  """The same reduction for every term of a stage."""
  built = build(kl__coefficient=0.1, entropy__coefficient=0.1, **changes)
  args = dict(logp=[-1.0, -2.0, -3.0], ref=[-1.0] * 3,
              mask=[True, True, False])
  for name in ('policy', 'kl', 'entropy'):
    assert call(built, name, **args)[1] == count


@pytest.mark.parametrize('changes, said', [
    (dict(policy__ratio='tokens'), 'rl.policy.ratio.*sequence_token'),
    (dict(policy__sequence='sum'), 'rl.policy.sequence.*geometric.*product'),
    (dict(policy__surrogate='clipp'), "'clipp'.*Nearest: clip"),
    (dict(policy__surrogate='_unclipped'), '_unclipped'),
    (dict(policy__kwargs=dict(eps=0.2)), r'rl.policy.kwargs.eps:.*eps_'),
    (dict(policy__reduce='mean'), 'rl.policy.reduce.*token_mean'),
    (dict(policy__rows='dead'), 'rl.policy.rows.*live'),
    (dict(policy__rows='all'), 'rl.policy.rows.*token_mean'),
    (dict(policy__rows='none', policy__reduce='seq_mean'),
     'rl.policy.rows.*constant'),
    (dict(policy__length=5.0), "rl.policy.length.*'constant'"),
    (dict(policy__length=0.0, policy__reduce='constant'),
     'rl.policy.length.*more than 0'),
    (dict(policy__clamp=0.0), 'rl.policy.clamp.*more than 0'),
    (dict(policy__clamp=-2.0), 'rl.policy.clamp.*more than 0'),
    (dict(kl__estimator='k33'), "'k33'.*Nearest: k3"),
    (dict(kl__kwargs=dict(clamp=1.0)), 'rl.kl.kwargs.clamp'),
    (dict(kl__kwargs=dict(bias_correction=1)),
     'rl.kl.kwargs.bias_correction: got 1'),
    (dict(kl__estimator='full', kl__kwargs=dict(bias_correction=True)),
     'rl.kl.kwargs.bias_correction'),
    (dict(kl__estimator='full', kl__kwargs=dict(value_clamp=1.0)),
     'rl.kl.kwargs.value_clamp'),
    (dict(entropy__source='some'), 'rl.entropy.source.*full'),
])
def test_m22_what_cannot_work_is_refused(changes, said):
  with pytest.raises(ValueError, match=said):
    build(**changes)


def test_no_clamp_is_infinity():
  """log r = 25: with the default of 20 it is e^20, without e^25."""
  args = dict(logp=[0.0], old=[-25.0], advantage=1.0)
  kwargs = dict(policy__surrogate='linear')
  clamped = call(build(**kwargs), 'policy', **args)[0]
  free = call(build(policy__clamp=math.inf, **kwargs), 'policy', **args)[0]
  assert clamped == pytest.approx(-math.exp(20), rel=1e-5)
  assert free == pytest.approx(-math.exp(25), rel=1e-5)
