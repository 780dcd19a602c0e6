"""The gradient of a step: laws 1 and 5, denominators, metrics, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import compiles
from mmr1 import forward
from mmr1 import objective
from mmr1 import passes
from mmr1 import trees
from mmr1 import types
from mmr1 import update
from mmr1.sampling import sample
from tests import small

N, G, T = 4, 4, 6


@pytest.fixture(scope='module')
def params():
  return small.params()


def real(block):
  return forward.completion_mask(block.completions)


def recompute(params, block):
  return small.logp(small.policy(), params, block.prompts, block.completions,
                    real(block), 1.0)[0]


def near(params, block, seed=3):
  """Old and reference log-probs around the policy's: ratios around 1."""
  noise = np.random.default_rng(seed).normal(size=(2, *block.mask.shape))
  logp = recompute(params, block)
  return block.replace(old=logp + jnp.asarray(0.3 * noise[0], jnp.float32),
                       ref=logp + jnp.asarray(0.6 * noise[1], jnp.float32))


@pytest.fixture(scope='module')
def block(params):
  return near(params, small.block(small.prompts(), G, T))


@pytest.fixture(scope='module')
def base(params, block):
  """(gradient, metrics) in one piece."""
  return small.gradient(params, (block,))


# A second way to the same numbers: every prefix of every completion is a
# prompt of its own, N x G x T rows that share nothing and are not shifted.


def sequences(block):
  """Prompts [N * G * T, P + T] whose next token is the scored one."""
  p, c = block.prompts, jax.tree.map(np.asarray, block.completions)
  n, g, t = c.tokens.shape
  rows = []
  for i in range(n):
    one = jax.tree.map(lambda x: np.asarray(x)[i], p)
    for j in range(g):
      for k in range(t):
        def tail(x, y, fill):
          joined = np.concatenate([x, y[:k]])
          blank = np.full((t - k, *x.shape[1:]), fill, x.dtype)
          return np.concatenate([blank, joined])
        vision = one.media['vision']
        rows.append(types.Prompts(
            tokens=tail(one.tokens, c.tokens[i, j], small.PAD),
            mask=tail(one.mask, c.kind[i, j] > 0, False),
            positions=tail(one.positions, c.positions[i, j], 0),
            next_position=one.next_position, uid=one.uid,
            media={'vision': vision.replace(slot=tail(
                vision.slot, np.full(t, -1, np.int32), -1))}))
  return jax.tree.map(lambda *x: np.stack(x), *rows)


@jax.jit
def naive(params, prompts, block, coef_kl=0.1, coef_entropy=0.05):
  """Gradient and (policy, kl, entropy) means of the plan, term by term."""
  def loss(params):
    policy, mask = small.policy(), block.mask
    logits = policy.apply(
        params, policy.prompt_pass(params, prompts).last, method='head')
    words = jnp.asarray(
        [i for i in range(small.VOCAB) if i not in small.BANNED])
    all_logp = jax.nn.log_softmax(logits[:, words]).reshape(
        *mask.shape, len(words))
    # Words are ids 0..59, in order: an id is its own column.
    logp = jnp.take_along_axis(
        all_logp, block.completions.tokens[..., None], -1)[..., 0]
    r, a = jnp.exp(logp - block.old), block.advantage
    per_token = -jnp.minimum(r * a, jnp.clip(r, 0.8, 1.3) * a)
    d = block.ref - logp
    per_token_kl = jnp.exp(d) - d - 1
    entropy = -jnp.sum(jnp.exp(all_logp) * all_logp, -1)
    mean = lambda x: jnp.sum(jnp.where(mask, x, 0)) / jnp.sum(mask)
    parts = mean(per_token), mean(per_token_kl), mean(entropy)
    return parts[0] + coef_kl * parts[1] - coef_entropy * parts[2], (
        parts, jnp.max(jnp.where(mask, r, 0)), mean(r))
  return jax.grad(loss, has_aux=True)(params)


