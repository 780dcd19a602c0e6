"""How a model lies over devices, in the model's own words.

A module names the axes of its arrays: 'rows' are prompts, 'heads' heads. Which
axes of a mesh these are is a table that is handed in (`mmr1.sharding` makes
it). Parameters have two places: where they are stored, and where they are used,
which differ in the axes that they are gathered over layer by layer.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
P = jax.sharding.PartitionSpec
# Leaves that layers cast before they use them. Others (norms, tables that are
# resampled) are read in their own dtype and stay in it.
CAST = ('kernel', 'embed', 'head', 'lora_a', 'lora_b')


@dataclasses.dataclass(frozen=True)
class Axis:
  """A row of the table.

  Fields:
    name: what models call it.
    stored: axes of the mesh that it is divided over; where its size does not
      divide, over as many of the first ones as do.
    used: the same while a parameter is used.
  """
  name: str
  stored: tuple[str, ...]
  used: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
  """What the axes of a parameter are called.

  Fields:
    pattern: regex of the whole name.
    axes: of one layer's; None: it is small, and everywhere.
  """
  pattern: str
  axes: tuple[str | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Partition:
  """A mesh, and what lies where on it.

  Fields:
    mesh: the devices.
    table: of axes.
    rules: of parameters; each has exactly one.
  """
  mesh: jax.sharding.Mesh
  table: tuple[Axis, ...]
  rules: tuple[Rule, ...]

  @property
  def platform(self) -> str:
    """'cpu', 'tpu' or 'gpu'."""
    device = self.mesh.devices.flat[0]
    return 'gpu' if device.platform == 'cuda' else device.platform

  def axes(self, name: str, *, used: bool = False) -> tuple[str, ...]:
    """Axes of the mesh for one of the table."""
    row = next(row for row in self.table if row.name == name)
    return row.used if used else row.stored

  def divided(self, axes: Sequence[str]) -> int:
    """Parts that these axes of the mesh make."""
    return math.prod(self.mesh.shape[axis] for axis in axes)

  def fit(self, name: str, size: int, *, used: bool = False,
          ) -> tuple[str, ...]:
    """The first of an axis' mesh axes, as many as divide `size`."""
    axes = self.axes(name, used=used)
    while size % self.divided(axes):
      axes = axes[:-1]
    return axes

  def spec(self, names: Sequence[str | None], shape: Sequence[int], *,
           used: bool = False) -> P:
    """Where an array of this shape lies; `names` may be shorter than it."""
    return P(*(None if name is None else self.fit(name, size, used=used)
               for name, size in zip(names, shape)))

  def rule(self, path: str) -> Rule:
    """The rule of a parameter.

    Raises:
      ValueError: there is none, or more than one.
    """
    return _rule(self.rules, path)

  def parameter(self, path: str, shape: Sequence[int], *,
                used: bool = False) -> P:
    """Where a parameter lies.

    Args:
      path: its name.
      shape: with or without the axis of its layers in front.
      used: while it is used.

    Raises:
      ValueError: no rule, more than one, or one of another rank.
    """
    rule = self.rule(path)
    if rule.axes is None:
      return P()
    front = len(shape) - len(rule.axes)
    if front not in (0, 1):
      raise ValueError(
          f'sharding: the rule {rule.pattern!r} has {len(rule.axes)} axes, but '
          f'{path!r} is {list(shape)}. Give it a rule of its own.')
    spec = self.spec((None,) * front + rule.axes, shape, used=used)
    return spec if used else self._placed(rule, spec, shape, front)

  def _placed(self, rule: Rule, spec: P, shape: Sequence[int],
              front: int) -> P:
    """`spec` with what does not divide its own axis on another that it does."""
    taken = [(part,) if isinstance(part, str) else tuple(part or ())
             for part in spec]
    for name in rule.axes:
      wanted = () if name is None or self.axes(name, used=True) else (
          self.axes(name))
      for axis in wanted:
        if any(axis in part for part in taken):
          continue
        for i in range(front, len(shape)):
          if shape[i] % self.divided((*taken[i], axis)) == 0:
            taken[i] = (*taken[i], axis)
            break
    return P(*taken)

  @functools.cached_property
  def towers(self) -> 'Partition':
    """The same for the inside of a tower: its images are its rows, and its
    heads are not divided."""
    images = self.axes('images')
    return dataclasses.replace(self, table=(
        Axis('rows', images, images),
        *(Axis(name, (), ()) for name in ('heads', 'kv_heads'))))

  @property
  def gathers(self) -> bool:
    """Whether any parameter is stored in parts that it is not used in."""
    return any(self.divided(row.stored) > self.divided(row.used)
               for row in self.table)


