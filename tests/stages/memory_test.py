"""Revised completions and a memory of earlier ones, in steps of a stage."""

import json

import jax
import numpy as np
import pytest

from mmr1 import forward
from mmr1 import records
from mmr1 import revising
from mmr1 import types
from mmr1.data import encode
from tests import small

N, G, T = 4, 4, 8
PUT = ' so'


# What a config may name.


def halves(samples, columns, meta, rng):
  """Slots 0 and 1 go on from a half of what they said."""
  assert columns['one'].shape == meta['done'].shape == meta['lengths'].shape
  assert rng().random() != rng(0, 0).random() != rng(0, 1).random()
  return {(s.group, s.slot): records.Edit(s.text[:len(s.text) // 2], PUT)
          for s in samples if s.slot < 2}


def untouched(sample, knobs):
  """No value where something was put in."""
  del knobs
  return None if types.KIND_FORCED in sample.kinds else float(sample.slot % 2)


untouched.range = (0.0, 1.0)


def not_the_second(before, after, meta):
  """Of those that were asked all but slot 1."""
  assert before.keys() == after.keys() == {'one'}
  assert (meta['new'][:, 2:] == 0).all() and not meta['asked'][:, 2:].any()
  keep = np.ones(meta['asked'].shape, bool)
  keep[:, 1] = False
  return keep


def oldest(advantage, keep, stored, rng, *, capacity, rows):
  """Everything with an advantage is kept; the oldest of it trains again."""
  del rng, keep
  pushed = advantage != 0
  there = min(len(stored) + int(pushed.sum()), capacity)
  return pushed, np.arange(min(there, rows))


def none(columns, advantage, meta, state, rng):
  """Drops everything."""
  del columns, meta, rng
  return np.zeros(advantage.shape[:2], bool), {}, False, state


def too_many(advantage, keep, stored, rng, *, capacity, rows):
  del advantage, keep, stored, rng, capacity
  return np.ones((N, G), bool), np.arange(rows + 1)


REVISED = dict(revise__fn=f'{__name__}:halves',
               revise__keep__fn=f'{__name__}:not_the_second')
REPLAYED = dict(
    replay__fn=f'{__name__}:oldest', replay__capacity=20, replay__rows=8,
    old='recompute', optimizer__lr=0.02)


def step(one, state, k):
  """A step's block, its metrics, the state after it."""
  params = jax.tree.map(np.array, state.params['policy'])
  made = one.step(state, k)
  return params, jax.device_get(made.batch), jax.device_get(
      dict(made.metrics)), made


@pytest.mark.parametrize('temperature', [1.0, 0.5])
def test_revised_completions_replace_what_they_were(trainer, temperature):
  plain, one = trainer(), trainer(**REVISED, revise__temperature=temperature)
  _, (was,), _, _ = step(plain, plain.start.state, 0)
  params, (block,), metrics, made = step(one, one.start.state, 0)
  got, old = block.completions, was.completions
  np.testing.assert_array_equal(got.tokens[:, 1:], old.tokens[:, 1:])
  np.testing.assert_array_equal(got.kind[:, 1:], old.kind[:, 1:])
  put = encode.encode_given([PUT], one._ctx.processor)
  asked = 0
  for n in range(N):
    inside = got.kind[n, 0] == types.KIND_FORCED
    if not inside.any():  # there was no room
      continue
    asked += 1
    at = int(inside.argmax())
    np.testing.assert_array_equal(got.tokens[n, 0][inside], put)
    np.testing.assert_array_equal(got.tokens[n, 0, :at], old.tokens[n, 0, :at])
    assert inside[at:at + len(put)].all()
  assert asked and metrics['revise/kept'] == asked / (N * G)
  # What was put in trains as if it had been said.
  np.testing.assert_array_equal(block.mask, got.kind > 0)
  # The rewards are those of the new text.
  rows = made.samples()
  for row in rows:
    tokens = got.tokens[row['group'], row['slot']][
        got.kind[row['group'], row['slot']] > 0]
    assert row['rewards']['one'] == float(tokens.sum() % 2 == 0)
  want, _ = small.logp(
      one._ctx.policy, params, block.prompts, got,
      forward.completion_mask(got), np.float32(1.0))
  np.testing.assert_allclose(
      np.where(block.mask, block.extra['sampler_logp'], 0), want, atol=1e-4)


def test_what_a_reward_fails_on_is_a_share_of_both_scorings(trainer):
  one = trainer(**REVISED, reward=f'{__name__}:untouched')
  _, _, metrics, _ = step(one, one.start.state, 0)
  assert metrics['revise/asked'] > 0
  assert metrics['reward/none_frac'] == metrics['revise/asked'] / 2


@pytest.mark.parametrize('text', [
    'so it is twelve', 'the angle ∠ABC is 60° so x² ≤ 4', '因为三角形',
    'π·r² ≈ 3.14 😀 ok', 'so\ufffd x ∠', '😀😀'])
def test_edits_keep_whole_tokens(trainer, text):
  """As many as can be, also where a character is several."""
  one = trainer()
  processor = one._ctx.processor
  tokens = (*encode.encode_given([text], processor).tolist(),
            processor.eos_id)
  said = encode.decode(tokens, processor)
  sample = records.Sample(
      text=said, tokens=tokens, kinds=(1,) * len(tokens), length=len(tokens),
      truncated=False, example=records.Example(uid=0), uid=0, group=0, slot=0)
  for end in range(len(said) + 1):
    kept = revising.kept_tokens(sample, said[:end], processor)
    assert kept == max(m for m in range(len(tokens)) if said[:end].startswith(
        encode.decode(tokens[:m], processor)))
  with pytest.raises(ValueError, match="revise: 'other' is the end of no"):
    revising.kept_tokens(sample, 'other', processor)


def test_m15_what_was_stored_trains_again(trainer):
  """The memory has room for 20; the oldest 8 train again, with the log-probs
  and advantages that they had. It goes on from a checkpoint."""
  one = trainer(**REPLAYED)
  params, (first, again), metrics, made = step(one, one.start.state, 0)
  assert metrics['replay/rows'] == min(8, metrics['replay/stored'])
  pushed = np.argwhere(first.advantage[..., 0] != 0)
  assert len(pushed) == metrics['replay/stored'] > 8
  assert again.mask.shape == (8, 1, T)
  for row, (n, g) in enumerate(pushed[:8]):
    np.testing.assert_array_equal(
        again.completions.tokens[row, 0], first.completions.tokens[n, g])
    np.testing.assert_array_equal(again.old[row, 0], first.old[n, g])
    np.testing.assert_array_equal(again.mask[row, 0], first.mask[n, g])
    assert again.advantage[row, 0] == first.advantage[n, g]
    for got, want in zip(*map(jax.tree.leaves, (again.prompts, first.prompts))):
      np.testing.assert_array_equal(got[row], want[n])
  # Later: as they were stored, by parameters that have moved since.
  kept = json.dumps(one.state())
  arrays = {name: np.array(x) for name, x in one.arrays().items()}
  held = jax.tree.map(np.array, made.state)
  after, (second, older), metrics, _ = step(one, made.state, 1)
  everything = [(0, *x) for x in pushed] + [
      (1, *x) for x in np.argwhere(second.advantage[..., 0] != 0)]
  blocks = first, second
  assert everything[-20:][0][0] == 0 < len(everything) - 20
  for row, (b, n, g) in enumerate(everything[-20:][:8]):
    np.testing.assert_array_equal(older.old[row, 0], blocks[b].old[n, g])
  now, _ = small.logp(
      one._ctx.policy, after, older.prompts, older.completions, older.mask,
      np.float32(1.0))
  assert np.abs(now - older.old).max() > 1e-3  # a ratio of 1 would be remade
  # As from a checkpoint.
  two = trainer(**REPLAYED)
  two.restore(json.loads(kept))
  two.take_back({name: jax.device_put(x) for name, x in arrays.items()})
  state = jax.device_put(held, jax.tree.map(
      lambda x: x.sharding, two.start.state))
  _, batch, repeated, _ = step(two, state, 1)
  for got, want in zip(*map(jax.tree.leaves, (batch, (second, older)))):
    np.testing.assert_array_equal(got, want)
  assert repeated['loss'] == metrics['loss']


def test_nothing_trains_where_nothing_is_kept(trainer):
  """All advantages are 0: nothing is stored, and select keeps nothing."""
  one = trainer(reward='tests.own:flat', select__fn=f'{__name__}:none', **REPLAYED)
  before, _, metrics, made = step(one, one.start.state, 0)
  assert metrics['replay/stored'] == metrics['replay/rows'] == 0
  assert metrics['update/idle'] == 1 and metrics['update/skipped'] == 0
  for got, want in zip(*map(jax.tree.leaves, (
      made.state.params['policy'], before))):
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('flat, said', [
    ({'replay__fn': f'{__name__}:oldest'}, 'replay: got rows=0, capacity=0'),
    ({**REPLAYED, 'replay__rows': 5, 'minibatches_per_step': 2},
     'replay.rows: 5 rows do not split into 2'),
    ({**REPLAYED, 'old': 'self'}, "replay.fn.*with old='self'"),
    ({'revise__fn': f'{__name__}:halves'}, 'revise.keep.fn: got None'),
    ({**REVISED, 'revise__temperature': 0.0}, 'revise.temperature: got 0.0'),
    ({**REVISED, 'staleness': 1, 'old': 'sampler'},
     'revise.fn.*with staleness=1')])
def test_m22_what_does_not_go_together(trainer, flat, said):
  with pytest.raises(ValueError, match=said):
    trainer(**flat)


def test_more_rows_than_there_is_room_for(trainer):
  one = trainer(**{**REPLAYED, 'replay__fn': f'{__name__}:too_many'})
  with pytest.raises(ValueError, match='drew .* allowed are 8 indices'):
    one.step(one.start.state, 0)
