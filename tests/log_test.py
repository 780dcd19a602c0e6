"""Rows, events, samples, the console; a logger that fails stops nothing."""

import base64
import io
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from rich import console as rich_console
from tensorboardX.proto import event_pb2

from mmr1 import compiles
from mmr1 import log
from mmr1 import thumbnails


def screen(terminal=False):
  return rich_console.Console(
      file=io.StringIO(), force_terminal=terminal, width=100)


def logger(path, **kwargs):
  kwargs.setdefault('console', screen())
  return log.Logger(path, **kwargs)


def events(folder):
  """[(file, step, purged from, tags)] of the TensorBoard files of a folder."""
  out = []
  for path in sorted(folder.iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      length = int.from_bytes(data[at:at + 8], 'little')
      event = event_pb2.Event.FromString(data[at + 12:at + 12 + length])
      at += 16 + length
      out.append(event)
  return out


class TestRows:

  def test_rows(self, tmp_path):
    l = logger(tmp_path)
    l.write('sft', 1, {'loss': jnp.bfloat16(0.5), 'n': np.int64(3), 'x': None})
    l.write('sft', 2, {'loss': float('nan'), 'kl': -math.inf, 'zero': 0.0})
    l.close()
    first, second = log.read_rows(tmp_path / 'metrics.jsonl')
    assert first.pop('time') > 1.6e9
    # None is no value; 0.0 is one.
    assert first == {'stage': 'sft', 'step': 1, 'loss': 0.5, 'n': 3.0}
    assert (second['loss'], second['kl'], second['zero']) == ('nan', '-inf', 0)
    assert l.errors == 0

  def test_m15_truncate(self, tmp_path):
    l = logger(tmp_path)
    for stage, steps in (('base', 1), ('a', 3), ('b', 5)):
      for step in range(steps):
        l.write(stage, step, {'loss': step})
        l.samples(stage, step, [{'completion': f'{stage}{step}'}] * 2)
    l.close()
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
      file.write('{"stage": "b", "st')  # kill -9 in the middle of a line
    l = logger(tmp_path)
    l.truncate('b', 2)
    l.write('b', 3, {'loss': 33})
    l.close()
    rows = log.read_rows(tmp_path / 'metrics.jsonl')
    assert [(r['stage'], r['step'], r['loss']) for r in rows] == [
        ('base', 0, 0), ('a', 0, 0), ('a', 1, 1), ('a', 2, 2),
        ('b', 0, 0), ('b', 1, 1), ('b', 2, 2), ('b', 3, 33)]
    samples = log.read_rows(tmp_path / 'samples' / 'b.jsonl')
    assert [s['completion'] for s in samples] == [
        'b0', 'b0', 'b1', 'b1', 'b2', 'b2']
    assert len(log.read_rows(tmp_path / 'samples' / 'a.jsonl')) == 6
    # TensorBoard drops what lies past the first purge event.
    found = events(tmp_path / 'events' / 'b')
    session = [e for e in found if e.session_log.status == 1]
    assert [e.step for e in session] == [3]
    assert [e.step for e in found if e.summary.value][-1] == 3
    l = logger(tmp_path)
    l.truncate('b', -1)
    assert {r['stage'] for r in log.read_rows(tmp_path / 'metrics.jsonl')} == {
        'base', 'a'}
    assert l.errors == 0

  def test_m15_an_evaluation_that_is_made_again(self, tmp_path):
    l = logger(tmp_path)
    for step in (1, 2):
      l.write('a', step, {'loss': 1.0})
      l.write('a', step, {'eval/accuracy': 0.5})
    l.write('b', 2, {'eval/accuracy': 0.5})
    l.truncate('a', 2)
    assert len(log.read_rows(tmp_path / 'metrics.jsonl')) == 5
    l.truncate('a', 2, evaluation=True)
    rows = log.read_rows(tmp_path / 'metrics.jsonl')
    assert [(r['stage'], r['step'], 'loss' in r) for r in rows] == [
        ('a', 1, True), ('a', 1, False), ('a', 2, True), ('b', 2, False)]

  def test_a_half_line_is_cut_before_the_next_row(self, tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"stage": "a", "step": 1}\n{"st')
    assert len(log.read_rows(tmp_path / 'metrics.jsonl')) == 1
    l = logger(tmp_path)
    l.write('a', 2, {})
    assert [r['step'] for r in log.read_rows(tmp_path / 'metrics.jsonl')] == [
        1, 2]

  def test_a_line_that_ends_inside_a_character_is_half_written(self, tmp_path):
    path, said = tmp_path / 's.jsonl', '{"said": "因'.encode()
    path.write_bytes(b'{"step": 1}\n' + said[:-1])
    assert log.read_rows(path) == [{'step': 1}]
    path.write_bytes(b'{"step": 1}\n' + said[:-1] + b'"}\n')
    with pytest.raises(ValueError, match='s.jsonl:2: no JSON'):
      log.read_rows(path)

  def test_a_broken_line_inside_is_named(self, tmp_path):
    (tmp_path / 'm.jsonl').write_text('{}\noops\n{}\n')
    with pytest.raises(ValueError, match='m.jsonl:2'):
      log.read_rows(tmp_path / 'm.jsonl')

  def test_text_survives(self, tmp_path):
    """Line separators, lone surrogates and other scripts inside a row."""
    text = 'a\u2028b\x85c\nd 三 \ud800 é'
    l = logger(tmp_path)
    l.samples('s', 1, [{'completion': text}, {'completion': 'next'}])
    l.truncate('s', 1)
    rows = log.read_rows(tmp_path / 'samples' / 's.jsonl')
    assert [r['completion'] for r in rows] == [text, 'next'] and not l.errors


class TestNoPixels:

  def test_m23_no_pixels_in_text(self, tmp_path):
    image = Image.effect_noise((640, 320), 50)
    raw = os.urandom(1200)
    coded = base64.b64encode(raw).decode()
    l = logger(tmp_path)
    l.samples('rl', 3, [{
        'prompt': f'see data:image/png;base64,{coded} here', 'images': [image],
        'completion': f'x {coded} y', 'bytes': raw,
        'rewards': {
            'math': np.float32(1), 'format': None, 'k': jnp.bfloat16(.5)},
        'advantage': jnp.float32(-0.5), 'pixels': np.zeros((9, 9, 3), np.uint8),
        'patches': np.zeros((20, 30), np.float32), 'ids': np.arange(3),
        'again': (image,)}])
    l.close()
    assert l.errors == 0
    text = (tmp_path / 'samples' / 'rl.jsonl').read_text()
    assert len(text) < 700 and coded[:40] not in text
    row = json.loads(text)
    assert row['rewards'] == {'math': 1.0, 'format': None, 'k': 0.5}
    assert row['advantage'] == -0.5 and row['ids'] == [0, 1, 2]
    assert row['patches'] == '<float32[20, 30]>'
    assert row['bytes'] == '<1200 bytes>'
    assert row['completion'] == 'x <base64 of 1600 characters> y'
    assert row['images'] == row['again']  # one file for one image
    with Image.open(tmp_path / 'samples/images' / row['images'][0]) as small:
      assert small.size == (160, 80)
    assert (tmp_path / 'samples/images' / row['pixels']).exists()
    assert len(list((tmp_path / 'samples/images').iterdir())) == 2

  def test_a_torn_thumbnail_of_a_killed_run_is_not_kept(
      self, tmp_path, monkeypatch):
    image = Image.effect_noise((64, 64), 50)
    write = type(tmp_path).write_bytes
    class Killed(BaseException):
      pass
    def torn(path, data):
      with open(path, 'wb') as file:
        file.write(data[:100])
      raise Killed
    owner = type(log.epath.Path(tmp_path))
    monkeypatch.setattr(owner, 'write_bytes', torn)
    with pytest.raises(Killed):
      thumbnails.without_pixels(image, log.epath.Path(tmp_path))
    monkeypatch.setattr(owner, 'write_bytes', write)
    name = thumbnails.without_pixels(image, log.epath.Path(tmp_path))
    with Image.open(tmp_path / name) as back:
      back.load()

  def test_degenerate_text_is_kept(self, tmp_path):
    for text in ('a' * 2000, 'ab1' * 500, 'a word ' * 300):
      assert thumbnails.without_pixels(text, tmp_path) == text


class Broken(io.StringIO):

  def write(self, text):
    raise OSError('no screen')


class TestFailures:

  def test_m23_nothing_stops_the_run(self, tmp_path, monkeypatch):
    """Every sink broken: files, events, console, a metric that is no number."""
    (tmp_path / 'metrics.jsonl').mkdir()
    (tmp_path / 'samples').write_text('a file where a folder should be')
    def no_events(*_, **__):
      raise RuntimeError('no events')
    monkeypatch.setattr(log.tensorboardX, 'SummaryWriter', no_events)
    l = logger(tmp_path, console=rich_console.Console(file=Broken()))
    l.start('a', 3)
    for step in range(3):
      l.write('a', step, {'loss': 1.0, 'odd': 'no number', 'two': np.ones(2)})
      l.samples('a', step, [{'x': 1}])
    l.note('hello')
    l.table([(1, 2)], ('a', 'b'))
    l.truncate('a', 0)
    l.flush()
    l.close()
    assert l.errors > 10

  def test_m23_errors_are_counted_and_shown_once(self, tmp_path, monkeypatch):
    out = screen()
    l = logger(tmp_path, console=out)
    def fail(*_):
      raise RuntimeError('disk on fire')
    monkeypatch.setattr(l, '_event', fail)
    for step in range(3):
      l.write('a', step, {'loss': 1.0})
    rows = log.read_rows(tmp_path / 'metrics.jsonl')
    assert [r.get('log/errors', 0) for r in rows] == [0, 1, 2]
    text = out.file.getvalue()
    assert text.count('disk on fire') == 1 and 'tensorboard' in text

  def test_one_bad_metric_costs_only_itself(self, tmp_path):
    l = logger(tmp_path)
    l.write('a', 1, {'good': 1.0, 'bad': 'x', 'also': 2.0})
    row, = log.read_rows(tmp_path / 'metrics.jsonl')
    assert (row['good'], row['also'], row['log/errors']) == (1, 2, 1)
    assert 'bad' not in row


class TestConsole:

  def test_plain_lines(self, tmp_path):
    out = screen()
    l = logger(tmp_path, console=out)
    l.start('rl', 100)
    for step in range(1, 101):
      l.write('rl', step, {'reward/mean': step / 100, 'loss': 3.0})
      l.write('eval', step, {'eval/accuracy': 1.0})  # no progress of the stage
    l.stop()
    lines = out.file.getvalue().strip().split('\n')
    assert len(lines) == 2  # the first and the last
    # Of the first step, mostly compiling, nothing is extrapolated.
    assert lines[0] == 'rl 1/100 reward 0.010'
    assert lines[1].startswith('rl 100/100 reward 1.000, 0:00 left')

  def test_live_line(self, tmp_path):
    out = screen(terminal=True)
    l = logger(tmp_path, console=out)
    l.start('rl', 10, 4)
    l.write('rl', 10, {'loss': 3.0})
    l.note('[bold] text with brackets')
    l.stop()
    text = out.file.getvalue()
    assert '4/10' in text and '10/10' in text and 'loss 3.000' in text
    assert '[bold] text' in text

  def test_quiet(self, tmp_path):
    out = screen()
    l = logger(tmp_path, console=out, quiet=True)
    l.start('rl', 10)
    l.write('rl', 1, {'loss': 3.0})
    l.note('hello')
    l.table([('a', 1)], ('x', 'y'))
    assert out.file.getvalue() == ''
    l.warn('look out')
    assert 'look out' in out.file.getvalue()

  def test_table(self, tmp_path):
    out = screen()
    logger(tmp_path, console=out).table(
        [('base', 0.25, 512), ('think', 0.9, 512)],
        ('stage', 'accuracy', 'n'), 'Held-out')
    text = out.file.getvalue()
    assert all(s in text for s in ('Held-out', 'base', '0.250', '0.900', '512'))

  def test_no_events_if_not_wanted(self, tmp_path):
    l = logger(tmp_path, tensorboard=False)
    l.write('a', 1, {'loss': 1.0})
    l.close()
    assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_m17_compiles_are_counted():
  counter = compiles.CompileCounter()
  f = jax.jit(lambda x: jnp.sin(x) * 3 + 1)
  a, b = np.ones(3, np.float32), np.ones(4, np.float32)
  f(a)
  one = counter.count
  for _ in range(3):
    f(a)
  assert one >= 1 and counter.count == one  # steps cost nothing
  f(b)
  assert counter.count == one + 1  # another shape does
  assert counter.seconds > 0
  assert counter.metrics()['compile/count'] == one + 1
  counter.close()
  f(np.ones(5, np.float32))
  assert counter.count == one + 1


def test_m17_the_persistent_cache_changes_no_count(tmp_path):
  names = {'jax_compilation_cache_dir': str(tmp_path),
           'jax_persistent_cache_min_compile_time_secs': 0.0,
           'jax_persistent_cache_min_entry_size_bytes': -1}
  before = {name: getattr(jax.config, name) for name in names}
  from jax.experimental.compilation_cache import compilation_cache
  try:
    for name, value in names.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    counts, cached = [], []
    for _ in range(2):
      counter = compiles.CompileCounter()
      jax.jit(lambda x: jnp.cos(x) * 5 - 2)(np.ones(6, np.float32))
      counts.append(counter.count)
      cached.append(counter.cached)
      counter.close()
      jax.clear_caches()
    assert counts[0] == counts[1] >= 1 and cached[0] == 0 < cached[1]
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
