"""The jitted update of a stage: what moves, what is logged, what compiles."""

import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from mmr1 import compiles
from mmr1 import learner
from mmr1 import resolve
from mmr1 import sharding
from mmr1 import trees
from mmr1 import training
from mmr1.models import lora
from tests import small

PEAK = 1e-2


class Logger:
  def __init__(self):
    self.tables, self.notes = [], []

  def table(self, rows, *_):
    self.tables.append(rows)

  def note(self, text):
    self.notes.append(text)


def context(base, opt=None):
  return python_types.SimpleNamespace(
      params=lambda name: base, start=lambda stage: base, logger=Logger(),
      trains=(), policy=small.policy(), forget_base=lambda: None,
      optimizer_state=lambda name, target: opt)


def section(**changes):
  """lr falls from its peak to 0 after one update."""
  return small.section(
      optimizer__lr=PEAK, optimizer__weight_decay=0.1,
      optimizer__lr_decay='linear', optimizer__lr_end=0.0,
      optimizer__freeze=('visual/.*',), **changes)


@pytest.fixture(scope='module')
def block():
  return small.block(small.prompts(), 4, 6)


@pytest.fixture(scope='module')
def base():
  return jax.device_get(small.params())


@pytest.fixture(scope='module')
def step(base):
  """The stage's own update, compiled without optimisation."""
  optimizer = training.start(context(base), 'rl', section(), 1).optimizer
  update = training.make_update(
      small.policy(), optimizer, small.plan().terms, chunks=2)
  return jax.jit(update.__wrapped__, donate_argnums=0)


def begin(base):
  return training.start(context(base), 'rl', section(), 1).state


def named(state, part='params'):
  return {k: np.asarray(v)
          for k, v in trees.named(getattr(state, part)['policy']).items()}


@pytest.fixture(scope='module')
def first(base, block, step):
  """State and metrics after the one update whose learning rate is not 0."""
  state, metrics = step(begin(base), (block,), small.knobs(), None)
  return jax.device_get((state, metrics))


@pytest.fixture(scope='module')
def independent(base, block):
  """The gradient without freezing, chunks or an optimiser."""
  return small.gradient(small.params(), (block,))


def test_m24_logged_is_what_was_used(first, independent):
  """Only the language model trains, so only its gradient is in the norm."""
  grads, metrics = independent
  norm = optax.global_norm(grads['language'])
  assert float(first[1]['grad_norm']) == pytest.approx(float(norm), rel=1e-5)
  assert float(optax.global_norm(grads)) > 1.01 * float(norm)
  for name, value in metrics.items():
    assert float(first[1][name]) == pytest.approx(
        float(value), rel=1e-5, abs=1e-5), name
  assert float(first[1]['lr']) == pytest.approx(PEAK)


def test_m21_frozen_parameters_neither_move_nor_own_state(base, first):
  before, after = trees.named(base), named(first[0])
  assert before.keys() == after.keys()
  for name, value in after.items():
    if name.startswith('visual/'):
      np.testing.assert_array_equal(value, before[name])
    else:
      assert (value != before[name]).any(), name
  assert not [k for k in trees.named(first[0].opt) if 'visual' in k]
  assert int(first[0].step) == 1


def test_lr_0_stays_flat_for_50_steps_and_m28(base, block, first, step):
  """After the first update lr is 0; weight decay is coupled to it. The knobs
  change at every step, and nothing is compiled."""
  state, loss = sharding.default().own(first[0]), []
  counter = compiles.CompileCounter()
  for k in range(50):
    name = tuple(small.knobs())[k % 6]
    knobs = small.knobs() if k % 2 else small.knobs(
        **{name: np.float32(0.5 + k / 50)})
    state, metrics = step(state, (block,), knobs, None)
    if k % 2:
      loss.append(float(metrics['loss']))
  after = named(state)
  # One program may be compiled: that of states which have left the set-up.
  assert counter.count <= 1 and float(metrics['lr']) == 0
  counter.close()
  assert len(set(loss)) == 1
  for name, value in named(first[0]).items():
    np.testing.assert_array_equal(after[name], value)
  assert int(state.step) == 51


