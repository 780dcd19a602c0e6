"""Low-rank adapters in a model's parameters (https://arxiv.org/abs/2106.09685).

Beside the kernel W [in, out] of a linear layer stand lora_a [in, r], lora_b
[r, out] and lora_scale [], the constant alpha / r; inside stacked layers all
have L in front. `layers.Dense` then computes

  y = x W + bias + (x lora_a) lora_scale lora_b

so every pass of a model has them without knowing. They are float32 whatever
the kernel is, as in PEFT: small updates would be lost in bfloat16.

No dropout: on-policy ratios compare the policy that sampled with the policy
that is trained, and a mask drawn in one of them only would make them differ.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import trees
from mmr1.models import layers

Tree = Any
Array = jax.Array
A, B, SCALE = layers.ADAPTER
_KERNEL = 'kernel'


def _last(name: str) -> str:
  return name.rpartition('/')[2]


def _kernels(params: Tree) -> dict[str, Any]:
  """{name: kernel} of linear layers, but for those of heads of one number,
  which are none of `layers.Dense`."""
  return {name: leaf for name, leaf in trees.named(params).items()
          if _last(name) == _KERNEL and min(leaf.shape[-2:]) > 1
          and not name.startswith('scalars/')}


def chosen(params: Tree, targets: Iterable[str]) -> tuple[str, ...]:
  """Names of the kernels that `targets` select, sorted.

  Args:
    params: nested dict of arrays or shape structs.
    targets: regexes of whole names of kernels: 'language/layers/.*'.

  Raises:
    ValueError: a regex that matches no kernel, or is none.
  """
  known = _kernels(params)
  kernels, _ = trees.partition(params, jax.tree.map(
      lambda name: name in known, trees.names(params)))
  mask = trees.select(kernels, targets, 'lora.targets')
  return tuple(sorted(name for name, on in trees.named(mask).items() if on))


def inject(
    params: Tree,
    key: Array,
    *,
    rank: int,
    alpha: float,
    targets: Iterable[str],
    place: Callable[[str, Array], Array] = lambda name, leaf: leaf,
) -> Tree:
  """Parameters with new adapters; the model stays the same, as b is 0.

  a is uniform in +-1 / sqrt(in), PEFT's default (kaiming_uniform with slope
  sqrt 5). What an adapter draws does not depend on which others there are.

  Args:
    params: without adapters.
    key: of the draws.
    rank: r, at least 1.
    alpha: the scale is alpha / r.
    targets: see `chosen`.
    place: puts a new leaf, by its name, where it belongs.

  Raises:
    ValueError: a regex without a match; a rank that a kernel cannot have.
  """
  wanted = frozenset(chosen(params, targets))
  for i, (name, leaf) in enumerate(sorted(_kernels(params).items())):
    if name not in wanted:
      continue
    *stack, inputs, outputs = leaf.shape
    if rank > min(inputs, outputs):
      raise ValueError(
          f'lora.rank: got {rank}, but {name!r} is [{inputs}, {outputs}]; '
          f'allowed: at most {min(inputs, outputs)} there. Lower the rank, or '
          'leave the kernel out of lora.targets.')
    bound = inputs**-0.5
    new = {
        A: jax.random.uniform(
            jax.random.fold_in(key, i), (*stack, inputs, rank), jnp.float32,
            -bound, bound),
        B: jnp.zeros((*stack, rank, outputs), jnp.float32),
        SCALE: jnp.full(stack, alpha / rank, jnp.float32)}
    new = {part: place(name.removesuffix(_KERNEL) + part, value)
           for part, value in new.items()}
    for parent in reversed(name.split('/')[:-1]):
      new = {parent: new}
    params = trees.merge(params, new)
  return params


def merge(params: Tree) -> Tree:
  """Parameters whose kernels are W + scale a b, without adapters.

  Summed in float32 and rounded once, to the kernel's dtype. One program per
  kernel, as step by step there would be several float32 arrays of its size.
  """
  result = without(params, merge)
  if A in params:
    result[_KERNEL] = _merged(
        *(params[name] for name in (_KERNEL, A, B, SCALE)))
  return result


@jax.jit
def _merged(kernel: Array, a: Array, b: Array, scale: Array) -> Array:
  product = jnp.einsum(
      '...ir,...ro->...io', a, b, precision=jax.lax.Precision.HIGHEST)
  wide = kernel.astype(jnp.float32) + scale[..., None, None] * product
  return wide.astype(kernel.dtype)


def without(params: Tree, inner: Callable[[Tree], Tree] | None = None) -> Tree:
  """The parameters below the adapters, as they are; `inner`: of subtrees."""
  return {key: (inner or without)(value) if isinstance(value, dict) else value
          for key, value in params.items() if key not in layers.ADAPTER}


def trains(params: Tree, more: Iterable[str]) -> Tree:
  """A tree of bools: a and b of the adapters, and what `more` selects.

  Args:
    params: with adapters.
    more: regexes of whole names of other parameters, which train in full.

  Raises:
    ValueError: a regex without a match, or that selects a kernel which has an
      adapter.
  """
  full = trees.named(trees.select(without(params), more, 'lora.train'))
  names = trees.named(params)
  for name, on in full.items():
    if on and name.removesuffix(_KERNEL) + A in names and (
        _last(name) == _KERNEL):
      raise ValueError(
          f'lora.train: {name!r} has an adapter, which says that it stays as '
          'it is. Take it out of lora.targets or of lora.train.')
  return jax.tree.map(
      lambda name: full.get(name, _last(name) != SCALE), trees.names(params))
