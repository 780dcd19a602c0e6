"""How much of their attention text tokens give to an image, layer by layer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmr1.models import products

Array = jax.Array


class Marks(NamedTuple):
  """What prompt tokens are, bool[N, P]; pictures and words are real tokens.

  Fields:
    image: keys that stand for an image.
    text: keys that are words.
    asks: queries that are measured.
  """
  image: Array
  text: Array
  asks: Array


def marks(mask: Array, slot: Array) -> Marks:
  """Of prompts: real tokens bool[N, P] and `types.Media.slot` i32[N, P].

  Queries are the words after the first cell of an image: those before it
  cannot see any.
  """
  image = mask & (slot >= 0)
  text = mask & ~image
  return Marks(image, text, text & (jnp.cumsum(image, -1) > 0))


def share(
    query: Array, sources: Sequence[Any], *, marked: Marks, chunk: int,
    scale: float | None, cap: float | None, precision: str, **backend,
) -> Array:
  """f32[N], the sum over queries of the mean over heads of image / (image +
  text), masses of one softmax.

  The weights [.., T', U] of `chunk` queries exist at a time, in one layer.

  Args:
    query: [N, 1, P, H, d].
    sources: of keys, one of every row's own; see `attention.Source`.
    marked: whose mass, and which queries.
    chunk, scale, cap, precision: as of `attention.attend`; `backend`, what
      computes it there, has no part in it.
  """
  del backend
  (source,) = sources
  how = products.How(
      precision, chunk, query.shape[-1]**-0.5 if scale is None else scale, cap)

  def some(total, rows, query, asks):
    weights = products.weights(query, rows, source, how)
    seen, read = (jnp.sum(jnp.where(keys[:, None, None, None, None], weights,
                                    0.0), -1)
                  for keys in (marked.image, marked.text))
    part = jnp.mean(seen / jnp.maximum(seen + read, 1e-30), (2, 4))
    return total + jnp.sum(jnp.where(asks, part, 0.0), (1, 2)), ()
  total, _ = products.by_chunks(
      some, jnp.zeros(len(query), jnp.float32),
      (query, marked.asks[:, None]), chunk)
  return total
