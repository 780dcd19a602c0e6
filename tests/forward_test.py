"""The one forward: alignment, causality, normaliser, chunks, exact KL."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import forward
from mmr1 import types
from mmr1.models import decoder
from tests import small

N, G, T = 4, 4, 6


@pytest.fixture(scope='module')
def params():
  return small.params()


@pytest.fixture(scope='module')
def batch():
  return small.prompts()


@pytest.fixture(scope='module')
def block(batch):
  return small.block(batch, G, T)


def real(block):
  return np.asarray(forward.completion_mask(block.completions))


def logp(params, block, *, temperature=1.0, mask=None, policy=None):
  return np.asarray(small.logp(
      policy or small.policy(), params, block.prompts, block.completions,
      real(block) if mask is None else mask, temperature)[0])


def changed(block, **kw):
  return block.replace(completions=block.completions.replace(**kw))


def test_law_2_shift_by_hand():
  """States of completion tokens 10, 11, 12 after the prompt's last, 9:
  token 0 is predicted by 9, token 1 by 10, token 2 by 11; 12 predicts
  nothing that was sampled."""
  hidden = jnp.asarray([[[[10.], [11.], [12.]], [[20.], [21.], [22.]]]])
  out = forward.shift(jnp.asarray([[9.]]), hidden)
  assert out[..., 0].tolist() == [[[9, 10, 11], [9, 20, 21]]]


def test_law_2_shift_of_segments_by_hand():
  """Two documents, 10, 11 and 20, 21, 22, and padding. Each begins after the
  end of its own prompt, 1 and 2, or of the one prompt they share, 9. Nothing
  reads what stands under the padding."""
  hidden = jnp.asarray([[[[10.], [11.], [20.], [21.], [22.], [0.]]]])
  segment = jnp.asarray([[[1, 1, 2, 2, 2, 0]]])
  ends = jnp.asarray([[[1.], [2.], [-1.]]])  # room for three
  out = forward.shift(ends, hidden, segment)
  assert out[0, 0, :5, 0].tolist() == [1, 10, 2, 20, 21]
  out = forward.shift(jnp.asarray([[9.]]), hidden, segment)
  assert out[0, 0, :5, 0].tolist() == [9, 10, 9, 20, 21]


def test_law_2_logp_is_of_this_token_given_those_before(params, block):
  """From all logits at once; the prompt's last state gives token 0."""
  for temperature in (1.0, 0.7):
    logits = np.asarray(small.logits(
        small.policy(), params, block.prompts, block.completions,
        temperature), np.float64)
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    exp /= exp.sum(-1, keepdims=True)
    chosen = np.take_along_axis(
        exp, np.asarray(block.completions.tokens)[..., None], -1)[..., 0]
    expected = np.where(real(block), np.log(np.maximum(chosen, 1e-30)), 0)
    np.testing.assert_allclose(
        logp(params, block, temperature=temperature), expected, atol=1e-5)


@pytest.mark.parametrize('t', range(T))
def test_law_2_causality(params, block, t):
  """Changing token t changes logp[t] and what follows, of this row only."""
  base = logp(params, block)
  tokens = np.asarray(block.completions.tokens).copy()
  tokens[1, 0, t] = 2 + (tokens[1, 0, t] - 1) % 58  # another word
  moved = logp(params, changed(block, tokens=jnp.asarray(tokens))) != base
  expected = np.zeros_like(moved)
  expected[1, 0, t:] = True
  np.testing.assert_array_equal(moved, expected)


def test_m3_padded_tokens_are_never_read(params, block):
  tokens = np.where(
      real(block), block.completions.tokens, small.IMAGE).astype(np.int32)
  position = np.where(real(block)[..., None], block.completions.positions, 99)
  other = changed(block, tokens=jnp.asarray(tokens),
                  positions=jnp.asarray(position, jnp.int32))
  prompts = block.prompts
  hidden = jnp.where(prompts.mask, prompts.tokens, small.EOS)
  other = other.replace(prompts=prompts.replace(tokens=hidden))
  np.testing.assert_array_equal(logp(params, other), logp(params, block))


