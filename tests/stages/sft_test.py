"""The sft stage, and freezing in both stages that train."""

import dataclasses
import itertools
import json
import math
import types

import jax
import numpy as np
from PIL import Image
import pytest

from configs import common
import mmr1
from mmr1 import log
from mmr1 import resolve
from mmr1 import sharding
from mmr1 import trees
from mmr1.data import encode
from mmr1.data import packing
from mmr1.data import pipeline
from mmr1.data import datasets
from mmr1.stages import rl
from mmr1.stages import sft
from tests import small


def write(folder, completions):
  """A file of examples with completions; images of plain colours."""
  Image.new('RGB', (32, 32), 'red').save(folder / 'a.png')
  lines = [json.dumps(dict(
      images=['a.png'], problem=f'What is {i}?', answer=str(i),
      completion=text)) for i, text in enumerate(completions)]
  (folder / 'train.jsonl').write_text('\n'.join(lines) + '\n')
  return str(folder / 'train.jsonl')


THOUGHTS = tuple(f'<think>{i}+0={i}</think><answer>{i}</answer>'
                 for i in range(40))


@pytest.fixture
def config(shrink, tmp_path):
  c = shrink(common.get_base())
  c.stages = ('imitate', 'grpo')
  c.data.path = write(tmp_path, THOUGHTS)
  c.imitate = common.overlay(
      c.sft, steps=4, rows_per_step=4, max_new_tokens=32)
  c.grpo = common.overlay(
      c.rl, steps=2, prompts_per_step=4, samples_per_prompt=4,
      max_new_tokens=8)
  c.rewards.own = dict(fn='tests.own:even', weight=1.0, in_pool=False,
                       limit_s=5.0, kwargs=dict())
  c.grpo.rewards = ('own',)
  return c


@pytest.fixture
def taken(open_run, tmp_path, monkeypatch):
  """config -> (context, state, rows, take_step) of its sft stage."""
  def open_(c):
    open_.count += 1
    ctx, plans = open_run(c, tmp_path / f'run{open_.count}')
    caught = []
    monkeypatch.setattr(
        sft.loop, 'train', lambda *args: caught.append(args))
    sft.run(ctx, 'imitate', ctx.config.imitate, plans['imitate'])
    _, _, _, state, rows, take_step, _ = caught[0]
    return ctx, state, rows, take_step
  open_.count = 0
  return open_


def test_a_block_by_hand(config, open_run, tmp_path):
  ctx, _ = open_run(config, tmp_path / 'run')
  stream = pipeline.Stream(
      datasets.open_expert(ctx.config), ctx.shape(), max_broken_frac=0.5)
  (pair,) = stream.take(1)
  block = sft.assemble(
      [packing.Example(pair, np.asarray([5, 9, 2], np.int32))],
      ctx.shape(), 5)
  pad = ctx.processor.pad_id
  np.testing.assert_array_equal(
      block.completions.tokens, [[[5, 9, 2, pad, pad]]])
  np.testing.assert_array_equal(block.completions.kind, [[[4, 4, 4, 0, 0]]])
  np.testing.assert_array_equal(block.mask, [[[1, 1, 1, 0, 0]]])
  # Text goes on at the position after the prompt, the same on all three axes.
  first = int(block.prompts.next_position[0])
  np.testing.assert_array_equal(
      block.completions.positions[0, 0, :, 1], first + np.arange(5))
  # Of the same with two given tokens, and of two such in one row.
  given = packing.Example(pair, np.asarray([5, 9, 2], np.int32), 2)
  block = sft.assemble([given], ctx.shape(), 5)
  np.testing.assert_array_equal(block.completions.kind, [[[3, 3, 4, 0, 0]]])
  np.testing.assert_array_equal(block.mask, [[[0, 0, 1, 0, 0]]])
  shape = dataclasses.replace(ctx.shape(), prompt_length=128, patches=128)
  block = sft.assemble_packed(
      [[given, given]], shape, packing.Room(128, 7, 128, 2))
  np.testing.assert_array_equal(
      block.completions.kind, [[[3, 3, 4, 3, 3, 4, 0]]])
  np.testing.assert_array_equal(block.mask, block.completions.kind == 4)


