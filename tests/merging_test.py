"""Coefficients of task vectors, by hand; and what every rule must keep."""

import ml_dtypes
import numpy as np
import pytest

from mmr1 import merging

# ||tau||^2 of three layers.
NORMS = {'vision': np.array([4.0, 3, 1]), 'reasoning': np.array([1.0, 3, 4])}
SHARE = np.array([0.6, 0.4, 0.3])


def measured(share=None, **norms):
  return merging.Measured(norms or NORMS, share)


def rules():
  """Those with one coefficient too many or too few would not sum to 1."""
  return [
      lambda m: merging.closed_form(m),
      lambda m: merging.closed_form(m, prior='exponential'),
      lambda m: merging.closed_form(m, prior='exponential', alpha=0.3),
      lambda m: merging.closed_form(
          m, prior='exponential', prior_norm='max_to_one'),
      lambda m: merging.closed_form(m, prior='linear'),
      merging.whole_model, merging.interpolation]


# By hand.


def test_without_a_prior():
  # 4 / (4 + 1), 3 / (3 + 3), 1 / (1 + 4).
  result = merging.closed_form(measured())
  np.testing.assert_allclose(result['vision'], [0.8, 0.5, 0.2], rtol=1e-12)
  np.testing.assert_allclose(result['reasoning'], [0.2, 0.5, 0.8], rtol=1e-12)


def test_the_fit():
  # ln .6, ln .4, ln .3 = -.510826, -.916291, -1.203973 on l - 2 = -1, 0, 1:
  # slope (-1.203973 + .510826) / 2 = -.346574 = -ln(2) / 2.
  assert merging.fit_decay(SHARE) == pytest.approx(0.346574, abs=1e-6)
  assert merging.fit_decay(SHARE) == pytest.approx(np.log(2) / 2)
  # An exact exponential is found, whatever its height; growing: below 0.
  l = np.arange(1, 9)
  assert merging.fit_decay(0.7 * np.exp(-0.05 * l)) == pytest.approx(0.05)
  assert merging.fit_decay(0.1 * np.exp(0.2 * l)) == pytest.approx(-0.2)


def test_with_the_prior():
  # exp(-alpha l) = .707107, .5, .353553, sum 1.560660: w = .45308, .32038,
  # .22654. Layer 1: .45308 x 4 / (.45308 x 4 + .54692 x 1) = .76818.
  w = merging.visual_prior('exponential', 3, share=SHARE)
  np.testing.assert_allclose(w, [0.45308, 0.32038, 0.22654], atol=5e-6)
  result = merging.closed_form(measured(SHARE), prior='exponential')
  np.testing.assert_allclose(
      result['vision'], [0.76818, 0.32038, 0.06823], atol=5e-6)
  np.testing.assert_allclose(
      result['reasoning'], [0.23182, 0.67962, 0.93177], atol=5e-6)


def test_other_priors():
  # Fixed alpha .5: exp(-.5 l) over its sum; linear: 3, 2, 1 over 6.
  w = np.exp(-0.5 * np.arange(1, 4))
  np.testing.assert_allclose(merging.visual_prior(
      'exponential', 3, alpha=0.5, share=SHARE), w / w.sum())
  np.testing.assert_allclose(
      merging.visual_prior('linear', 3), [1 / 2, 1 / 3, 1 / 6])
  # max_to_one: 1, sqrt(1/2), 1/2. Layer 1 is the seeing parent's.
  w = merging.visual_prior('exponential', 3, share=SHARE, norm='max_to_one')
  np.testing.assert_allclose(w, [1, 0.5**0.5, 0.5])
  result = merging.closed_form(
      measured(SHARE), prior='exponential', prior_norm='max_to_one')
  # Layer 3: .5 x 1 / (.5 x 1 + .5 x 4).
  assert result['vision'][0] == 1
  assert result['vision'][2] == pytest.approx(0.2)
  # The paper's quirk: with 48 layers and alpha .05 all are small.
  w = merging.visual_prior('exponential', 48, alpha=0.05)
  np.testing.assert_allclose(w[[0, -1]], [0.0536, 0.0051], atol=5e-5)


def test_one_coefficient_for_all_layers():
  # 8 / 16 by whole norms; here 12 and 4.
  result = merging.whole_model(measured(
      a=np.array([8.0, 4]), b=np.array([1.0, 3])))
  np.testing.assert_allclose(result['a'], [0.75, 0.75])
  np.testing.assert_allclose(merging.fixed(measured())['vision'], [0.3] * 3)
  three = measured(a=np.ones(2), b=np.ones(2), c=np.zeros(2))
  np.testing.assert_allclose(merging.interpolation(three)['c'], [1 / 3] * 2)
  np.testing.assert_allclose(merging.interpolation(
      three, weights=dict(a=0.5, b=0.25, c=0.25))['b'], [0.25] * 2)


def test_a_growing_profile_turns_the_prior():
  w = merging.visual_prior('exponential', 3, share=SHARE[::-1])
  assert (np.diff(w) > 0).all()
  np.testing.assert_allclose(
      w, merging.visual_prior('exponential', 3, share=SHARE)[::-1])


def test_a_fused_tensor():
  base, v, r = (np.array(x, np.float32) for x in ([1, 1], [2, 1], [1, 5]))
  # 1 + .8 x 1 + .2 x 0; 1 + .8 x 0 + .2 x 4.
  result = merging.fuse(base, {'v': v, 'r': r}, {'v': 0.8, 'r': 0.2})
  np.testing.assert_allclose(result, [1.8, 1.8], rtol=1e-6)
  assert result.dtype == np.float32
  # tau = (1, 0) and (0, 4): squared norms 1 and 16, inner product 0.
  np.testing.assert_array_equal(
      merging.gram(base, [v, r]), [[1, 0], [0, 16]])