def test_m8_a_non_finite_update_is_skipped_and_counted(base, block, step):
  bad = block.replace(advantage=block.advantage.at[0, 0].set(jnp.inf))
  state, metrics = step(begin(base), (bad,), small.knobs(), None)
  assert int(metrics['update/skipped']) == 1
  assert int(state.step) == 1 and int(state.aux['guard'].total) == 1
  for name, value in named(state).items():
    np.testing.assert_array_equal(value, trees.named(base)[name])
  # The next one is applied as if it were the first.
  state, metrics = step(state, (block,), small.knobs(), None)
  assert int(metrics['update/skipped']) == 0
  assert float(metrics['lr']) == pytest.approx(PEAK)
  assert int(state.aux['guard'].consecutive) == 0


def test_m6_m9_an_all_masked_batch_changes_nothing(base, block, step):
  """Gradient 0, and nothing else moves either: no decay, no moments."""
  none = block.replace(mask=jnp.zeros_like(block.mask))
  state, metrics = step(begin(base), (none,), small.knobs(), None)
  assert float(metrics['loss']) == 0 and float(metrics['grad_norm']) == 0
  assert all(np.isfinite(x) for x in metrics.values())
  assert metrics['update/idle'] == 1 and metrics['update/skipped'] == 0
  after, before = named(state), trees.named(base)
  for name, leaf in before.items():
    np.testing.assert_array_equal(after[name], leaf)
  for leaf in jax.tree.leaves(state.opt['policy']):
    assert not np.any(leaf)


def test_a_stage_owns_its_buffers(base, block, step):
  """What it donates must not be the base model's."""
  shared = jax.device_put(base)
  state = training.start(context(shared), 'rl', section(), 1).state
  step(state, (block,), small.knobs(), None)
  np.testing.assert_array_equal(
      np.asarray(shared['language']['embed']), base['language']['embed'])


def test_the_optimiser_may_be_carried(base, first):
  """Moments stay, the schedule starts again."""
  ctx = context(base, first[0].opt['policy'])
  state = training.start(
      ctx, 'rl', section(carry=('optimizer',)), 1).state
  carried, old = trees.named(state.opt['policy']), trees.named(
      first[0].opt['policy'])
  moments = [name for name in old if 'mu' in name or 'nu' in name]
  assert len(moments) > 10
  for name in moments:
    np.testing.assert_array_equal(carried[name], old[name])
  assert int(old_count(first[0].opt['policy'])) == 1
  assert int(old_count(state.opt['policy'])) == 0
  fresh = training.start(ctx, 'rl', section(), 1).state
  assert all((np.asarray(x) == 0).all()
             for x in jax.tree.leaves(fresh.opt['policy']))


def old_count(opt):
  return opt[-1].count


def test_m21_what_trains_is_printed(base):
  ctx = context(base)
  training.start(ctx, 'rl', section(), 1)
  rows = {row[0]: row[1:] for row in ctx.logger.tables[0]}
  total = sum(x.size for x in jax.tree.leaves(base))
  language = sum(x.size for x in jax.tree.leaves(base['language']))
  assert rows['total'] == (f'{language:,}', f'{total:,}')
  assert rows['visual/blocks'][0] == '0'


@pytest.mark.parametrize('key', [
    'steps', 'checkpoint_every', 'samples_every', 'keep_checkpoints',
    'max_bad_updates', 'max_new_tokens'])
def test_m22_0_is_not_unlimited(key):
  stage = small.section(**{key: 0})
  with pytest.raises(ValueError, match=f'rl.{key}: got 0.*at least 1'):
    training.check(stage, 'rl', python_types.SimpleNamespace(stages=('rl',)))


# Adapters.


@pytest.fixture(scope='module')
def adapted():
  """A stage with adapters of rank 2 on q and k, and its parameters."""
  stage = small.section(
      lora__rank=2, lora__targets=('language/layers/[qk]/.*',),
      lora__train=('language/norm/weight',))
  params = lora.inject(
      small.params(), jax.random.key(0), rank=2, alpha=stage.lora.alpha,
      targets=stage.lora.targets)
  return stage, params


