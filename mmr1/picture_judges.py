"""A model that scores pictures by the logits of the first token it would write.

It reads the source, the picture and what was asked for under a rubric that asks
for a number, and writes nothing: with p the softmax over the tokens '0' to '5'
alone,

  score = sum_k k p_k / 5, in [0, 1]

Edit-R1 (arXiv:2510.16888, sec. 3.2): no chain of thought, no sampling.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mmr1 import arrays
from mmr1 import context
from mmr1 import policy as policy_lib
from mmr1 import records
from mmr1 import types
from mmr1.data import encode
from mmr1.models import partition

Array = jax.Array
HIGHEST = 5
_ROWS = 64  # pictures that are read at a time


def expected(logits: Array) -> Array:
  """f32[...] in [0, 1] of f32[..., 6], logits of the tokens '0' to '5'."""
  p = jax.nn.softmax(logits.astype(jnp.float32), -1)
  return p @ jnp.arange(HIGHEST + 1, dtype=jnp.float32) / HIGHEST


class Judge:
  """A section of `judges`, of which max_new_tokens and parse are not read."""

  def __init__(self, ctx: context.Context, name: str):
    """Opens it.

    Args:
      ctx: the run.
      name: of the section. `params` is 'base' or a stage of the policy.

    Raises:
      ValueError: it writes a digit as more than one token.
    """
    section = ctx.config.judges[name]
    self._ctx, self._where = ctx, f'judges.{name}'
    self._params = partition.cast(
        ctx.params(section.params), ctx.policy.module.config.compute_dtype)
    self._shape = dataclasses.replace(
        ctx.shape(section.instruction), prefix=section.suffix)
    self._digits = tuple(self._token(str(k)) for k in range(HIGHEST + 1))

  def _token(self, text: str) -> int:
    ids = encode.encode_given((text,), self._ctx.processor)
    if len(ids) != 1:
      raise ValueError(f'{self._where}: its tokenizer writes {text!r} as '
                       f'{len(ids)} tokens; the score is read from one.')
    return int(ids[0])

  def __call__(self, examples: Sequence[records.Example],
               images: np.ndarray) -> np.ndarray:
    """f64[N, G], scores of pictures f32[N, G, H, W, 3] in [-1, 1].

    Raises:
      ValueError: a picture and its rubric do not fit into a prompt.
    """
    asked = [records.Example(
        uid=example.uid, question='<image>' * (1 + len(example.images))
        + example.question, images=(*example.images, picture(image)))
             for example, group in zip(examples, images) for image in group]
    scores = []
    for start in range(0, len(asked), _ROWS):
      part = asked[start:start + _ROWS]
      made = [self._shape.encode(one, one.uid) for one in part]
      for one in made:
        if isinstance(one, records.Broken):
          raise ValueError(f'{self._where}: {one.reason}. Make room with '
                           'data.prompt_tokens and data.patches.')
      prompts = self._ctx.policy.layout.spread(self._shape.collate(
          [encoded for _, encoded in made], pad_rows=_ROWS - len(part)))
      scores.append(arrays.fetch(_scores(
          self._ctx.policy, self._params, prompts, self._digits))[:len(part)])
    return np.concatenate(scores).astype(np.float64).reshape(images.shape[:2])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _scores(policy: policy_lib.Policy, params: Any, prompts: types.Prompts,
            digits: tuple[int, ...]) -> Array:
  """f32[N], of the token after each prompt."""
  last = policy.prompt_pass(params, prompts).last
  logits = policy.logits(policy.gathered(params), last, jnp.float32(1.0))
  return expected(logits[:, jnp.asarray(digits)])


def picture(image: np.ndarray) -> Image.Image:
  """Of f32[H, W, 3] in [-1, 1]; what is outside is cut off."""
  return Image.fromarray(np.uint8(
      np.clip(np.round((image + 1) * 127.5), 0, 255)))
