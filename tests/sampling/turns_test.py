"""Completions of several turns, with text and images in between (M1, M3, M18).
"""

import functools
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmr1 import positions
from mmr1 import types
from mmr1.data import encode
from mmr1.data import trajectories
from mmr1.data.codecs import base
from mmr1.models import sight
from mmr1.sampling import chunks
from mmr1.sampling import programs
from mmr1.sampling import sample
from mmr1.sampling import schedule
from mmr1.sampling import stops
from mmr1.sampling import turns
from tests import small

G, T, TURN, CHUNK = 4, 40, 6, 12
CODEC = python_types.SimpleNamespace(
    unit=small.MERGE**2, channels=small.VALUES, nothing=lambda: base.Pixels(
        *np.zeros((4, 0))))
STOPS = range(2, 60, 6)  # tokens at which turns end, beside their cap


def grid_of(n, g, turn):
  """One of three shapes of a picture, or None: text alone."""
  return (None, (1, 4, 4), (1, 2, 6), (1, 4, 2))[(n + 2 * g + turn) % 4]


def observation(n, g, turn, blank=False):
  """Words and a picture that no other turn has, as `inserting.encode` would
  make them."""
  rng = np.random.default_rng([n, g, turn])
  grid, text = grid_of(n, g, turn), [1 + (n + g) % 2]
  example = small.row(*text, *((grid, 2) if grid else (1,)),
                      seed=100 * n + 10 * g + turn)
  batch = small.prompts([example], p=len(example[0]), s=2 * small.WINDOW)
  place, following = positions.rope_index(
      example[0], example[2], image_id=small.IMAGE, video_id=small.VIDEO,
      merge=small.MERGE, tokens_per_second=2)
  media = jax.tree.map(lambda x: np.asarray(x)[0], batch.media['vision'])
  used = len(media.patches) if grid else 0
  del rng
  return encode.Encoded(
      tokens=np.asarray(example[0], np.int32), positions=place,
      next_position=following, uid=0,
      patches=media.patches[:used] * (not blank),
      patch_position=media.position[:used],
      patch_segment=media.segment[:used], slot=media.slot)


class Player:
  """A scripted environment: so many turns, by prompt and sample."""
  codec, patches, room = CODEC, 2 * small.WINDOW, 6 * small.WINDOW
  turn_tokens, chunk, ending = TURN, CHUNK, STOPS

  def __init__(self, uids, stop=True, blank=False, following=None):
    self.uids, self.blank = uids, blank
    self.stops = None
    if stop:
      pieces = [''] * small.VOCAB
      for token in self.ending:
        pieces[token] = '!'
      self.stops = stops.table(pieces, ('!',))
    self.trajectories = [[trajectories.Trajectory(int(at)) for _ in range(G)]
                         for at in following]
    self.done = np.zeros((len(uids), G), bool)
    self.why = {}

  def step(self, stopped):
    told = {}
    for (n, g), one in stopped.items():
      whole = self.trajectories[n][g]
      whole.say(one.tokens)
      self.why.setdefault((n, g), []).append(one.why)
      uid = int(self.uids[n])
      new = observation(uid % 10, g, whole.turns, self.blank)
      if whole.turns < 2 + (uid + g) % 2 and (
          len(whole) + len(new.tokens) < T):
        whole.insert(new)
        told[n, g] = new
      else:
        self.done[n, g] = True
    return told


def play(batch, decoding=schedule.Decoding(), seed=0, params=None, kind=Player,
         **kwargs):
  player = kind(np.asarray(batch.uid), following=batch.next_position, **kwargs)
  rollout = turns.sample(
      small.policy(), params or small.params(), batch, jax.random.key(seed),
      sample.knobs(max_new_tokens=T), jnp.int32(0), group=G, length=T,
      decoding=decoding, player=player)
  return jax.device_get(rollout), player


@pytest.fixture(scope='module')
def batch():
  return small.prompts()


@pytest.fixture(scope='module')
def played(batch):
  return play(batch)


def spoken(rollout):
  return rollout.completions.kind == types.KIND_SAMPLED


