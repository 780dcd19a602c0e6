"""Terms of an objective: `(scores, block, knobs, *, ...) -> (sum, count)`.

The loss of an update is the sum over its terms of coefficient x
`reduce.finish(sum, count)`, with sums and counts added over all blocks and
chunks first. Every term is something to minimise. Coefficients are the
caller's; other numbers are keywords, Python floats or traced scalars (a
caller that schedules one passes `knobs[name]` for it), so none of the terms
here reads `knobs` itself.

`reduction` is the keywords of `reduce.reduce`: mode, rows, length.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmr1 import masked
from mmr1 import types
from mmr1.losses import kl as estimators
from mmr1.losses import ratio
from mmr1.losses import reading
from mmr1.losses import reduce
from mmr1.losses import surrogate as surrogates

Array = jax.Array
Knobs = Mapping[str, Array]
Term = tuple[Array, Array]

TOKEN_MEAN = {'mode': 'token_mean'}
ENTROPIES = ('full', 'sampled')
TARGETS = ('ref', 'old')


def policy(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    surrogate: Callable[..., surrogates.Surrogate] = surrogates.clip,
    level: str = 'token',
    sequence: str = 'geometric',
    clamp: float | tuple[float, float] | None = 20.0,
    reduction: Mapping[str, Any] = TOKEN_MEAN,
    **surrogate_kw,
) -> Term:
  """The policy term: ratio x surrogate x reduce.

  `block.old` None means the policy's own log-probs: every ratio is exactly 1
  in value with the gradient of logp. `block.weight` multiplies the loss of a
  token and leaves the count alone.

  It speaks about sampled tokens: an expert's (kind `KIND_EXPERT`) have no old
  probability, and belong to a term of their own.

  Args:
    scores: of the policy; reads logp f32[N, G, T].
    block: reads mask, kind, advantage f32[N, G, 1 or T], old, weight.
    knobs: not read.
    surrogate: of `mmr1.losses.surrogate`, or of its signature.
    level, sequence, clamp: see `ratio.log_ratio`.
    reduction: see `reduce.reduce`.
    **surrogate_kw: keywords of the surrogate (eps_low, ...).

  Returns:
    (sum f32[], count f32[]).
  """
  del knobs
  block = reading.sampled(block)
  loss, _, _, _ = _policy(
      scores, block, surrogate, level, sequence, clamp, surrogate_kw)
  if block.weight is not None:
    loss = loss * block.weight
  return reading.over_block(loss, block, reduction)


def kl(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    estimator: Callable[[Array, Array], Array] | str = estimators.k3,
    target: str = 'ref',
    weight: str | None = None,
    bias_correction: bool = False,
    reduction: Mapping[str, Any] = TOKEN_MEAN,
    **estimator_kw,
) -> Term:
  """KL of the policy to `block.ref` (or `block.old`), from sampled tokens.

  It stays dense: `block.weight` is not applied (TRL, verl).

  Args:
    scores: of the policy; reads logp.
    block: reads mask, and ref or old.
    knobs: not read.
    estimator: of `mmr1.losses.kl`, or its name.
    target: 'ref' or 'old'.
    weight: name of a section of `weights`, whose values are a factor; None:
      ones.
    bias_correction: multiplies the estimate by the token ratio pi / pi_old,
      with its gradient (DeepSeek-V3.2; TRL `use_bias_correction_kl`).
    reduction: see `reduce.reduce`.
    **estimator_kw: keywords of the estimator (difference_clamp, ...).

  Returns:
    (sum f32[], count f32[]).

  Raises:
    ValueError: the block lacks the target.
  """
  del knobs
  if target not in TARGETS:
    raise ValueError(f'kl target {target!r} is not one of {TARGETS}.')
  if isinstance(estimator, str):
    estimator = estimators.named(estimator)
  other = block.ref if target == 'ref' else block.old
  if other is None:
    raise ValueError(
        f'The kl term needs block.{target}, which is None. Score the '
        f"{'reference' if target == 'ref' else 'old'} policy, or set the "
        'coefficient of this term to 0.')
  logp = masked.fill(scores.logp, block.mask)
  value = estimator(logp, masked.fill(other, block.mask), **estimator_kw)
  if bias_correction:
    value = value * jnp.exp(ratio.log_ratio(
        logp, reading.old(scores, block), block.mask, clamp=None))
  if weight is not None:
    value = value * block.extra[f'weight/{weight}']
  return reading.over_block(value, block, reduction)


def kl_full(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    pair: str = 'kl_ref',
    reduction: Mapping[str, Any] = TOKEN_MEAN,
) -> Term:
  """KL over the whole vocabulary, `scores.pairs[pair]` f32[N, G, T]."""
  del knobs
  if pair not in scores.pairs:
    raise ValueError(
        f'The kl_full term needs scores.pairs[{pair!r}], the forward made '
        f'{sorted(scores.pairs)}.')
  return reading.over_block(scores.pairs[pair], block, reduction)


def entropy(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    source: str = 'full',
    reduction: Mapping[str, Any] = TOKEN_MEAN,
) -> Term:
  """The entropy bonus: MINUS the entropy, so a positive coefficient rewards it.

  Args:
    scores: of the policy; reads entropy or logp.
    block: reads mask.
    knobs: not read.
    source: 'full', the entropy of the distribution (verl, TRL); 'sampled',
      the estimate -logp (EasyR1), whose gradient is not the entropy's: it
      makes every sampled token less likely, whatever its share.
    reduction: see `reduce.reduce`.

  Returns:
    (sum f32[], count f32[]).
  """
  del knobs
  if source not in ENTROPIES:
    raise ValueError(f'entropy source {source!r} is not one of {ENTROPIES}.')
  value = -scores.entropy if source == 'full' else scores.logp
  return reading.over_block(value, block, reduction)


def nll(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    reduction: Mapping[str, Any] = TOKEN_MEAN,
) -> Term:
  """Negative log-likelihood of the kept tokens, x `block.weight` if present."""
  del knobs
  value = -masked.fill(scores.logp, block.mask)
  if block.weight is not None:
    value = value * block.weight
  return reading.over_block(value, block, reduction)


def imitation(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    reduction: Mapping[str, Any] = TOKEN_MEAN,
) -> Term:
  """-A log p of traces of the data, which the policy term leaves out.

  Under a constant A = w this is w x the negative log-likelihood of `nll`, the
  loss of the sft stage.
  """
  del knobs
  block = reading.experts(block)
  reduce.check_shape('block.advantage', block.advantage, block.mask)
  return reading.over_block(
      -block.advantage * masked.fill(scores.logp, block.mask), block, reduction)


def critic(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    clip: float = 0.5,
    reduction: Mapping[str, Any] = TOKEN_MEAN,
) -> Term:
  """0.5 max((V - Ret)^2, (clip(V, V_old +- clip) - Ret)^2), PPO's critic loss.

  Reads `scores.value` and `block.extra['values']`, `['returns']`, all
  f32[N, G, T]. The clip range is verl's `cliprange_value`.
  """
  del knobs
  value = masked.fill(scores.value, block.mask)
  old = masked.fill(block.extra['values'], block.mask)
  returns = masked.fill(block.extra['returns'], block.mask)
  near = jnp.clip(value, old - clip, old + clip)
  worst = jnp.maximum(
      jnp.square(value - returns), jnp.square(near - returns))
  return reading.over_block(0.5 * worst, block, reduction)


def policy_metrics(
    scores: types.Scores,
    block: types.Block,
    knobs: Knobs,
    *,
    surrogate: Callable[..., surrogates.Surrogate] = surrogates.clip,
    level: str = 'token',
    sequence: str = 'geometric',
    clamp: float | tuple[float, float] | None = 20.0,
    **surrogate_kw,
) -> tuple[dict[str, Term], dict[str, Array]]:
  """What the policy term did, over kept tokens; keywords as of `policy`.

  Returns:
    ({name: (sum, count)}, {name: maximum}): 'ratio/mean', 'clip_frac/low',
    'clip_frac/high', 'kl_old' (mean of old - logp, verl's ppo_kl);
    'ratio/max' (0 where no token is kept; combine chunks by max). Without
    gradient.
  """
  del knobs
  block, scores = reading.sampled(block), jax.lax.stop_gradient(scores)
  _, low, high, log_ratio = _policy(
      scores, block, surrogate, level, sequence, clamp, surrogate_kw)
  mask = block.mask
  r = jnp.broadcast_to(jnp.exp(log_ratio), mask.shape)
  means = {
      'ratio/mean': r,
      'clip_frac/low': low,
      'clip_frac/high': high,
      'kl_old': (masked.fill(reading.old(scores, block), mask)
                 - masked.fill(scores.logp, mask)),
  }
  means = {
      name: reduce.reduce(jnp.broadcast_to(x, mask.shape), mask)
      for name, x in means.items()}
  return means, {'ratio/max': masked.max(r, mask)}


def _policy(scores, block, surrogate, level, sequence, clamp, surrogate_kw):
  mask = block.mask
  if level != 'token' and block.completions.segment is not None:
    raise ValueError(
        f'The ratio {level!r} is one of a whole row, and the rows of this '
        "block hold several sequences. Do not pack them, or take 'token'.")
  logp = masked.fill(scores.logp, mask)
  log_ratio = ratio.log_ratio(
      logp, reading.old(scores, block), mask, level=level, sequence=sequence,
      clamp=clamp)
  advantage = block.advantage
  reduce.check_shape('block.advantage', advantage, mask)
  if advantage.shape[-1] != 1:
    advantage = masked.fill(advantage, mask)
  return *surrogate(
      log_ratio, advantage, logp, mask, **surrogate_kw), log_ratio