def test_a_given_text_is_read_and_not_imitated(config, taken, tmp_path):
  """The loss is that of the score alone, after the given parts, each made
  tokens by itself, under the stage's own instruction."""
  path = tmp_path / 'scores.jsonl'
  lines = [dict(
      images=['a.png'], problem=f'What is {i}?', answer=str(i),
      given=[f'<think>{i}', '>\nScore: '], completion=f'0.{i}')
           for i in range(10)]
  lines += [{**lines[0], 'given': ['<|im_end|>', 'x']},
            {**lines[0], 'given': '1+1=2 ' * 30}]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  config.imitate.data, config.imitate.instruction = str(path), 'Score it.'
  config.stages = ('imitate',)
  ctx, state, rows, take_step = taken(config)
  before = jax.tree.map(np.array, state.params['policy'])
  step = take_step(state, 0)
  block = jax.device_get(step.batch[0])
  tokens, mask = block.completions.tokens[:, 0], block.mask[:, 0]
  for row, kept, asked in zip(tokens, mask, block.prompts.tokens):
    said = encode.decode(row[kept], ctx.processor)
    assert said.startswith('0.') and kept.sum() == 4  # eos too
    i, until = said[2:], int(np.argmax(kept))
    ids = [ctx.processor.tokenizer(text)['input_ids']
           for text in (f'<think>{i}', '>\nScore: ')]
    assert row[:until].tolist() == sum(ids, [])
    shown = encode.decode(asked, ctx.processor)
    assert f'What is {i}?\nScore it.' in shown
  logp, _ = small.logp(
      ctx.policy, before, block.prompts, block.completions,
      block.completions.kind != 0, np.float32(1))
  assert float(step.metrics['loss']) == pytest.approx(
      -np.asarray(logp)[block.mask].mean(), rel=1e-4)
  rows.take(20)
  assert rows.broken == 1 and rows.dropped >= 1


def test_the_loss_is_the_mean_over_tokens_and_falls(config, taken):
  config.imitate.optimizer.lr = 1e-2
  ctx, state, _, take_step = taken(config)
  losses = []
  for k in range(4):
    step = take_step(state, k)
    state, metrics = step.state, jax.device_get(dict(step.metrics))
    losses.append(float(metrics['loss']))
    assert metrics['update/skipped'] == 0 and metrics['data/broken'] == 0
    block = jax.device_get(step.batch[0])
    # Every completion with its end, and nothing else.
    assert (block.mask.sum(-1) > 5).all()
    ends = (block.completions.tokens == ctx.processor.eos_id) & block.mask
    assert (ends.sum(-1) == 1).all()
    assert metrics['response_length/max'] == block.mask.sum(-1).max()
  # A random model is near the uniform one: ln 768 = 6.64.
  assert abs(losses[0] - math.log(768)) < 2.5
  assert losses[3] < losses[0] - 0.5
  assert {row['completion'] for row in step.samples()} <= set(THOUGHTS)


def test_m26_a_completion_that_cannot_be_tokens_is_a_broken_record(
    config, taken, tmp_path, caplog):
  texts = list(THOUGHTS)
  texts[3] += '<|im_end|>more'
  texts[5] = '<think>a</think><answer><|image_pad|></answer>'
  config.data.path = config.data.eval_path = write(tmp_path, texts)
  ctx, state, rows, take_step = taken(config)
  for k in range(12):  # more than the file holds
    step = take_step(state, k)
    state = step.state
  assert step.metrics['data/broken'] == 2
  for line, token in ((4, '<|im_end|>'), (6, '<|image_pad|>')):
    assert sum(f'train.jsonl:{line}' in r.message and token in r.message
               for r in caplog.records) == 1


def test_m3_chunks_of_rows_change_nothing(config, taken, tmp_path):
  config.data.path = write(tmp_path, tuple(t * (1 + i % 3) for i, t in
                                           enumerate(THOUGHTS)))
  config.imitate.max_new_tokens = 64
  found = []
  for chunks in (1, 2):
    config.imitate.chunks_per_step = chunks
    config.imitate.optimizer.lr = 0.01
    _, state, _, take_step = taken(config)
    step = take_step(state, 0)
    lengths = step.batch[0].mask.sum((1, 2))
    found.append(jax.device_get(dict(step.metrics)))
  assert lengths[0] + lengths[2] != lengths[1] + lengths[3]
  for name in ('loss', 'grad_norm', 'entropy'):
    assert found[0][name] == pytest.approx(found[1][name], rel=1e-5), name


