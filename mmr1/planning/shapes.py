"""Arguments of programs as shapes with shardings."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import forward
from mmr1 import types
from mmr1.planning import costs
from mmr1.planning import towers

Struct = jax.ShapeDtypeStruct


def placed(tree: Any, where: Any) -> Any:
  """Shapes with shardings."""
  return jax.tree.map(
      lambda x, s: Struct(x.shape, x.dtype, sharding=s), tree, where)


def bytes_on_one(tree: Any) -> int:
  """Bytes of a tree of shapes on one device."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
             for x in jax.tree.leaves(tree) if hasattr(x, 'sharding'))


class Shapes:
  """Arguments of programs: arrays of prompts lie as `Layout.rows` says."""

  def __init__(self, policy: forward.Policy, data: Any):
    self._policy, self._layout = policy, policy.layout
    self.prompt = data.prompt_tokens
    vision = getattr(policy.module.config, 'vision', None)
    self._vision = vision
    self.patches = data.patches if vision is not None else 0

  def array(self, dtype: Any, *shape: int) -> Struct:
    x = Struct(shape, dtype)
    return Struct(shape, dtype, sharding=self._layout.rows(x))

  def prompts(self, n: int, noise: bool = False) -> types.Prompts:
    """N prompts; `noise`: with what views draw from."""
    p, s = self.prompt, self.patches
    i32 = functools.partial(self.array, jnp.int32)
    media = self.media((n, p), s)
    return types.Prompts(
        tokens=i32(n, p), mask=self.array(bool, n, p), positions=i32(n, p, 3),
        next_position=i32(n), uid=i32(n), media=media,
        noise=self.array(jnp.uint32, n, 2) if noise else None)

  def media(self, tokens: tuple[int, ...], s: int) -> dict[str, types.Media]:
    """Of rows [..., T], S patches each; {} for none."""
    if not s:
      return {}
    lead = tokens[:-1]
    i32 = functools.partial(self.array, jnp.int32)
    config = self._policy.module.config
    taps = towers.taps(config)
    return {'vision': types.Media(
        patches=self.array(jnp.float32, *lead, s, self._vision.patch_values),
        position=i32(*lead, s, 2), segment=i32(*lead, s), slot=i32(*tokens),
        extent=i32(*lead, s, 2) if towers.extent(config) else None,
        taps=i32(*tokens, taps) if taps else None,
        weights=self.array(jnp.float32, *tokens, taps) if taps else None)}

  def room(self, config: Any, name: str | None) -> int:
    """Patches of an episode in the environment `name`; 0: there are none."""
    if name is None or self._vision is None:
      return 0
    section = config.environments[name]
    return section.images * section.observation_patches

  def block(self, n: int, g: int, t: int, *, noise: bool = False,
            env: str | None = None, config: Any = None,
            **more: Any) -> types.Block:
    room = self.room(config, env)
    turn = {} if env is None else dict(
        turn=self.array(jnp.int8, n, g, t),
        media=self.media((n, g, t), room) or None)
    return types.Block(
        prompts=self.prompts(n, noise),
        completions=types.Completions(
            tokens=self.array(jnp.int32, n, g, t),
            kind=self.array(jnp.int8, n, g, t),
            positions=self.array(jnp.int32, n, g, t, 3), **turn),
        mask=self.array(bool, n, g, t),
        advantage=self.array(jnp.float32, n, g, 1), **more)

  def scores(self, n: int, g: int, t: int) -> Struct:
    return self.array(jnp.float32, n, g, t)

  def inside(self, c: Any, rows: int, patches: int) -> float:
    """Operations of a tower on images inside so many completions."""
    return costs.forward(c, costs.Work(
        prompts=rows, group=0, length=0, prompt=0, patches=patches,
        head=0))['tower']

  def work(self, n: int, g: int, t: int, head: int) -> costs.Work:
    return costs.Work(prompts=n, group=g, length=t, prompt=self.prompt,
                      patches=self.patches, head=head)
