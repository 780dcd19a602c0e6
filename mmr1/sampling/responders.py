"""Responders answer prompts with text: another model's endpoint, or our own.

A data engine or a judge asks them for whole lists at a time. A request that
cannot be answered gives None, is counted and named in the log; a responder
that answers nothing raises.
"""

from collections.abc import Callable, Sequence
import dataclasses
import re
from typing import Any

import jax.numpy as jnp

from mmr1 import records
from mmr1.data import collate
from mmr1.data import encode
from mmr1.data import template
from mmr1.sampling import endpoint
from mmr1.sampling import keys
from mmr1.sampling import read
from mmr1.sampling import sample

KINDS = ('endpoint', 'local')
_ROWS = 8  # prompts of one local batch and device


@dataclasses.dataclass(frozen=True)
class Request:
  """One question.

  Fields:
    example: the problem it is about; a symbolic responder reads its scene.
    prompt: what is asked, without media placeholders.
    images: PIL images shown before the prompt.
  """
  example: records.Example
  prompt: str
  images: tuple[Any, ...] = ()


Responder = Callable[[Sequence[Request]], list[str | None]]


def make(
    kind: str,
    ctx: Any,
    *,
    init: str,
    url: str,
    model: str,
    max_new_tokens: int,
    timeout_s: float,
    workers: int,
) -> Responder:
  """A responder.

  Args:
    kind: 'endpoint' or 'local'.
    ctx: the run's `context.Context`.
    init: local: whose parameters answer, see `Context.params`.
    url, model: endpoint: base address ('http://host:8000/v1') and model name.
    max_new_tokens: of one reply, at least 1.
    timeout_s, workers: endpoint: seconds per attempt; requests at a time.

  Raises:
    ValueError: an unknown kind, or a value outside its range.
  """
  if kind not in KINDS:
    raise ValueError(f'responder {kind!r}; allowed are {", ".join(KINDS)}.')
  if max_new_tokens < 1:
    raise ValueError(
        f'responder: got max_new_tokens={max_new_tokens}; at least 1.')
  if kind == 'local':
    return Local(ctx, init, max_new_tokens)
  if not url.startswith(('http://', 'https://')) or not model:
    raise ValueError(
        f'responder endpoint: got url={url!r}, model={model!r}; needed are the '
        "address of an OpenAI-compatible server, such as 'http://host:8000/v1'"
        ', and the name of a model it serves.')
  if timeout_s <= 0 or workers < 1:
    raise ValueError(
        f'responder endpoint: got timeout_s={timeout_s}, workers={workers}; '
        'allowed are timeout_s > 0 and at least 1 worker.')
  return endpoint.Endpoint(
      ctx, url, model, max_new_tokens, timeout_s, workers)


class Local:
  """Greedy replies of one of the run's own models.

  The prompt is put to it as a plain user turn, without the instruction and
  system text of `data`. Prompts that do not fit `data.prompt_tokens` or
  `data.patches` give None.
  """

  def __init__(self, ctx: Any, init: str, max_new_tokens: int):
    self._ctx = ctx
    self._params = ctx.sampler.publish(ctx.params(init))
    self._length = max_new_tokens

  def __call__(self, requests: Sequence[Request]) -> list[str | None]:
    """Replies in the order of the requests.

    Raises:
      ValueError: not one prompt fits.
    """
    ctx, shape, fitting, reasons = self._ctx, self._ctx.shape(), [], []
    for row, request in enumerate(requests):
      example = records.Example(
          uid=row, images=request.images, question=re.sub(
              r'<(image|video)>', r'\1', request.prompt))
      try:
        encoded = encode.encode(
            example, ctx.processor, template=template.plain)
        reason = collate.misfit(
            encoded, prompt_length=shape.prompt_length, patches=shape.patches)
      except ValueError as error:
        reason = f'cannot encode: {error}'
      if reason:
        reasons.append(reason)
      else:
        fitting.append((example, encoded))
    if reasons:
      said = (f'local responder: {len(reasons)} of {len(requests)} prompts do '
              f'not fit; the first: {reasons[0]}. See data.prompt_tokens.')
      if not fitting:
        raise ValueError(said)
      ctx.logger.warn(said)
    replies: list[str | None] = [None] * len(requests)
    rows = _ROWS * ctx.policy.layout.count
    for start in range(0, len(fitting), rows):
      for one in self._samples(fitting[start:start + rows], shape, rows):
        replies[one.uid] = one.text if one.text.strip() else None
    return replies

  def _samples(self, part, shape, rows: int) -> list[records.Sample]:
    ctx = self._ctx
    prompts = ctx.policy.layout.spread(shape.collate(
        [encoded for _, encoded in part], pad_rows=rows - len(part)))
    rollout = ctx.sampler(
        self._params, prompts, keys.step_key(0, 0, 0),
        sample.knobs(temperature=0.0, max_new_tokens=self._length),
        jnp.int32(0), group=1, length=self._length)
    return read.read(
        read.to_host(rollout), [example for example, _ in part], ctx.processor)
