"""AdamW on the trainable half, schedules, and the non-finite guard."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmr1 import optim
from mmr1 import trees

BASE = dict(
    lr=0.1, lr_decay='constant', lr_end=0.0, warmup_steps=0, b1=0.9, b2=0.999,
    eps=1e-8, weight_decay=0.0, decay_mask='matrices', moment_dtype='float32',
    clip_norm=float('inf'), freeze=(), lr_multipliers=())


def section(**changes):
  assert changes.keys() <= BASE.keys()
  return types.SimpleNamespace(**{**BASE, **changes})


def params(dtype=jnp.float32):
  return {
      'vision': {'kernel': jnp.ones((2, 3, 4), dtype),
                 'bias': jnp.ones((2, 4), dtype)},
      'language': {'norm': {'weight': jnp.ones((2, 3), dtype)},
                   'embed': jnp.full((3, 2), 2.0, dtype)},
  }


def grads_like(tree, seed=0):
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return structure.unflatten([
      jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)])


def compiled(optimizer):
  return jax.jit(lambda g, l, s, p, c: optim.guarded_update(
      optimizer, g, l, s, p, c))


def run(optimizer, start, grads, losses=None, step=None):
  """Applies a list of gradients; returns the final values and all metrics."""
  state, guard = optimizer.tx.init(start), optim.init_guard()
  step = step or compiled(optimizer)
  metrics = []
  for i, g in enumerate(grads):
    loss = jnp.float32(0.0 if losses is None else losses[i])
    start, state, guard, row = step(g, loss, state, start, guard)
    metrics.append(jax.device_get(row))
  return start, state, guard, metrics


class TestUpdate:

  def test_equals_optax_adamw(self):
    """Three updates with clipping, decay on all, warm-up and cosine."""
    p = params()
    s = section(weight_decay=0.1, decay_mask='all', clip_norm=0.5,
                lr_decay='cosine', lr_end=0.1)
    o = optim.make(s, p, 3)
    oracle = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(optax.cosine_decay_schedule(0.1, 3, 0.1),
                    weight_decay=0.1))
    gs = [grads_like(p, i) for i in range(3)]
    ours, _, _, metrics = run(o, p, gs)
    q, state = p, oracle.init(p)
    for g, row in zip(gs, metrics):
      # M24: the logged norm is the one before clipping.
      np.testing.assert_allclose(
          row['grad_norm'], optax.tree.norm(g), rtol=1e-6)
      updates, state = oracle.update(g, state, q)
      q = optax.apply_updates(q, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), ours, q)

  def test_decay_of_matrices_only(self):
    """Without gradient an update is -lr * decay * p = -0.1 * 0.5 * p."""
    p = params()
    o = optim.make(section(weight_decay=0.5), p, 1)
    q, *_ = run(o, p, [jax.tree.map(jnp.zeros_like, p)])
    np.testing.assert_allclose(q['vision']['kernel'], 0.95, rtol=1e-6)
    np.testing.assert_allclose(q['language']['embed'], 1.9, rtol=1e-6)
    # Biases and norms stay, though stacking made matrices of them.
    np.testing.assert_array_equal(q['vision']['bias'], 1.0)
    np.testing.assert_array_equal(q['language']['norm']['weight'], 1.0)

  def test_multipliers(self):
    """Adam's first update is the sign of the gradient, times lr, times m."""
    p = params()
    o = optim.make(section(lr_multipliers=(
        'vision/bias:0.25', 'vision/.*:0.5')), p, 1)
    q, *_ = run(o, p, [jax.tree.map(jnp.ones_like, p)])
    np.testing.assert_allclose(q['vision']['bias'], 1 - 0.025, rtol=1e-6)
    np.testing.assert_allclose(q['vision']['kernel'], 1 - 0.05, rtol=1e-6)
    np.testing.assert_allclose(q['language']['embed'], 2 - 0.1, rtol=1e-6)

  def test_lr_zero_stays_flat(self):
    p = params()
    o = optim.make(section(lr=0.0, weight_decay=0.1), p, 50)
    q, *_ = run(o, p, [grads_like(p, i) for i in range(50)])
    jax.tree.map(np.testing.assert_array_equal, p, q)

  def test_bfloat16_parameters_have_float32_second_moments(self):
    p = params(jnp.bfloat16)
    o = optim.make(section(moment_dtype='bfloat16'), p, 1)
    q, state, *_ = run(o, p, [grads_like(p)])
    moments = {name: leaf.dtype for name, leaf in trees.named(state).items()}
    assert {d for n, d in moments.items() if '/mu/' in n} == {
        np.dtype(jnp.bfloat16)}
    assert {d for n, d in moments.items() if '/nu/' in n} == {
        np.dtype(np.float32)}
    assert {x.dtype for x in jax.tree.leaves(q)} == {np.dtype(jnp.bfloat16)}


