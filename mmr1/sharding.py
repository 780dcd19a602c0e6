"""Where arrays live: the one table from a model's axes to those of the mesh.

The mesh has four axes, whose names are here and in `mmr1.mesh` only:

  slice   slices joined by the data-centre network; parameters are on each
  data    copies of the parameters that see other prompts
  fsdp    other prompts too; parameters, their gradients and moments are stored
          in parts and gathered layer by layer
  tensor  the same prompts; heads, MLP, vocabulary and, between layers, tokens

N, the number of prompts, is divided over slice x data x fsdp. A group never
straddles a shard. `jit` partitions prefill, decode and update by the shardings
of their arguments and by what the model says of its activations.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import arrays
from mmr1 import mesh as mesh_lib
from mmr1 import trees
from mmr1.models import partition

_BATCH, _TENSOR = ('slice', 'data', 'fsdp'), ('tensor',)
_Axis, _Rule = partition.Axis, partition.Rule
Tree = Any
P = jax.sharding.PartitionSpec

TABLE = (
    _Axis('rows', _BATCH, _BATCH),  # N
    _Axis('images', _BATCH + _TENSOR, _BATCH + _TENSOR),  # N of a tower
    _Axis('tokens', _TENSOR, _TENSOR),  # of a row
    _Axis('heads', _TENSOR, _TENSOR),  # heads, or all their values
    _Axis('kv_heads', _TENSOR, _TENSOR),
    _Axis('mlp', _TENSOR, _TENSOR),
    _Axis('vocab', _TENSOR, _TENSOR),
    _Axis('width', ('fsdp',), ()),  # D
    _Axis('tower', ('fsdp',) + _TENSOR, ()),  # of a tower's weights
)

_LAYERS = 'language/layers/'
RULES = (
    _Rule('language/(embed|head)', ('vocab', 'width')),
    _Rule(_LAYERS + 'q/kernel', ('width', 'heads')),
    _Rule(_LAYERS + '[kv]/kernel', ('width', 'kv_heads')),
    _Rule(_LAYERS + 'o/kernel', ('heads', 'width')),
    _Rule(_LAYERS + 'mlp/(gate|up)/kernel', ('width', 'mlp')),
    _Rule(_LAYERS + 'mlp/down/kernel', ('mlp', 'width')),
    _Rule(_LAYERS + 'q/bias', ('heads',)),
    _Rule(_LAYERS + '[kv]/bias', ('kv_heads',)),
    # Adapters: a [inputs, r] and b [r, outputs] of a kernel.
    _Rule(_LAYERS + '([qkv]|mlp/(gate|up))/lora_a', ('width', None)),
    _Rule(_LAYERS + 'o/lora_a', ('heads', None)),
    _Rule(_LAYERS + 'mlp/down/lora_a', ('mlp', None)),
    _Rule(_LAYERS + 'q/lora_b', (None, 'heads')),
    _Rule(_LAYERS + '[kv]/lora_b', (None, 'kv_heads')),
    _Rule(_LAYERS + 'mlp/(gate|up)/lora_b', (None, 'mlp')),
    _Rule(_LAYERS + '(o|mlp/down)/lora_b', (None, 'width')),
    _Rule(_LAYERS + '.*/lora_scale', None),
    _Rule(r'language/(layers/)?\w*norm/weight', None),
    # Towers are small: no tensor parallelism, their images go over its devices.
    _Rule('visual/.*/kernel', ('tower', None)),
    _Rule('visual/.*(?<!/kernel)', None),
    _Rule('scalars/.*', None),
)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh, and where arrays lie on it. Hashable, static.

  Fields:
    mesh: the devices, with the axes of `mmr1.mesh`.
  """
  mesh: jax.sharding.Mesh

  @functools.cached_property
  def partition(self) -> partition.Partition:
    """What models are told."""
    return partition.Partition(self.mesh, TABLE, RULES)

  def named(self, *spec: Any) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(self.mesh, P(*spec))

  @property
  def whole(self) -> jax.sharding.NamedSharding:
    """Of an array that every device has."""
    return self.named()

  @property
  def said(self) -> str:
    """'data=2 x fsdp=4', for messages."""
    return ' x '.join(f'{axis}={size}' for axis, size in self.mesh.shape.items()
                      if size > 1) or 'one device'

  @property
  def count(self) -> int:
    """Parts that prompts are divided into where they divide."""
    return self.partition.divided(self.partition.axes('rows'))

  @property
  def divides_parameters(self) -> bool:
    """Whether any parameter is not whole on every device."""
    return self.partition.gathers or self.divides_vocabulary

  @property
  def divides_vocabulary(self) -> bool:
    """Whether logits [..., V] are on several devices."""
    return self.partition.divided(self.partition.axes('vocab')) > 1

  def shards(self, rows: int) -> int:
    """Parts that so many prompts are divided into; 1: all are on each."""
    return self.partition.divided(self.partition.fit('rows', rows))

  def rows(self, x: Any, axis: int = 0) -> jax.sharding.NamedSharding:
    """Of an array whose `axis` counts prompts."""
    return self.named(
        *[None] * axis, self.partition.fit('rows', x.shape[axis]))

  def spread(self, tree: Tree) -> Tree:
    """Arrays [N, ...], whole on every host, with N over the devices; on each of
    them if N does not divide, which is right but saves nothing."""
    return jax.tree.map(arrays.laid, tree, jax.tree.map(self.rows, tree))

  def own_rows(self, n: int) -> list[int]:
    """Rows of a batch of n prompts that devices of this host have, ascending.
    """
    return self._host_rows(n)[jax.process_index()]

  def first_rows(self, n: int) -> list[int]:
    """Those of them that no host before this one has: every row is one host's.
    """
    hosts = self._host_rows(n)
    before = {row for host in range(jax.process_index())
              for row in hosts.get(host, ())}
    return [row for row in self.own_rows(n) if row not in before]

  def _host_rows(self, n: int) -> dict[int, list[int]]:
    """{host: rows}."""
    found: dict[int, set[int]] = {}
    where = self.rows(jax.ShapeDtypeStruct((n,), np.int32))
    for device, (part,) in where.devices_indices_map((n,)).items():
      found.setdefault(device.process_index, set()).update(range(n)[part])
    return {host: sorted(rows) for host, rows in found.items()}

  def spread_own(self, tree: Tree, n: int) -> Tree:
    """As `spread`, of arrays that have the rows `own_rows(n)` only."""
    if jax.process_count() == 1:
      return self.spread(tree)
    place = {row: i for i, row in enumerate(self.own_rows(n))}

    def one(x):
      shape = (n, *x.shape[1:])
      where = self.rows(jax.ShapeDtypeStruct(shape, x.dtype))

      def part(index):
        rows = range(n)[index[0]]
        return x[place[rows[0]]:place[rows[-1]] + 1]
      return jax.make_array_from_callback(shape, where, part)
    return jax.tree.map(one, tree)

  def cache(self, x: jax.Array) -> jax.sharding.NamedSharding:
    """Of keys or values [..., N, G, K, ., .]."""
    names = (None,) * (x.ndim - 5) + ('rows', None, 'kv_heads')
    return self.named(*self.partition.spec(names, x.shape))

  def prefix(self, x: jax.Array) -> jax.sharding.NamedSharding:
    """Of keys or values of prompts, [..., N, K, P, d]."""
    names = (None,) * (x.ndim - 4) + ('rows', 'kv_heads')
    return self.named(*self.partition.spec(names, x.shape))

  def parameters(self, tree: Tree, *, used: bool = False) -> Tree:
    """Shardings of a model's parameters (arrays or shapes).

    Raises:
      ValueError: a parameter without a rule.
    """
    return jax.tree.map(
        lambda name, x: jax.sharding.NamedSharding(
            self.mesh, self.partition.parameter(name, x.shape, used=used)),
        trees.names(tree), tree)

  def state(self, tree: Tree) -> Tree:
    """Shardings of anything around parameters: a `TrainState`, moments.

    What has a parameter's name at the end of its own lies as that does.
    """
    def one(name, x):
      path = _parameter(name)
      if path is None or not x.ndim:
        return self.whole
      return jax.sharding.NamedSharding(
          self.mesh, self.partition.parameter(path, x.shape))
    return jax.tree.map(one, trees.names(tree), tree)

  def keep(self, tree: Tree) -> Tree:
    """Inside a program: arrays as in `state`."""
    if self.mesh.size == 1:
      return tree
    return jax.tree.map(
        jax.lax.with_sharding_constraint, tree, self.state(tree))

  def own(self, tree: Tree) -> Tree:
    """Copies that lie as in `state`, in buffers of their own."""
    where = self.state(tree)
    if jax.process_count() == 1:
      return jax.device_put(tree, where, may_alias=False)
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree),
                   out_shardings=where)(jax.tree.map(arrays.given, tree))

  def with_tensor(self, tensor: int, key: str) -> 'Layout':
    """The same devices: weights in so many parts, prompts over the others.

    Raises:
      ValueError: `key` of the config asks for parts that do not divide.
    """
    shape, now = self.mesh.shape, self.mesh.shape['tensor']
    rest = shape['data'] * shape['fsdp']
    allowed = [now * n for n in range(1, rest + 1) if rest % n == 0]
    if tensor not in allowed:
      raise ValueError(
          f'{key}: got {tensor} on a mesh of {self.said}; allowed are '
          f'multiples of mesh.tensor that divide a slice: {allowed}, or None.')
    # In the order of the devices: neighbours share the weights.
    grid = self.mesh.devices.reshape(
        shape['slice'], rest * now // tensor, 1, tensor)
    return Layout(jax.sharding.Mesh(grid, mesh_lib.AXES))

  def put(self, name: str, leaf: Any) -> jax.Array:
    """A parameter, by its name, where it belongs."""
    return arrays.laid(leaf, self.named(*self.partition.parameter(name, leaf.shape)))

  def place(self, leaf: arrays.Unread) -> jax.Array:
    """Reads a parameter onto the devices."""
    return arrays.read(leaf, self.named(
        *self.partition.parameter(leaf.path, leaf.shape)))


_ROOTS = ('language', 'visual', 'scalars')


def _parameter(name: str) -> str | None:
  """The parameter that a leaf of a `TrainState` belongs to."""
  parts = name.split('/')
  start = next((i for i, part in enumerate(parts) if part in _ROOTS), None)
  return None if start is None else '/'.join(parts[start:])


def make(section: Mapping[str, int | None],
         devices: Sequence[Any] | None = None) -> Layout:
  """The layout of the section `mesh` of a config.

  Args:
    section: see `mesh.sizes`.
    devices: None: all there are.

  Raises:
    ValueError: sizes that do not make the devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  return over(devices, **mesh_lib.sizes(section, len(devices)))


def over(devices: Sequence[Any], **sizes: int) -> Layout:
  """A layout of these sizes, whose product is the number of devices."""
  return Layout(mesh_lib.over(devices, **sizes))


def default() -> Layout:
  """All devices, N over them."""
  devices = jax.devices()
  return over(devices, data=len(devices))


def check(layout: Layout, config: Any, key: str = 'mesh.tensor') -> None:
  """Refuses a mesh that the model's heads do not divide over.

  Args:
    layout: of the run; config: of the model's decoder.
    key: of the config, for the message.

  Raises:
    ValueError: see above.
  """
  heads, shared = config.heads, config.kv_heads

  def fits(n):
    return not (heads % n or config.mlp_width % n or shared % n and n % shared)
  tensor = layout.mesh.shape['tensor']
  if not fits(tensor):
    raise ValueError(
        f'{key}: got {tensor}, over which heads={heads}, kv_heads={shared} and '
        f'mlp_width={config.mlp_width} of the model do not divide; allowed are '
        f'{[n for n in range(1, heads + 1) if fits(n)]}.')
