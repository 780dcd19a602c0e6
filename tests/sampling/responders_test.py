"""Responders: a fake endpoint on this machine, and a tiny random model."""

import base64
import http.server
import io
import json
import pathlib
import runpy
import socket
import struct
import threading
import time
import types

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from mmr1 import forward
from mmr1 import hosts
from mmr1 import records
from mmr1.data import pipeline
from mmr1.data import processor as processor_lib
from mmr1.data import template
from mmr1.models import qwen_vl
from mmr1.sampling import endpoint
from mmr1.sampling import publish
from mmr1.sampling import responders
from mmr1.sampling import sample

write_folder = runpy.run_path(str(
    pathlib.Path(__file__).parent.parent / 'data' / 'conftest.py')
)['write_folder']


class Notes:
  """The logger's two methods that a responder uses."""

  def __init__(self):
    self.notes, self.warnings = [], []
    self.note, self.warn = self.notes.append, self.warnings.append


def context(path, **fields):
  return types.SimpleNamespace(
      path=epath.Path(path), logger=Notes(),
      interrupt=types.SimpleNamespace(requested=False), **fields)


def picture(seed, size=(9, 7)):
  rng = np.random.default_rng(seed)
  return Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))


def request(prompt, *images):
  return responders.Request(records.Example(uid=0), prompt, images)


def said(text, **message):
  return 200, json.dumps(
      {'choices': [{'message': {'content': text, **message}}]})


class Server:
  """An endpoint; `answer(prompt, nth)` gives (status, body) for the nth time
  that this prompt is asked, or what is done with the handler instead."""

  def __init__(self, answer):
    self.asked, self.headers, self._lock = [], [], threading.Lock()
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):

      def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        prompt = body['messages'][0]['content'][-1]['text']
        with outer._lock:
          outer.asked.append((self.path, body, prompt))
          outer.headers.append(dict(self.headers))
          nth = sum(p == prompt for _, _, p in outer.asked)
        reply = answer(prompt, nth)
        if callable(reply):
          reply(self)
          return
        status, text = reply
        self.send_response(status)
        self.end_headers()
        try:
          for part in text if isinstance(text, list) else [text]:
            time.sleep(part) if isinstance(part, float) else (
                self.wfile.write(part.encode()))
        except OSError:
          outer.left = True  # the client gave up, as the time-out test wants

      def log_message(self, *_):
        del _

    self._http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self._http.daemon_threads = True
    threading.Thread(
        target=self._http.serve_forever, args=(0.01,), daemon=True).start()
    self.url = f'http://127.0.0.1:{self._http.server_port}/v1'

  def close(self):
    self._http.shutdown()
    self._http.server_close()


@pytest.fixture
def serve(monkeypatch):
  monkeypatch.setattr(endpoint, '_BACKOFF_S', 0.01)
  monkeypatch.setenv('no_proxy', '*')
  monkeypatch.delenv(endpoint.KEY, raising=False)
  servers = []
  def start(answer):
    servers.append(Server(answer))
    return servers[-1]
  yield start
  for server in servers:
    server.close()


def ask(server, ctx, requests, **changes):
  options = dict(url=server.url, model='judge', init='base',
                 max_new_tokens=20, timeout_s=5.0, workers=3) | changes
  return responders.make('endpoint', ctx, **options)(requests)


def test_images_and_prompt_arrive(serve, tmp_path):
  server = serve(lambda prompt, nth: said(f'reply to {prompt}'))
  images = picture(0), picture(1).convert('CMYK'), picture(2).convert('P')
  replies = ask(server, context(tmp_path), [
      request('two', *images[:2]), request('none'), request('one', images[2])])
  assert replies == ['reply to two', 'reply to none', 'reply to one']
  got = {prompt: (path, body) for path, body, prompt in server.asked}
  path, body = got['two']
  assert path == '/v1/chat/completions'
  assert body['model'] == 'judge' and body['max_tokens'] == 20
  assert [part['type'] for part in body['messages'][0]['content']] == [
      'image_url', 'image_url', 'text']
  shown = {
      prompt: [
          Image.open(io.BytesIO(base64.b64decode(
              part['image_url']['url'].removeprefix('data:image/png;base64,'))))
          for part in body['messages'][0]['content'][:-1]]
      for prompt, (_, body) in got.items()}
  assert not shown['none']
  # PNG loses nothing; CMYK, which PNG cannot hold, comes as RGB.
  for found, image in zip(shown['two'] + shown['one'], images):
    assert found.format == 'PNG'
    np.testing.assert_array_equal(found.convert('RGB'), image.convert('RGB'))


