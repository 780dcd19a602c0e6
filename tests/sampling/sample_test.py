"""The sampler against the trainer's forward, and what a sample depends on."""

import functools

import jax
import numpy as np
import pytest

from mmr1 import compiles
from mmr1 import types
from mmr1.sampling import keys
from mmr1.sampling import sample
from tests import small

N, G, T = 4, 3, 8
KEY = keys.step_key(3, 1, 5)
SETTINGS = (
    dict(), dict(temperature=0.7), dict(top_k=5), dict(top_p=0.8),
    dict(temperature=0.7, top_k=7, top_p=0.9))


@pytest.fixture(scope='module')
def params():
  return small.params()


@pytest.fixture(scope='module')
def batch():
  return small.prompts()


def run(params, batch, key=KEY, **kw):
  return small.rollout(params, batch, key, **kw)[0]


def sampled(rollout):
  return np.asarray(rollout.completions.kind) == types.KIND_SAMPLED


def truncated_logp(logits, tokens, top_k=0, top_p=1.0):
  """log p f64[N, G, T] after truncation, by sorting; no ties here."""
  logits = np.asarray(logits, np.float64)
  order = np.sort(logits, -1)[..., ::-1]
  if top_k:
    logits = np.where(
        logits >= order[..., top_k - 1:top_k], logits, -np.inf)
  p = np.exp(logits - order[..., :1])
  p /= p.sum(-1, keepdims=True)
  falling = np.sort(p, -1)[..., ::-1]
  last = (np.cumsum(falling, -1) < top_p).sum(-1, keepdims=True)
  last = np.minimum(last, p.shape[-1] - 1)
  p = np.where(p >= np.take_along_axis(falling, last, -1), p, 0)
  p /= p.sum(-1, keepdims=True)
  with np.errstate(divide='ignore'):
    return np.log(np.take_along_axis(p, np.asarray(tokens)[..., None], -1))[
        ..., 0]


@pytest.mark.parametrize('knobs', SETTINGS)
def test_m1_sampler_and_trainer_agree(params, batch, knobs):
  """Text, image, two images and video + image in one batch, fp32."""
  rollout = run(params, batch, **knobs)
  temperature = knobs.get('temperature', 1.0)
  mask = sampled(rollout)
  tokens = rollout.completions.tokens
  trained, _ = small.logp(
      small.policy(), params, batch, rollout.completions, mask, temperature)
  np.testing.assert_allclose(rollout.logp, trained, atol=2e-5, rtol=0)
  logits = small.logits(
      small.policy(), params, batch, rollout.completions, temperature)
  cut = {k: v for k, v in knobs.items() if k != 'temperature'}
  expected = truncated_logp(logits, tokens, **cut)
  np.testing.assert_allclose(
      np.asarray(rollout.behaviour)[mask], expected[mask], atol=1e-4, rtol=0)
  gap = np.asarray(rollout.behaviour - rollout.logp)[mask]
  if cut:  # what is left of the distribution weighs more
    assert gap.min() > -1e-6 and gap.max() > 0.05
  else:
    np.testing.assert_array_equal(rollout.behaviour, rollout.logp)


def test_entropy_is_of_each_token_and_changes_nothing(params, batch):
  """That of softmax(logits / T), 0 where nothing was sampled."""
  kept = run(params, batch, temperature=0.7,
             decoding=sample.Decoding(entropy=True))
  plain = run(params, batch, temperature=0.7)
  assert plain.entropy is None
  for a, b in zip(jax.tree.leaves((kept.completions, kept.logp)),
                  jax.tree.leaves((plain.completions, plain.logp))):
    np.testing.assert_array_equal(a, b)
  logits = np.asarray(small.logits(
      small.policy(), params, batch, kept.completions, 0.7), np.float64)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  expected = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
  mask = sampled(kept)
  np.testing.assert_allclose(
      np.asarray(kept.entropy)[mask], expected[mask], atol=1e-4)
  assert not np.asarray(kept.entropy)[~mask].any()


def test_sharper_draws_keep_the_temperature_of_log_probs(params, batch):
  """Drawn at 1.2 / 3 = .4: `logp` is that of 1.2, `behaviour` that of .4."""
  rollout = run(params, batch, temperature=1.2, sharpness=3.0)
  alike = run(params, batch, temperature=0.4)
  np.testing.assert_array_equal(
      rollout.completions.tokens, alike.completions.tokens)
  mask = sampled(rollout)
  np.testing.assert_allclose(
      np.asarray(rollout.behaviour)[mask], np.asarray(alike.logp)[mask],
      atol=1e-4)
  trained, _ = small.logp(
      small.policy(), params, batch, rollout.completions, mask, 1.2)
  np.testing.assert_allclose(rollout.logp, trained, atol=2e-5, rtol=0)