@pytest.fixture(scope='module')
def independent(params, block):
  return naive(params, sequences(block), block)


def test_law_1_equals_sequences_that_share_nothing(base, independent):
  assert max(np.abs(x).max() for x in jax.tree.leaves(base[0])) > 0.1
  small.close(base[0], independent[0], 1e-5)


def test_m24_logged_is_what_was_optimised(base, independent):
  metrics = {name: float(x) for name, x in base[1].items()}
  (policy, kl, entropy), top, mean = independent[1]
  expected = {
      'loss/policy': policy, 'loss/kl': 0.1 * kl,
      'loss/entropy': -0.05 * entropy, 'kl': kl, 'entropy': entropy,
      'ratio/max': top, 'ratio/mean': mean}
  for name, value in expected.items():
    assert metrics[name] == pytest.approx(float(value), abs=1e-5), name
  assert metrics['loss'] == pytest.approx(
      sum(x for name, x in metrics.items() if name.startswith('loss/')),
      abs=1e-6)
  assert 0 < metrics['clip_frac/low'] < 1 and 0 < metrics['clip_frac/high'] < 1


def test_m24_grad_norm_is_that_of_the_gradient(base):
  """By numpy over all leaves; `training_test` has the logged one."""
  squares = sum((np.asarray(x, np.float64)**2).sum()
                for x in jax.tree.leaves(base[0]))
  assert float(trees.global_norm(base[0])) == pytest.approx(squares**0.5)


def same(a, b, atol=1e-5):
  small.close(a[0], b[0], atol)
  small.close(a[1], b[1], 1e-5)


def test_m3_chunks_of_completions_change_nothing(params, block, base):
  same(base, small.gradient(params, (block,), chunks=4), 2e-6)


def test_m3_old_and_reference_in_chunks(params, block):
  """The same log-probs and hidden states; none of those unless asked for."""
  run = jax.jit(
      passes.log_probs, static_argnames=('policy', 'chunks', 'hidden'))
  bare = block.replace(old=None, ref=None)
  logp, states = run(small.policy(), params, bare, 1.0, chunks=2, hidden=True)
  want, expected = small.logp(
      small.policy(), params, block.prompts, block.completions, block.mask, 1.0)
  np.testing.assert_allclose(logp, want, atol=1e-5)
  assert (np.asarray(logp)[~np.asarray(block.mask)] == 0).all()
  np.testing.assert_allclose(states, expected, atol=1e-4)
  for chunks in (1, 2):
    logp, states = jax.eval_shape(
        lambda p, b: passes.log_probs(
            small.policy(), p, b, 1.0, chunks=chunks), params, bare)
    assert logp.shape == block.mask.shape and states is None


def test_m3_m9_blocks_of_other_shapes_change_nothing(params, block, base):
  """Rows 0, 1 as they are; rows 2, 3 with P + 9, T + 3, another window of
  patches and a longer prompt whose completions are all masked; in two chunks.
  A mean per block would weigh their tokens differently."""
  rows = (*small.MIXED[2:], small.row(10, (1, 8, 8), 5, seed=9))
  prompts = small.prompts(rows, p=35, s=5 * small.WINDOW)
  tail = small.rows_of(block, [2, 3, 3])
  wide = jax.tree.map(
      lambda x: jnp.pad(x, [(0, 0)] * 2 + [(0, 3)] + [(0, 0)] * (x.ndim - 3))
      if x.shape[2] == T else x, tail.replace(prompts=None))
  mask = wide.mask.at[2].set(False)
  wide = wide.replace(
      prompts=prompts, mask=mask, completions=wide.completions.replace(
          positions=sample.text_positions(
              prompts.next_position, mask.shape)))
  head = small.rows_of(block, [0, 1])
  assert int(head.mask.sum()) != int(mask.sum())
  same(base, small.gradient(params, (head, wide), chunks=2))


