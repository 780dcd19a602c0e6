"""Heads that give one number per token: a critic's value, a reward model's score.

A head is a stack of linear layers with an activation between them,

  s = w_L . a(W_(L-1) ... a(W_1 h + b_1) ...) + b_L,   h [D], inner widths D

in float32 whatever the trunk computes in. Its parameters are its own: nothing
of it is the embedding or the head over the vocabulary.

  scalars/<name>/  hidden_0 .. (kernel [D, D], bias [D]), kernel [D, 1], bias [1]
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any
NAMES = ('value', 'reward')
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    'silu': jax.nn.silu, 'tanh': jnp.tanh, 'gelu': jax.nn.gelu,
    'relu': jax.nn.relu, 'none': lambda x: x}
_HIDDEN = 'hidden_'


class Head(NamedTuple):
  """The form of a head.

  Fields:
    layers: linear ones, at least 1.
    activation: between them, of ACTIVATIONS.
    bias: whether they have one.
  """
  layers: int = 1
  activation: str = 'silu'
  bias: bool = False


_VALUE = Head(bias=True)  # a critic's, as TRL has it


def check(head: Head, key: str = 'reward_head') -> Head:
  """The head, or a ValueError that names the key."""
  if head.layers < 1:
    raise ValueError(f'{key}.layers: got {head.layers}; allowed: at least 1.')
  if head.activation not in ACTIVATIONS:
    raise ValueError(f'{key}.activation: got {head.activation!r}; allowed are '
                     f'{tuple(ACTIVATIONS)}.')
  return head


def form(name: str, reward: Head) -> Head:
  """Of the head `name`, where that of the reward is `reward`."""
  return reward if name == 'reward' else _VALUE


def zeros(width: int, head: Head) -> Tree:
  """Parameters of a new head, which says 0: see `drawn` for its inner layers."""
  def layer(outputs):
    made = {'kernel': jnp.zeros((width, outputs))}
    return {**made, 'bias': jnp.zeros(outputs)} if head.bias else made
  return {**{f'{_HIDDEN}{i}': layer(width) for i in range(head.layers - 1)},
          **layer(1)}


def drawn(params: Tree, key: Array, place: Callable[[str, Array], Array]) -> Tree:
  """A head whose inner kernels, where they are all 0, are uniform in
  +-1 / sqrt(D): with them at 0 no gradient would reach any layer.

  The last layer stays, so that a new head says 0 about everything. (torch's
  default for a linear layer; the papers give none.)

  Args:
    params: of one head.
    key: of the draws.
    place: puts a new kernel, by its name in the head, where it belongs.
  """
  made = dict(params)
  for i, name in enumerate(sorted(n for n in params if n.startswith(_HIDDEN))):
    kernel = params[name]['kernel']
    if not jnp.any(kernel):
      bound = kernel.shape[0]**-0.5
      made[name] = {**params[name], 'kernel': place(
          f'{name}/kernel', jax.random.uniform(
              jax.random.fold_in(key, i), kernel.shape, jnp.float32, -bound,
              bound).astype(kernel.dtype))}
  return made


def last(params: Tree) -> Tree:
  """The last layer of a head."""
  return {name: leaf for name, leaf in params.items()
          if not name.startswith(_HIDDEN)}


def apply(params: Tree, hidden: Array, head: Head, precision: str) -> Array:
  """f32[...], what a head says of hidden states [..., D]."""
  def linear(x, layer):
    y = jnp.einsum('...d,de->...e', x, layer['kernel'].astype(jnp.float32),
                   precision=precision)
    return y + layer['bias'].astype(jnp.float32) if 'bias' in layer else y
  x = hidden.astype(jnp.float32)
  for i in range(head.layers - 1):
    x = ACTIVATIONS[head.activation](linear(x, params[f'{_HIDDEN}{i}']))
  return linear(x, params)[..., 0]


def files(name: str, head: Head) -> dict[str, str]:
  """{path below `scalars`: tensor}, as TRL names a critic's head and
  transformers a classifier's; of several layers as `torch.nn.Sequential`, with
  the activations between them."""
  parts = ('kernel', 'weight'), *((('bias', 'bias'),) if head.bias else ())
  if name == 'value':
    return {f'value/{ours}': f'v_head.summary.{theirs}'
            for ours, theirs in parts}
  if head.layers == 1:
    return {f'reward/{ours}': f'score.{theirs}' for ours, theirs in parts}
  owners = [f'{_HIDDEN}{i}/' for i in range(head.layers - 1)] + ['']
  return {f'reward/{owner}{ours}': f'score.{2 * i}.{theirs}'
          for i, owner in enumerate(owners) for ours, theirs in parts}
