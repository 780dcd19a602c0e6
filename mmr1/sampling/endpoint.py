"""An OpenAI-compatible chat endpoint: retries, progress, a cache of replies.

A request that fails for good gives None, is counted and named in the log; an
endpoint that answers nothing raises.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import hashlib
import http.client
import io
import json
import os
import queue
import threading
import time
from typing import Any
import urllib.error
import urllib.request

from PIL import Image

from mmr1 import hosts
from mmr1 import workdir as workdir_lib

KEY = 'OPENAI_API_KEY'
_ATTEMPTS = 4
_BACKOFF_S = 1.0  # before the second attempt; doubles
_IN_A_ROW = 20  # so many failures, one after the other, end the run
_NOTE_S = 30.0
_POLL_S = 0.5  # how soon a request to stop is seen
_PNG_MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA')


class Failed(Exception):
  """One request failed for good; the message says why."""


class Endpoint:
  """POSTs to `{url}/chat/completions`, the key in OPENAI_API_KEY if there is.

  Replies lie in `cache/replies` of the workdir under a hash of the request's
  body (model, prompt, images), so a resumed run reads the same replies and
  asks nothing twice. Failures are not kept: they are asked again.
  """

  def __init__(
      self, ctx: Any, url: str, model: str, max_new_tokens: int,
      timeout_s: float, workers: int):
    self._ctx = ctx
    self._address = f'{url.rstrip("/")}/chat/completions'
    self._model = model
    self._max_new_tokens = max_new_tokens
    self._timeout_s = timeout_s
    self._workers = workers
    self._folder = ctx.path / 'cache' / 'replies'

  def __call__(self, requests: Sequence[Any]) -> list[str | None]:
    """Replies in the order of the requests; equal ones are asked once.

    Args:
      requests: each with a `prompt` and `images`, PIL images shown before it.

    Raises:
      ValueError: no request was answered, or many failed in a row; the key is
        none. On all hosts.
    """
    files = [self._file(self._body(request)) for request in requests]
    error = None
    if hosts.index() == 0:
      _, error = hosts.attempt(
          lambda: self._fetch(dict(zip(files, requests))), None)
    hosts.share(None, error)  # nobody reads before all is there
    return [json.loads(file.read_text())['reply'] if file.exists() else None
            for file in files]

  def _body(self, request: Any) -> bytes:
    content = [{'type': 'image_url', 'image_url': {'url': data_url(image)}}
               for image in request.images]
    content.append({'type': 'text', 'text': request.prompt})
    return json.dumps({
        'model': self._model, 'max_tokens': self._max_new_tokens,
        'messages': [{'role': 'user', 'content': content}]}).encode()

  def _file(self, body: bytes):
    return self._folder / f'{hashlib.sha256(body).hexdigest()[:32]}.json'

  def _fetch(self, wanted: Mapping[Any, Any]) -> None:
    """Asks for the files of `wanted` that do not exist yet."""
    todo = {file: request for file, request in wanted.items()
            if not file.exists()}
    total = len(wanted)
    done, errors, in_a_row = total - len(todo), [], 0
    noted = time.monotonic()
    with contextlib.closing(self._answers(todo)) as answers:
      for error in answers:
        if error is not None:
          done += 1
          in_a_row = in_a_row + 1 if error else 0
          errors += [error] if error else []
        if in_a_row >= max(_IN_A_ROW, 2 * self._workers):
          raise ValueError(
              self._refusal(f'{in_a_row} requests in a row', errors))
        if time.monotonic() > noted + _NOTE_S:
          noted = time.monotonic()
          self._ctx.logger.note(
              f'{self._model}: {done} of {total} asked, '
              f'{len(errors)} of them failed')
        # Other hosts wait for this one and cannot agree on a stop.
        if self._ctx.interrupt.requested and hosts.count() == 1:
          self._ctx.stop()
    if errors and len(errors) == total:
      raise ValueError(self._refusal(f'all {total} requests', errors))
    if errors:
      self._ctx.logger.warn(
          f'{self._model}: {len(errors)} of {total} requests gave no reply; '
          f'the first: {errors[0]}')

  def _answers(self, todo: Mapping[Any, Any]) -> Iterator[str | None]:
    """'' or what went wrong for each as it is answered; None while waiting.

    Daemon threads: one that waits for a slow server must keep neither a
    preempted run nor the exit of the process (M16).
    """
    waiting, results = queue.SimpleQueue(), queue.SimpleQueue()
    for item in todo.items():
      waiting.put(item)

    def work():
      while True:
        try:
          results.put(self._one(*waiting.get_nowait()))
        except queue.Empty:
          return
        except Exception as error:  # raised by whoever reads the results
          results.put(error)

    for _ in range(min(self._workers, len(todo))):
      threading.Thread(target=work, name='endpoint', daemon=True).start()
    left = len(todo)
    try:
      while left:
        try:
          result = results.get(timeout=_POLL_S)
        except queue.Empty:
          yield None
          continue
        if isinstance(result, Exception):
          raise result
        left -= 1
        yield result
    finally:  # nothing more is asked
      with contextlib.suppress(queue.Empty):
        while True:
          waiting.get_nowait()

  def _refusal(self, what: str, errors: Sequence[str]) -> str:
    given = 'is set' if _key() else 'is not set'
    return (
        f'{self._address} (model {self._model!r}): {what} failed; the first '
        f'error: {errors[0]}. Check url and model, and set the environment '
        f'variable {KEY} where the server wants a key (it {given}). Replies '
        'that came are kept: the same command goes on from them.')

  def _one(self, file: Any, request: Any) -> str:
    """Asks and keeps the reply; returns what went wrong, or ''."""
    try:
      reply = self._ask(self._body(request))
    except Failed as error:
      return str(error)
    workdir_lib.write_whole(file, json.dumps({
        'model': self._model, 'prompt': request.prompt, 'reply': reply}))
    return ''

  def _ask(self, body: bytes) -> str:
    """The reply; retries what may pass: 429, 5xx, time-outs, lost lines."""
    for attempt in range(_ATTEMPTS):
      if attempt:
        time.sleep(_BACKOFF_S * 2 ** (attempt - 1))
      try:
        return reply_text(self._post(body))
      except urllib.error.HTTPError as error:
        reason = f'HTTP {error.code} {error.reason}: {_said(error)}'
        if error.code != 429 and error.code < 500:
          break
      except (OSError, http.client.HTTPException) as error:
        reason = f'{type(error).__name__}: {error}'
    raise Failed(reason)

  def _post(self, body: bytes) -> bytes:
    headers = {'Content-Type': 'application/json'}
    if key := _key():
      headers['Authorization'] = f'Bearer {key}'
    deadline = time.monotonic() + self._timeout_s
    parts = []
    with urllib.request.urlopen(
        urllib.request.Request(self._address, body, headers),
        timeout=self._timeout_s) as response:
      while part := response.read1(1 << 16):
        parts.append(part)
        # The socket's own limit is per read: a slow drip would never end.
        if time.monotonic() > deadline:
          raise TimeoutError(f'no whole reply in {self._timeout_s} s')
      if response.length:  # `read1` takes a lost line for the end
        raise http.client.IncompleteRead(b''.join(parts), response.length)
    return b''.join(parts)


def _key() -> str:
  """What OPENAI_API_KEY says, '' if nothing.

  Raises:
    ValueError: it cannot be sent. The message has nothing of it.
  """
  key = os.environ.get(KEY, '').strip()
  if ' ' in key or not (key.isascii() and key.isprintable()):
    raise ValueError(
        f'{KEY}: a key has no white space, control characters or letters '
        f'beyond ASCII; this one of {len(key)} characters has (it is not shown '
        'here). Set it again, as in export '
        f'{KEY}="$(cat key.txt)".')
  return key


def _said(error: urllib.error.HTTPError) -> str:
  """How a refusal goes on; '' where nothing of that comes."""
  try:
    with error:
      return error.read(300).decode('utf-8', 'replace')
  except (OSError, http.client.HTTPException):
    return ''


def reply_text(body: bytes) -> str:
  """The assistant's text in a response; separate reasoning goes in `<think>`.

  Servers of reasoning models return the chain in a field of its own
  (DeepSeek: `reasoning_content`, vLLM since: `reasoning`).

  Raises:
    Failed: no such text.
  """
  try:
    message = json.loads(body)['choices'][0]['message']
    text = message.get('content') or ''
    thought = message.get('reasoning_content') or message.get('reasoning')
    if thought:
      text = f'<think>{thought}</think>{text}'
    if not text.strip():
      raise Failed('an empty reply')
    return text.encode('utf-8', 'replace').decode()  # no half surrogate pairs
  except (
      ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
    raise Failed(
        f'not a chat completion ({error!r}): {body[:200]!r}') from error


def data_url(image: Image.Image) -> str:
  """A PIL image as `data:image/png;base64,...`."""
  if image.mode not in _PNG_MODES:
    image = image.convert('RGB')
  buffer = io.BytesIO()
  image.save(buffer, 'PNG')
  return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'
