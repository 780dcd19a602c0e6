"""Grouped-query attention over several sources of keys, one softmax.

One interface, several backends: XLA's products, here, which compute everything
and are what the others are tested against; `splash` on TPU; `cudnn` and
`triton` on NVIDIA GPUs. `choose` says who runs.

Letters: N prompts, G completions per prompt, T queries, U keys, H query heads,
K key/value heads, d head width, R = H / K. Where completions are not in groups
of their prompt but in rows (the sampler's), N and G are shards and rows, and
`Seats` says who reads which prompt.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import flax.struct
import jax
from jax.extend import backend as extend_backend
import jax.numpy as jnp

from mmr1.models import cudnn
from mmr1.models import splash
from mmr1.models import triton

Array = jax.Array
BACKENDS = ('auto', 'xla', 'splash', 'cudnn', 'triton')
_KERNELS = {'splash': splash, 'cudnn': cudnn, 'triton': triton}
_AUTO = {'tpu': 'splash', 'cuda': 'cudnn'}
# Maps the indices i32[T'] of some of the queries to bool, broadcastable to
# [N, G, T', U], what they see: a function, so that the whole T x U mask need
# never exist.
Visible = Callable[[Array], Array]

# Far below every score yet finite: a query without any visible key averages
# garbage instead of giving NaN, and its gradient stays finite.
_MASKED = -1e30


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
    x = _swap(x) if self.shared else x
    return x if self.seats is None else self.seats.to_rows(x)

  def from_rows(self, x: Array) -> Array:
    """The way back from `to_rows`."""
    x = x if self.seats is None else self.to_seats(x)
    return _swap(x) if self.shared else x

  def to_seats(self, x: Array) -> Array:
    """[N, R, ...] of rows -> [N * A, G, ...], who reads these keys."""
    return self.seats.to_seats(x, self.seats.row.size // self.keys.shape[0])


def attend(query: Array, sources: Sequence[Source], *, precision: str,
           chunk: int, scale: float | None = None, cap: float | None = None,
           backend: str = 'auto',
           mesh: jax.sharding.Mesh | None = None) -> Array:
  """Grouped-query attention with one softmax over all `sources`.

  Scores, softmax and its sums are float32; the weights meet the values in the
  values' dtype. Sources are kept apart, never concatenated or repeated, so a
  prompt's keys exist once however many completions read them.

  Args:
    query: [N, G, T, H, d].
    sources: see `Source`.
    precision: of the matrix products.
    chunk: queries handled at once: above it they go chunk by chunk, scores
      recomputed in the backward pass, so that memory grows with `chunk * U`.
    scale: factor of the scores, None: d ** -0.5.
    cap: scores s become `soft_cap(s, cap)`.
    backend: of BACKENDS, see `choose`.
    mesh: devices that N is divided over; the kernels need to know.

  Returns:
    [N, G, T, H, d]. Arbitrary but finite where nothing is visible.

  Raises:
    ValueError: a kernel that `backend` names cannot compute this.
  """
  scale = query.shape[-1]**-0.5 if scale is None else scale
  chosen = choose(backend, query, sources, precision=precision, cap=cap,
                  mesh=mesh)
  if chosen == 'xla':
    return _xla(query, sources, precision, chunk, scale, cap)
  return _KERNELS[chosen].attend(
      query, _some(sources), scale=scale, cap=cap, mesh=mesh)


def choose(backend: str, query: Array, sources: Sequence[Source], *,
           precision: str, cap: float | None,
           mesh: jax.sharding.Mesh | None = None) -> str:
  """What `attend` runs: 'xla' or the name of a kernel.

  A single query per row, as in decoding, is a product with the cache that no
  kernel here speeds up: always 'xla'. 'auto' takes the kernel of the platform
  that jax runs on where it can compute this and is worth it, else 'xla':

    TPU   splash: passes over prompts, completions and vision towers; not over
          prompts of Gemma 3 with images, whose tokens see what follows.
    CUDA  cudnn: in bfloat16 or float16, where every row has keys of its own
          (prompts, towers, packed texts, G = 1) and the scores no cap.

  By name alone there is 'triton', for completions that share a prompt on CUDA:
  it is ours and has not run on a card yet. All kernels need precision
  'default'; `refusal` of each module says the rest.

  Raises:
    ValueError: a kernel that `backend` names cannot compute this.
  """
  if backend == 'xla' or query.shape[2] == 1:
    return 'xla'
  name = _AUTO.get(_platform()) if backend == 'auto' else backend
  if name is None:
    return 'xla'
  kernel = _KERNELS[name]
  reason = kernel.refusal(
      query, _some(sources), precision=precision, cap=cap)
  if backend == 'auto':
    whole = mesh is None and jax.device_count() > 1
    return name if not (reason or whole) and kernel.pays(query) else 'xla'
  if reason is not None:
    raise ValueError(
        f'model.attention={backend!r} cannot compute queries '
        f'{query.dtype}{list(query.shape)} [N, G, T, H, d] with keys '
        f'{[list(source.keys.shape) for source in sources]}: {reason}. '
        "'auto' takes a kernel only where it can, 'xla' computes everything.")
  return backend


def _platform() -> str:
  """'cpu', 'tpu', 'cuda' or another."""
  name = jax.default_backend()
  cuda = 'cuda' in extend_backend.get_backend().platform_version
  return 'cuda' if name == 'gpu' and cuda else name


def _some(sources: Sequence[Source]) -> list[Source]:
  """Those that have keys at all: a prompt may be empty."""
  return [source for source in sources if source.keys.size]


def _xla(query: Array, sources: Sequence[Source], precision: str, chunk: int,
         scale: float, cap: float | None) -> Array:
  """`attend` by products that materialise the scores of a chunk."""
  n, g, t, heads, width = query.shape
  some = functools.partial(
      _attend, sources=sources, precision=precision, scale=scale, cap=cap)
  if t <= chunk:
    return some(query, jnp.arange(t))
  count = -(-t // chunk)
  chunk = -(-t // count)  # even ones: 1025 queries are not padded to 2048
  padding = count * chunk - t
  query = jnp.pad(query, ((0, 0), (0, 0), (0, padding), (0, 0), (0, 0)))
  query = query.reshape(n, g, count, chunk, heads, width)
  rows = jnp.minimum(jnp.arange(count * chunk), t - 1).reshape(count, chunk)
  out = jax.lax.map(
      jax.checkpoint(lambda x: some(*x)), (jnp.moveaxis(query, 2, 0), rows))
  return jnp.moveaxis(out, 0, 2).reshape(n, g, -1, heads, width)[:, :, :t]


def soft_cap(x: Array, cap: float | None) -> Array:
  """`cap * tanh(x / cap)`; x if there is no cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def _attend(query, rows, *, sources, precision, scale, cap):
  """`attend` for the queries of index `rows`, all at once."""
  n, g, t, heads, width = query.shape
  kv_heads = sources[0].keys.shape[-3]
  query = query.reshape(n, g, t, kv_heads, heads // kv_heads, width)
  scores = [_scores(query, rows, source, precision, scale, cap)
            for source in sources]
  top = functools.reduce(jnp.maximum, _over_keys(
      jnp.max, jax.lax.stop_gradient(scores), sources, -jnp.inf))
  weights = [jnp.exp(score - source.from_rows(top)[..., None])
             for score, source in zip(scores, sources)]
  total = sum(_over_keys(jnp.sum, weights, sources, 0.0))
  out = sum(_values(weight, source, precision)
            for weight, source in zip(weights, sources))
  out = out / jnp.moveaxis(total, 2, 3)[..., None]
  return out.reshape(n, g, t, heads, width).astype(query.dtype)


def _scores(query, rows, source, precision, scale, cap):
  """f32[N, G, K, T, R, U], or [N, K, G, T, R, U] if the keys are shared."""
  if source.seats is not None:
    query = source.to_seats(query)
  shared = source.shared
  score = jnp.einsum(
      'ngtkrd,nkud->nkgtru' if shared else 'ngtkrd,ngkud->ngktru',
      query, source.keys, precision=precision,
      preferred_element_type=jnp.float32) * scale
  score = soft_cap(score, cap)
  mask = source.visible(rows)
  mask = mask[:, None, :, :, None] if shared else mask[:, :, None, :, None]
  return jnp.where(mask, score, _MASKED)


def _values(weight, source, precision):
  """f32[N, G, T, K, R, d] of rows: the sum of the values by their weights."""
  weight = weight.astype(source.values.dtype)
  kw = dict(precision=precision, preferred_element_type=jnp.float32)
  # In the products' own order: straight to 'ngtkrd' the operands would be
  # swapped, and XLA's CPU backend has no such product in bfloat16.
  if source.shared:
    part = jnp.einsum('nkgtru,nkud->nkgtrd', weight, source.values, **kw)
    out = jnp.moveaxis(part, 1, 3)
    return out if source.seats is None else source.seats.to_rows(out)
  part = jnp.einsum('ngktru,ngkud->ngktrd', weight, source.values, **kw)
  return jnp.moveaxis(part, 2, 3)


def _swap(x: Array) -> Array:
  """[N, K, G, ...] <-> [N, G, K, ...]."""
  return jnp.swapaxes(x, 1, 2)


def _over_keys(reduce: Callable[..., Array], xs: Sequence[Array],
               sources: Sequence[Source], initial: float) -> list[Array]:
  """Reduces every source over its keys, to [N, G, K, T, R] of rows each."""
  return [source.to_rows(reduce(x, axis=-1, initial=initial))
          for x, source in zip(xs, sources)]