def test_m1_sampler_and_trainer_agree_in_bf16(params, batch):
  policy = small.policy(compute_dtype='bfloat16')
  rollout = run(params, batch, policy_=policy)
  trained, _ = small.logp(
      policy, params, batch, rollout.completions, sampled(rollout), 1.0)
  np.testing.assert_allclose(rollout.logp, trained, atol=2e-2, rtol=0)
  # It is a model of its own: bf16 differs from fp32 by more than that.
  other, _ = small.logp(
      small.policy(), params, batch, rollout.completions, sampled(rollout),
      1.0)
  assert np.abs(np.asarray(other - trained)).max() > 2e-3


def test_m2_placeholders_are_never_sampled(params, batch):
  for token in (small.IMAGE, small.VIDEO, small.START):
    rigged = small.prefer(params, token)
    rollout = run(rigged, batch, temperature=2.0)
    tokens = np.asarray(rollout.completions.tokens)
    assert not np.isin(tokens, small.BANNED).any()
    mask = sampled(rollout)
    trained, hidden = small.logp(
        small.policy(), rigged, batch, rollout.completions, mask, 2.0)
    # The head alone wants nothing else.
    raw = small.policy().apply(rigged, hidden, method='head')
    assert (np.argmax(raw, -1) == token)[mask].all()
    # Nor does it keep any of the mass: the log-probs are those without it.
    np.testing.assert_allclose(rollout.logp, trained, atol=2e-5, rtol=0)
    assert np.asarray(rollout.logp)[mask].max() > -4


def test_kind_and_padding_are_exact(params, batch):
  """eos is a likely token here, so that rows end everywhere."""
  rollout = run(small.prefer(params, small.EOS, 12.5), batch)
  c = rollout.completions
  tokens, kind = np.asarray(c.tokens), np.asarray(c.kind)
  lengths = sampled(rollout).sum(-1)
  assert len(np.unique(lengths)) > 3 and lengths.max() == T
  assert kind.dtype == np.int8 and (lengths >= 1).all()
  real = np.arange(T) < lengths[..., None]
  np.testing.assert_array_equal(kind, real)
  for values, blank in ((tokens, small.PAD), (rollout.logp, 0),
                        (rollout.behaviour, 0)):
    assert (np.asarray(values)[~real] == blank).all()
  last = np.take_along_axis(tokens, lengths[..., None] - 1, -1)[..., 0]
  np.testing.assert_array_equal(rollout.done, last == small.EOS)
  assert (tokens[real] == small.EOS).sum() == np.asarray(rollout.done).sum()
  assert (~np.asarray(rollout.done)).any()
  np.testing.assert_array_equal(
      c.positions, np.broadcast_to(
          np.asarray(batch.next_position)[:, None, None, None]
          + np.arange(T)[:, None], (N, G, T, 3)))


def test_decoding_stops_when_all_rows_have_ended(params, batch):
  always = small.prefer(params, small.EOS)
  rollout, steps = small.rollout(always, batch, KEY)
  assert steps == 0  # the prompt's last state gave the one token
  assert np.asarray(rollout.done).all()
  assert (np.asarray(rollout.completions.tokens)
          == [small.EOS] + [small.PAD] * (T - 1)).all()
  np.testing.assert_allclose(rollout.logp, 0, atol=1e-6)


def test_rows_of_padding_keep_no_one_waiting(params):
  """Three prompts that end at once and a row that is not there."""
  rows = small.prompts((*small.MIXED[:3], ([], [], [])))
  rollout, steps = small.rollout(
      small.prefer(params, small.EOS, 11.5), rows, KEY)
  mask = sampled(rollout)
  assert steps == mask.sum(-1).max() - 1
  assert not mask[3].any() and mask[:3].any(-1).all()
  assert (np.asarray(rollout.completions.tokens)[3] == small.PAD).all()
  assert (np.asarray(rollout.logp)[3] == 0).all()
  assert not np.asarray(rollout.done)[3].any()


