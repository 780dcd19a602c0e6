"""Top-k and top-p without sorting the vocabulary.

A float's bits, read as an unsigned integer with the sign folded in, order as
the float does. The threshold is built bit by bit: 32 reductions over V, for
any k and p, both traced, so that changing them compiles nothing (M28).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def _ordered(x: Array) -> Array:
  """u32 with the order of f32 `x`."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  negative = (bits >> 31) == 1
  return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(ordered: Array, enough: Callable[[Array], Array]) -> Array:
  """Largest u32 t for which `enough(ordered >= t)` holds, else 0."""
  def add_bit(i, threshold):
    bit = jnp.uint32(1) << (jnp.uint32(31) - i.astype(jnp.uint32))
    candidate = threshold | bit
    keep = enough(ordered >= candidate[..., None])
    return jnp.where(keep, candidate, threshold)
  start = jnp.zeros(ordered.shape[:-1], jnp.uint32)
  return jax.lax.fori_loop(0, 32, add_bit, start)


def truncate(logits: Array, top_k: Array, top_p: Array) -> Array:
  """Logits with everything outside top-k, then top-p, at -inf.

  Args:
    logits: f32[..., V], already divided by the temperature.
    top_k: i32[]; 0 keeps all. Ties at the k-th value are all kept.
    top_p: f32[]; 1 keeps all. The smallest set of highest probabilities whose
      mass, renormalised after top-k, reaches top_p.

  Returns:
    f32[..., V].
  """
  def cut(logits):
    ordered = _ordered(logits)
    k = jnp.where(top_k > 0, top_k, logits.shape[-1])
    least = _threshold(ordered, lambda keep: jnp.sum(keep, -1) >= k)
    logits = jnp.where(ordered >= least[..., None], logits, -jnp.inf)
    probs = jax.nn.softmax(logits, axis=-1)

    def enough(keep):
      return jnp.sum(jnp.where(keep, probs, 0.0), -1) >= top_p
    # top_p = 1 must keep all although a float sum may stop short of 1.
    least = jnp.where(top_p >= 1.0, 0, _threshold(ordered, enough))
    return jnp.where(ordered >= least[..., None], logits, -jnp.inf)

  active = (top_k > 0) | (top_p < 1.0)
  return jax.lax.cond(active, cut, lambda x: x, logits)
