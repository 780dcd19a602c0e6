"""The gradient of an objective over a batch of blocks.

Objective = sum over terms of coefficient * (sum / global count). The counts
depend on masks only, so they are known before the first forward; chunks,
blocks and devices then only add up (law 1).

The prompt is run once per block. The gradient reaches its keys and values
through every chunk of completions, is accumulated there, and is pulled
through the prompt once. With buckets of lengths a chunk costs what its longest
completion needs; results stay the same up to rounding.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import buckets as buckets_lib
from mmr1 import forward
from mmr1 import looks as looks_lib
from mmr1 import types

Array = jax.Array
Metrics = dict[str, Array]
Looks = tuple[looks_lib.Look, ...]


@dataclasses.dataclass(frozen=True)
class Term:
  """One summand of the objective.

  Fields:
    name: its name in the config; coefficient `coef/<name>` in the knobs.
    fn: (Scores, Block, knobs) -> (sum, count), keyword arguments bound.
    metrics: (Scores, Block, knobs) -> {name: (sum, count)} and {name: max},
      or None.
    whole: its values are of whole groups (pairs), which no chunk may part.
  """
  name: str
  fn: Callable[..., tuple[Array, Array]]
  metrics: Callable[..., tuple[Mapping, Mapping]] | None = None
  whole: bool = False


def coefficient(knobs: Mapping[str, Array], term: Term) -> Array:
  return knobs[f'coef/{term.name}']


def _blank_scores(block: types.Block, looks: Looks) -> types.Scores:
  """Scores of the right shapes: counts must not depend on their values."""
  zeros = jnp.zeros(block.mask.shape, jnp.float32)
  pairs = {} if block.ref_hidden is None else {'kl_ref': zeros}
  pairs |= {look.name: zeros for look in looks if look.divergence is not None}
  return types.Scores(logp=zeros, entropy=zeros, pairs=pairs, value=zeros,
                      reward=zeros[..., :1],
                      views={look.name: zeros for look in looks})


def denominators(
    terms: tuple[Term, ...], batch: types.Batch, knobs: Mapping[str, Array],
    looks: Looks = (),
) -> dict[str, Array]:
  """Global count of each term over all blocks, at least one."""
  totals = {}
  for term in terms:
    counts = [term.fn(_blank_scores(b, looks), b, knobs)[1] for b in batch]
    total = sum(counts[1:], counts[0])
    # An all-masked batch has sum 0 and must have loss 0, not 0 / 0 (M9).
    totals[term.name] = jnp.where(total > 0, total, 1.0)
  return totals


def split(block: types.Block, chunks: int) -> types.Block:
  """A block whose [N, G, ...] leaves became [chunks, N, G / chunks, ...].

  Prompts stay as they are: every chunk shares them.

  Raises:
    ValueError: G does not split.
  """
  def part(x):
    n, g = x.shape[:2]
    if g % chunks:
      raise ValueError(
          f'update: {g} completions per prompt do not split into {chunks} '
          'chunks; take a divisor of the group size.')
    x = x.reshape((n, chunks, g // chunks) + x.shape[2:])
    return jnp.moveaxis(x, 1, 0)
  return jax.tree.map(part, block.replace(prompts=None))


def split_rows(block: types.Block, chunks: int) -> types.Block:
  """A block whose leaves [N, ...] became [chunks, N / chunks, ...].

  Chunk c has rows c, c + chunks, ...: where N lies over devices, each keeps
  its own rows.

  Raises:
    ValueError: N does not split.
  """
  def part(x):
    n = x.shape[0]
    if n % chunks:
      raise ValueError(
          f'update: {n} rows whose groups stay whole do not split into '
          f'{chunks} chunks; take a divisor of the number of rows.')
    return jnp.moveaxis(x.reshape((n // chunks, chunks) + x.shape[1:]), 1, 0)
  return jax.tree.map(part, block)


def _add(a: Any, b: Any) -> Any:
  return jax.tree.map(jnp.add, a, b)


def _full(shapes: Any, value: float) -> Any:
  return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), shapes)


def _merge(sums: Any, maxima: Any, new_sums: Any, new_maxima: Any):
  return _add(sums, new_sums), jax.tree.map(jnp.maximum, maxima, new_maxima)


def _accumulate(fn: Callable[..., Any], pieces: Any) -> tuple[Any, Any]:
  """fn(piece) -> (gradients, (sums, maxima)), added up over pieces [c, ...]."""
  # Only shapes: a first piece outside the scan would compile the model twice.
  gradients, (sums, maxima) = jax.eval_shape(
      fn, jax.tree.map(lambda x: x[0], pieces))
  start = _full(gradients, 0.0), (_full(sums, 0.0), _full(maxima, -jnp.inf))
  def step(carry, piece):
    grads, aux = fn(piece)
    return (_add(carry[0], grads), _merge(*carry[1], *aux)), None
  return jax.lax.scan(step, start, pieces)[0]


def block_gradient(
    policy: forward.Policy,
    params: Any,
    join: Callable[[Any], Any],
    block: types.Block,
    loss: Callable[..., tuple[Array, Any]],
    *,
    chunks: int = 1,
    buckets: tuple[int, ...] = (),
    looks: Looks = (),
    whole: bool = False,
) -> tuple[Any, Any]:
  """Gradient of `loss` over one block, and its auxiliary output.

  Args:
    policy: the model and its constants.
    params: the trainable parameters.
    join: trainable parameters -> all parameters (adds the frozen ones).
    block: N prompts, G completions each.
    loss: (all params, prefixes, block) -> (f32[], (sums, maxima)); the
      prefixes of the block's prompts and of every look's.
    chunks: pieces that each group is processed in, or the rows where a group
      stays whole; memory falls with it, the result stays the same.
    buckets: lengths below T that a piece may be cut to, ascending.
    looks: of an update.
    whole: groups stay whole, as those of one completion always do.
  """
  if chunks > 1 and (whole or block.mask.shape[1] == 1):
    return _accumulate(
        lambda piece: block_gradient(
            policy, params, join, piece, loss, buckets=buckets, looks=looks),
        split_rows(buckets_lib.ordered_rows(
            block, chunks, buckets, policy.layout.shards(len(block.mask))),
                   chunks))
  prompts = block.prompts

  def prefixes_of(p):
    every = join(p)
    return (policy.prompt_pass(every, prompts), *(
        policy.prompt_pass(every if look.gradient else
                           jax.lax.stop_gradient(every), look.shown(prompts))
        for look in looks))
  prefixes, pull = jax.vjp(prefixes_of, params)

  def cut_gradient(piece):
    piece = piece.replace(prompts=prompts)
    def value(p, prefixes):
      return loss(join(p), prefixes, piece)
    (_, aux), grads = jax.value_and_grad(
        value, argnums=(0, 1), has_aux=True)(params, prefixes)
    return (policy.layout.keep(grads[0]), grads[1]), aux

  def piece_gradient(piece):
    return buckets_lib.at_length(cut_gradient, piece, buckets)

  (grads, prefix_grads), aux = (
      piece_gradient(block) if chunks == 1
      else _accumulate(piece_gradient, split(
          buckets_lib.ordered(block, buckets)[0], chunks)))
  return _add(grads, policy.layout.keep(pull(prefix_grads)[0])), aux


def gradient(
    policy: forward.Policy,
    params: Any,
    join: Callable[[Any], Any],
    batch: types.Batch,
    terms: tuple[Term, ...],
    knobs: Mapping[str, Array],
    *,
    ref_params: Any = None,
    chunks: int = 1,
    buckets: tuple[int, ...] = (),
    looks: Looks = (),
    score: Callable[..., types.Scores] = forward.score,
) -> tuple[Any, Metrics]:
  """Gradient of the objective over a batch, and its metrics.

  Args:
    policy: the model and its constants.
    params: trainable parameters.
    join: trainable -> all parameters.
    batch: blocks.
    terms: the objective.
    knobs: traced values: 'temperature', 'coef/<term>', and what terms read.
    ref_params: the reference's parameters where a term needs the whole
      vocabulary.
    chunks: pieces per block, see `block_gradient`.
    buckets: lengths below T, ascending; each piece is cut to the smallest that
      holds its longest completion, and pieces have completions of like length.
    looks: those that are made at every update.
    score: what terms read of a piece; arguments as of `forward.score`.

  Returns:
    Gradient tree like `params`, and metrics: 'loss', 'loss/<term>' (what was
    added, coefficient included), 'entropy', and the terms' own.
  """
  totals = denominators(terms, batch, knobs, looks)

  def loss(all_params, prefixes, block):
    scores = score(
        policy, all_params, prefixes[0], block, knobs['temperature'],
        ref_params=ref_params, looks=tuple(zip(looks, prefixes[1:])))
    total, sums, maxima = jnp.float32(0.0), {}, {}
    for term in terms:
      value, _ = term.fn(scores, block, knobs)
      value = coefficient(knobs, term) * value / totals[term.name]
      total += value
      sums[f'loss/{term.name}'] = (value, jnp.float32(0.0))
      if term.metrics is not None:
        means, tops = term.metrics(scores, block, knobs)
        sums.update(means)
        maxima.update(tops)
    if scores.entropy is not None:
      sums['entropy'] = (
          jnp.sum(scores.entropy), jnp.sum(block.mask.astype(jnp.float32)))
    sums['loss'] = (total, jnp.float32(0.0))
    return total, jax.lax.stop_gradient((sums, maxima))

  grads, aux = None, None
  for block in batch:
    new, new_aux = block_gradient(
        policy, params, join, block, loss, chunks=chunks, buckets=buckets,
        looks=looks, whole=any(term.whole for term in terms))
    grads = new if grads is None else _add(grads, new)
    aux = new_aux if aux is None else _merge(*aux, *new_aux)
  sums, maxima = aux
  metrics = {
      # Losses are complete sums (count 0); everything else is a mean.
      name: jnp.where(count > 0, value / jnp.where(count > 0, count, 1.0),
                      value)
      for name, (value, count) in sums.items()}
  return grads, metrics | maxima
