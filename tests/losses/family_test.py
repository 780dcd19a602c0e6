"""Every surrogate x ratio x reduction, and every KL x reduction: a table.

One compiled program a row of the table gives its value and its gradient under
all eight reductions; every property below asks that program. Random numbers
are multiples of 1/1024, so that fp32 differences of log-probs are exact.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmr1 import types
from mmr1.losses import kl
from mmr1.losses import reduce
from mmr1.losses import surrogate
from mmr1.losses import terms
from tests.losses import blocks
from tests.losses import oracle

N, G, T = 2, 4, 9
KEPT = 7  # the other columns are padding
REDUCTIONS = {
    'token_mean': dict(mode='token_mean'),
    'seq_mean': dict(mode='seq_mean'),
    'seq_mean_all': dict(mode='seq_mean', rows='all'),
    'seq_sum': dict(mode='seq_sum'),
    'seq_sum_all': dict(mode='seq_sum', rows='all'),
    'constant': dict(mode='constant', length=9.0),
    'constant_all': dict(mode='constant', length=9.0, rows='all'),
    'constant_none': dict(mode='constant', length=9.0, rows='none'),
}
LEVELS = {
    'token': dict(level='token'),
    'sequence': dict(level='sequence'),
    'product': dict(level='sequence', sequence='product'),
    'sequence_token': dict(level='sequence_token'),
}
# Function, keywords, levels.
SURROGATES = {
    'clip': ('clip', {}, LEVELS),
    'dual_clip': ('clip', dict(eps_high=0.28, dual_clip=3.0), ['token']),
    'delta': ('clip', dict(delta=1.5), ['token', 'sequence']),
    'cispo': ('cispo', {}, LEVELS),
    'verl_cispo': ('cispo', dict(ratio_low=0.8, ratio_high=1.28), ['token']),
    'sapo': ('sapo', {}, LEVELS),
    'none': ('none', {}, ['token']),
    'linear': ('linear', {}, LEVELS),
    'geo_mean': ('geo_mean', {}, ['token']),
}
FREE = dict(difference_clamp=None, value_clamp=None)
# Row of the table: (term of mmr1 without its reduction, the oracle's rows).
POLICIES = {
    f'{name}-{level}': (
        functools.partial(
            terms.policy, surrogate=getattr(surrogate, fn), clamp=None,
            **LEVELS[level], **kw),
        functools.partial(
            oracle.policy, fn=getattr(oracle, fn), level=level, **kw))
    for name, (fn, kw, levels) in SURROGATES.items() for level in levels}
KLS = {
    name: (functools.partial(terms.kl, estimator=getattr(kl, fn), **kw),
           functools.partial(oracle.kl, fn=getattr(oracle, fn), **their))
    for name, fn, kw, their in [
        ('k1', 'k1', {}, {}), ('k2', 'k2', {}, {}), ('k3', 'k3', {}, {}),
        ('k3_free', 'k3', FREE, FREE), ('k3_plus', 'k3_plus', {}, {}),
        ('absolute', 'absolute', {}, {}),
        ('k3_bias', 'k3', dict(bias_correction=True), dict(bias=True))]}
TABLE = {**POLICIES, **KLS}
every_row = pytest.mark.parametrize('name', TABLE)
every_policy = pytest.mark.parametrize('name', POLICIES)


def numbers(seed, spread=0.4):
  """Ragged rows with holes, one empty; group 1 has no variance.

  Of even seeds the advantage is one of the row, of odd ones of the token.
  """
  rng = np.random.default_rng(seed)
  draw = lambda scale, size=(N, G, T): np.round(
      rng.normal(size=size) * scale * 1024).clip(-2**14, 2**14) / 1024
  mask = np.arange(T) < rng.integers(1, KEPT + 1, (N, G, 1))
  mask &= rng.random((N, G, T)) > 0.2
  mask[0, 3] = False
  mask[0, 0, 0] = mask[1, 1, :2] = True
  advantage = draw(1.0) if seed % 2 else np.repeat(draw(1.0, (N, G, 1)), T, 2)
  advantage[1] = 0.0
  logp = -np.abs(draw(1.0))
  return dict(mask=mask, logp=logp, old=logp + draw(spread),
              ref=logp + draw(spread), advantage=advantage)


def spoil(x, seed=0):
  """The same with nan, infinities and 1e30 under the mask."""
  garbage = np.random.default_rng(seed).choice(
      [np.nan, np.inf, -np.inf, 1e30, -1e30], x['mask'].shape)
  return {k: v if k == 'mask' else np.where(x['mask'], v, garbage)
          for k, v in x.items()}


@functools.cache
def program(name):
  """Arrays -> values f32[R], counts f32[R], slopes f32[R, N, G, T]."""
  term, _ = TABLE[name]
  @jax.jit
  def run(mask, logp, old, ref, advantage):
    block = types.Block(
        prompts=None, completions=blocks.UNPACKED, mask=mask,
        advantage=advantage, old=old, ref=ref)
    def every_reduction(logp):
      scores = types.Scores(logp=logp, entropy=jnp.zeros_like(logp))
      parts = [term(scores, block, {}, reduction=kw)
               for kw in REDUCTIONS.values()]
      values = jnp.stack([reduce.finish(*part) for part in parts])
      return values, jnp.stack([count for _, count in parts])
    values, pull, counts = jax.vjp(every_reduction, logp, has_aux=True)
    slopes, = jax.vmap(pull)(jnp.eye(len(REDUCTIONS)))
    return values, counts, slopes
  return run


def ours(name, x):
  arrays = {k: jnp.asarray(v, bool if k == 'mask' else jnp.float32)
            for k, v in x.items()}
  return [np.asarray(out) for out in program(name)(**arrays)]


def theirs(name, x):
  """The oracle's values [R] and slopes [R, N, G, T]."""
  _, rows = TABLE[name]
  tensors = {k: torch.tensor(v) for k, v in x.items()}
  tensors['logp'].requires_grad_()
  losses = rows(tensors)
  values, slopes = [], []
  for kw in REDUCTIONS.values():
    kw = {'rows_' if k == 'rows' else k: v for k, v in kw.items()}
    value = oracle.reduce(losses, **kw)
    slope, = torch.autograd.grad(
        value, tensors['logp'], retain_graph=True, allow_unused=True)
    values.append(value.item())
    slopes.append(np.zeros(x['mask'].shape) if slope is None
                  else slope.numpy())
  return np.array(values), np.stack(slopes)


