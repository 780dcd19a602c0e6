"""Terms: invariants that hold for every one of them, and their own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import types
from mmr1.losses import kl
from mmr1.losses import ratio
from mmr1.losses import reduce
from mmr1.losses import surrogate
from mmr1.losses import terms
from tests.losses import blocks
from tests.losses.blocks import block as make

SURROGATES = [surrogate.clip, surrogate.cispo, surrogate.sapo, surrogate.none,
              surrogate.linear, surrogate.geo_mean]
SEQ_MEAN = dict(mode='seq_mean', rows='all')


def policy(**kw):
  return lambda scores, block: terms.policy(scores, block, {}, **kw)


TERMS = {
    **{s.__name__: policy(surrogate=s) for s in SURROGATES},
    'dual_clip': policy(dual_clip=3.0, clamp=None),
    'gspo': policy(level='sequence', reduction=SEQ_MEAN),
    'gspo_token': policy(level='sequence_token', reduction=SEQ_MEAN),
    'dr_grpo': policy(reduction=dict(mode='constant', length=8, rows='all')),
    'kl': lambda s, b: terms.kl(s, b, {}),
    'kl_bias': lambda s, b: terms.kl(s, b, {}, bias_correction=True),
    'kl_full': lambda s, b: terms.kl_full(s, b, {}),
    'entropy': lambda s, b: terms.entropy(s, b, {}),
    'entropy_sampled': lambda s, b: terms.entropy(s, b, {}, source='sampled'),
    'nll': lambda s, b: terms.nll(s, b, {}),
    'critic': lambda s, b: terms.critic(s, b, {}),
}


def loss(term, scores, block):
  return reduce.finish(*term(scores, block))


def value_and_gradient(term, scores, block):
  return jax.value_and_grad(lambda s: loss(term, s, block))(scores)


def on_axis(fn, scores, block):
  """fn on every [N, G, ...] leaf of scores and block."""
  return jax.tree.map(fn, scores), jax.tree.map(fn, block)


@pytest.mark.parametrize('term', TERMS.values(), ids=TERMS)
def test_m9_all_masked_is_exactly_zero(term):
  scores, block = make()
  value, gradient = value_and_gradient(
      term, scores, block.replace(mask=jnp.zeros_like(block.mask)))
  assert value == 0
  assert not any(np.any(g) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize('term', TERMS.values(), ids=TERMS)
def test_m9_garbage_and_padding_under_the_mask_change_nothing(term):
  scores, block = make(wide=True)
  want, gradient = value_and_gradient(term, scores, block)
  def spoil(x):
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 3)))
    mask = jnp.pad(block.mask, ((0, 0), (0, 0), (0, 3)))
    return x if x.dtype == bool else jnp.where(mask, x, jnp.nan)
  got, spoilt = value_and_gradient(term, *on_axis(spoil, scores, block))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  for a, b in zip(jax.tree.leaves(spoilt), jax.tree.leaves(gradient)):
    np.testing.assert_allclose(a[..., :5], b, atol=1e-6)
    assert not np.any(a[..., 5:])


@pytest.mark.parametrize('term', TERMS.values(), ids=TERMS)
def test_m3_chunks_and_blocks_add_up_to_the_whole(term):
  scores, block = make()
  want, gradient = value_and_gradient(term, scores, block)
  halves = [on_axis(lambda x, i=i: x[:, i:i + 2], scores, block)
            for i in (0, 2)]
  piece = jax.jit(jax.value_and_grad(term, has_aux=True))
  ((a, n), da), ((b, m), db) = [piece(*half) for half in halves]
  assert n + m == term(scores, block)[1]
  np.testing.assert_allclose(
      reduce.finish(a + b, n + m), want, rtol=1e-5, atol=1e-6)
  joined = jax.tree.map(
      lambda *x: reduce.finish(np.concatenate(x, 1), n + m), da, db)
  for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(gradient)):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('term', TERMS.values(), ids=TERMS)
def test_m3_order_of_the_group_does_not_matter(term):
  scores, block = make()
  turned = on_axis(lambda x: x[:, ::-1], scores, block)
  np.testing.assert_allclose(
      loss(term, *turned), loss(term, scores, block), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('level', ratio.LEVELS)
def test_first_ratio_is_exactly_one(level):
  scores, block = make(seed=1, wide=True)
  for old in (None, scores.logp):
    block = block.replace(old=old)
    means, maxima = terms.policy_metrics(scores, block, {}, level=level)
    assert reduce.finish(*means['ratio/mean']) == 1
    assert maxima['ratio/max'] == 1
    assert means['clip_frac/low'][0] == means['clip_frac/high'][0] == 0
    assert means['kl_old'][0] == 0


def test_old_none_has_the_gradient_of_reinforce():
  scores, block = make(wide=True, old=None)
  grad = lambda **kw: jax.grad(
      lambda s: loss(policy(**kw), s, block))(scores).logp
  np.testing.assert_allclose(
      grad(), grad(surrogate=surrogate.none), atol=1e-7)


@pytest.mark.parametrize('clamp', [20.0, None])
@pytest.mark.parametrize('level', ratio.LEVELS)
@pytest.mark.parametrize('fn', SURROGATES, ids=lambda f: f.__name__)
def test_m8_extreme_ratios_are_finite(fn, level, clamp):
  deltas = np.array([1e4, -1e4, 1e3, -1e3, 89, -89, 45, -45], np.float32)
  logp = jnp.tile(jnp.asarray(-np.abs(deltas)), (2, 1))[None]
  old = logp - deltas
  block = types.Block(
      prompts=None, completions=blocks.UNPACKED,
      mask=jnp.ones(logp.shape, bool),
      advantage=jnp.array([[[1.5], [-1.5]]]), old=old, ref=old)
  scores = types.Scores(logp=logp, entropy=jnp.zeros_like(logp))
  value, gradient = value_and_gradient(
      policy(surrogate=fn, level=level, clamp=clamp), scores, block)
  assert np.isfinite(value)
  # The norm too: its squares must not overflow.
  assert np.isfinite(jnp.sum(jnp.square(gradient.logp)))
  means, maxima = terms.policy_metrics(
      scores, block, {}, surrogate=fn, level=level, clamp=clamp)
  assert all(np.isfinite(x) for x in jax.tree.leaves((means, maxima)))


@pytest.mark.parametrize(
    'fn', [kl.k1, kl.k2, kl.k3, kl.k3_plus, kl.absolute],
    ids=lambda f: f.__name__)
@pytest.mark.parametrize('bias', [True, False])
def test_m8_extreme_kl_is_finite(fn, bias):
  scores, block = make()
  block = block.replace(ref=block.ref + 1e4, old=block.old - 1e4)
  value, gradient = value_and_gradient(
      lambda s, b: terms.kl(s, b, {}, estimator=fn, bias_correction=bias),
      scores, block)
  assert np.isfinite(value) and np.all(np.isfinite(gradient.logp))


def test_m7_zero_advantage_has_zero_gradient():
  scores, block = make()
  block = block.replace(advantage=jnp.zeros_like(block.advantage))
  for fn in SURROGATES:
    value, gradient = value_and_gradient(policy(surrogate=fn), scores, block)
    assert value == 0 and not np.any(gradient.logp)


def test_m28_numbers_may_be_traced():
  scores, block = make()
  @jax.jit
  def fn(eps, c, clamp, length):
    return terms.policy(
        scores, block, {}, eps_low=eps, eps_high=2 * eps, dual_clip=c,
        clamp=clamp, reduction=dict(mode='constant', length=length))
  for eps in (0.05, 0.2):
    got = fn(eps, 3.0, 20.0, 8.0)
    want = terms.policy(
        scores, block, {}, eps_low=eps, eps_high=2 * eps, dual_clip=3.0,
        reduction=dict(mode='constant', length=8.0))
    np.testing.assert_allclose(got, want, rtol=1e-6)
  assert fn._cache_size() == 1


def test_weight_scales_tokens_and_not_the_count():
  scores, block = make()
  half = block.replace(weight=jnp.full(block.mask.shape, 0.5))
  for term in (TERMS['clip'], TERMS['nll']):
    total, count = term(scores, block)
    got, same = term(scores, half)
    np.testing.assert_allclose(got, total / 2, rtol=1e-6)
    assert same == count
  # KL stays dense; it has a weight of its own.
  assert TERMS['kl'](scores, half)[0] == TERMS['kl'](scores, block)[0]
  named = block.replace(extra={'weight/few': jnp.full(block.mask.shape, 0.5)})
  np.testing.assert_allclose(
      terms.kl(scores, named, {}, weight='few')[0],
      TERMS['kl'](scores, block)[0] / 2, rtol=1e-6)


def test_kl_bias_correction_multiplies_by_the_ratio():
  scores, block = make(lengths=[[5] * 4] * 2)
  k3 = kl.k3(scores.logp, block.ref)
  want = jnp.mean(k3 * jnp.exp(scores.logp - block.old))
  np.testing.assert_allclose(
      loss(TERMS['kl_bias'], scores, block), want, rtol=1e-5)


def test_entropy_is_a_bonus():
  scores, block = make(lengths=[[5] * 4] * 2)
  np.testing.assert_allclose(
      loss(TERMS['entropy'], scores, block), -scores.entropy.mean(),
      rtol=1e-6)
  # The sampled estimate of the entropy is -logp.
  np.testing.assert_allclose(
      loss(TERMS['entropy_sampled'], scores, block), scores.logp.mean(),
      rtol=1e-6)


def test_critic():
  # V 2, old 1, clip .5, return 3: max(1, (1.5 - 3)^2) / 2 = 1.125.
  # V 2, old 1, return 1: max(1, .25) / 2 = .5.
  _, block = make(shape=(1, 1, 2), lengths=[[2]])
  block = block.replace(extra={
      'values': jnp.array([[[1.0, 1.0]]]),
      'returns': jnp.array([[[3.0, 1.0]]])})
  zero = jnp.zeros((1, 1, 2))
  scores = types.Scores(logp=zero, entropy=zero, value=zero + 2)
  np.testing.assert_allclose(
      loss(TERMS['critic'], scores, block), (1.125 + 0.5) / 2)


def test_policy_metrics():
  # Ratios 1.5, .5, .9 with A 1, -1, 1 and one masked token.
  logp = jnp.log(jnp.array([[[1.5, 0.5, 0.9, 99.0]]]))
  block = types.Block(
      prompts=None, completions=blocks.UNPACKED,
      mask=jnp.array([[[True, True, True, False]]]),
      advantage=jnp.array([[[1.0, -1.0, 1.0, 1.0]]]),
      old=jnp.zeros((1, 1, 4)))
  scores = types.Scores(logp=logp, entropy=jnp.zeros_like(logp))
  means, maxima = terms.policy_metrics(scores, block, {})
  got = {k: float(reduce.finish(*v)) for k, v in means.items()}
  # kl_old: -(log 1.5 + log .5 + log .9) / 3 = -log(.675) / 3 = .131014.
  want = {'ratio/mean': 2.9 / 3, 'clip_frac/low': 1 / 3,
          'clip_frac/high': 1 / 3, 'kl_old': 0.131014}
  assert got == pytest.approx(want, abs=1e-5)
  assert maxima['ratio/max'] == pytest.approx(1.5)


def test_missing_inputs_are_named():
  scores, block = make(ref=None)
  with pytest.raises(ValueError, match='needs block.ref, which is None'):
    terms.kl(scores, block, {})
  with pytest.raises(ValueError, match="'new' is not one of"):
    terms.kl(scores, block, {}, target='new')
  with pytest.raises(ValueError, match=r"pairs\['kl_old'\]"):
    terms.kl_full(scores, block, {}, pair='kl_old')
  flat = block.replace(advantage=block.advantage[..., 0])
  with pytest.raises(ValueError, match='block.advantage has shape'):
    terms.policy(scores, flat, {})
  with pytest.raises(ValueError, match="'half' is not one of"):
    terms.entropy(scores, block, {}, source='half')


def test_imitation_is_the_likelihood_of_traces_times_the_advantage():
  """Under a constant advantage w its value and gradient are w x nll's over the
  traces; with the policy term both speak about every token once."""
  scores, block = blocks.block(seed=4)
  kind = jnp.where(jnp.arange(4)[:, None] == 1, types.KIND_EXPERT,
                   types.KIND_SAMPLED) * jnp.ones((2, 4, 5), jnp.int32)
  block = block.replace(
      completions=types.Completions(tokens=None, kind=kind, positions=None))
  traces = block.replace(mask=block.mask & (kind == types.KIND_EXPERT))
  def of(term, block):
    return jax.value_and_grad(lambda logp: reduce.finish(*term(
        scores.replace(logp=logp), block, {})))(scores.logp)
  flat = block.replace(advantage=jnp.full((2, 4, 1), .7))
  for got, want in zip(of(terms.imitation, flat), of(terms.nll, traces)):
    np.testing.assert_allclose(got, .7 * want, rtol=1e-6)
  _, count = terms.imitation(scores, block, {})
  _, others = policy()(scores, block)
  assert count == traces.mask.sum() and count + others == block.mask.sum()