def test_episodes_have_turns_and_pictures(played):
  rollout, player = played
  kinds = rollout.completions.kind
  assert {len(why) for why in player.why.values()} == {2, 3}
  assert {why for x in player.why.values() for why in x} >= {'length', 'stop'}
  assert (kinds == types.KIND_OBSERVATION).any((1, 2)).all()
  assert rollout.done.all()
  # The last token of an episode was sampled, and so is every turn's first.
  for i, j in np.ndindex(kinds.shape[:2]):
    real = kinds[i, j][kinds[i, j] > 0]
    assert real[0] == real[-1] == types.KIND_SAMPLED
    numbers = rollout.completions.turn[i, j][kinds[i, j] == 1]
    assert sorted({*numbers}) == list(range(numbers.max() + 1))
    assert np.bincount(numbers).max() <= TURN


def test_m2_no_turn_says_a_placeholder(batch):
  """Of a model that wants nothing else, behind pictures as well."""
  params = small.prefer(small.params(), small.IMAGE)
  rollout, player = play(batch, params=params)
  said = rollout.completions.tokens[spoken(rollout)]
  assert rollout.completions.turn.max() > 0 and said.size
  assert not np.isin(said, small.BANNED).any()


def test_m1_log_probs_equal_one_forward_of_the_whole(batch, played):
  rollout, _ = played
  mask = jnp.asarray(spoken(rollout))
  logp, _ = small.logp(small.policy(), small.params(), batch,
                       jax.tree.map(jnp.asarray, rollout.completions), mask, 1.)
  np.testing.assert_allclose(rollout.logp, logp, atol=1e-5, rtol=0)
  assert (rollout.logp[~np.asarray(mask)] == 0).all()
  assert np.isfinite(rollout.logp).all() and (rollout.logp[mask] < 0).any()


def whole(batch, rollout, i, j):
  """Prompt and trajectory as one prompt: (tokens, patches, spans), and where
  the trajectory begins."""
  tokens, patches, spans = map(list, small.MIXED[i])
  start = len(tokens)
  kept = rollout.completions.kind[i, j] > 0
  tokens += rollout.completions.tokens[i, j][kept].tolist()
  uid, numbers = int(batch.uid[i]), rollout.completions.turn[i, j]
  for turn in range(1, numbers.max() + 1):
    grid = grid_of(uid % 10, j, turn)
    if grid:
      example = small.row(1 + (uid % 10 + j) % 2, grid, 2,
                          seed=100 * (uid % 10) + 10 * j + turn)
      patches, spans = patches + example[1], spans + example[2]
  return (tokens, patches, spans), start


def test_m4_positions_are_those_of_the_whole_as_one_prompt(batch, played):
  rollout, _ = played
  for i, j in np.ndindex(rollout.done.shape):
    (tokens, _, spans), start = whole(batch, rollout, i, j)
    place, _ = positions.rope_index(
        tokens, spans, image_id=small.IMAGE, video_id=small.VIDEO,
        merge=small.MERGE, tokens_per_second=2)
    made = rollout.completions.positions[i, j, :len(tokens) - start]
    np.testing.assert_array_equal(made, place[start:])


@functools.partial(jax.jit, static_argnums=0)
def every_logit(policy, params, prompts):
  """f32[N, P, V], of every token of prompts."""
  x, add = policy.module.apply({'params': params}, prompts, method='inputs')
  del add
  hidden = policy.module.apply(
      {'params': params}, x, prompts.positions, prompts.mask,
      method=lambda m, x, p, mask: m.language.norm(m._run(
          x[:, None], p[:, None], sight.causal(mask[:, None]), None)[0][:, 0]))
  return policy.logits(params, hidden, jnp.float32(1))




def test_m1_and_one_forward_of_a_prompt_that_holds_all_of_it(batch, played):
  """Two crops in a trajectory: the passes of completions are not in it."""
  rollout, _ = played
  found = [(i, j) for i, j in np.ndindex(rollout.done.shape)
           if rollout.completions.turn[i, j].max() == 2]
  rows = [whole(batch, rollout, i, j) for i, j in found]
  assert any(len(row[2]) - len(small.MIXED[i][2]) == 2
             for (row, _), (i, _) in zip(rows, found))
  prompts = small.prompts([row for row, _ in rows], p=26 + T,
                          s=10 * small.WINDOW)
  logits = np.asarray(every_logit(
      small.policy(), small.params(), prompts), np.float64)
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  for n, ((i, j), ((tokens, *_), start)) in enumerate(zip(found, rows)):
    first = 26 + T - len(tokens)
    for t in np.flatnonzero(spoken(rollout)[i, j]):
      want = logp[n, first + start + t - 1, tokens[start + t]]
      assert abs(rollout.logp[i, j, t] - want) < 1e-4