def test_m21_with_adapters_all_else_is_frozen(adapted):
  stage, params = adapted
  ctx = context(params)
  start = training.start(ctx, 'rl', stage, 1)
  trained = {name for name, on in trees.named(start.mask).items() if on}
  assert trained == {'language/norm/weight', *(
      f'language/layers/{x}/lora_{y}' for x in 'qk' for y in 'ab')}
  owned = [name for name, x in trees.named(start.state.opt).items() if x.ndim]
  assert len(owned) == 2 * len(trained)
  assert all(name.endswith(tuple(trained)) for name in owned)
  rows = {row[0]: row[1:] for row in ctx.logger.tables[0]}
  # Two layers, a [32, 2] and b [2, 32 or 16]; and the norm of 32.
  assert rows['total'][0] == str(2 * (2 * 64 + 64 + 32) + 32)
  assert rows['visual/blocks'][0] == '0'
  # What a checkpoint holds.
  kept = trees.select(start.state, start.stored)
  assert {name for name, on in trees.named(kept).items() if on} == {
      *(f'params/policy/{name}' for name in trained), 'step',
      *trees.named({'opt': start.state.opt, 'aux': start.state.aux})}
  assert training.start(context(small.params()), 'rl', section(), 1
                        ).stored == ('.*',)


def test_the_reference_shares_what_does_not_train(adapted):
  stage, params = adapted
  start = training.start(context(params), 'rl', stage, 1)
  moved = start.state.replace(
      params=jax.tree.map(lambda x: x + 1, start.state.params))
  for whole in (False, True):
    made = training.reference(
        context(params), start, 'init', whole=whole)(moved)
    own = {name for name, x in trees.named(made).items()
           if x is not trees.named(moved.params['policy'])[name]}
    mask = trees.named(start.mask)
    assert own == {name for name, on in mask.items() if on or whole}
    for name in own:  # where the stage started
      np.testing.assert_array_equal(
          trees.named(made)[name], trees.named(params)[name])


@pytest.mark.parametrize('changes, message', [
    (dict(rank=-1), r'rl.lora.rank: got -1; allowed: 0'),
    (dict(rank=2, alpha=0.0), r'rl.lora.alpha: got 0.0.*alpha / rank'),
    (dict(rank=2, alpha=float('inf')), r'rl.lora.alpha: got inf'),
    (dict(rank=2, targets=()), r'rl.lora.targets: empty, with rank 2'),
])
def test_m22_adapters_that_cannot_be(changes, message):
  stage = small.section(**{f'lora__{k}': v for k, v in changes.items()})
  with pytest.raises(ValueError, match=message):
    training.check(stage, 'rl', resolve.Section(
        {'stages': (), 'rl': stage.as_dict()}))


def stages(first, second, **more):
  """Two rl stages by their `lora` and `more` keys of the second."""
  c = common.get_base()
  c.stages = ('first', 'second')
  c.first = common.overlay(c.rl, lora=first)
  c.second = common.overlay(c.rl, lora=second, **more)
  return c


QK = dict(rank=2, targets=('language/layers/[qk]/.*',))


@pytest.mark.parametrize('second, more, message', [
    (dict(rank=33), {}, r'^second.lora.rank: got 33'),
    (dict(rank=2, targets=('visul/.*',)), {}, r'^second.lora.targets: .visul'),
    (dict(rank=2, train=('norm',)), {}, r'^second.lora.train: .norm. matches'),
    (dict(rank=2), dict(optimizer=dict(freeze=('language/.*',))),
     r'^second.optimizer.freeze: .*leaves nothing to train'),
    (dict(rank=2, targets=('.*',)), dict(optimizer=dict(
        freeze=('visual/.*',))),
     r"^second.optimizer.freeze: 'visual/.*lora_a' should train"),
    (dict(QK, rank=4), dict(carry=('optimizer',)),
     r"^second.carry: the optimiser of 'first' has no moments of .* \(4 of"),
    (dict(QK, alpha=3.0), dict(carry=('optimizer',)), r'^second.carry'),
    (dict(QK, train=('language/norm/weight',)), dict(carry=('optimizer',)),
     r"^second.carry: .*'language/norm/weight' \(1 of the 5"),
    (dict(rank=0), dict(carry=('optimizer',)), r'^second.carry'),
    (QK, dict(carry=('optimizer',), init='base'),
     r"^second.carry: .* starts from 'base'"),
    (QK, dict(carry=('optimizer',), optimizer=dict(moment_dtype='bfloat16')),
     r'^second.carry: .*in float32; second.optimizer.moment_dtype is bfloat16'),
    (QK, dict(carry=('optimizer',)), None),
    (dict(rank=0), {}, None),
])
def test_m22_adapters_that_the_parameters_refuse(second, more, message):
  config = resolve.finalise(stages(QK, second, **more))
  if message is None:
    training.check_parameters(config, small.params())
    return
  with pytest.raises(ValueError, match=message):
    training.check_parameters(config, small.params())


