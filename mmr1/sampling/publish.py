"""From the weights that train to the weights that sample.

Decoding reads every weight for every token, so weights that train in float32
are copied once per rollout in the dtype that multiplies. In the trainer's own
compute dtype the copy changes nothing: each layer would cast them anyway.
"""

import dataclasses
import functools
from typing import Any

import jax

from mmr1 import forward
from mmr1 import sharding
from mmr1 import trees
from mmr1 import types
from mmr1.models import partition
from mmr1.sampling import chunks
from mmr1.sampling import sample
from mmr1.sampling import turns

Array = jax.Array
DTYPES = ('float32', 'bfloat16', 'float16')


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Samples from published weights.

  Fields:
    policy: the model, in the dtype and on the mesh that samples.
    decoding: rows at a time, sizes of the cache.
    trains: where prompts come from and rollouts go; None: as `policy`.
  """
  policy: forward.Policy
  decoding: sample.Decoding
  trains: sharding.Layout | None = None

  def publish(self, params: Any) -> Any:
    """The weights as the sampler reads them; `params` itself if they are so.

    Cast, and gathered over what divides them only while they train.
    """
    dtype, layout = self.policy.module.config.compute_dtype, self.policy.layout
    named = trees.named(params)
    where = trees.named(layout.parameters(params, used=True)) if (
        layout.divides_parameters) else {}

    def differs(name, leaf):
      cast = name.rpartition('/')[2] in partition.CAST and leaf.dtype != dtype
      return cast or name in where and not leaf.sharding.is_equivalent_to(
          where[name], leaf.ndim)
    old = {name: leaf for name, leaf in named.items() if differs(name, leaf)}
    new = _published(old, dtype=dtype, where=tuple(
        (name, where[name]) for name in old if name in where)) if old else {}
    return jax.tree.map(
        lambda name, leaf: new.get(name, leaf), trees.names(params), params)

  def __call__(
      self, published: Any, prompts: types.Prompts, key: Array,
      knobs: sample.Knobs, version: Array, *, group: int, length: int,
      given: sample.Given | None = None,
      player: chunks.Player | None = None) -> types.Rollout:
    """`sample.sample` with weights from `publish`; `turns.sample` where there is
    who answers."""
    moves = self.trains is not None and self.trains != self.policy.layout
    asked = self.policy.layout.spread(prompts) if moves else prompts
    common = (self.policy, published, asked, key, knobs, version)
    kw = dict(group=group, length=length, decoding=self.decoding)
    rollout = (sample.sample(*common, given=given, **kw) if player is None
               else turns.sample(*common, player=player, **kw))
    if not moves:
      return rollout
    version, rollout = rollout.version, rollout.replace(
        prompts=None, version=None)
    return self.trains.spread(rollout).replace(
        prompts=prompts, version=version)


def make(section: Any, policy: forward.Policy) -> Sampler:
  """The sampler that the section `sampler` of a config describes.

  Args:
    section: rows, cache_chunk, shrink, layers, entropy as in
      `sample.Decoding`; dtype: of the weights and activations that
      sample, None: the trainer's compute dtype; tensor: parts that each of
      them is in, None: as in training.
    policy: that trains.

  Raises:
    ValueError: a value that is not allowed.
  """
  dtype = section.dtype
  if dtype is not None and dtype not in DTYPES:
    raise ValueError(
        f'sampler.dtype: got {dtype!r}; allowed are {DTYPES}, or None for '
        "model.compute_dtype, where sampler and trainer agree to the last bit "
        'of the dtype.')
  config, layout = policy.module.config, policy.layout
  if dtype is not None:
    config = dataclasses.replace(config, compute_dtype=dtype)
  if section.tensor is not None:
    layout = layout.with_tensor(section.tensor, 'sampler.tensor')
    sharding.check(layout, config, 'sampler.tensor')
    config = dataclasses.replace(config, partition=layout.partition)
  return Sampler(
      policy=dataclasses.replace(
          policy, layout=layout, module=policy.module.clone(config=config)),
      trains=policy.layout,
      decoding=sample.Decoding(
          rows=section.rows, cache_chunk=section.cache_chunk,
          shrink=section.shrink, layers=section.layers,
          entropy=section.entropy))


@functools.partial(jax.jit, static_argnames=('dtype', 'where'))
def _published(
    leaves: dict[str, Array], dtype: str,
    where: tuple[tuple[str, jax.sharding.NamedSharding], ...],
) -> dict[str, Array]:
  cast = {name: leaf.astype(dtype)
          if name.rpartition('/')[2] in partition.CAST else leaf
          for name, leaf in leaves.items()}
  return cast | {name: jax.lax.with_sharding_constraint(cast[name], place)
                 for name, place in where}