def test_m3_buckets_of_prompts_change_nothing_and_bound_the_programs(
    config, taken, tmp_path):
  write(tmp_path, ())  # the picture
  path = tmp_path / 'ragged.jsonl'
  path.write_text(''.join(json.dumps(dict(
      images=['a.png'] * (i % 2), problem='7' * (1 + 8 * (i % 4)),
      answer='1', completion=text)) + '\n' for i, text in enumerate(THOUGHTS)))
  config.data.path = str(path)
  config.imitate.rows_per_step = 1
  found = []
  for buckets in ((), (20, 30)):
    config.data.prompt_buckets = buckets
    ctx, state, _, take_step = taken(config)
    state = sharding.default().own(state)
    before, rows = ctx.compiles.count, []
    for k in range(12):
      step = take_step(state, k)
      state = step.state
      rows.append({'size': step.batch[0].prompts.tokens.shape[1],
                   **jax.device_get(dict(step.metrics))})
    found.append((rows, ctx.compiles.count - before))
  (whole, _), (rows, programs) = found
  assert {row['size'] for row in whole} == {64}
  assert {row['size'] for row in rows} == {20, 30, 64}
  # One for each size, and none for the same size again.
  assert programs == 3
  for row, other in zip(rows, whole, strict=True):
    for name in ('loss', 'grad_norm', 'entropy'):
      assert row[name] == pytest.approx(other[name], rel=1e-5), name


@pytest.fixture
def packed(config, tmp_path):
  """Examples of one size, rows that hold two of them, and what is too long."""
  texts = [f'<think>{i}+0={i}</think><answer>{i}</answer>'
           for i in range(10, 50)]
  texts[::5] = ['<think>' + '1+1=2 ' * 30 + '</think>'] * 8
  path = write(tmp_path, texts)
  lines = [json.loads(line) for line in open(path)]
  for i, line in enumerate(lines):
    line['problem'] = f'What is {i + 10}?'
  with open(path, 'w') as file:
    file.writelines(json.dumps(line) + '\n' for line in lines)
  # 23 tokens, those of the picture included; 20 with eos.
  config.data.prompt_tokens, config.imitate.max_new_tokens = 46, 40
  config.data.patches = 32
  config.imitate.update(dict(pack=True, rows_per_step=2, chunks_per_step=2))
  config.imitate.optimizer.lr = 1e-2
  return config


def test_m3_a_packed_stage_trains_as_one_of_the_same_examples(
    packed, tmp_path):
  """Two rows of two examples, in two chunks, against four rows."""
  packed.stages = ('imitate',)
  packed.evaluate_base = False
  mmr1.run(packed, tmp_path / 'packed', quiet=True)
  packed.imitate.update(dict(pack=False, rows_per_step=4, chunks_per_step=1))
  mmr1.run(packed, tmp_path / 'alone', quiet=True)
  found, wanted = ([
      row for row in log.read_rows(tmp_path / name / 'metrics.jsonl')
      if 'loss' in row] for name in ('packed', 'alone'))
  assert [row['step'] for row in found] == [1, 2, 3, 4]
  for row, other in zip(found, wanted, strict=True):
    for name in ('loss', 'grad_norm', 'entropy', 'response_length/mean'):
      assert row[name] == pytest.approx(other[name], rel=1e-4), name
    assert row['pack/examples'] == 4 and row['pack/fill_frac'] == 1
    assert row['pack/fill_frac/patches'] == 1
    assert not any(name.startswith('pack') for name in other)
  assert found[-1]['loss'] < found[0]['loss'] - 0.3
  assert found[-1]['data/dropped_long'] > 0


def test_m15_a_packed_stage_goes_on_with_the_example_that_waits(
    packed, taken):
  _, state, position, take_step = taken(packed)
  batches, states, dropped = [], [], []
  for k in range(6):
    states.append(json.loads(json.dumps(position.state())))
    step = take_step(state, k)
    state = step.state
    batches.append(jax.device_get(step.batch[0]))
    dropped.append(step.metrics['data/dropped_long'])
  _, state, position, take_step = taken(packed)
  position.restore(states[3])
  for k in range(3, 6):
    step = take_step(state, k)
    state = step.state
    assert step.metrics['data/dropped_long'] == dropped[k]
    for x, y in zip(jax.tree.leaves(jax.device_get(step.batch[0])),
                    jax.tree.leaves(batches[k]), strict=True):
      np.testing.assert_array_equal(x, y)


def test_completions_too_long_are_dropped_and_counted(config, taken, tmp_path):
  texts = list(THOUGHTS)
  texts[::4] = ['<think>' + '1+1=2 ' * 30 + '</think><answer>2</answer>'] * 10
  config.data.path = write(tmp_path, texts)
  ctx, _, rows, _ = taken(config)
  got = [encode.decode(x.ids, ctx.processor) for x in rows.take(20)]
  assert len(set(got)) == 20 and not any('1+1=2' in text for text in got)
  assert 0 < rows.dropped <= 10
  # M15: the position goes on.
  state = json.loads(json.dumps(rows.state()))
  expected = [x.pair[0].uid for x in rows.take(7)]
  rows.restore(state)
  assert [x.pair[0].uid for x in rows.take(7)] == expected


