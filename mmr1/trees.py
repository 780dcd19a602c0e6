"""Trees of arrays: names of leaves, counts, selection, norms, casts.

A leaf's name is its path joined by '/', as in 'visual/blocks/qkv/kernel'.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import resolve

Tree = Any
Array = jax.Array


def name_of(path: Sequence[Any]) -> str:
  """Name of the leaf at a path of `jax.tree_util`."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def named(tree: Tree) -> dict[str, Any]:
  """{name: leaf} in the order of `jax.tree.leaves`. None is not a leaf."""
  return {name_of(path): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def names(tree: Tree) -> Tree:
  """The same tree with every leaf replaced by its name."""
  return jax.tree_util.tree_map_with_path(lambda path, _: name_of(path), tree)


def count(tree: Tree) -> int:
  """Number of values in all leaves (arrays or shape structs)."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def select(
    tree: Tree, patterns: Iterable[str], where: str = 'select') -> Tree:
  """A tree of bools: True where a pattern matches the whole name.

  Args:
    tree: the tree.
    patterns: regular expressions, matched with `re.fullmatch`: 'visual/.*'.
    where: config key, for the error message.

  Raises:
    ValueError: a pattern that matches no leaf, or is no regular expression.
  """
  known = list(named(tree))
  hits = set()
  for pattern in patterns:
    try:
      found = {name for name in known if re.fullmatch(pattern, name)}
    except re.error as error:
      raise ValueError(
          f'{where}: {pattern!r} is not a regular expression: {error}.'
      ) from error
    if not found:
      raise ValueError(
          f'{where}: {pattern!r} matches no parameter (it must match a whole '
          f'name, as in "visual/.*"). {resolve.nearest(pattern, known)}')
    hits |= found
  return jax.tree.map(lambda name: name in hits, names(tree))


def global_norm(tree: Tree) -> Array:
  """f32[], `optax.global_norm` of the leaves, summed in float32."""
  leaves = jax.tree.leaves(cast(tree, jnp.float32))
  return jnp.sqrt(sum((jnp.square(x).sum() for x in leaves), jnp.float32(0)))


def cast(tree: Tree, dtype: Any) -> Tree:
  """Floating leaves in `dtype`; integers, bools and keys as they are."""
  return jax.tree.map(
      lambda x: x.astype(dtype)
      if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def partition(tree: Tree, mask: Tree) -> tuple[Tree, Tree]:
  """Splits nested dicts by a tree of bools: (leaves that are True, the rest).

  Each half keeps the nesting and has only its own leaves, so that a gradient
  or an optimiser state over the first half does not know of the second. A half
  without leaves is `{}`.
  """
  true, false = {}, {}
  for key, value in tree.items():
    if isinstance(value, dict):
      halves = partition(value, mask[key])
    else:
      halves = (value, {}) if mask[key] else ({}, value)
    for half, part in zip((true, false), halves):
      if not (isinstance(part, dict) and not part):
        half[key] = part
  return true, false


def merge(a: Tree, b: Tree) -> Tree:
  """The inverse of `partition`: the union of two nested dicts.

  Raises:
    ValueError: both have the same leaf.
  """
  out = dict(a)
  for key, value in b.items():
    if key not in out:
      out[key] = value
    elif isinstance(out[key], dict) and isinstance(value, dict):
      out[key] = merge(out[key], value)
    else:
      raise ValueError(f'merge: both trees have the leaf {key!r}.')
  return {key: out[key] for key in sorted(out)}
