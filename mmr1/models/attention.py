"""Grouped-query attention over several sources of keys, one softmax.

One interface, several backends: XLA's `products`, which compute everything and
are what the others are tested against; `splash` on TPU; `cudnn` and `triton` on
NVIDIA GPUs. `choose` says who runs.

Letters: N prompts, G completions per prompt, T queries, U keys, H query heads,
K key/value heads, d head width, R = H / K. Where completions are not in groups
of their prompt but in rows (the sampler's), N and G are shards and rows, and
`Seats` says who reads which prompt.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.extend import backend as extend_backend

from mmr1.models import cudnn
from mmr1.models import partition as partition_lib
from mmr1.models import products
from mmr1.models import splash
from mmr1.models import triton

Array = jax.Array
BACKENDS = ('auto', 'xla', 'splash', 'cudnn', 'triton')
_KERNELS = {'splash': splash, 'cudnn': cudnn, 'triton': triton}
_AUTO = {'tpu': ('splash',), 'cuda': ('cudnn', 'triton')}
# Maps the indices i32[T'] of some of the queries to bool, broadcastable to
# [N, G, T', U], what they see: a function, so that the whole T x U mask need
# never exist.
Visible = Callable[[Array], Array]


@flax.struct.dataclass
class Seats:
  """Which rows read which prompt: prompt a of a shard has seats for G rows.

  Fields:
    row: i32[N, A * G], the row that sits there; any row where none does.
    seat: i32[N, R], the seat of every row, a * G + g for prompt a.
  """
  row: Array
  seat: Array

  def to_rows(self, x: Array) -> Array:
    """[N * A, G, ...] of seats -> [N, R, ...] of rows."""
    x = x.reshape((self.seat.shape[0], -1) + x.shape[2:])
    return take(x, self.seat)

  def to_seats(self, x: Array, seats: int) -> Array:
    """[N, R, ...] of rows -> [N * A, G, ...] of seats; `seats` is G."""
    x = take(x, self.row)
    return x.reshape((-1, seats) + x.shape[2:])


def take(x: Array, index: Array) -> Array:
  """x [N, R, ...] at index i32[N, M] of its second axis -> [N, M, ...]."""
  return jax.vmap(lambda x, i: x[i])(x, index)


class Source(NamedTuple):
  """Keys that queries attend to.

  Fields:
    keys, values: [N, G, K, U, d] of every row's own, or [N, K, U, d] if a group
      shares them, [N * A, K, U, d] with seats.
    visible: which keys each query sees; of queries in seats, with seats.
    seats: how rows find the prompts; None: row g of prompt n reads prompt n.
  """
  keys: Array
  values: Array
  visible: Visible
  seats: Seats | None = None

  @property
  def shared(self) -> bool:
    """True if several rows read the same keys."""
    return self.keys.ndim == 4

  def to_rows(self, x: Array) -> Array:
    """[N, K, G, ...] as products with these keys give it -> [N, G, K, ...] of
    rows."""
    x = x.swapaxes(1, 2) if self.shared else x
    return x if self.seats is None else self.seats.to_rows(x)

  def from_rows(self, x: Array) -> Array:
    """The way back from `to_rows`."""
    x = x if self.seats is None else self.to_seats(x)
    return x.swapaxes(1, 2) if self.shared else x

  def to_seats(self, x: Array) -> Array:
    """[N, R, ...] of rows -> [N * A, G, ...], who reads these keys."""
    return self.seats.to_seats(x, self.seats.row.size // self.keys.shape[0])


def attend(query: Array, sources: Sequence[Source], *, precision: str,
           chunk: int, scale: float | None = None, cap: float | None = None,
           backend: str = 'auto',
           partition: partition_lib.Partition | None = None) -> Array:
  """Grouped-query attention with one softmax over all `sources`.

  Scores, softmax and its sums are float32; the weights meet the values in the
  values' dtype. Sources are kept apart, never concatenated or repeated, so a
  prompt's keys exist once however many completions read them.

  Args:
    query: [N, G, T, H, d].
    sources: see `Source`; one without any keys is left out.
    precision: of the matrix products.
    chunk: the most queries handled at once: memory grows with `chunk * U`. On
      a CPU there may be fewer, see `products`.
    scale: factor of the scores, None: d ** -0.5.
    cap: scores s become `cap * tanh(s / cap)`.
    backend: of BACKENDS, see `choose`.
    partition: how N and the heads lie over devices; the kernels need to know.

  Returns:
    [N, G, T, H, d]. Arbitrary but finite where nothing is visible.

  Raises:
    ValueError: a kernel that `backend` names cannot compute this.
  """
  scale = query.shape[-1]**-0.5 if scale is None else scale
  sources = _some(sources)
  if not query.size:  # an empty prompt
    return query
  chosen = choose(backend, query, sources, precision=precision, cap=cap,
                  partition=partition)
  if chosen == 'xla':
    return products.attend(
        query, sources, precision=precision, chunk=chunk, scale=scale, cap=cap,
        platform=_platform(partition))
  return _KERNELS[chosen].attend(
      query, [_divisible(source, partition) for source in sources],
      scale=scale, cap=cap, partition=partition)


def choose(backend: str, query: Array, sources: Sequence[Source], *,
           precision: str, cap: float | None,
           partition: partition_lib.Partition | None = None) -> str:
  """What `attend` runs: 'xla' or the name of a kernel.

  A single query per row, as in decoding, is a product with the cache that no
  kernel here speeds up: always 'xla'. 'auto' takes the kernel of the platform
  that jax runs on where it can compute this and is worth it, else 'xla':

    TPU   splash: passes over prompts, completions and vision towers; not over
          prompts of Gemma 3 with images, whose tokens see what follows.
    CUDA  cudnn: in bfloat16 or float16, where every row has keys of its own
          (prompts, towers, packed texts, G = 1) and the scores no cap;
          else triton, ours: completions that share a prompt, caps.

  All kernels need precision 'default'; `refusal` of each module says the rest.

  Raises:
    ValueError: a kernel that `backend` names cannot compute this.
  """
  if backend == 'xla' or query.shape[2] == 1:
    return 'xla'
  sources = _some(sources)

  def refusal(name):
    return _KERNELS[name].refusal(
        query, sources, precision=precision, cap=cap)
  if backend == 'auto':
    unknown = partition is None and jax.device_count() > 1
    kernels = () if unknown else _AUTO.get(_platform(partition), ())
    fit = [name for name in kernels
           if _KERNELS[name].pays(query) and refusal(name) is None]
    return fit[0] if fit else 'xla'
  reason = refusal(backend)
  if reason is not None:
    raise ValueError(
        f'model.attention={backend!r} cannot compute queries '
        f'{query.dtype}{list(query.shape)} [N, G, T, H, d] with keys '
        f'{[list(source.keys.shape) for source in sources]}: {reason}. '
        "'auto' takes a kernel only where it can, 'xla' computes everything.")
  return backend


def _platform(partition: partition_lib.Partition | None) -> str:
  """'cpu', 'tpu', 'cuda' or another."""
  name = jax.default_backend() if partition is None else partition.platform
  if name != 'gpu':
    return name
  cuda = 'cuda' in extend_backend.get_backend().platform_version
  return 'cuda' if cuda else name


def _divisible(
    source: Source, partition: partition_lib.Partition | None) -> Source:
  """Key heads repeated until each of the devices that heads are divided over
  has one: a kernel sees its own only."""
  parts = 1 if partition is None else partition.divided(
      partition.axes('kv_heads'))
  heads = source.keys.shape[-3]
  if heads % parts == 0:
    return source
  return source._replace(
      keys=jnp.repeat(source.keys, parts // heads, -3),
      values=jnp.repeat(source.values, parts // heads, -3))


def _some(sources: Sequence[Source]) -> list[Source]:
  """Those that have keys at all: a prompt may be empty."""
  return [source for source in sources if source.keys.size]