def test_m3_row_and_slot_order_change_nothing(params, block, base):
  rows, slots = np.asarray([2, 0, 3, 1]), np.asarray([3, 1, 0, 2])
  shuffled = small.rows_of(block, rows)
  shuffled = jax.tree.map(
      lambda x: x[:, slots], shuffled.replace(prompts=None)).replace(
          prompts=shuffled.prompts)
  same(base, small.gradient(params, (shuffled,)))


def test_completions_that_are_there_several_times(params, block):
  """As if they stood in the group as often."""
  times = jnp.asarray([2, 1, 0, 1], jnp.float32)[None, :, None]
  counted = block.replace(
      times=jnp.broadcast_to(times, (N, G, 1)), mask=block.mask & (times > 0))
  repeated = jax.tree.map(
      lambda x: x[:, np.asarray([0, 0, 1, 3])],
      block.replace(prompts=None)).replace(prompts=block.prompts)
  got, want = (small.gradient(params, (x,)) for x in (counted, repeated))
  small.close(got[0], want[0], 1e-5)
  for name in ('loss', 'loss/policy', 'loss/kl'):
    assert float(got[1][name]) == pytest.approx(float(want[1][name]), abs=1e-6)


def test_m9_masked_entries_may_hold_anything(params, block, base):
  def spoil(x):
    return jnp.where(block.mask, x, jnp.nan)
  bad = block.replace(
      old=spoil(block.old), ref=spoil(block.ref),
      advantage=spoil(jnp.broadcast_to(block.advantage, block.mask.shape)))
  # [N, G, T] advantages are another program: back to [N, G, 1] by rows.
  bad = bad.replace(advantage=block.advantage)
  same(base, small.gradient(params, (bad,)))


def test_m6_m9_an_all_masked_batch_is_exactly_0(params, block):
  none = block.replace(mask=jnp.zeros_like(block.mask))
  grads, metrics = small.gradient(params, (none,))
  assert float(metrics['loss']) == 0
  for leaf in jax.tree.leaves(grads):
    assert (np.asarray(leaf) == 0).all()
  assert all(np.isfinite(x) for x in metrics.values())


def test_m9_the_mean_is_over_kept_tokens(params, block, base):
  """Without the second half of the rows the mean is over the first half's
  tokens: the two halves' losses, weighted by tokens, are the whole's."""
  n = [int(block.mask[:2].sum()), int(block.mask[2:].sum())]
  keep = jnp.arange(N)[:, None, None] < 2
  halves = [small.gradient(params, (block.replace(mask=block.mask & m),))
            for m in (keep, ~keep)]
  for name in ('loss', 'loss/kl', 'kl', 'entropy', 'ratio/mean'):
    weighted = sum(k * float(h[1][name]) for k, h in zip(n, halves)) / sum(n)
    assert float(base[1][name]) == pytest.approx(weighted, abs=1e-5), name
  small.close(base[0], jax.tree.map(
      lambda a, b: (n[0] * a + n[1] * b) / sum(n), halves[0][0],
      halves[1][0]), 1e-5)


def test_m6_law_5_text_only_and_old_of_its_own(params):
  """Without media and without `old`: the vision gradient is exactly 0 and
  every ratio exactly 1; the same as with padding for images and recomputed
  old log-probs (ratios within 1e-6)."""
  rows = tuple(small.row(k, seed=k) for k in (5, 11, 20, 3))
  padded = small.block(small.prompts(rows), G, T, seed=2)
  padded = near(params, padded)
  padded = padded.replace(old=recompute(params, padded))
  bare = padded.replace(prompts=small.prompts(rows, media=False), old=None)
  own, recomputed = (small.gradient(params, (b,)) for b in (bare, padded))
  for grads, _ in (own, recomputed):
    for leaf in jax.tree.leaves(grads['visual']):
      assert (np.asarray(leaf) == 0).all()
    assert np.abs(grads['language']['embed']).max() > 0.01
  for name in ('ratio/max', 'ratio/mean'):
    assert float(own[1][name]) == 1
    assert float(recomputed[1][name]) == pytest.approx(1, abs=1e-6)
  assert float(own[1]['clip_frac/low'] + own[1]['clip_frac/high']) == 0
  same(own, recomputed, 2e-5)


