"""The model that trains and samples: a module, and the constants around it."""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmr1 import sharding
from mmr1 import types
from mmr1.models import partition

Array = jax.Array
_STACKED = re.compile('/(layers|blocks)/')


@dataclasses.dataclass(frozen=True)
class Policy:
  """A module and the constants every forward shares. Hashable, static.

  Fields:
    module: the linen model.
    banned: token ids that have probability zero (vision placeholders).
    eos_id, pad_id: end of turn, padding.
    head_chunk: tokens whose logits exist at the same time on one device, at
      least one for each of its prompts.
    layout: where arrays live; the module's config knows its partition.

  Raises:
    ValueError: head_chunk is not positive.
  """
  module: nn.Module
  banned: tuple[int, ...]
  eos_id: int
  pad_id: int
  head_chunk: int = 2048
  layout: sharding.Layout = dataclasses.field(
      default_factory=sharding.default)

  def __post_init__(self):
    if self.head_chunk < 1:
      raise ValueError(
          f'head_chunk: got {self.head_chunk}; allowed: at least 1 token '
          '(there is no value for unlimited).')

  def apply(self, params: Any, *args, method: str):
    return self.module.apply({'params': params}, *args, method=method)

  def gathered(self, params: Any) -> Any:
    """Parameters of no layer where they are used; layers gather their own."""
    config = self.module.config
    return partition.gathered(
        config.partition, params, '', config.compute_dtype,
        leave=_STACKED.search)

  def prompt_pass(self, params: Any, prompts: types.Prompts) -> types.Prefix:
    return self.apply(self.gathered(params), prompts, method='prompt_pass')

  def logits(self, params: Any, hidden: Array, temperature: Array) -> Array:
    """f32[..., V] = head(hidden) / temperature, banned ids at -inf."""
    logits = self.apply(params, hidden, method='head') / temperature
    logits = partition.constrain(
        self.module.config.partition, logits, 'rows',
        *[None] * (logits.ndim - 2), 'vocab')
    if not self.banned:
      return logits
    banned = jnp.zeros(logits.shape[-1], bool)
    banned = banned.at[jnp.asarray(self.banned)].set(True)
    return jnp.where(banned, -jnp.inf, logits)
