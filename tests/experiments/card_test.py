"""The card benchmark: its formulas, its rows, failures that are rows."""

import functools
import json
import subprocess
import sys
import types as python_types

import jax
import numpy as np
import pytest

from experiments.bench import card
from experiments.bench import card_mmr1
from experiments.bench import card_rows
from experiments.bench import card_shapes
from experiments.bench import card_trace
from mmr1.models import qwen_vl

TINY = card_shapes.SHAPES['tiny']


@pytest.fixture(autouse=True, scope='module')
def parameters_once():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(card_mmr1, 'parameters', functools.cache(
        card_mmr1.parameters))
    yield


def printed(capsys):
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize('name', ['tiny', '3b'])
def test_weights_are_those_of_the_decoder(name):
  shape = card_shapes.SHAPES[name]
  config = qwen_vl.Config.from_hf(shape.config(), layers='scan')
  params = jax.eval_shape(
      lambda: qwen_vl.init_params(config, jax.random.key(0)))
  count = sum(x.size for x in jax.tree.leaves(params['language']))
  assert sum(card_shapes.weights(shape).values()) == count
  assert params['language']['embed'].size == card_shapes.weights(shape)['head']


def test_bytes_of_a_token():
  # D 32, F 48, 2 layers, 4 heads of 8, K 2; float32; 2 prompts of 4 + 4 tokens.
  found = card_shapes.token_bytes(TINY, 4, tokens=6)
  layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 48 + (32 + 16 + 16) + 2 * 32
  assert found == {
      'layers': 4 * (2 * layer + 32), 'head': 4 * 64 * 32,
      'prompt cache': 2 * 2 * 2 * 8 * 4 * (2 * 8),
      'own cache': 2 * 2 * 2 * 8 * 4 * (4 * 6)}


def test_operations_of_an_update():
  # 2 prompts of 4 + 16 tokens, images of 8 x 8 patches, G 4, T 6.
  found = card_shapes.update_flops(TINY, repeated=False)
  layers = 2 * (32 * 96 + 3 * 32 * 48)
  tower = 2 * (4 * 16 * 16 + 3 * 16 * 24)
  assert found == {
      'prompts': 6 * layers * 40, 'completions': 6 * layers * 48,
      'attention': 12 * 2 * 32 * (2 * 210 + 8 * (6 * 20 + 21)),
      'head': 6 * 64 * 32 * 48,
      'tower': (6 * tower * 128 + 4 * 96 * 16 * 128
                + 6 * (64 * 64 + 64 * 32) * 32),
      # One layer sees whole frames, the other windows of 4 x 4.
      'tower attention': 12 * 16 * 128 * (64 + 16)}
  again = card_shapes.update_flops(TINY, repeated=True)
  for part in ('prompts', 'tower', 'tower attention'):
    assert again[part] == 4 * found[part]
  assert again['completions'] == found['completions']
  assert found['attention'] < again['attention'] < 4 * found['attention']


def test_decode(capsys):
  card_mmr1.decode(TINY, layers=['scan'], trace=True)
  row, = printed(capsys)
  assert 'error' not in row, row
  assert row['rows'] == 4 and row['whole_seconds'] > 0
  assert row['trace'] == dict(busy_ms=0, launches=0, top=[])  # no GPU
  assert row['bytes']['own cache'] == 0.75 * row['bytes_allocated']['own cache']


def test_update_takes_the_first_chunks_that_fit(capsys, monkeypatch):
  measure = card_mmr1._update

  def fits_in_two(shape, pol, params, block, chunks, trace):
    if chunks < 2:
      raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')
    found = measure(shape, pol, params, block, chunks, trace)
    return dict(found, expected=float(-block.advantage.mean()))
  monkeypatch.setattr(card_mmr1, '_update', fits_in_two)
  card_mmr1.update(TINY, layers=['scan'], backends=['auto'], remat=['none'],
                   chunks=[1, 2, 4], trace=False)
  failed, row = printed(capsys)
  assert failed['chunks'] == 1 and 'RESOURCE_EXHAUSTED' in failed['error']
  assert row['chunks'] == 2 and row['tokens'] == 48
  # All ratios are 1 and all rows equally long.
  assert abs(row['loss'] - row['expected']) < 1e-5
  assert np.isfinite(row['gradient_norm']) and row['gradient_norm'] > 1e-3


def test_shares_and_ratios():
  found = [dict(part='ceilings', name='copy', bytes_per_second=100.0),
           dict(part='ceilings', name='product', flops_per_second=50.0)]
  decode = card.shares(dict(
      part='decode', engine='mmr1', rows=8, seconds_per_token=2.0,
      bytes=dict(a=60, b=40), bytes_allocated=dict(a=60, b=60)), found)
  assert decode['share'] == 0.5 and decode['share_allocated'] == 0.6
  assert decode['tokens_per_second'] == 4
  ours, theirs = (card.shares(dict(
      part='update', engine=engine, seconds=seconds, tokens=40,
      flops=dict(a=30.0)), found) for engine, seconds in
                  (('mmr1', 2.0), ('torch', 8.0)))
  assert ours['share'] == 0.3 and ours['tokens_per_second'] == 20
  assert card.ratios([*found, decode, ours, theirs]) == {'update': 4}


def test_a_failure_is_a_row(capsys):
  row = card_rows.attempt({'part': 'x'}, lambda: {}['y'])
  assert printed(capsys) == [row]
  assert row['error'] == "KeyError: 'y'" and row['part'] == 'x'
  last = list(card.rows('mmr1', dict(shape='tiny', part='nothing'), 100))[-1]
  assert last['error'] == 'ended with code 1'
  assert "KeyError: 'nothing'" in last['traceback']
  assert 'FAILED ended with code 1' in card.text(last)


def test_a_process_that_takes_too_long_is_ended():
  last, = card.rows('mmr1', dict(shape='tiny', part='decode'), 0.2)
  assert last['error'] == 'stopped after 0 s'


def test_the_parent_leaves_the_device_alone():
  code = ('import sys, experiments.bench.card; '
          'assert not {"jax", "torch"} & set(sys.modules)')
  subprocess.run([sys.executable, '-c', code], check=True)


def test_kernels_of_a_trace():
  def line(name, *events):
    return python_types.SimpleNamespace(name=name, events=[
        python_types.SimpleNamespace(name=n, duration_ns=ns)
        for n, ns in events])
  planes = [
      python_types.SimpleNamespace(name='/device:GPU:0', lines=[
          line('Stream #7(Compute)', ('fusion_1', 1e6), ('fusion_2_1', 2e6),
               ('gemm', 4e6)),
          line('XLA Ops', ('fusion.1', 1e6))]),
      python_types.SimpleNamespace(
          name='/host:CPU', lines=[line('Stream', ('x', 1e6))])]
  found = {}
  card_trace._add(found, planes)
  assert found == {'fusion': (3.0, 2), 'gemm': (4.0, 1)}
  more = card_trace.less({'fusion': (7.0, 6), 'gemm': (4.0, 1)}, found, by=2)
  assert more == {'fusion': (2.0, 2)}
  assert card_trace.summary(found) == dict(
      busy_ms=7.0, launches=3, top=[('gemm', 4.0, 1), ('fusion', 3.0, 2)])
