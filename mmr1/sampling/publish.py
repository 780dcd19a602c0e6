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
from mmr1 import trees
from mmr1 import types
from mmr1.sampling import sample

Array = jax.Array
DTYPES = ('float32', 'bfloat16', 'float16')
# Leaves that layers cast before they use them. Others (norms, tables that are
# resampled) are read in their own dtype and stay in it.
_CAST = ('kernel', 'embed', 'head', 'lora_a', 'lora_b')


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Samples from published weights.

  Fields:
    policy: the model, in the dtype that samples.
    decoding: rows at a time, sizes of the cache.
  """
  policy: forward.Policy
  decoding: sample.Decoding

  def publish(self, params: Any) -> Any:
    """The weights as the sampler reads them; `params` itself if they are so."""
    dtype = self.policy.module.config.compute_dtype
    named = trees.named(params)
    old = {name: leaf for name, leaf in named.items()
           if name.rpartition('/')[2] in _CAST and leaf.dtype != dtype}
    new = _cast(old, dtype=dtype) if old else {}
    return jax.tree.map(
        lambda name, leaf: new.get(name, leaf), trees.names(params), params)

  def __call__(
      self, published: Any, prompts: types.Prompts, key: Array,
      knobs: sample.Knobs, version: Array, *, group: int, length: int,
  ) -> types.Rollout:
    """`sample.sample` with weights from `publish`."""
    return sample.sample(
        self.policy, published, prompts, key, knobs, version, group=group,
        length=length, decoding=self.decoding)


def make(section: Any, policy: forward.Policy) -> Sampler:
  """The sampler that the section `sampler` of a config describes.

  Args:
    section: rows, cache_chunk, shrink, layers as in `sample.Decoding`; dtype:
      of the weights and activations that sample, None: the trainer's compute
      dtype.
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
  config = policy.module.config
  if dtype is not None:
    config = dataclasses.replace(config, compute_dtype=dtype)
  return Sampler(
      policy=dataclasses.replace(
          policy, module=policy.module.clone(config=config)),
      decoding=sample.Decoding(
          rows=section.rows, cache_chunk=section.cache_chunk,
          shrink=section.shrink, layers=section.layers))


@functools.partial(jax.jit, static_argnames='dtype')
def _cast(leaves: dict[str, Array], dtype: str) -> dict[str, Array]:
  return trees.cast(leaves, dtype)