def test_law_5_temperature_is_in_the_ratio(params, block):
  """At temperature 0.7 the old log-probs at 0.7 have ratio 1, those at 1 not."""
  old = small.logp(small.policy(), params, block.prompts, block.completions,
                   real(block), 0.7)[0]
  values = small.knobs(temperature=0.7)
  metrics = small.gradient(params, (block.replace(old=old),), values)[1]
  assert float(metrics['ratio/max']) == pytest.approx(1, abs=1e-5)
  metrics = small.gradient(
      params, (block.replace(old=recompute(params, block)),), values)[1]
  assert float(metrics['ratio/mean']) < 0.9  # unlikely tokens, even less so


def test_m28_numbers_compile_nothing(params, block, base):
  counter = compiles.CompileCounter()
  variants = [small.knobs(**{name: float(np.float32(x) * 1.5)})
              for name, x in small.knobs().items()]
  found = [small.gradient(params, (block,), values) for values in variants]
  counter.close()
  assert counter.count == 0 and len(found) == 6
  # And every one of them had an effect on the loss.
  for name, (_, metrics) in zip(small.knobs(), found):
    assert abs(float(metrics['loss']) - float(base[1]['loss'])) > 1e-6, name


def test_kl_over_the_vocabulary_is_optimised(params):
  """Term 'full': coefficient x the mean over tokens of the exact KL, 0 at
  the reference itself."""
  terms = objective.build(small.section(
      policy__coefficient=0.0, kl__coefficient=0.5,
      kl__estimator='full')).terms
  prompts = small.prompts(small.MIXED[:1], media=False, p=8)
  block = small.block(prompts, 2, 3).replace(old=None, ref=None)
  policy, values = small.policy(), small.knobs(**{'coef/kl': 0.5})

  @jax.jit
  def run(ref_params, block):
    ref = forward.logp_and_hidden(
        policy, ref_params, prompts, block.completions, real(block), 1.0)[1]
    return update.gradient(
        policy, params, lambda x: x, (block.replace(ref_hidden=ref),), terms,
        values, ref_params=ref_params)
  grads, metrics = run(params, block)
  assert float(metrics['kl']) == pytest.approx(0, abs=1e-6)
  small.close(grads, jax.tree.map(jnp.zeros_like, grads), 1e-5)
  grads, metrics = run(small.params(1), block)
  logits = [np.asarray(small.logits(
      policy, p, prompts, block.completions, 1.0), np.float64)[..., :60]
            for p in (params, small.params(1))]
  p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits)
  expected = (p * np.log(p / q)).sum(-1)[np.asarray(block.mask)].mean()
  assert float(metrics['kl']) == pytest.approx(expected, rel=1e-4)
  assert float(metrics['loss']) == pytest.approx(0.5 * expected, rel=1e-4)
  assert np.abs(grads['language']['embed']).max() > 1e-3


def test_m3_m9_chunks_of_rows_change_nothing(params):
  """Groups of one (sft) are cut along the rows: row 0 and 2, row 1 and 3. A
  mean per chunk would weigh their tokens differently."""
  rows = tuple(small.row(k, seed=k) for k in (5, 7, 6, 3))
  alone = small.block(small.prompts(rows, media=False, p=8), 1, 3, seed=4)
  lengths = np.asarray([3, 1, 2, 0])[:, None, None]  # 5 tokens against 1
  alone = alone.replace(mask=jnp.arange(3) < lengths)
  whole, pieces = (
      small.gradient(params, (alone,), chunks=chunks) for chunks in (1, 2))
  assert np.abs(whole[0]['language']['embed']).max() > 0.1
  same(whole, pieces, 2e-6)
  parts = update.split_rows(alone, 2)
  np.testing.assert_array_equal(parts.mask[1], alone.mask[1::2])
  np.testing.assert_array_equal(parts.prompts.uid[1], alone.prompts.uid[1::2])