def test_m22_keys_of_adapters_without_adapters():
  """From the command line and in a file; a family may serve one stage only."""
  c = stages(dict(), dict())
  c.rl.lora.alpha = 32.0
  final = resolve.finalise(c)
  with pytest.raises(ValueError, match='--config.rl.lora.alpha has no effect: '
                                       'rl.lora.rank is 0'):
    training.check_overrides(final, ('seed', 'rl.lora.alpha'))
  for name in final.stages:
    training.check(final[name], name, final)
  assert {'first.lora.alpha', 'second.lora.alpha'} <= set(final.unread())
  c.first.lora.rank = 2
  final = resolve.finalise(c)
  training.check_overrides(final, ('rl.lora.alpha', 'second.lora.rank'))
  for name in final.stages:
    training.check(final[name], name, final)
  assert not [key for key in final.unread() if '.lora.' in key]
  with pytest.raises(ValueError, match='--config.second.lora.train has no'):
    training.check_overrides(final, ('second.lora.train',))


def rows(**columns):
  """{name: values over updates}; slashes of names as __."""
  count = len(next(iter(columns.values())))
  return [{name.replace('__', '/'): jnp.asarray(values[i])
           for name, values in columns.items()} for i in range(count)]


def test_m24_metrics_of_several_updates_by_hand():
  got = learner.combine(rows(
      loss=[1.0, 2.0, 6.0], kl=[0.1, 0.2, 0.6], ratio__max=[1.0, 3.0, 2.0],
      ratio__mean=[1.0, 1.1, 1.2], clip_frac__low=[0.0, 0.2, 0.1],
      sampler__logp_diff_max=[1e-5, 0.3, 0.4], update__skipped=[0, 0, 0],
      update__skipped_in_a_row=[0, 0, 0], update__skipped_total=[2, 2, 2]))
  assert got == pytest.approx({
      'loss': 3.0, 'kl': 0.3, 'ratio/max': 3.0, 'ratio/mean': 1.1,
      'clip_frac/low': 0.1, 'sampler/logp_diff_max': 1e-5,
      'update/skipped': 0, 'update/skipped_in_a_row': 0,
      'update/skipped_total': 2}, rel=1e-6)


def test_m8_skipped_updates_are_counted_and_hide_no_others():
  nan = float('nan')
  values = dict(
      loss=[nan, 2.0, nan, 4.0], ratio__max=[9.0, 1.0, nan, 2.0],
      update__skipped=[1, 0, 1, 0], update__skipped_in_a_row=[3, 0, 1, 0],
      update__skipped_total=[3, 3, 4, 4])
  got = learner.combine(rows(**values))
  assert got == {
      'loss': 3.0, 'ratio/max': 2.0, 'update/skipped': 2,
      'update/skipped_in_a_row': 3, 'update/skipped_total': 4}
  # Where none was applied, their own numbers are shown.
  got = learner.combine(rows(**{k: [v[0]] * 2 for k, v in values.items()}))
  assert np.isnan(got['loss']) and got['update/skipped'] == 2


def test_metrics_of_one_update_stay_as_they_are():
  (only,) = rows(loss=[1.0], ratio__max=[2.0], update__skipped=[1])
  got = learner.combine([only])
  assert got == only and got is not only


def test_knobs_are_traced_arrays():
  traced = training.traced({'a': 1, 'b': 0.5})
  for value in traced.values():
    assert value.dtype == jnp.float32 and value.shape == ()
    assert not value.weak_type
