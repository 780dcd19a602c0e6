"""DINO-R1 (arXiv 2505.24025): the queries of a picture as a group."""

import jax
import jax.numpy as jnp

Array = jax.Array
_SMALL = 2e-9


def grqo(
    cost: Array,
    scores: Array,
    reference: Array,
    real: Array,
    *,
    mute: int,
    alpha: float = 1e-2,
    beta: float = 0.04,
) -> tuple[Array, dict[str, Array]]:
  r"""Group relative query optimisation of one decoder layer.

      a_q = -min_j cost_qj                    over the boxes, not one to one
      A_q = (a_q - mean a) / (std a + 2e-9)   over the queries, ddof 1
      A_q = 0 for the last `mute` queries
      p = sigmoid(score_q) + 2e-9, p' that of the reference at the same patch
      KL_q = p' / p - ln p' + ln p - 1
      loss = mean_q(-alpha A_q + beta KL_q)

  The gradient goes through A, whose sum over all queries is always 0: without
  muting there is none. Muting those that selection ranked lowest raises the
  others' alignment relative to theirs. Source: `grpo_loss` of
  dense_heads/dino_r1_head.py, https://github.com/Christinepan881/DINO-R1; a_q
  is in an assigner that was not released, and is Figure 2's. Pictures without
  a box are left out [ours].

  Args:
    cost: f32[B, Q, M], the matcher's, large where there is no box.
    scores, reference: f32[B, Q], logits by which queries were selected, best
      first; the second under the reference, without gradient.
    real: bool[B, M], which boxes there are.
    mute: queries at the end without an advantage.
    alpha, beta: coefficients.

  Returns:
    f32[], and metrics.

  Raises:
    ValueError: `mute` out of range.
  """
  queries = cost.shape[1]
  if not 0 <= mute < queries:
    raise ValueError(f'mute: got {mute}; allowed: 0 to below the {queries} '
                     'queries.')
  known = real.any(1)
  # By index: the slope of a minimum divides by how many entries equal it, and
  # where a compiler computes them twice, rounded otherwise, that can be none.
  best = jnp.argmin(jnp.where(real[:, None], cost, jnp.inf), -1)
  quality = -jnp.take_along_axis(cost, best[..., None], -1)[..., 0]
  quality = jnp.where(known[:, None], quality, 0.0)
  centred = quality - quality.mean(1, keepdims=True)
  # Where all are alike, as without boxes, the mean is theirs up to rounding,
  # and the root has no slope at 0.
  differ = jnp.ptp(quality, 1, keepdims=True) > 0
  variance = (centred**2).sum(1, keepdims=True) / (queries - 1)
  spread = jnp.sqrt(jnp.where(differ, variance, 1.0))
  counts = (jnp.arange(queries) < queries - mute) & differ
  advantage = jnp.where(counts, centred / (spread + _SMALL), 0.0)
  p = jax.nn.sigmoid(scores) + _SMALL
  q = jax.lax.stop_gradient(jax.nn.sigmoid(reference)) + _SMALL
  kl = q / p - jnp.log(q) + jnp.log(p) - 1
  over = known.astype(jnp.float32)[:, None] / jnp.maximum(known.sum(), 1)
  mean = lambda x: (x * over).sum() / queries
  return mean(-alpha * advantage + beta * kl), {
      'advantage': mean(advantage), 'kl': mean(kl), 'quality': mean(quality)}