# What always holds.


@pytest.mark.parametrize('rule', rules())
def test_they_sum_to_one_and_turn_with_the_parents(rule):
  rng = np.random.default_rng(0)
  for _ in range(20):
    layers = rng.integers(2, 9)
    norms = {name: rng.exponential(size=layers)
             for name in ('vision', 'reasoning')}
    share = rng.random(layers) + 0.01
    result = rule(measured(share, **norms))
    assert {*result} == {*norms}
    np.testing.assert_allclose(sum(result.values()), 1, rtol=1e-12)
    assert all((x >= 0).all() for x in result.values())
    turned = rule(measured(share, **dict(reversed(norms.items()))))
    for name in norms:
      np.testing.assert_array_equal(turned[name], result[name])


def test_swapped_parents_without_a_prior():
  a = merging.closed_form(measured())
  b = merging.closed_form(measured(
      vision=NORMS['reasoning'], reasoning=NORMS['vision']))
  np.testing.assert_allclose(a['vision'], b['reasoning'])
  # With a prior they are not each other's: it is of the one that sees.
  a = merging.closed_form(measured(SHARE), prior='exponential')
  b = merging.closed_form(measured(SHARE), prior='exponential', of='reasoning')
  assert abs(a['vision'] - b['vision']).min() > 0.05


@pytest.mark.parametrize('prior', merging.PRIORS)
def test_a_parent_that_is_the_base(prior):
  rng = np.random.default_rng(0)
  base, vision = rng.normal(size=(2, 64)).astype(np.float32)
  norm = merging.gram(base, [vision, base])
  result = merging.closed_form(
      measured(SHARE, vision=np.full(3, norm[0, 0]),
               reasoning=np.full(3, norm[1, 1])), prior=prior)
  np.testing.assert_array_equal(result['vision'], 1)
  np.testing.assert_array_equal(result['reasoning'], 0)
  fused = merging.fuse(base, {'vision': vision, 'reasoning': base},
                       {name: x[0] for name, x in result.items()})
  np.testing.assert_array_equal(fused, vision)  # to the bit


@pytest.mark.parametrize('prior', merging.PRIORS)
def test_where_nothing_was_learnt_the_base_stays(prior):
  norms = {name: np.array([1.0, 0, 2]) for name in NORMS}
  result = merging.closed_form(measured(SHARE, **norms), prior=prior)
  assert all(x[1] == 0 and x[0] > 0 for x in result.values())
  base = np.array([0.1, 7], np.float32)
  kept = merging.fuse(base, {name: base + 1 for name in NORMS},
                      {name: x[1] for name, x in result.items()})
  np.testing.assert_array_equal(kept, base)
  none = {name: np.zeros(2) for name in NORMS}
  assert not merging.whole_model(measured(**none))['vision'].any()


def test_bfloat16_is_summed_in_float32():
  """2^20 squares of 2^-7 make 2^6; a sum in bfloat16 stops far below."""
  base = np.zeros((1024, 1024), ml_dtypes.bfloat16)
  parent = np.full((1024, 1024), 2.0**-7, ml_dtypes.bfloat16)
  (norm,), = merging.gram(base, [parent])
  assert norm == 2.0**6
  # .5 and .5 of 1 and 1 + 2^-7 is between two bfloat16s, and so kept.
  one = np.ones(4, ml_dtypes.bfloat16)
  result = merging.fuse(one, {'a': one + ml_dtypes.bfloat16(2.0**-7)},
                        {'a': 0.5})
  np.testing.assert_array_equal(result, 1 + 2.0**-8)


def test_pieces_add_up(monkeypatch):
  rng = np.random.default_rng(0)
  base, *parents = rng.normal(size=(3, 7, 11)).astype(np.float32)
  whole = merging.gram(base, parents)
  monkeypatch.setattr(merging, '_PIECE', 10)
  np.testing.assert_allclose(merging.gram(base, parents), whole, rtol=1e-6)
  tau = np.stack(parents).reshape(2, -1) - base.reshape(-1)
  np.testing.assert_allclose(whole, tau @ tau.T, rtol=1e-5)


@pytest.mark.parametrize('call, message', [
    (lambda: merging.closed_form(measured(), prior='cubic'), 'cubic.*allowed'),
    (lambda: merging.closed_form(measured(), prior='linear', of='seeing'),
     "of 'seeing' and one other parent"),
    (lambda: merging.closed_form(
        measured(SHARE, a=np.ones(3), b=np.ones(3), c=np.ones(3)),
        prior='exponential', of='a'), 'one other parent'),
    (lambda: merging.closed_form(measured(), prior='exponential'),
     'not measured.*share.examples'),
    (lambda: merging.visual_prior('linear', 3, norm='mean'), "norm='mean'"),
    (lambda: merging.fit_decay(np.array([0.5])), 'two layers'),
    (lambda: merging.fit_decay(np.array([0.5, 0.0])), 'all above 0.*images'),
    (lambda: merging.interpolation(measured(), weights=dict(vision=1.0)),
     'a number for each'),
    (lambda: merging.interpolation(
        measured(), weights=dict(vision=0.7, reasoning=0.7)), 'a sum of 1'),
])
def test_m22_what_cannot_be_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