def assert_close(got, want, tolerance):
  """Absolute below 1, relative above, by reduction."""
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(
        a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


@every_row
def test_values_and_gradients_equal_the_oracle(name):
  for seed in range(2):
    x = numbers(seed)
    values, _, slopes = ours(name, spoil(x))
    want, want_slopes = theirs(name, x)
    assert_close(values, want, 1e-6)
    assert_close(slopes, want_slopes, 1e-5)


@every_row
def test_extreme_ratios_equal_the_oracle(name):
  # Log-ratios up to 16 a token. The exp of fp32 is off by some 1e-6 there.
  x = numbers(2, spread=5.0)
  x['advantage'][1] = x['advantage'][0] * -1
  if 'product' in name:
    x['old'] = (x['old'] - x['logp']) / 8 + x['logp']
  values, _, slopes = ours(name, spoil(x))
  want, want_slopes = theirs(name, x)
  assert_close(values, want, 5e-6)
  assert_close(slopes, want_slopes, 1e-5)


@every_row
def test_m3_permuting_the_group_permutes_the_gradient(name):
  x, order = numbers(3), [2, 0, 3, 1]
  values, counts, slopes = ours(name, x)
  turned = ours(name, {k: v[:, order] for k, v in x.items()})
  assert_close(turned[0], values, 1e-6)
  np.testing.assert_array_equal(turned[1], counts)
  assert_close(turned[2], slopes[:, :, order], 1e-6)


@every_row
def test_m9_order_of_padding_and_holes_changes_nothing(name):
  # The oracle sees kept tokens only; here they move, among garbage.
  x = numbers(4)
  values, counts, slopes = ours(name, spoil(x))
  place = np.argsort(~x['mask'], axis=-1, kind='stable')
  got = ours(name, spoil({
      k: np.take_along_axis(v, place, -1) for k, v in x.items()}, seed=1))
  assert_close(got[0], values, 1e-6)
  np.testing.assert_array_equal(got[1], counts)
  place = np.broadcast_to(place, slopes.shape)
  assert_close(got[2], np.take_along_axis(slopes, place, -1), 1e-6)


@every_row
def test_m9_masked_rows_contribute_exactly_nothing(name):
  # A batch is what its groups are, each with the other one masked.
  x = numbers(5)
  x['advantage'][1] = x['advantage'][0] + 1
  values, counts, slopes = ours(name, x)
  live = np.maximum(counts, 1)
  total, tokens, slope = 0, 0, 0
  for group in range(N):
    part = {**x, 'mask': x['mask'] & (np.arange(N) == group)[:, None, None]}
    got, count, gradient = ours(name, spoil(part))
    assert not np.any(gradient[:, 1 - group]) and np.any(gradient[:, group])
    scale = np.maximum(count, 1)
    total = total + got * scale
    slope = slope + gradient * scale[:, None, None, None]
    tokens = tokens + count
  every = np.array([kw.get('rows') == 'all' for kw in REDUCTIONS.values()])
  np.testing.assert_array_equal(tokens, np.where(every, 2, 1) * counts)
  assert_close(total / live, values, 1e-6)
  assert_close(slope / live[:, None, None, None], slopes, 1e-6)


@every_row
def test_m9_all_masked_is_exactly_zero(name):
  x = numbers(6)
  x['mask'][:] = False
  values, counts, slopes = ours(name, spoil(x))
  assert not np.any(values) and not np.any(slopes)
  rows = [kw.get('rows') == 'all' for kw in REDUCTIONS.values()]
  assert np.array_equal(counts > 0, rows)


@every_policy
def test_m7_zero_variance_group_is_exactly_zero(name):
  for seed, spread in ((7, 0.4), (8, 4.0)):
    x = numbers(seed, spread)
    _, _, slopes = ours(name, x)
    assert not np.any(slopes[:, 1])
    x['mask'][0] = False
    values, _, _ = ours(name, x)
    assert not np.any(values)


@every_row
def test_m8_extremes_are_finite(name):
  # |delta| up to 1e4 between all three log-probs, of both signs.
  far = np.array([1e4, -1e4, 1e3, -1e3, 89, -89, 45, -45, 41])
  x = numbers(9)
  x['mask'][:] = True
  x['advantage'][1] = -x['advantage'][0]
  x['logp'] = np.broadcast_to(-np.abs(far), (N, G, T)).copy()
  x['old'] = x['logp'] + far
  x['ref'] = x['logp'] - far[::-1]
  x['old'][:, 1:3], x['ref'][:, 1:3] = -1e4, 0.0
  x['logp'][1, 3] = 0.0
  values, _, slopes = ours(name, x)
  assert np.all(np.isfinite(values))
  # The norm too: its squares must not overflow.
  assert np.all(np.isfinite(np.square(slopes).sum()))
