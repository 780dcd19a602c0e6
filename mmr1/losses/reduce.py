"""From per-token values to (sum, count): the third axis of an objective.

A term of the loss is `finish(sum, count)` with sum and count added up over
everything that belongs to one update: chunks, blocks, devices, hosts. Counts
depend on masks and shapes only, never on scores, so that they are known
before the first gradient and splitting the update changes nothing.

| here               | verl                              | TRL loss_type    |
| token_mean         | token-mean                        | dapo, cispo;     |
|                    |                                   | bnpo, per micro- |
|                    |                                   | batch            |
| seq_mean, live     | seq-mean-token-mean               | -                |
| seq_mean, all      | -                                 | grpo, sapo       |
| seq_sum, live      | seq-mean-token-sum                | -                |
| seq_sum, all       | -                                 | luspo            |
| constant, live     | seq-mean-token-sum-norm, mid 2026 | -                |
| constant, all      | -                                 | dr_grpo          |
| constant, none     | seq-mean-token-sum-norm, Jan 2026 | -                |
Sources: DAPO (arXiv:2503.14476, eq. 12), Dr. GRPO (arXiv:2503.20783, eq. 3),
GRPO (arXiv:2402.03300, eq. 3).
"""

import jax
import jax.numpy as jnp

from mmr1 import masked

Array = jax.Array

MODES = ('token_mean', 'seq_mean', 'seq_sum', 'constant')
ROWS = ('live', 'all', 'none')


def reduce(
    values: Array,
    mask: Array,
    *,
    mode: str = 'token_mean',
    rows: str = 'live',
    length: float | None = None,
    segment: Array | None = None,
    times: Array | None = None,
) -> tuple[Array, Array]:
  """Sum and count of `values` over `mask`.

  For values [1, 2], [3, 3, 3, 3], [] and length 4:
    token_mean: 15 / 6; seq_mean: (1.5 + 3) / 2, with rows='all' 4.5 / 3;
    seq_sum: 15 / 2; constant: 15 / (2 * 4), with rows='all' 15 / (3 * 4),
    with rows='none' 15 / 4.

  A row with segments is as many sequences ('rows') as it has segments.

  Args:
    values: f32[N, G, T], or f32[N, G, 1] for one value a row. Masked entries
      may hold anything.
    mask: bool[N, G, T].
    mode: token_mean (every token alike), seq_mean (mean over rows of the mean
      over a row's tokens), seq_sum (mean over rows of the sum), constant (sum
      over rows and tokens, divided by rows x length).
    rows: which rows count: 'live' those with a kept token, 'all' every row of
      the shape (rows that exist only as padding must then not be there),
      'none' (only 'constant') divides by the length alone.
    length: divisor of 'constant', usually the completion length of the stage.
    segment: i32[N, G, T] | None, packed sequences, numbered from 1 in every
      row, at most T; 0 where padded. None: a row is one.
    times: f32[N, G, 1] | None, how often each row is there, as if it were
      repeated. None: once.

  Returns:
    (f32[], f32[]). A count of 0 means nothing (more) to divide by.

  Raises:
    ValueError: for an unknown mode or rows, a missing or superfluous length,
      or shapes that do not match.
  """
  _check(mode, rows, length)
  check_shape('values', values, mask)
  if segment is None:
    tokens = masked.count(mask, axis=-1)
    row_sum = masked.sum(values, mask, axis=-1)
    there = jnp.ones(tokens.shape, bool)
  else:
    tokens = _by_segment(mask, segment)
    row_sum = _by_segment(masked.fill(values, mask), segment)
    there = _by_segment(segment > 0, segment) > 0
  length_of = jnp.maximum(tokens, 1)
  counted = tokens > 0 if rows == 'live' else there
  if times is None:
    n_rows = masked.count(counted)
  else:
    often = times[..., 0] if segment is None else times
    tokens, row_sum = often * tokens, often * row_sum
    n_rows = jnp.sum(often * counted)
  if mode == 'token_mean':
    return row_sum.sum(), tokens.sum()
  if mode == 'seq_mean':
    return (row_sum / length_of).sum(), n_rows
  if mode == 'seq_sum':
    return row_sum.sum(), n_rows
  if rows == 'none':
    return row_sum.sum() / length, jnp.zeros((), jnp.float32)
  return row_sum.sum(), n_rows * length


def _by_segment(x: Array, segment: Array) -> Array:
  """f32[N, G, T], sums of x [N, G, T] over segments 1, 2, ... of each row."""
  n, g, t = x.shape
  sums = jax.vmap(lambda x, s: jax.ops.segment_sum(x, s, t + 1))(
      x.astype(jnp.float32).reshape(n * g, t), segment.reshape(n * g, t))
  return sums[:, 1:].reshape(n, g, t)


def finish(total: Array, count: Array) -> Array:
  """total / count; a count of 0 divides by nothing, so that no token at all
  is exactly 0. Every other count is at least 1."""
  return total / jnp.maximum(count, 1)


def check_shape(name: str, x: Array, mask: Array) -> None:
  """Raises ValueError unless x is [N, G, T] or [N, G, 1] for a mask [N, G, T].

  Broadcasting would accept [N, G] or [G, T] and mean something else.
  """
  allowed = (mask.shape, (*mask.shape[:-1], 1))
  if x.shape not in allowed:
    raise ValueError(
        f'{name} has shape {x.shape}, allowed for this mask are {allowed[0]} '
        f'and {allowed[1]}.')


def _check(mode: str, rows: str, length: float | None):
  if mode not in MODES:
    raise ValueError(f'reduce mode {mode!r} is not one of {MODES}.')
  if rows not in ROWS:
    raise ValueError(f'reduce rows {rows!r} is not one of {ROWS}.')
  if rows == 'none' and mode != 'constant':
    raise ValueError(
        f"rows='none' belongs to mode='constant', got mode {mode!r}.")
  if mode == 'token_mean' and rows != 'live':
    raise ValueError(
        f"mode='token_mean' does not count rows, got rows={rows!r}; leave it "
        "at 'live'.")
  if (length is None) == (mode == 'constant'):
    raise ValueError(
        f"'length' is the divisor of mode='constant' and of no other, got "
        f'length={length!r} with mode={mode!r}.')
