"""The preference stage: pairs of a file, their block, and what trains."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import common
from mmr1 import log
from mmr1 import resolve
from mmr1 import runner
from mmr1 import trees
from mmr1 import types
from mmr1.data import datasets
from mmr1.data import encode
from mmr1.data import files
from mmr1.data import rows
from mmr1.stages import preference
from tests import small

BETA = .5


def write(folder, lines, name='pairs.jsonl'):
  Image.new('RGB', (32, 32), 'red').save(folder / 'a.png')
  path = folder / name
  path.write_text(''.join(json.dumps(
      {'images': ['a.png'], 'problem': 'What is it?', **line}) + '\n'
                          for line in lines))
  return str(path)


def lines(count=12):
  return [dict(chosen=f'<think>{i}+1={i + 1}</think><answer>{i + 1}</answer>',
               rejected=f'it is {i}', answer=str(i + 1)) for i in range(count)]


@pytest.fixture
def config(shrink, tmp_path):
  c = shrink(common.get_base())
  c.stages = ('prefer',)
  c.data.path = write(tmp_path, lines())
  c.data.holdout = 6
  c.preference.loss.kwargs = dict(beta=BETA)
  c.prefer = common.overlay(
      c.preference, steps=4, pairs_per_step=4, max_new_tokens=48,
      optimizer=dict(lr=.01))
  return c


@pytest.fixture
def taken(open_run, tmp_path, monkeypatch):
  """config -> (context, state, pairs, take_step) of its stage."""
  def open_(c):
    open_.count += 1
    ctx, plans = open_run(c, tmp_path / f'run{open_.count}')
    caught = []
    monkeypatch.setattr(
        preference.loop, 'train', lambda *args: caught.append(args))
    preference.run(ctx, 'prefer', ctx.config.prefer, plans['prefer'])
    _, _, _, state, pairs, take_step, _ = caught[0]
    return ctx, state, pairs, take_step
  open_.count = 0
  return open_


# Data.


def test_columns_of_pairs(tmp_path):
  talk = lambda said: [{'role': 'user', 'content': 'What?'},
                       {'role': 'assistant', 'content': said}]
  path = write(tmp_path, [
      dict(chosen='a', rejected='b'), dict(chosen=talk('c'), rejected=talk('d')),
      dict(chosen='a', rejected='a'), dict(chosen='a'),
      dict(chosen=talk('x')[:1], rejected='b'), dict(chosen='', rejected='b')])
  source = files.JsonlSource(path, form=rows.RowFormat.needing('pair'))
  assert [source[i].completions for i in (0, 1)] == [('a', 'b'), ('c', 'd')]
  assert not {'chosen', 'rejected'} & set(source[0].meta)
  for i, reason in ((2, 'same text'), (3, 'rejected'), (4, "'user'"),
                    (5, 'empty chosen')):
    assert reason in source[i].reason
  # What sft imitates of such a file.
  imitated = files.JsonlSource(path, form=rows.RowFormat.needing('completion'))
  assert [imitated[i].completions for i in (0, 1)] == [('a',), ('c',)]
  with pytest.raises(ValueError, match="no column 'rejected'"):
    files.JsonlSource(write(tmp_path, [dict(chosen='a')], 'b.jsonl'),
                      form=rows.RowFormat.needing('pair'))


def test_a_block_by_hand(config, open_run, tmp_path):
  path = write(tmp_path, [dict(chosen='7', rejected='12', given='<think>')],
               'given.jsonl')
  ctx, _ = open_run(config, tmp_path / 'run')
  shape = ctx.shape()
  item = shape.encode(datasets.open_completions(path, 0, 'pair')[0], 0)
  ids = [encode.encode_completion(x, ctx.processor)
         for x in item[0].completions]
  before = encode.encode_given(item[0].given, ctx.processor)
  pair = tuple(preference.packing.Example(
      item, np.concatenate([before, x]), len(before)) for x in ids)
  block = preference.assemble([pair], shape, 40)
  pad, g = ctx.processor.pad_id, len(before)
  assert block.prompts.tokens.shape[0] == 1  # one prompt of both
  for side, one in enumerate(ids):
    used = g + len(one)
    assert block.completions.tokens[0, side].tolist() == (
        [*before, *one] + [pad] * (40 - used))
    assert block.mask[0, side].tolist() == (
        [False] * g + [True] * len(one) + [False] * (40 - used))
    assert (block.completions.kind[0, side, :g] == types.KIND_FORCED).all()
  first = int(block.prompts.next_position[0])
  np.testing.assert_array_equal(
      block.completions.positions[0, :, :, 0], [first + np.arange(40)] * 2)


def test_long_and_broken_pairs_are_counted(config, taken, tmp_path):
  config.data.path = write(
      tmp_path, [
          *lines(6), dict(chosen='7' * 90, rejected='8'),
          dict(chosen='7', rejected='8' * 90), dict(chosen='7', rejected=3)])
  config.data.eval_path = write(tmp_path, lines(4), 'eval.jsonl')
  _, state, pairs, take_step = taken(config)
  before = pairs.state()
  assert len(pairs.next(18)) == 18  # three passes of six
  assert (pairs.dropped, pairs.broken) in ((4, 1), (5, 1), (6, 1))
  again = pairs.state()
  pairs.restore(before)
  assert len(pairs.next(18)) == 18 and pairs.state() == again


# Learning.


def plain(policy, params, block):
  """f32[N, 2], sums of log-probs, every logit at once: none of the stage's
  code, and none that stops gradients."""
  logp = jax.nn.log_softmax(small.logits(
      policy, params, block.prompts, block.completions, jnp.float32(1)))
  said = jnp.take_along_axis(
      logp, jnp.asarray(block.completions.tokens)[..., None], -1)[..., 0]
  return jnp.sum(jnp.where(block.mask, said, 0), -1)


def test_the_update_is_that_of_the_formula(config, taken):
  """Loss and every parameter's gradient, by another pass and jax.grad; the
  reference is where the stage started, also at the second step."""
  config.prefer.nll.coefficient = 1.
  config.prefer.nll.reduce = 'seq_mean'
  config.prefer.optimizer.clip_norm = 1e9
  config.prefer.chunks_per_step, config.prefer.length_buckets = 2, (24,)
  ctx, state, _, take_step = taken(config)
  start = jax.tree.map(np.array, state.params['policy'])
  for k in range(2):
    params = jax.tree.map(np.array, state.params['policy'])
    step = take_step(state, k)
    state, block = step.state, step.batch[0]
    np.testing.assert_allclose(
        np.asarray(block.ref)[np.asarray(block.mask)], np.asarray(small.logp(
            ctx.policy, start, block.prompts, block.completions, block.mask,
            np.float32(1))[0])[np.asarray(block.mask)], atol=1e-5)
    ref = plain(ctx.policy, start, block)
    def loss(p):
      sums = plain(ctx.policy, p, block)
      h = (sums - ref)[:, 0] - (sums - ref)[:, 1]
      nll = -sums[:, 0] / block.mask[:, 0].sum(-1)
      return -jnp.mean(jax.nn.log_sigmoid(BETA * h)) + jnp.mean(nll), (sums, h)
    (value, (sums, h)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    metrics = {name: float(x) for name, x in step.metrics.items()}
    assert metrics['loss'] == pytest.approx(float(value), rel=1e-5)
    norm = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    assert metrics['grad_norm'] == pytest.approx(norm, rel=1e-4)
    gained = BETA * (sums - ref)
    assert metrics['rewards/chosen'] == pytest.approx(
        float(gained[:, 0].mean()), abs=1e-4)
    assert metrics['rewards/margins'] == pytest.approx(
        float(BETA * h.mean()), abs=1e-4)
    assert metrics['rewards/accuracies'] == np.mean(np.asarray(h) > 0) or not k
    assert metrics['logps/rejected'] == pytest.approx(
        float(sums[:, 1].mean()), rel=1e-4)
    if not k:  # nothing has moved
      assert metrics['loss/preference'] == pytest.approx(math.log(2), rel=1e-5)
  assert metrics['rewards/margins'] > 0
  assert not same(start, state.params['policy'])


def same(a, b):
  return all(np.array_equal(x, y)
             for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_chunks_change_nothing(config):
  """A pair stays whole, whatever the number of chunks is."""
  config.prefer.nll.coefficient = .5
  objective = preference.objective_of(resolve.finalise(config).prefer)
  block = small.block(small.prompts(), 2, 6)
  knobs = {name: jnp.float32(x) for name, x in objective.knobs.items()}
  (grads, metrics), (parts, said) = (small.gradient(
      small.params(), (block,), knobs, chunks=chunks, terms=objective.terms)
                                     for chunks in (1, 4))
  small.close(parts, grads, 2e-5)
  for name, value in metrics.items():
    assert float(said[name]) == pytest.approx(float(value), rel=1e-4), name


def test_adapters_are_of_the_base_they_are_compared_with(config, taken):
  """LoRA: the reference is the model without them; it stays as it is."""
  config.prefer.lora.rank = 2
  ctx, state, _, take_step = taken(config)
  start = jax.tree.map(np.array, state.params['policy'])
  first = take_step(state, 0)
  assert float(first.metrics['loss']) == pytest.approx(math.log(2), rel=1e-5)
  second = take_step(first.state, 1)
  moved = [name for name, (a, b) in zip(
      trees.named(start), zip(jax.tree.leaves(start), jax.tree.leaves(
          second.state.params['policy']))) if not np.array_equal(a, b)]
  assert moved and all('lora_' in name for name in moved)
  block = second.batch[0]
  base = np.asarray(small.logp(
      ctx.policy, ctx.base_params(), block.prompts, block.completions,
      block.mask, np.float32(1))[0])
  np.testing.assert_allclose(block.ref, base, atol=1e-5)


def test_simpo_makes_no_reference_pass(config, taken, monkeypatch):
  config.prefer.loss.fn, config.prefer.loss.kwargs = 'simpo', {}
  monkeypatch.setattr(
      preference.learner_lib, 'log_probs', None)  # would fail
  _, state, _, take_step = taken(config)
  step = take_step(state, 0)
  assert step.batch[0].ref is None and float(step.metrics['grad_norm']) > 0
  assert 'time/reference_s' not in step.times()


def test_m15_a_run_goes_on_where_it_was(config, tmp_path, monkeypatch):
  config.prefer.checkpoint_every = 2
  def run(folder, **kw):
    return runner.run(config, str(tmp_path / folder), quiet=True, **kw)
  run('whole')
  saved = preference.loop._save
  def save(ctx, stage, done, *args):
    saved(ctx, stage, done, *args)
    ctx.checkpoints.wait()
    if done == 2:
      raise KeyboardInterrupt
  monkeypatch.setattr(preference.loop, '_save', save)
  with pytest.raises(KeyboardInterrupt):
    run('cut')
  monkeypatch.setattr(preference.loop, '_save', saved)
  run('cut')
  told = [[{key: x for key, x in row.items() if not key.startswith(
      ('time', 'compile', 'tokens_per_s'))} for row in log.read_rows(
          tmp_path / folder / 'metrics.jsonl')] for folder in ('whole', 'cut')]
  assert told[0] == told[1] and len(told[0]) >= 5


@pytest.mark.parametrize('changes, message', [
    (dict(pairs_per_step=0), 'pairs_per_step: got 0'),
    (dict(chunks_per_step=3), 'do not split into 3 chunks'),
    (dict(loss__fn='dop'), 'Nearest: dpo'),
    (dict(loss__kwargs=dict(beta=-1.)), 'beta: got -1'),
    (dict(loss__kwargs=dict(length='max')), "length: got 'max'"),
    (dict(loss__kwargs=dict(label_smoothing=.5)), 'label_smoothing: got 0.5'),
    (dict(loss__kwargs=dict(tau=1.)), 'tau'),
    (dict(nll__coefficient=-1.), 'nll.coefficient: got -1'),
    (dict(nll__reduce='constant'), "nll.reduce: got 'constant'"),
    (dict(reference='refrence'), "prefer.reference: got 'refrence'"),
    (dict(reference_memory='disk'), "reference_memory: got 'disk'"),
    (dict(data='paris'), "prefer.data: got 'paris'"),
])
def test_m22_what_cannot_work_is_named(config, changes, message):
  for key, value in changes.items():
    *parents, last = key.split('__')
    section = config.prefer
    for name in parents:
      section = section[name]
    section[last] = value
  with pytest.raises(ValueError, match=message):
    runner.plan(resolve.finalise(config))


def test_a_file_without_pairs_is_refused_before_anything_runs(
    config, tmp_path):
  config.data.path = write(tmp_path, [dict(completion='a', answer='b')] * 12,
                           'other.jsonl')
  with pytest.raises(ValueError, match="no column 'chosen'"):
    runner.plan(resolve.finalise(config))