def test_chunks_must_divide_the_group(block):
  with pytest.raises(ValueError, match='4 completions .* 3'):
    update.split(block, 3)
  with pytest.raises(ValueError, match='4 rows .* 3'):
    update.split_rows(block, 3)


class TestLaw1:
  """Shapes in the program, before XLA; all sizes can be told apart."""
  N, G, P, T, V, CHUNK, S = 3, 5, 11, 7, 509, 13, 112
  HEADS = (8, 32, 48)  # head width, width, width of the MLP

  def shapes(self, fn, *args):
    found = set()
    def walk(jaxpr):
      for eqn in jaxpr.eqns:
        found.update(v.aval.shape for v in (*eqn.invars, *eqn.outvars)
                     if hasattr(v.aval, 'shape'))
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
            or hasattr(x, 'jaxpr')):
          inner = getattr(value, 'jaxpr', value)
          if hasattr(inner, 'eqns'):
            walk(inner)
    walk(jax.make_jaxpr(fn)(*args).jaxpr)
    assert len(found) > 50
    return found

  def setup_method(self):
    self.policy = small.policy(self.CHUNK, vocab=self.V)
    rows = [small.row(3, (1, 4, 4), 1, seed=i) for i in range(self.N)]
    prompts = small.prompts(rows, p=self.P, s=self.S)
    self.block = small.block(prompts, self.G, self.T)
    self.params = jax.eval_shape(
        lambda: jax.tree.map(jnp.asarray, small.params()))
    embed = jax.ShapeDtypeStruct((self.V, 32), jnp.float32)
    self.params['language']['embed'] = embed

  def repeated(self, shape):
    """Is a prompt, an image or a KV there once per completion?"""
    many = self.G in shape or self.N * self.G in shape
    prompt = self.P in shape and any(x in shape for x in self.HEADS)
    joined = self.P + self.T in shape
    image = self.S in shape or self.S // small.MERGE**2 in shape
    return many and (prompt or joined or image)

  def test_law_1_update(self):
    found = self.shapes(
        lambda p, b: update.gradient(
            self.policy, p, lambda x: x, (b,), small.plan().terms,
            small.knobs()), self.params, self.block)
    assert not [s for s in found if self.repeated(s)]
    # Logits of at most a chunk of tokens; [V, D] is the embedding.
    most = max(self.CHUNK, 32)
    big = [s for s in found if self.V in s
           and np.prod(s) > most * self.V]
    assert not big
    # The search sees logits at all: 4 tokens of each of 3 prompts.
    assert (self.N, self.CHUNK // self.N, self.V) in found
    assert (self.N, self.P, 2, 8) in found or (
        self.N, 2, self.P, 8) in found  # and keys of prompts

  def test_law_1_old_and_reference_pass(self):
    found = self.shapes(
        lambda p, b: forward.logp_and_hidden(
            self.policy, p, b.prompts, b.completions, b.mask,
            jnp.float32(1)), self.params, self.block)
    assert not [s for s in found if self.repeated(s)]
    assert not [s for s in found if self.V in s
                and np.prod(s) > max(self.CHUNK, 32) * self.V]

  def test_law_1_sampler(self):
    found = self.shapes(
        lambda p, b: small.sampling(
            self.policy, p, b.prompts, group=self.G, length=self.T),
        self.params, self.block)
    assert not [s for s in found if self.repeated(s)]
    assert not [s for s in found if self.V in s and self.T in s]
    assert (self.N, self.G, self.V) in found