def test_m3_rows_do_not_know_of_each_other(params, block):
  base = logp(params, block)
  order = np.asarray([2, 0, 3, 1])
  np.testing.assert_allclose(
      logp(params, small.rows_of(block, order)), base[order], atol=1e-5)
  slots = np.asarray([3, 1, 0, 2])
  shuffled = block.replace(completions=jax.tree.map(
      lambda x: x[:, slots], block.completions))
  np.testing.assert_allclose(
      logp(params, shuffled), base[:, slots], atol=1e-5)


def test_m3_a_longer_row_and_more_padding_change_nothing(params, block):
  """A fifth prompt of 33 tokens, P + 9, T + 3, one more window of patches."""
  rows = (*small.MIXED, small.row(10, (1, 8, 8), 5, seed=9))
  prompts = small.prompts(rows, p=35, s=5 * small.WINDOW)
  wide = small.block(prompts, G, T + 3, seed=8)
  inside = small.block(block.prompts, G, T, array_t=T + 3)
  completions = jax.tree.map(
      lambda x, y: jnp.concatenate([x, y[N:]]), inside.completions,
      wide.completions)
  got = logp(params, wide.replace(completions=completions))
  np.testing.assert_allclose(
      got[:N, :, :T], logp(params, block), atol=1e-5, rtol=0)
  assert (got[:N, :, T:] == 0).all() and (got[N] != 0).any()


@pytest.mark.parametrize('head_chunk', [1, 7, 96, 5000])
def test_m3_chunks_of_the_head_change_nothing(params, block, head_chunk):
  """96 tokens are N x G x T; 7 does not divide them."""
  policy, mask = small.policy(), real(block)
  hidden = small.logp(policy, params, block.prompts, block.completions, mask,
                      1.0)[1]

  @jax.jit
  def scores(params, ref):
    return forward.token_scores(
        dataclasses.replace(policy, head_chunk=head_chunk), params, hidden,
        block.completions.tokens, mask, jnp.float32(1), other_params=ref,
        other_hidden=hidden)
  got = scores(params, small.params(1))
  expected = exact(params, hidden, small.params(1), hidden, block, mask)
  for a, b in zip(got, expected):
    np.testing.assert_allclose(a, b, atol=2e-5, rtol=0)


@pytest.mark.parametrize('head_chunk', [7, 5000])
def test_gradient_through_the_chunks_of_the_head(params, block, head_chunk):
  """Of parameters and states, against one dense head without chunks."""
  policy, mask = small.policy(head_chunk=head_chunk), real(block)
  ref, tokens = small.params(1), block.completions.tokens
  weight = np.random.default_rng(3).normal(size=(3, *mask.shape))
  states = small.logp(policy, params, block.prompts, block.completions, mask,
                      1.0)[1]

  def chunked(params, hidden):
    return forward.token_scores(
        policy, params, hidden, tokens, mask, jnp.float32(0.7),
        other_params=ref, other_hidden=states)

  def dense(params, hidden):
    words = np.setdiff1d(np.arange(small.VOCAB), small.BANNED)
    def logp(params, hidden):
      return jax.nn.log_softmax(
          hidden @ params['language']['embed'][words].T / 0.7)
    p, q = logp(params, hidden), logp(ref, states)
    place = np.clip(np.searchsorted(words, tokens), 0, len(words) - 1)
    chosen = jnp.take_along_axis(p, place[..., None], -1)[..., 0]
    return (chosen, -jnp.sum(jnp.exp(p) * p, -1),
            jnp.sum(jnp.exp(p) * (p - q), -1))

  def gradient(scores):
    def loss(params, hidden):
      return sum(jnp.sum(jnp.where(mask, x, 0) * w)
                 for x, w in zip(scores(params, hidden), weight))
    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, states)

  got, expected = gradient(chunked), gradient(dense)
  assert np.abs(got[0]['language']['embed']).max() > 1
  small.close(got, expected, 1e-4)


