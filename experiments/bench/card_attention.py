"""Attention alone in the card benchmark: every backend on the model's shapes.

  prompts      N rows of P tokens, causal, padded on the left by up to P / 8
  completions  N x G of T tokens over their prompt's keys and their own
  frames, windows  of the vision tower, on the images of the update
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench import card_rows
from experiments.bench import card_shapes
from mmr1.models import attention
from mmr1.models import sight

Array = jax.Array
_CHUNK = 1024  # queries, the default of the models


class Case(NamedTuple):
  """Queries, the keys and values of every source, and what is seen of them.

  Fields:
    query: [N, G, T, H, d].
    parts: pairs of keys and values, see `attention.Source`.
    sights: of every source.
    slope: [N, G, T, H, d], of the result; 0 for padded queries.
  """
  query: Array
  parts: tuple[tuple[Array, Array], ...]
  sights: tuple[sight.Sight, ...]
  slope: Array


def _normal(seed: int, shape: tuple[int, ...], dtype: Any) -> Array:
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def _case(query: tuple[int, ...], keys: Sequence[tuple[int, ...]],
          sights: Sequence[sight.Sight], dtype: Any,
          real: Array | None = None) -> Case:
  """Random ones of these shapes; real: bool[N, G, T]."""
  slope = _normal(1, query, dtype)
  if real is not None:
    slope = jnp.where(real[..., None, None], slope, 0)
  return Case(
      _normal(0, query, dtype),
      tuple((_normal(2 + 2 * i, k, dtype), _normal(3 + 2 * i, k, dtype))
            for i, k in enumerate(keys)), tuple(sights), slope)


def cases(shape: card_shapes.Shape) -> dict[str, Callable[[], Case]]:
  """{name: what makes the case}."""
  n, g, t, p = shape.attention
  h, k, d = shape.heads, shape.kv_heads, shape.head_width
  padding = jnp.arange(n) * p // 8 // n
  real = jnp.arange(p) >= padding[:, None]  # bool[N, P]
  dtype = jnp.dtype(shape.dtype)
  images, heads = shape.update.prompts, shape.tower_heads
  patches, wide = shape.update.side**2, shape.tower_width // heads
  window = shape.window**2
  count = patches // window
  frame = jnp.ones((images, 1, patches), jnp.int32)
  return {
      'prompts': lambda: _case(
          (n, 1, p, h, d), [(n, 1, k, p, d)],
          [sight.Sight(keys=real[:, None], causal=True)], dtype,
          real[:, None]),
      'completions': lambda: _case(
          (n, g, t, h, d), [(n, g, k, t, d), (n, k, p, d)],
          [sight.Sight(keys=jnp.ones((n, g, t), bool), causal=True),
           sight.Sight(keys=real[:, None])], dtype),
      'frames': lambda: _case(
          (images, 1, patches, heads, wide),
          [(images, 1, heads, patches, wide)],
          [sight.Sight(keys=frame > 0, segments=(frame, frame))], dtype),
      'windows': lambda: _case(
          (images, count, window, heads, wide),
          [(images, count, heads, window, wide)],
          [sight.Sight(keys=jnp.ones((images, count, window), bool))], dtype)}


def _attend(case: Case, query: Array, parts: Any, *, backend: str,
            precision: str = 'default') -> Array:
  sources = [attention.Source(*part, seen)
             for part, seen in zip(parts, case.sights)]
  return attention.attend(query, sources, precision=precision, chunk=_CHUNK,
                          backend=backend)


def programs(**how: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """(case -> result, case -> result and gradients of query, keys, values)."""
  def forward(case):
    return _attend(case, case.query, case.parts, **how)

  def gradient(case):
    out, pull = jax.vjp(
        functools.partial(_attend, case, **how), case.query, case.parts)
    return out, pull(case.slope)
  return jax.jit(forward), jax.jit(gradient)


@jax.jit
def _difference(case: Case, found: Any, right: Any) -> dict[str, Array]:
  """Largest differences, relative to the largest number that is right."""
  seen = jnp.any(case.slope != 0, -1, keepdims=True)
  out, (dq, dparts) = (found[0] * seen, found[1])
  out_, (dq_, dparts_) = (right[0] * seen, right[1])

  def worst(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return jnp.max(jnp.array([
        jnp.max(jnp.abs(x.astype(jnp.float32) - y)) / jnp.max(jnp.abs(y))
        for x, y in pairs]))
  return dict(output=worst(out, out_), query=worst(dq, dq_),
              keys_values=worst(dparts, dparts_))


def _right(case: Case) -> Any:
  """By XLA in float32 from the same numbers."""
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (
      case.query, case.parts, case.slope))
  case = case._replace(query=wide[0], parts=wide[1], slope=wide[2])
  return programs(backend='xla', precision='highest')[1](case)


def _measure(case: Case, right: Any, backend: str) -> dict[str, Any]:
  forward, gradient = programs(backend=backend)
  try:
    found = gradient(case)
  except ValueError as error:
    if 'cannot compute' in str(error):
      return dict(refused=str(error))
    raise
  difference = _difference(case, found, right)
  times = [card_rows.seconds(
      functools.partial(fn, case), jax.block_until_ready, reps=8, calls=4)
           for fn in (forward, gradient)]
  return dict(forward_ms=1e3 * times[0], gradient_ms=1e3 * times[1],
              difference={k: float(x) for k, x in difference.items()})


def measure(shape: card_shapes.Shape, backends: list[str]) -> None:
  """A row per case and backend; a backend that refuses a case says why."""
  for name, make in cases(shape).items():
    case = make()
    right = _right(case)
    for backend in backends:
      card_rows.attempt(
          dict(part='attention', case=name, attention=backend),
          functools.partial(_measure, case, right, backend))