def test_the_key_goes_into_the_header_and_nowhere_else(
    serve, tmp_path, monkeypatch):
  server = serve(lambda prompt, nth: said('yes'))
  ask(server, context(tmp_path), [request('a')])
  assert 'Authorization' not in server.headers[0]
  monkeypatch.setenv(endpoint.KEY, 'sesame')
  ask(server, context(tmp_path), [request('b')])
  assert server.headers[1]['Authorization'] == 'Bearer sesame'
  for file in tmp_path.rglob('*.json'):
    assert 'sesame' not in file.read_text()


@pytest.mark.parametrize('key', ['sesame open', 'sesame\nopen', 'sesam\xe9'])
def test_a_key_that_cannot_be_sent_is_not_shown(
    serve, tmp_path, monkeypatch, key):
  server = serve(lambda prompt, nth: said('yes'))
  monkeypatch.setenv(endpoint.KEY, ' sesame\n')  # as files end
  ask(server, context(tmp_path), [request('a')])
  assert server.headers[0]['Authorization'] == 'Bearer sesame'
  monkeypatch.setenv(endpoint.KEY, key)
  with pytest.raises(ValueError, match='OPENAI_API_KEY: a key has no') as error:
    ask(server, context(tmp_path), [request('b')])
  assert 'sesam' not in str(error.value)


def test_nothing_is_asked_twice(serve, tmp_path):
  """Equal requests once; a second responder (a resumed run) reads the files."""
  server = serve(lambda prompt, nth: said(f'{prompt} {nth}'))
  requests = [request('a'), request('b'), request('a')]
  first = ask(server, context(tmp_path), requests)
  assert first == ['a 1', 'b 1', 'a 1'] and len(server.asked) == 2
  assert ask(server, context(tmp_path), requests) == first
  assert len(server.asked) == 2
  # Another model, an image, another image: other questions.
  ask(server, context(tmp_path), [request('a')], model='other')
  ask(server, context(tmp_path), [request('a', picture(0))])
  ask(server, context(tmp_path), [request('a', picture(1))])
  assert len(server.asked) == 5
  ask(server, context(tmp_path / 'fresh'), requests)
  assert len(server.asked) == 7


def test_what_may_pass_is_retried_and_what_may_not_gives_none(serve, tmp_path):
  def answer(prompt, nth):
    if prompt == 'refused':
      return 400, 'policy'
    if prompt == 'no chat':
      return 200, '{"choices": []}'
    if prompt == 'empty':
      return said(' ')
    if prompt in ('429', '500') and nth < 3:
      return int(prompt), 'later'
    if prompt == 'down':
      return 503, 'down'
    return said('fine')
  server, ctx = serve(answer), context(tmp_path)
  prompts = ['refused', '429', '500', 'no chat', 'down', 'empty', 'good']
  assert ask(server, ctx, [request(p) for p in prompts]) == [
      None, 'fine', 'fine', None, None, None, 'fine']
  times = {p: sum(q == p for _, _, q in server.asked) for p in prompts}
  assert times == {'refused': 1, '429': 3, '500': 3, 'no chat': 1,
                   'down': endpoint._ATTEMPTS, 'empty': 1, 'good': 1}
  (warning,) = ctx.logger.warnings
  assert '4 of 7' in warning
  # A failure is no reply: it is asked again.
  ask(server, ctx, [request('refused'), request('good')])
  assert [p for _, _, p in server.asked[-1:]] == ['refused']