def exact(params, hidden, ref_params, ref_hidden, block, mask):
  """logp, entropy and KL over the vocabulary, in float64, all at once."""
  def softmax(params, hidden):
    logits = np.asarray(hidden, np.float64) @ np.asarray(
        params['language']['embed'], np.float64).T
    logits[..., list(small.BANNED)] = -np.inf
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)
  p, q = softmax(params, hidden), softmax(ref_params, ref_hidden)
  words = [i for i in range(small.VOCAB) if i not in small.BANNED]
  chosen = np.take_along_axis(
      p, np.asarray(block.completions.tokens)[..., None], -1)[..., 0]
  chosen = np.where(mask, chosen, 1)
  p, q = p[..., words], q[..., words]
  return (np.log(chosen), np.where(mask, -(p * np.log(p)).sum(-1), 0),
          np.where(mask, (p * np.log(p / q)).sum(-1), 0))


def test_kl_over_the_vocabulary(params, block):
  """Two models with their own states: never negative; 0 with itself."""
  policy, mask = small.policy(), real(block)
  ref = small.params(1)
  args = block.prompts, block.completions, mask, 1.0
  hidden = small.logp(policy, params, *args)[1]
  ref_hidden = small.logp(policy, ref, *args)[1]

  @jax.jit
  def kl(ref_params, ref_hidden):
    return forward.token_scores(
        policy, params, hidden, block.completions.tokens, mask,
        jnp.float32(1), other_params=ref_params,
        other_hidden=ref_hidden).pair
  got = np.asarray(kl(ref, ref_hidden))
  np.testing.assert_allclose(
      got, exact(params, hidden, ref, ref_hidden, block, mask)[2], atol=2e-5)
  assert got[mask].min() > 0.01
  np.testing.assert_array_equal(kl(params, hidden), 0)


def test_m2_masked_placeholders_leave_gradients_finite(params, block):
  """A masked token may be banned; the others' gradient excludes the ban."""
  policy, mask = small.policy(), real(block)
  hidden = small.logp(policy, params, block.prompts, block.completions, mask,
                      1.0)[1]
  mask = np.asarray(block.mask)
  tokens = jnp.where(mask, block.completions.tokens, small.IMAGE)

  @jax.jit
  def gradient(params, hidden):
    def loss(params, hidden):
      logp, entropy, kl, _ = forward.token_scores(
          policy, params, hidden, tokens, mask, jnp.float32(1),
          other_params=small.params(1), other_hidden=hidden)
      return logp.sum() + entropy.sum() + kl.sum()
    return jax.value_and_grad(loss, argnums=(0, 1))(params, hidden)
  value, (params_grad, hidden_grad) = gradient(params, hidden)
  assert np.isfinite(value)
  for leaf in jax.tree.leaves((params_grad, hidden_grad)):
    assert np.isfinite(leaf).all()
  embed = np.asarray(params_grad['language']['embed'])
  assert (embed[list(small.BANNED)] == 0).all()
  assert (np.abs(embed[small.WORDS[0]:small.WORDS[1]]).max(1) > 0).all()
  assert (np.asarray(hidden_grad)[~mask] == 0).all()


def test_bfloat16_gradient_is_near_float32(params, block):
  """All terms, tower included; bf16 has 8 bits, so a few per cent."""
  expected, _ = small.gradient(params, [block])
  got, _ = small.gradient(
      params, [block], policy_=small.policy(compute_dtype='bfloat16'))
  for (path, a), (_, b) in zip(*map(
      jax.tree_util.tree_leaves_with_path, (got, expected))):
    assert a.dtype == np.float32
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert 1e-5 < error < 0.15, (jax.tree_util.keystr(path), error)