def test_the_cap_ends_rows_without_eos(params, batch):
  never = small.prefer(params, small.EOS, -300.0)
  rollout, steps = small.rollout(never, batch, KEY)
  assert steps == T - 1 and not np.asarray(rollout.done).any()
  assert sampled(rollout).all()
  short, steps = small.rollout(never, batch, KEY, max_new_tokens=3)
  assert steps == 2 and not np.asarray(short.done).any()
  np.testing.assert_array_equal(sampled(short), np.broadcast_to(
      np.arange(T) < 3, (N, G, T)))
  # A cap cuts, it does not change what comes before it (law 6).
  np.testing.assert_array_equal(
      short.completions.tokens[..., :3], rollout.completions.tokens[..., :3])
  # A cap beyond the array is the array's length.
  _, steps = small.rollout(never, batch, KEY, max_new_tokens=99)
  assert steps == T - 1


def test_temperature_0_is_greedy(params, batch):
  rollout = run(params, batch, temperature=0.0)
  logits = np.asarray(small.logits(
      small.policy(), params, batch, rollout.completions, 1.0))
  mask = sampled(rollout)
  tokens = np.asarray(rollout.completions.tokens)
  np.testing.assert_array_equal(tokens[mask], logits.argmax(-1)[mask])
  # The group is one answer G times, and its log-probs are those of T = 1.
  assert (tokens == tokens[:, :1]).all()
  np.testing.assert_allclose(
      np.asarray(rollout.logp)[mask], truncated_logp(logits, tokens)[mask],
      atol=1e-4)


class TestM27:
  """A sample depends on its address alone."""

  def same(self, a, b, t=T):
    """Two rollouts of the same samples, the first `t` tokens."""
    np.testing.assert_array_equal(
        a.completions.tokens[..., :t], b.completions.tokens[..., :t])
    np.testing.assert_array_equal(
        a.completions.kind[..., :t], b.completions.kind[..., :t])
    np.testing.assert_allclose(
        a.logp[..., :t], b.logp[..., :t], atol=1e-5, rtol=0)

  def test_m27_a_call_repeats_itself_and_a_step_does_not(self, params, batch):
    first = run(params, batch)
    self.same(first, run(params, batch))
    other = run(params, batch, keys.step_key(0, 1, 6))
    differ = np.asarray(
        first.completions.tokens != other.completions.tokens).any(-1)
    assert differ.mean() > 0.8
    # Samples of one prompt differ from one another, too.
    tokens = np.asarray(first.completions.tokens)
    assert all(len(np.unique(group, axis=0)) == G for group in tokens)

  def test_m3_m27_row_order(self, params, batch):
    order = np.asarray([2, 0, 3, 1])
    self.same(small.rows_of(run(params, batch), order),
              run(params, small.rows_of(batch, order)))

  def test_m3_m27_other_batch_mates(self, params, batch):
    uids = [900, 101, 901, 902]
    others = small.prompts(
        (small.MIXED[3], small.MIXED[1], small.MIXED[2], small.row(26)),
        uid=uids)
    self.same(small.rows_of(run(params, batch), [1]),
              small.rows_of(run(params, others), [1]))

  def test_m3_m27_alone_in_a_larger_group_and_array(self, params, batch):
    """Another N, G, T, P and S at once; slots 0..2 are the same samples."""
    alone = small.prompts(
        small.MIXED[2:3], p=31, s=5 * small.WINDOW, uid=[102])
    rollout = run(params, alone, group=5, length=12)
    base = small.rows_of(run(params, batch), [2])
    part = jax.tree.map(lambda x: x[:, :G], (
        rollout.completions.tokens, rollout.completions.kind, rollout.logp))
    np.testing.assert_array_equal(part[0][..., :T], base.completions.tokens)
    np.testing.assert_array_equal(part[1][..., :T], base.completions.kind)
    np.testing.assert_allclose(part[2][..., :T], base.logp, atol=1e-5)

  def test_m27_the_same_prompt_under_another_uid(self, params):
    def tokens(*uid):
      prompts = small.prompts((small.MIXED[1],) * 4, uid=uid)
      return np.asarray(run(params, prompts).completions.tokens)
    one, two = tokens(5, 6, 5, 7), tokens(6, 5, 8, 9)
    np.testing.assert_array_equal(one[0], two[1])
    np.testing.assert_array_equal(one[1], two[0])
    # Under one uid too the second group is not a copy of the first.
    assert all((one[0] != one[i]).any() for i in (1, 2, 3))


