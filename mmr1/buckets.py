"""Buckets of completion lengths: work follows the lengths reached, not T.

A chunk of completions is cut to the smallest of a few lengths that holds its
longest one. Which one is a traced index into a switch whose branches have
static shapes: one program, nothing compiled and nothing asked of the host when
lengths change. Ordered by length first, short completions share chunks.

A length is that of `Block.mask`: what comes after the last token that the
objective speaks about has no part in it, and a completion that was dropped has
length 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import trees
from mmr1 import types

Array = jax.Array


def check(sizes: Sequence[int], length: int, key: str) -> None:
  """Refuses buckets that are no ascending lengths below the cap.

  Args:
    sizes: of the config.
    length: the cap, max_new_tokens.
    key: the config key, for the message.

  Raises:
    ValueError: names the key.
  """
  sizes = tuple(sizes)
  # A bool is an int, and True would be a bucket of one token.
  whole = all(isinstance(x, int) and not isinstance(x, bool) for x in sizes)
  if not whole or any(not 0 < x < length for x in sizes) or (
      list(sizes) != sorted({*sizes})):
    raise ValueError(
        f'{key}: got {sizes}; allowed: ascending whole numbers from 1 to below '
        f'max_new_tokens={length}, which is always the last bucket. () has one '
        'length for all.')


def lengths(mask: Array) -> Array:
  """i32[N, G], 1 + the last kept token of each row of bool[N, G, T]; or 0."""
  return jnp.max(jnp.where(mask, 1 + jnp.arange(mask.shape[-1]), 0), axis=-1)


def cut(block: types.Block, length: int) -> types.Block:
  """The first `length` tokens of every completion; prompts stay.

  By the documented shapes: of what a block has besides prompts and media, axis
  2 is time wherever it is not of size 1.

  Raises:
    ValueError: an array with another axis 2.
  """
  total = block.mask.shape[2]
  if length == total:
    return block

  def part(path, x):
    if x.ndim < 3 or x.shape[2] == 1:  # total > length >= 1: one for all
      return x
    if x.shape[2] != total:
      raise ValueError(
          f'block.{trees.name_of(path)} has shape {x.shape}; axis 2 is time '
          f'and must have {total} entries, or 1 for all of them.')
    return x[:, :, :length]

  media = block.completions.media
  bare = block.replace(
      prompts=None, completions=block.completions.replace(media=None))
  result = jax.tree_util.tree_map_with_path(part, bare)
  media = media and {name: one.replace(**{
      key: getattr(one, key)[:, :, :length]
      for key in ('slot', 'taps', 'weights') if getattr(one, key) is not None})
                     for name, one in media.items()}
  return result.replace(
      prompts=block.prompts,
      completions=result.completions.replace(media=media))


def pad(x: Array, length: int) -> Array:
  """[N, G, t, ...] -> [N, G, length, ...], zeros at the end."""
  return jnp.pad(x, [(0, 0), (0, 0), (0, length - x.shape[2]),
                     *[(0, 0)] * (x.ndim - 3)])


def at_length(
    fn: Callable[[types.Block], Any], block: types.Block,
    sizes: Sequence[int]) -> Any:
  """fn(block cut to the smallest bucket that holds its longest completion).

  Args:
    fn: gives arrays of the same shapes whatever the length is.
    block: N prompts, G completions each.
    sizes: ascending lengths below T; () for T alone.
  """
  if not sizes:
    return fn(block)
  # A bucket of exactly the length holds it.
  index = jnp.searchsorted(
      jnp.asarray(sizes), jnp.max(lengths(block.mask)), side='left')
  branches = [lambda x, t=t: fn(cut(x, t))
              for t in (*sizes, block.mask.shape[2])]
  return jax.lax.switch(index, branches, block)


def _take(tree: Any, index: Array) -> Any:
  """Leaves [N, G, ...] with the G axis taken in the order i32[N, G]."""
  def one(x):
    wide = index.reshape(index.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, wide, axis=1)
  return jax.tree.map(one, tree)


def ordered(
    block: types.Block, sizes: Sequence[int],
) -> tuple[types.Block, Callable[[Any], Any]]:
  """The block with each group ordered by length, shortest first.

  Args:
    block: N prompts, G completions each; prompts stay.
    sizes: buckets; without any the block comes back as it is.

  Returns:
    The block, and the function that puts leaves [N, G, ...] back.
  """
  if not sizes:
    return block, lambda tree: tree
  index = jnp.argsort(lengths(block.mask), axis=1)
  result = _take(block.replace(prompts=None), index)
  return result.replace(prompts=block.prompts), lambda tree: _take(
      tree, jnp.argsort(index, axis=1))


def ordered_rows(
    block: types.Block, chunks: int, sizes: Sequence[int],
    parts: int) -> types.Block:
  """Rows moved so that rows c, c + chunks, ... are of like length, for each c.

  `parts` is how many devices N lies over: each keeps its own rows.
  """
  n = block.mask.shape[0]
  if not sizes or n % chunks:  # the latter is refused where rows are split
    return block
  if n // parts % chunks:
    parts = 1
  size = jnp.max(lengths(block.mask), axis=1).reshape(parts, n // parts)
  index = jnp.argsort(size, axis=1).reshape(parts, chunks, -1)
  index = jnp.swapaxes(index, 1, 2).reshape(parts, n // parts)
  return jax.tree.map(
      lambda x: _take(x.reshape(index.shape + x.shape[1:]), index).reshape(
          x.shape), block)