def test_a_small_file_may_be_read_many_times(monkeypatch):
  """Two of its three completions are too long: 20 rows are 60 draws and 40
  drops, which is not 'every completion'."""
  monkeypatch.setattr(
      sft.encode, 'encode_completion', lambda text, _: np.zeros(text, int))
  monkeypatch.setattr(
      sft.encode, 'encode_given', lambda texts, _: np.zeros(0, int))
  drawn = itertools.cycle([3, 9, 9])
  stream = types.SimpleNamespace(mixture=range(3), take=lambda n: [
      (types.SimpleNamespace(completions=(next(drawn),), given=()), None)])
  rows = sft.Rows(types.SimpleNamespace(processor=None), stream, 5, None)
  assert [len(x.ids) for x in rows.take(20)] == [3] * 20
  assert rows.dropped == 38


def test_when_all_are_too_long_the_key_is_named(config, taken):
  config.imitate.max_new_tokens = 2
  _, _, rows, _ = taken(config)
  with pytest.raises(ValueError, match='longer than max_new_tokens=2'):
    rows.take(1)


@pytest.mark.parametrize('kind', ['sft', 'rl'])
def test_m21_frozen_parameters_stay_and_own_nothing(
    config, taken, open_run, tmp_path, kind):
  for stage in ('imitate', 'grpo'):
    config[stage].optimizer.freeze = ('visual/.*',)
    config[stage].optimizer.lr = 0.01
  if kind == 'sft':
    _, state, _, take_step = taken(config)
  else:
    config.grpo.init = 'base'  # the stage before it is not run
    ctx, plans = open_run(config, tmp_path / 'run')
    trainer = rl.Trainer(ctx, 'grpo', ctx.config.grpo, plans['grpo'])
    state, take_step = trainer.start.state, trainer.step
  # What the optimiser keeps is of the language model only.
  owned = [name for name, leaf in trees.named(state.opt).items() if leaf.ndim]
  assert owned and all('language' in name for name in owned)
  assert len(owned) == 2 * len(trees.named(state.params['policy']['language']))
  before = trees.named(jax.tree.map(np.array, state.params['policy']))
  step = take_step(state, 0)
  assert float(step.metrics['grad_norm']) > 0
  after = trees.named(step.state.params['policy'])
  for name, value in before.items():
    frozen = name.startswith('visual/')
    assert np.array_equal(value, after[name]) == frozen, name


def setup(c, **changes):
  c.update_from_flattened_dict({f'imitate.{k}': v for k, v in changes.items()})
  final = resolve.finalise(c)
  return sft.setup(final.imitate, 'imitate', final)


@pytest.mark.parametrize('changes, message', [
    (dict(rows_per_step=0), r'imitate.rows_per_step: got 0'),
    (dict(chunks_per_step=-1), r'imitate.chunks_per_step: got -1'),
    (dict(chunks_per_step=3), r'imitate.chunks_per_step: 4 rows .* 3 chunks'),
    (dict(log_every=0), r'imitate.log_every: got 0'),
    (dict(reduce='constant'), r"imitate.reduce: got 'constant'"),
    (dict(reduce='mean'), r"imitate.reduce: got 'mean'"),
    (dict(data='grpo'), r"imitate.data: got 'grpo'"),
    (dict(max_new_tokens=0), r'imitate.max_new_tokens: got 0'),
    (dict(init='grpo'), r"imitate.init: 'grpo' does not come before"),
    (dict(init='no/such/folder'), r"imitate.init: got 'no/such/folder'"),
])
def test_m22_settings_that_cannot_work(config, changes, message):
  with pytest.raises(ValueError, match=message):
    setup(config, **changes)


def test_m22_a_stage_without_a_model_is_no_start(config):
  config.bridge = common.overlay(config.collect)
  config.stages = ('bridge', 'imitate')
  config.imitate.init = 'bridge'
  with pytest.raises(ValueError, match="'bridge' is a stage of kind 'collect'"):
    setup(config)
  config.imitate.init = 'previous'
  setup(config, data='bridge')
  config.stages = ('imitate', 'bridge')  # it is not written by then
  with pytest.raises(ValueError, match=r"data: got 'bridge'.*before it, \[\]"):
    setup(config, data='bridge')


def test_train_without_a_file_names_the_key(config):
  config.data.path = None
  with pytest.raises(ValueError, match='--config.data.path'):
    datasets.open_expert(resolve.finalise(config))