FEW = schedule.Decoding(rows=5, cache_chunk=24)


@pytest.mark.parametrize('decoding', [
    FEW, schedule.Decoding(rows=8, shrink=True),
    *(pytest.param(x, marks=pytest.mark.slow) for x in (
        schedule.Decoding(cache_chunk=8), schedule.Decoding(rows=6),
        schedule.Decoding(cache_chunk=16, shrink=True),
        schedule.Decoding(rows=8, shrink=True, layers='scan')))])
def test_m3_refills_and_fewer_rows_change_nothing(batch, played, decoding):
  same(play(batch, decoding)[0], played[0])


def same(a, b):
  for x, y in zip(*(jax.tree.leaves(
      r.completions.replace(media=None)) for r in (a, b))):
    np.testing.assert_array_equal(x, y)
  np.testing.assert_allclose(a.logp, b.logp, atol=1e-5, rtol=0)
  np.testing.assert_array_equal(a.done, b.done)


def test_m3_why_turns_end_has_nothing_to_do_with_their_neighbours(batch):
  """A turn that its cap has cut waits for the others: nothing that its row
  draws meanwhile makes it one that ended by itself."""
  ends = []

  class Eight(Player):
    turn_tokens, ending = 8, (20, 53, 57)

    def step(self, stopped):
      ends.extend((one.why, int(one.tokens[-1])) for one in stopped.values())
      return super().step(stopped)
  whys = [play(batch, decoding, seed=3, kind=Eight)[1].why for decoding in (
      schedule.Decoding(), schedule.Decoding(rows=1))]
  assert whys[0] == whys[1]
  assert {token for why, token in ends if why == 'stop'} <= {*Eight.ending}
  assert {why for why, _ in ends} >= {'stop', 'length'}


def test_m3_the_order_of_prompts_changes_nothing(batch, played):
  order = [2, 0, 3, 1]
  moved = jax.tree.map(lambda x: x[np.array(order)], batch)
  again, _ = play(moved, FEW)
  want = played[0].replace(prompts=None, version=None)
  same(again, jax.tree.map(lambda x: x[np.array(order)], want))


def test_m28_a_second_environment_is_warmed_up_too(batch, monkeypatch):
  """One of the same shapes, but for the length of what it says."""
  programs_of = (programs.decode, programs._resize, programs._regroup,
                 chunks.observe, chunks._close, programs.begin)
  warm, warm_up = [], chunks.Device.warm_up

  def count():
    return [program._cache_size() for program in programs_of]

  def noted(device, schedule):
    warm_up(device, schedule)
    warm.append(count())
  monkeypatch.setattr(chunks.Device, 'warm_up', noted)
  for tokens in (CHUNK, CHUNK + 4):
    said = type('Said', (Player,), {'chunk': tokens})
    play(batch, schedule.Decoding(rows=8, shrink=True), stop=False, kind=said)
    assert count() == warm[-1]


def test_what_a_picture_shows_is_read(batch, played):
  """The first turn knows nothing of it; the next one does."""
  rollout, _ = play(batch, blank=True)
  mask = spoken(rollout)
  completions = jax.tree.map(jnp.asarray, played[0].completions)
  media = completions.media['vision']
  blind = completions.replace(media={'vision': media.replace(
      patches=jnp.zeros_like(media.patches))})
  mask = jnp.asarray(spoken(played[0]))
  a, b = (small.logp(small.policy(), small.params(), batch, c, mask, 1.)[0]
          for c in (completions, blind))
  change = np.abs(np.asarray(a - b))
  for i, j in np.ndindex(played[0].done.shape):
    numbers = played[0].completions.turn[i, j]
    assert not change[i, j][numbers == 0].any()
    uid = int(batch.uid[i])
    if grid_of(uid % 10, j, 1):
      assert change[i, j][numbers == 1].max() > 1e-4
  np.testing.assert_array_equal(
      rollout.completions.tokens[:, :, 0], played[0].completions.tokens[:, :, 0])