@functools.lru_cache(maxsize=4096)
def _rule(rules: tuple[Rule, ...], path: str) -> Rule:
  found = [rule for rule in rules if re.fullmatch(rule.pattern, path)]
  if len(found) != 1:
    raise ValueError(
        f'sharding: {len(found)} rules for the parameter {path!r}'
        + ''.join(f'\n  {rule.pattern!r}: {rule.axes}' for rule in found)
        + '\nEach needs exactly one in mmr1/sharding.py.')
  return found[0]


def cast(params: Any, dtype: Any) -> Any:
  """Parameters as layers read them: what they would cast is cast."""
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf.astype(dtype) if path[-1].key in CAST else leaf,
      params)


def constrain(partition: Partition | None, x: Array,
              *names: str | None) -> Array:
  """Inside a program: x [...] lies as its axes are called."""
  if partition is None or partition.mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, jax.NamedSharding(
      partition.mesh, partition.spec(names, x.shape)))


def gathered(partition: Partition | None, params: Any, root: str, dtype: Any,
             leave: Callable[[str], Any] = lambda name: False) -> Any:
  """Inside a program: parameters where they are used.

  What layers cast is cast before it travels. Its gradient goes back to where
  the parameter is stored, summed on the way.

  Args:
    partition: None: they stay where they are.
    params: a tree below `root` ('' is the top); others than arrays with a rule
      are a mistake.
    root: name of the tree.
    dtype: that layers compute in.
    leave: of a name, whether the parameter stays where it is.
  """
  if partition is None or not partition.gathers:
    return params

  def one(path, leaf):
    name = '/'.join([*filter(None, [root]), *(str(key.key) for key in path)])
    if leave(name):
      return leaf
    stored, used = (
        jax.NamedSharding(partition.mesh, partition.parameter(
            name, leaf.shape, used=used)) for used in (False, True))
    cast = dtype if path[-1].key in CAST else leaf.dtype
    return _gather(leaf, stored, used, jnp.dtype(cast), leaf.dtype)
  return jax.tree_util.tree_map_with_path(one, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(x, stored, used, dtype, back):
  del stored, back
  return jax.lax.with_sharding_constraint(x.astype(dtype), used)


def _gather_forward(x, stored, used, dtype, back):
  return _gather(x, stored, used, dtype, back), None


def _gather_backward(stored, used, dtype, back, kept, slope):
  # By jax's own rule the slope would have to lie where the gathered parameter
  # does: summed whole on every device.
  del used, dtype, kept
  return (jax.lax.with_sharding_constraint(slope, stored).astype(back),)


_gather.defvjp(_gather_forward, _gather_backward)


def kernel(run: Callable[..., Array], partition: Partition | None,
           names: Sequence[Any], out: P) -> Callable[..., Array]:
  """A kernel on every device's own part: the partitioner cannot look into it.

  Args:
    run: of trees of arrays.
    partition: None: one device.
    names: for each argument a tree like it of `P`, what its axes are called.
    out: the same of what it gives, one array.
  """
  def call(*arrays: Any) -> Array:
    if partition is None or partition.mesh.size == 1:
      return run(*arrays)
    # All by the first: 3 rows and their 12 completions stay together.
    rows = partition.fit('rows', jax.tree.leaves(arrays)[0].shape[0])

    def spec(called):
      return P(*(
          None if name is None else
          rows if name == 'rows' else partition.axes(name)
          for name in called))
    specs = jax.tree.map(spec, tuple(names), is_leaf=lambda x: isinstance(x, P))
    return jax.shard_map(run, mesh=partition.mesh, in_specs=specs,
                         out_specs=spec(out), check_vma=False)(*arrays)
  return call