@pytest.mark.parametrize('fault', ['cut', 'stall', 'reset'])
def test_what_breaks_off_is_asked_again(serve, tmp_path, fault):
  """A reply that ends too early; a refusal whose words do not come, or whose
  line is lost."""
  body = said('whole')[1]

  def broken(handler):
    status = dict(cut=200, stall=503, reset=502)[fault]
    handler.send_response(status)
    handler.send_header('Content-Length', str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:20].encode())
    if fault == 'stall':
      time.sleep(1.5)
    if fault == 'reset':
      time.sleep(0.2)
      handler.connection.setsockopt(
          socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
      handler.connection.close()
  server = serve(lambda prompt, nth: broken if nth == 1 else said('whole'))
  assert ask(server, context(tmp_path), [request('a')], timeout_s=0.5) == [
      'whole']
  assert len(server.asked) == 2


def test_what_host_0_cannot_get_is_an_error_of_all(
    serve, tmp_path, monkeypatch):
  """The others wait for it: it must tell them before it raises."""
  told = []
  def gather(own):
    told.append(own)
    return [own, (None, None)]
  monkeypatch.setattr(hosts, 'count', lambda: 2)
  monkeypatch.setattr(hosts, 'gather', gather)
  server = serve(lambda prompt, nth: (401, 'no such key'))
  with pytest.raises(ValueError, match='host 0 of 2: .*no such key'):
    ask(server, context(tmp_path), [request('a')])
  assert 'no such key' in told[-1][1]


def test_separate_reasoning_becomes_a_think_block(serve, tmp_path):
  for name in ('reasoning_content', 'reasoning'):
    server = serve(lambda prompt, nth: said('So 7.', **{name: '3+4=7'}))
    assert ask(server, context(tmp_path / name), [request('q')]) == [
        '<think>3+4=7</think>So 7.']


def test_an_endpoint_that_always_fails_raises_with_the_first_error(
    serve, tmp_path):
  server = serve(lambda prompt, nth: (401, 'no such key'))
  with pytest.raises(ValueError) as caught:
    ask(server, context(tmp_path), [request('a'), request('b')])
  for part in (server.url, 'no such key', '401', 'OPENAI_API_KEY', 'not set'):
    assert part in str(caught.value)
  # Nobody listens at all.
  server.close()
  with pytest.raises(ValueError, match='OPENAI_API_KEY'):
    ask(server, context(tmp_path), [request('a')])


def test_an_endpoint_that_dies_on_the_way_ends_the_run(serve, tmp_path):
  """20 failures in a row: not the 200 that are waiting, and what came stays."""
  server = serve(lambda prompt, nth: (
      said('fine') if prompt == '0' else (400, [0.01, 'gone'])))
  requests = [request(str(i)) for i in range(200)]
  with pytest.raises(ValueError, match='20 requests in a row.*gone'):
    ask(server, context(tmp_path), requests, workers=1)
  assert 21 <= len(server.asked) < 100
  assert ask(server, context(tmp_path), requests[:1]) == ['fine']


@pytest.mark.parametrize('body', [[3.0, 'late'], ['x', 0.3] * 10])
def test_time_outs_are_bounded(serve, tmp_path, body):
  """A silent server, and one that drips a byte at a time."""
  server = serve(lambda prompt, nth: (
      said('fine') if prompt == 'quick' else (200, body)))
  begun = time.monotonic()
  assert ask(server, context(tmp_path), [request('slow'), request('quick')],
             timeout_s=0.4) == [None, 'fine']
  # 4 attempts of at most 0.4 s + one 0.3 s drip, and 0.07 s of waiting.
  assert time.monotonic() - begun < 6.0
  assert len(server.asked) == endpoint._ATTEMPTS + 1


def test_preemption_stops_the_asking(serve, tmp_path):
  server, ctx = serve(lambda prompt, nth: (
      200, [0.01, said('fine')[1]])), context(tmp_path)
  def stop():
    raise SystemExit(0)
  ctx.stop = stop
  ctx.interrupt.requested = True
  with pytest.raises(SystemExit):
    ask(server, ctx, [request(str(i)) for i in range(100)], workers=1)
  assert len(server.asked) < 50


def test_m16_preemption_does_not_wait_for_a_slow_server(serve, tmp_path):
  """A reply may take minutes (timeout_s); what came before it is kept."""
  server, ctx = serve(lambda prompt, nth: (
      said('fine') if prompt == 'quick' else (200, [30.0]))), context(tmp_path)
  def stop():
    raise SystemExit(0)
  ctx.stop = stop
  threading.Timer(
      0.5, lambda: setattr(ctx.interrupt, 'requested', True)).start()
  begun = time.monotonic()
  with pytest.raises(SystemExit):
    ask(server, ctx, [request('quick'), request('slow'), request('slower')],
        timeout_s=60.0, workers=2)
  assert time.monotonic() - begun < 5.0
  # No thread that the exit of the process would wait for.
  assert all(t.daemon for t in threading.enumerate()
             if t is not threading.main_thread() and t.name == 'endpoint')
  ctx.interrupt.requested = False
  assert ask(server, ctx, [request('quick')]) == ['fine']
  assert sum(p == 'quick' for _, _, p in server.asked) == 1


def test_an_error_of_a_worker_is_raised(serve, tmp_path, monkeypatch):
  server = serve(lambda prompt, nth: said('fine'))
  def full(*args):
    raise OSError('disk full')
  monkeypatch.setattr(endpoint.workdir_lib, 'write_whole', full)
  with pytest.raises(OSError, match='disk full'):
    ask(server, context(tmp_path), [request('a'), request('b')])


@pytest.mark.parametrize('kind, changes, message', [
    ('oracle', {}, 'endpoint, local'),
    ('endpoint', dict(url='localhost:8000'), 'http://host'),
    ('endpoint', dict(model=''), 'name of a model'),
    ('endpoint', dict(workers=0), 'workers=0'),
    ('endpoint', dict(timeout_s=0.0), 'timeout_s=0.0'),
    ('local', dict(max_new_tokens=0), 'max_new_tokens=0')])
def test_bad_settings_are_refused(tmp_path, kind, changes, message):
  options = dict(init='base', url='http://host/v1', model='m',
                 max_new_tokens=4, timeout_s=1.0, workers=1) | changes
  with pytest.raises(ValueError, match=message):
    responders.make(kind, context(tmp_path), **options)


# Local.


@pytest.fixture(scope='module')
def local(tmp_path_factory):
  """A responder of a tiny random model, its context, and its calls."""
  folder = write_folder(
      tmp_path_factory.mktemp('checkpoint'), hidden_size=16,
      intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
      num_key_value_heads=1, tie_word_embeddings=True,
      rope_scaling=dict(type='mrope', mrope_section=[1, 1, 2]),
      vision_config=dict(
          depth=1, hidden_size=16, intermediate_size=16, num_heads=2,
          patch_size=8, window_size=32, fullatt_block_indexes=[0],
          out_hidden_size=16, tokens_per_second=2))
  processor = processor_lib.Processor.open(str(folder))
  config = qwen_vl.Config.from_hf(
      json.loads((folder / 'config.json').read_text()))
  params = qwen_vl.init_params(config, jax.random.key(0))
  # Wide enough that what is said depends on what is asked.
  params = jax.tree.map(lambda x: x * 20 if x.ndim > 1 else x, params)
  named = []
  policy = forward.Policy(
      qwen_vl.build(config), processor.banned, processor.eos_id,
      processor.pad_id)
  ctx = context(
      folder, processor=processor,
      params=lambda name: named.append(name) or params, policy=policy,
      sampler=publish.Sampler(policy, sample.Decoding()),
      shape=lambda: pipeline.Shape(
          processor, template.plain, prompt_length=150, patches=16,
          prefix='never used'))
  responder = responders.make(
      'local', ctx, init='cold_start', url='', model='', max_new_tokens=5,
      timeout_s=1.0, workers=1)
  assert named == ['cold_start']
  return responder, ctx


def test_local_replies_do_not_depend_on_the_batch(local, monkeypatch):
  responder, ctx = local
  calls = []
  def spy(policy, params, prompts, key, knobs, version, **static):
    calls.append((prompts, knobs, static))
    return real(policy, params, prompts, key, knobs, version, **static)
  real = sample.sample
  monkeypatch.setattr(sample, 'sample', spy)
  image = picture(3, (16, 16))
  requests = [request('what? <image>', image), *(
      request(f'number {i * i}', *[picture(i, (16, 16))] * (i % 2))
      for i in range(9))]
  replies = responder(requests)
  # 10 requests in batches of 8: 8 and 2 with 6 rows of padding, one shape.
  assert [c[0].tokens.shape for c in calls] == [(8, 150)] * 2
  assert calls[0][2] == dict(
      group=1, length=5, decoding=sample.Decoding(), given=None)
  assert float(calls[0][1].temperature) == 0.0
  assert np.asarray(calls[1][0].mask).any(1).tolist() == [True] * 2 + [
      False] * 6
  # The prompt as written, as a user's turn; a 16 x 16 image is one cell.
  tokens, mask = calls[0][0].tokens[0], calls[0][0].mask[0]
  written = ctx.processor.tokenizer.decode(tokens[mask])
  assert '<|image_pad|><|vision_end|>what? image<|im_end|>' in written
  assert written.endswith('assistant\n')
  assert (calls[0][0].media['vision'].slot[0] >= 0).sum() == 1
  # What it says depends on the prompt alone, not on its place.
  assert len(set(replies)) > 5
  assert responder(requests[::-1]) == replies[::-1]


def test_local_prompts_that_do_not_fit_give_none(local):
  """One token per character: 150 hold a short prompt and the chat's frame."""
  responder, ctx = local
  ctx.logger.warnings.clear()
  short, long = request('short'), request('x' * 150)
  wide = request('two', picture(0, (64, 64)), picture(1, (64, 64)))
  alone = responder([short])
  assert alone[0] is not None and not ctx.logger.warnings
  assert responder([long, short, wide]) == [None, alone[0], None]
  (warning,) = ctx.logger.warnings
  assert '2 of 3' in warning and 'too long' in warning
  with pytest.raises(ValueError, match='1 of 1 prompts do not fit'):
    responder([long])