class TestFreeze:

  def test_m21_frozen_parameters_have_no_state_and_no_gradient(self):
    p = params()
    o = optim.make(section(freeze=('vision/.*',), weight_decay=0.1), p, 5)
    trainable, frozen = trees.partition(p, o.mask)
    state = o.tx.init(trainable)
    names = [n for n in trees.named(state) if 'count' not in n]
    assert names and not any('vision' in name for name in names)
    # Two moments of the 12 trainable values, and two counts.
    assert trees.count(state) == 2 * 12 + 2

    def loss(part):
      whole = trees.merge(part, frozen)
      return sum(x.sum() ** 2 for x in jax.tree.leaves(whole))
    grads = jax.grad(loss)(trainable)
    assert list(grads) == ['language']
    moved, *_ = run(o, trainable, [grads] * 3)
    whole = trees.merge(moved, frozen)
    jax.tree.map(np.testing.assert_array_equal, whole['vision'], p['vision'])
    assert (whole['language']['embed'] != p['language']['embed']).all()

  def test_m21_table(self):
    o = optim.make(section(freeze=('vision/bias', '.*norm.*')), params(), 1)
    # vision: 24 + 8; language: 6 in the norm, 6 in the embedding.
    assert optim.table(params(), o.mask) == [
        ('language', '6', '6'), ('language/norm', '0', '6'),
        ('vision', '24', '32'), ('total', '30', '44')]


class TestSchedule:

  @pytest.mark.parametrize('decay, expected', [
      # Two steps of warm-up to 1, then 4 steps: halves of (1 + cos) / 2.
      ('constant', [0.5, 1, 1, 1, 1, 1, 1]),
      ('linear', [0.5, 1, 1, 0.775, 0.55, 0.325, 0.1]),
      # (1 - 0.1) * (1 + cos(pi k / 4)) / 2 + 0.1, cos = 1, .7071, 0, -.7071
      ('cosine', [0.5, 1, 1, 0.86820, 0.55, 0.23180, 0.1]),
  ])
  def test_values(self, decay, expected):
    o = optim.make(section(
        lr=1.0, lr_decay=decay, lr_end=0.1, warmup_steps=2), params(), 6)
    np.testing.assert_allclose(
        [o.schedule(i) for i in range(7)], expected, atol=1e-5)

  def test_logged_lr_is_the_one_used(self):
    p = {'a': jnp.zeros(2)}
    o = optim.make(section(lr=1.0, warmup_steps=4), p, 4)
    g, step = {'a': jnp.ones(2)}, compiled(o)
    before = np.zeros(2)
    for k in range(1, 5):
      q, _, _, metrics = run(o, p, [g] * k, step=step)
      # Adam of a constant gradient moves by lr each time.
      np.testing.assert_allclose(
          before - np.asarray(q['a']), metrics[-1]['lr'], rtol=1e-4)
      before = np.asarray(q['a'])


  def test_a_carried_optimiser_starts_the_next_schedule(self):
    """Moments go on, the warm-up starts again."""
    p, g = {'a': jnp.zeros(2)}, {'a': jnp.ones(2)}
    o = optim.make(section(lr=1.0, warmup_steps=4), p, 4)
    _, state, *_ = run(o, p, [g] * 3)
    assert optim.learning_rate(o, state) == 1.0
    carried = optim.restart_schedule(state)
    assert optim.learning_rate(o, carried) == 0.25
    before, after = trees.named(state), trees.named(carried)
    changed = [k for k in before if (before[k] != after[k]).any()]
    assert before.keys() == after.keys() and len(changed) == 1
    assert changed[0].endswith('/count')
    assert jax.tree.structure(state) == jax.tree.structure(carried)


