"""Buckets of completion lengths: the same numbers for less work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import buckets
from mmr1 import compiles
from mmr1 import forward
from mmr1 import objective
from mmr1 import passes
from mmr1 import update
from tests import small

N, G, T, SIZES = 3, 4, 9, (4,)
# No group is in order, and lengths of 0 and T are there. Ordered, and in four
# chunks, there are at most 1, 3, 4 and 9 tokens.
LENGTHS = np.asarray([[9, 1, 4, 3], [5, 3, 0, 4], [3, 5, 1, 3]])


class Lengths(forward.Policy):
  """Notes the T of every completion pass that is really run."""

  def apply(self, tree, *args, method):
    if method == 'completion_pass':
      t = args[2].shape[2]
      jax.debug.callback(lambda: ran.append(t))
    return super().apply(tree, *args, method=method)


ran = []


@pytest.fixture(scope='module')
def params():
  return small.params(depth=1)


def policy(cls=forward.Policy):
  return small.policy(cls=cls, depth=1)


def prompts(n=N):
  rows = tuple(small.row(3 + i % 4, seed=i) for i in range(n))
  return small.prompts(rows, media=False, p=8)


def blocks(lengths=LENGTHS, t=T):
  """Completions of these lengths; the second token of each is masked."""
  full = small.block(prompts(len(lengths)), lengths.shape[1], t, seed=5)
  real = jnp.arange(t) < lengths[..., None]
  return full.replace(
      mask=real & (jnp.arange(t) != 1),
      completions=full.completions.replace(
          kind=real.astype(jnp.int8),
          tokens=jnp.where(real, full.completions.tokens, small.PAD)))


@functools.partial(jax.jit, static_argnames=('model', 'terms', 'chunks', 'sizes'))
def gradient(tree, block, knobs, ref, *, model, terms, chunks, sizes):
  return update.gradient(
      model, tree, lambda x: x, (block,), terms, knobs, ref_params=ref,
      chunks=chunks, buckets=sizes)


def both(tree, block, made, *, chunks, ref=None):
  """(gradient, metrics) without and with buckets."""
  knobs = {name: jnp.float32(x) for name, x in {
      'temperature': 0.9, **made.knobs}.items()}
  return [jax.device_get(gradient(
      tree, block, knobs, ref, model=policy(), terms=made.terms, chunks=chunks,
      sizes=sizes)) for sizes in ((), SIZES)]


def same(a, b):
  """Equal to 1e-5 of the largest value of each leaf."""
  for (path, x), (_, y) in zip(*(
      jax.tree_util.tree_leaves_with_path(tree) for tree in (a, b)),
      strict=True):
    np.testing.assert_allclose(
        x, y, rtol=0, atol=1e-5 * max(np.abs(x).max(), 1e-3),
        err_msg=jax.tree_util.keystr(path))


def build(**changes):
  return objective.build(small.section(**changes))


CLIP = dict(eps_low=0.2, eps_high=0.3)
CASES = {
    # name: (objective, chunks, advantage of tokens, old of its own)
    'token': (dict(kl__coefficient=0.1, entropy__coefficient=0.05,
                   policy__kwargs=CLIP), 4, False, False),
    'sequence': (dict(
        policy__ratio='sequence_token', policy__reduce='constant',
        policy__sequence='product', kl__coefficient=0.1,
        kl__estimator='full'), 2, True, True),
}
ROWS = dict(policy__ratio='sequence', policy__reduce='seq_mean',
            policy__rows='all', policy__surrogate='cispo')


@pytest.mark.parametrize('case', CASES)
def test_m3_buckets_change_nothing(params, case):
  changes, chunks, of_tokens, own = CASES[case]
  made, block, ref = build(**changes), blocks(), None
  logp, hidden = small.logp(policy(), small.params(1, depth=1), block.prompts,
                            block.completions, block.mask, 0.9)
  noise = np.random.default_rng(0).normal(size=block.mask.shape)
  block = block.replace(
      old=None if own else logp + jnp.asarray(0.3 * noise, jnp.float32),
      ref=logp, weight=jnp.asarray(1 + 0.1 * noise, jnp.float32))
  if of_tokens:
    block = block.replace(advantage=jnp.asarray(noise[::-1], jnp.float32))
  if made.reference_hidden:
    ref, block = small.params(1, depth=1), block.replace(ref_hidden=hidden)
  (grads, metrics), (cut, cut_metrics) = both(
      params, block, made, chunks=chunks, ref=ref)
  assert np.abs(grads['language']['embed']).max() > 1e-3
  same(grads, cut)
  same(metrics, cut_metrics)


def test_m3_rows_in_buckets_change_nothing(params):
  """Groups of one (sft): rows are what chunks are made of."""
  lengths = np.asarray([[9], [1], [4], [2]])
  block = blocks(lengths)
  (grads, metrics), (cut, cut_metrics) = both(
      params, block, build(**ROWS), chunks=2)
  assert np.abs(grads['language']['embed']).max() > 1e-3
  same(grads, cut)
  same(metrics, cut_metrics)
  parts = update.split_rows(buckets.ordered_rows(block, 2, SIZES, 1), 2)
  uid = parts.prompts.uid - 100
  assert uid.tolist() == [[1, 3], [2, 0]]
  np.testing.assert_array_equal(
      parts.completions.tokens, np.asarray(block.completions.tokens)[uid])


def test_rows_stay_on_their_devices():
  lengths = np.asarray([9, 1, 4, 2, 3, 0, 5, 8])[:, None]
  block = blocks(lengths)
  moved = buckets.ordered_rows(block, 2, SIZES, 2)
  uid = moved.prompts.uid - 100
  # Devices hold 0 to 3 and 4 to 7; lengths 1, 2 | 4, 9 and 0, 3 | 5, 8.
  assert uid.tolist() == [1, 2, 3, 0, 5, 6, 4, 7]
  # 2 rows each do not split into 4 chunks: then over all of them.
  uid = buckets.ordered_rows(
      blocks(lengths[:4]), 4, SIZES, 2).prompts.uid - 100
  assert uid.tolist() == [1, 3, 2, 0]


def test_m28_a_chunk_runs_in_its_bucket_and_compiles_once(params):
  made, block = build(**CASES['token'][0]), blocks()
  knobs = {name: jnp.float32(x) for name, x in {
      'temperature': 1.0, **made.knobs}.items()}

  def run(lengths):
    # Masked: what is left of a completion does not matter.
    mask = jnp.arange(T) < lengths[..., None]
    ran.clear()
    jax.block_until_ready(gradient(
        params, block.replace(mask=mask), knobs, None, model=policy(Lengths),
        terms=made.terms, chunks=4, sizes=SIZES))
    jax.effects_barrier()
    return list(ran)

  # Each pass once: the backward pass of this model runs none again.
  assert run(LENGTHS) == [4, 4, 4, 9]
  counter = compiles.CompileCounter()
  # Exactly a bucket, one more, and nothing at all (every row was dropped).
  assert run(np.minimum(LENGTHS, 4)) == [4, 4, 4, 4]
  assert run(LENGTHS + 1) == [4, 4, 9, 9]
  assert run(np.full((N, G), 5)) == [9, 9, 9, 9]
  assert run(0 * LENGTHS) == [4, 4, 4, 4]
  counter.close()
  assert counter.count == 0


def test_m3_old_and_reference_in_buckets(params):
  """Their own order and shape, 0 where masked; the same log-probs."""
  block = blocks()
  bare = block.replace(old=None, ref=None)
  run = jax.jit(passes.log_probs, static_argnames=(
      'policy', 'chunks', 'hidden', 'buckets'))
  want, states = small.logp(
      policy(), params, block.prompts, block.completions, block.mask, 0.9)
  for chunks in (1, 4):
    ran.clear()
    logp, hidden = jax.device_get(run(
        policy(Lengths), params, bare, 0.9, chunks=chunks, hidden=True,
        buckets=SIZES))
    jax.effects_barrier()
    assert ran == ([9] if chunks == 1 else [4, 4, 4, 9])
    np.testing.assert_allclose(logp, want, atol=1e-5)
    assert (logp[~np.asarray(block.mask)] == 0).all()
    keep = np.asarray(block.mask)
    np.testing.assert_allclose(hidden[keep], states[keep], atol=1e-4)


def test_what_is_cut_follows_from_the_documented_shapes():
  block = blocks()
  extra = {'row': jnp.ones((N, G)), 'one': jnp.ones((N, G, 1)),
           'wide': jnp.ones((N, G, T, 7)), 'same': jnp.ones((N, G, 1, T))}
  whole = block.replace(
      extra=extra, ref_hidden=jnp.zeros((N, G, T, T)),
      completions=block.completions.replace(turn=block.completions.kind))
  got = buckets.cut(whole, 5)
  assert got.advantage.shape == (N, G, 1)
  assert got.mask.shape == got.old.shape == got.ref.shape == (N, G, 5)
  assert got.completions.turn.shape == (N, G, 5)
  assert got.completions.positions.shape == (N, G, 5, 3)
  assert got.ref_hidden.shape == (N, G, 5, T)
  assert {name: x.shape for name, x in got.extra.items()} == {
      'row': (N, G), 'one': (N, G, 1), 'wide': (N, G, 5, 7),
      'same': (N, G, 1, T)}
  np.testing.assert_array_equal(got.mask, block.mask[:, :, :5])
  assert got.prompts is block.prompts
  assert buckets.cut(whole, T) is whole
  with pytest.raises(ValueError, match=r'block.extra/bad.*\(3, 4, 8\).*9'):
    buckets.cut(block.replace(extra={'bad': jnp.ones((N, G, 8))}), 5)


def test_lengths_by_hand():
  mask = np.asarray([[[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]], bool)
  assert buckets.lengths(jnp.asarray(mask)).tolist() == [[3, 0, 4]]


@pytest.mark.parametrize('sizes', [
    (4, 2), (2, 2), (0, 2), (2, 8), (2.0,), (True,), (-1,)])
def test_m22_buckets_that_cannot_be(sizes):
  with pytest.raises(ValueError, match='rl.length_buckets: got .*ascending'):
    buckets.check(sizes, 8, 'rl.length_buckets')
  buckets.check((), 8, 'rl.length_buckets')
  buckets.check((1, 7), 8, 'rl.length_buckets')