def test_law_1_prompt_keys_are_never_repeated(params):
  """Nothing in the sampler has the axes G, P and d (8) at once."""
  jaxpr = jax.make_jaxpr(functools.partial(
      small.sampling, small.policy(), group=5, length=7))(
          params, small.prompts(p=29))
  shapes = set(small.shapes_in(jaxpr.jaxpr))
  assert any({5, 29} <= set(s) for s in shapes)  # the scores
  assert not [s for s in shapes if {5, 29, 8} <= set(s)]
  assert not [s for s in shapes if {5 * N, 29, 8} <= set(s)]


def test_sampled_tokens_follow_the_model(params, batch):
  """Chi-square of 1,200 first tokens of one prompt, temperature 0.7.

  Ids that are expected fewer than five times are counted together.
  """
  same = small.prompts((small.MIXED[1],) * N, uid=range(N))
  tokens = np.concatenate([
      np.asarray(run(params, same, keys.step_key(0, 1, step), temperature=0.7,
                     max_new_tokens=1).completions.tokens[..., 0]).ravel()
      for step in range(100)])
  logits = small.logits(
      small.policy(), params, same, run(params, same).completions, 0.7)
  p = np.asarray(jax.nn.softmax(logits[0, 0, 0]))
  expected = p * len(tokens)
  rare = expected < 5
  counts = np.bincount(tokens, minlength=small.VOCAB)
  counts = np.append(counts[~rare], counts[rare].sum())
  expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
  freedom = len(counts) - 1
  assert freedom >= 4
  # 0.001 quantile: freedom + 3.09 sqrt(2 freedom) + 6.4 bounds it from above.
  statistic = ((counts - expected)**2 / expected).sum()
  assert statistic < freedom + 3.09 * (2 * freedom)**0.5 + 6.4


def test_m28_numbers_compile_nothing(params, batch):
  run(params, batch)
  counter = compiles.CompileCounter()
  for knobs in SETTINGS:
    for cap in (1, 5):
      run(params, batch, **{'max_new_tokens': cap, **knobs})
  counter.close()
  assert counter.count == 0


@pytest.mark.parametrize('decoding', [
    sample.Decoding(), sample.Decoding(rows=4, cache_chunk=4)])
def test_given_tokens_are_gone_on_from(params, batch, decoding):
  """What was sampled itself, as given, comes out again, whatever its length;
  other tokens are kept, and what follows them is as likely as the trainer
  says."""
  first = run(params, batch)
  tokens = np.asarray(first.completions.tokens)
  length = np.random.default_rng(0).integers(0, T + 1, (N, G))
  length = np.minimum(length, sampled(first).sum(-1))
  again = run(params, batch, decoding=decoding, given=sample.Given(
      np.where(np.arange(T) < length[..., None], tokens, small.EOS), length))
  for name in ('logp', 'behaviour', 'done'):
    np.testing.assert_allclose(
        getattr(again, name), getattr(first, name), atol=1e-5)
  np.testing.assert_array_equal(again.completions.tokens, tokens)
  np.testing.assert_array_equal(again.completions.kind, first.completions.kind)

  other = np.where(tokens == small.EOS, tokens, (tokens + 1) % 7 + 1)
  length[0, 0], other[0, 0, 0] = 1, small.EOS  # a row that is to do nothing
  made = run(params, batch, decoding=decoding,
             given=sample.Given(other, length))
  mask = sampled(made)
  here = np.arange(T) < length[..., None]
  np.testing.assert_array_equal(
      np.asarray(made.completions.tokens)[here], other[here])
  assert mask[0, 0].sum() == 1 and made.done[0, 0]
  want, _ = small.logp(
      small.policy(), params, batch, made.completions, mask, np.float32(1.0))
  np.testing.assert_allclose(
      np.where(mask, made.logp, 0), want, atol=1e-4)


def test_the_version_is_recorded(params, batch):
  assert int(run(params, batch).version) == 0


@pytest.mark.parametrize('bad', [
    dict(temperature=-1.0), dict(temperature=float('nan')),
    dict(temperature=float('inf')), dict(top_p=0.0), dict(top_p=1.1),
    dict(top_k=-1), dict(max_new_tokens=0), dict(sharpness=0.0)])
def test_m22_knobs_out_of_range(bad):
  with pytest.raises(ValueError, match='sampling: got'):
    sample.knobs(**{'max_new_tokens': 4, **bad})