@pytest.fixture(scope='module')
def linear():
  o = optim.make(
      section(lr_decay='linear', weight_decay=0.1), params(), 3)
  step = compiled(o)
  gs = [grads_like(params(), i) for i in range(2)]
  return o, step, gs, run(o, params(), gs, step=step)


class TestGuard:

  @pytest.mark.parametrize('where', ['loss', 'grad', 'overflow'])
  @pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
  def test_m8_skipped(self, linear, where, bad):
    """A bad update in the middle changes nothing but the counters."""
    p = params()
    o, step, gs, (want, want_state, *_) = linear
    broken = grads_like(p, 5)
    losses = [0.0, 0.0, 0.0]
    if where == 'loss':
      losses[1] = bad
    elif where == 'grad':
      embed = broken['language']['embed']
      broken['language']['embed'] = embed.at[1, 1].set(bad)
    else:  # finite values whose norm is not
      broken = jax.tree.map(lambda x: jnp.full_like(x, 1e38), p)
    got, state, guard, rows = run(
        o, p, [gs[0], broken, gs[1]], losses, step=step)
    jax.tree.map(np.testing.assert_array_equal, want, got)
    jax.tree.map(np.testing.assert_array_equal, want_state, state)
    assert [r['update/skipped'] for r in rows] == [0, 1, 0]
    assert [r['update/skipped_in_a_row'] for r in rows] == [0, 1, 0]
    assert (int(guard.consecutive), int(guard.total)) == (0, 1)
    # The learning rate counts applied updates: .1, .0667, .0667.
    np.testing.assert_allclose(
        [r['lr'] for r in rows], [0.1, 0.2 / 3, 0.2 / 3], rtol=1e-5)

  def test_m8_stops_after_k_in_a_row(self):
    p = {'a': jnp.ones(2)}
    o = optim.make(section(), p, 9)
    bad = {'a': jnp.array([1.0, jnp.nan])}
    *_, rows = run(o, p, [bad, bad, {'a': jnp.ones(2)}, bad, bad, bad])
    in_a_row = [int(r['update/skipped_in_a_row']) for r in rows]
    assert in_a_row == [1, 2, 0, 1, 2, 3]
    assert rows[-1]['update/skipped_total'] == 5
    for k in in_a_row[:-1]:
      optim.check_guard(k, 3, 'x.npz')
    with pytest.raises(FloatingPointError, match='x.npz'):
      optim.check_guard(in_a_row[-1], 3, 'x.npz')


@pytest.mark.parametrize('changes, word', [
    (dict(lr=-1.0), 'lr'), (dict(clip_norm=0.0), 'clip_norm'),
    (dict(lr_decay='cos'), 'lr_decay'), (dict(warmup_steps=11), 'warmup_steps'),
    (dict(b2=1.0), 'b2'), (dict(eps=0.0), 'eps'), (dict(lr_end=2.0), 'lr_end'),
    (dict(weight_decay=-0.1), 'weight_decay'),
    (dict(decay_mask='kernels'), 'decay_mask'),
    (dict(moment_dtype='float16'), 'moment_dtype'),
    (dict(freeze=('vison/.*',)), 'vison'),
    (dict(freeze=('vision/.*', 'language/.*')), 'nothing to train'),
    (dict(lr_multipliers=('vision/.*',)), 'lr_multipliers'),
    (dict(lr_multipliers=('vision/.*:0',)), 'freeze'),
    (dict(lr_multipliers=('x/.*:2',)), 'x/'),
    (dict(freeze=('vision/.*',), lr_multipliers=('vision/.*:2',)), 'vision'),
])
def test_m22_values_out_of_range(changes, word):
  with pytest.raises(ValueError, match=word):
    optim.make(section(**changes), params(), 10)
