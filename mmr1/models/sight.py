"""Which keys a query sees, as data that every attention backend can read.

Letters: N prompts, G completions per prompt, T queries, U keys.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array
EVERYTHING = 2**31 - 1


@flax.struct.dataclass
class Sight:
  """Real keys in the past, in the window, of the own segment; and the block's.

  A sight is also a function: `sight(rows)` gives the mask bool, broadcastable
  to [N, G, T', U], of the queries of index `rows` i32[T'].

  Fields:
    keys: bool[N, G, U], the real keys; N or G may be 1 where they share it.
      None: all are; not for a sight that is causal or slides.
    causal: a query sees no key after it.
    at: i32[], index among the keys of the first query; None: 0.
    window: a query sees itself and the `window - 1` keys before it; None: all.
    sliding: whether `window` holds, False where there is none. Traced where
      layers that slide and others are one program.
    places: (i32[N, G, T], i32[N, G, U]), what `window` measures of queries
      and keys; None: their indices.
    segments: (i32[N, G, T], i32[N, G, U]), a query sees keys of its own
      number only; None: all are one.
    blocks: i32[N, T], tokens of one number above 0 see each other both ways,
      as far as `blocks_slide` says. None: there are none.
    blocks_slide: they do so inside the window only.
  """
  keys: Array | None = None
  causal: bool = flax.struct.field(pytree_node=False, default=False)
  at: Array | None = None
  window: int | None = flax.struct.field(pytree_node=False, default=None)
  sliding: Any = False
  places: tuple[Array, Array] | None = None
  segments: tuple[Array, Array] | None = None
  blocks: Array | None = None
  blocks_slide: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def slides(self) -> bool:
    """False if no window holds, whatever a traced `sliding` turns out to be."""
    return self.window is not None and self.sliding is not False

  @property
  def whole(self) -> bool:
    """Whether every query sees every key, as far as the program can tell."""
    return (self.keys is None and self.segments is None and not self.causal
            and not self.slides)

  def __call__(self, rows: Array) -> Array:
    """i32[T'] -> bool, broadcastable to [N, G, T', U]."""
    if self.whole:
      return jnp.ones((1, 1, 1, 1), bool)
    seen = self._in_reach(rows)
    if self.keys is not None:
      seen = seen & self.keys[:, :, None, :]
    if self.segments is not None:
      queries, keys = self.segments
      seen = seen & (queries[:, :, rows, None] == keys[:, :, None, :])
    return seen

  def _in_reach(self, rows: Array) -> Array | bool:
    """Whatever the keys are, by where they are."""
    if not (self.causal or self.slides):
      return True
    back = self._back(rows)
    near = back < self._reach() if self.slides else True
    if not self.causal:
      return near
    seen = (back >= 0) & near
    if self.blocks is None:
      return seen
    own = self.blocks[:, None, rows, None]
    same = (own > 0) & (own == self.blocks[:, None, None, :])
    return seen | (same & near if self.blocks_slide else same)

  def _back(self, rows: Array) -> Array:
    """How far before its query each key is."""
    if self.places is not None:
      queries, keys = self.places
      return queries[:, :, rows, None] - keys[:, :, None, :]
    rows = rows if self.at is None else self.at + rows
    return rows[:, None] - jnp.arange(self.keys.shape[-1])

  def _reach(self) -> Any:
    if self.sliding is True:
      return self.window
    return jnp.where(self.sliding, self.window, EVERYTHING)


def behind(keys: Array, count: int, t: Array) -> tuple[Array, Array]:
  """`Sight.places` of queries written at t, right behind `keys`."""
  index = jnp.arange(keys.shape[-1])
  end = jnp.max(jnp.where(keys, index + 1, 0), -1, keepdims=True)
  return end + jnp.arange(count), jnp.where(index < t, index, index - t + end)


def places(mask: Array, segment: Array | None) -> Array:
  """i32[N, P], the how manieth of its prompt each token is, from 0."""
  if segment is None:
    return jnp.cumsum(mask, -1) - 1
  index = jnp.arange(segment.shape[1])
  first = jnp.diff(segment, axis=1, prepend=-1) != 0
  return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)


def causal(mask: Array, segment: Array | None = None,
           blocks: tuple[Array, bool] | None = None) -> Sight:
  """Real keys (mask bool[N, G, T]) of the query's own segment, up to it, and
  those of its block, see `LanguageModel.blocks`."""
  number, slide = (None, False) if blocks is None else blocks
  return Sight(
      keys=mask, causal=True, blocks=number, blocks_slide=slide,
      segments=None if segment is None else (segment, segment))