def test_m3_packed_documents_score_as_in_rows_of_their_own(params):
  """P = 0, two documents in a row: every token but the first of each."""
  empty = small.prompts((([], [], []),), p=0, media=False)
  a, b = [3, 14, 15, 9, 26], [5, 35, 8]
  both = np.asarray([[a + b]], np.int32)
  alone = np.asarray([[a + [0] * 3, b + [0] * 5]], np.int32)

  def scores(tokens, place, segment):
    completions = types.Completions(
        tokens=jnp.asarray(tokens), kind=jnp.asarray(tokens > 0, jnp.int8),
        positions=jnp.broadcast_to(
            jnp.asarray(place)[..., None], (*tokens.shape, 3)),
        segment=segment)
    return np.asarray(small.logp(
        small.policy(), params, empty, completions, tokens > 0, 1.0)[0])[0]
  packed = scores(both, [0, 1, 2, 3, 4, 0, 1, 2],
                  jnp.asarray([[[1] * 5 + [2] * 3]]))[0]
  first, second = scores(alone, np.arange(8), None)
  np.testing.assert_allclose(packed[1:5], first[1:5], atol=1e-5)
  np.testing.assert_allclose(packed[6:], second[1:3], atol=1e-5)


def test_images_inside_completions_are_read_or_refused_not_dropped(
    params, block):
  n, g, t = block.mask.shape
  media = jax.tree.map(lambda x: jnp.repeat(x[:, None], g, 1),
                       block.prompts.media['vision'])
  slot = np.full((n, g, t), -1, np.int32)
  slot[1:, :, 1] = 0  # the second token is a cell of the picture
  media = media.replace(slot=jnp.asarray(slot))
  gap = np.abs(np.asarray(
      logp(params, block) - logp(params, changed(
          block, media={'vision': media}))))
  assert not gap[0].any() and not gap[:, :, :2].any()
  assert (gap[1:, 0, 2:] * real(block)[1:, 0, 2:]).max() > 1e-4
  with pytest.raises(ValueError, match=r"\['other'\]"):
    logp(params, changed(block, media={'other': media}))
  reads_text = decoder.LanguageModel.inserted.__wrapped__
  with pytest.raises(ValueError, match=r"\['vision'\].*not read them there"):
    reads_text(None, slot, {'vision': media})


def test_m22_a_chunk_of_no_tokens():
  with pytest.raises(ValueError, match='head_chunk: got 0'):
    dataclasses.replace(small.policy(), head_chunk=0)


def test_m6_no_media_equals_media_of_padding(params):
  """Text-only prompts with and without (empty) patches, and a row that is
  padding throughout."""
  rows = (small.MIXED[0], small.row(12, seed=5), ([], [], []))
  blank = small.prompts(rows)
  block = small.block(blank, 2, 5)
  without = block.replace(prompts=small.prompts(rows, media=False))
  got = logp(params, without)
  assert np.isfinite(got).all()
  np.testing.assert_allclose(got[:2], logp(params, block)[:2], atol=1e-6)


def test_masked_tokens_score_0(params, block):
  none = np.zeros_like(real(block))
  np.testing.assert_array_equal(logp(params, block, mask=none), 0)
  some = np.asarray(block.mask)
  np.testing.assert_array_equal(
      logp(params, block, mask=some), np.where(some, logp(params, block), 0))


def test_completion_mask_is_by_kind_not_by_id(block):
  kind = np.asarray(block.completions.kind).copy()
  kind[0, 0, :4] = [
      types.KIND_SAMPLED, types.KIND_OBSERVATION, types.KIND_PAD,
      types.KIND_EXPERT]
  tokens = jnp.full_like(block.completions.tokens, small.PAD)
  mask = forward.completion_mask(changed(
      block, kind=jnp.asarray(kind), tokens=tokens).completions)
  assert mask[0, 0, :4].tolist() == [True, True, False, True]
