"""One policy: log-probabilities of completions given their prompts.

Sampler and trainer call the same model methods; this module adds the shift by
one (law 2), the ban of vision placeholders (M2) and a head that never builds
a [.., T, V] array: logits exist for one chunk of tokens at a time, forward
and backward.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmr1.losses import divergence as divergences
from mmr1 import looks as looks_lib
from mmr1 import policy as policy_lib
from mmr1 import types

Array = jax.Array
Policy = policy_lib.Policy


def shift(last: Array, hidden: Array, segment: Array | None = None) -> Array:
  """Aligns hidden states to the token they predict. The only shift by one.

  Args:
    last: [N, D], hidden state of the last prompt token; [N, E, D], those of
      the last tokens of packed prompts.
    hidden: [N, G, T, D], hidden state of each completion token.
    segment: i32[N, G, T] | None, see `types.Completions`.

  Returns:
    [N, G, T, D]; entry t predicts completion token t: `last` for t = 0, the
    state of token t - 1 after it. With segments the first token of each is
    predicted by `last`, of packed prompts by the one of the same number.
  """
  n, g, t, d = hidden.shape
  last = last.astype(hidden.dtype)
  if segment is None:
    first = jnp.broadcast_to(last[:, None, None], (n, g, 1, d))
    return jnp.concatenate([first, hidden[:, :, :-1]], 2)
  if last.ndim == 2:
    first = last[:, None, None]
  else:
    own = jnp.maximum(segment - 1, 0).reshape(n, g * t, 1)
    first = jnp.take_along_axis(last, own, 1).reshape(hidden.shape)
  begins = jnp.diff(segment, axis=2, prepend=0) != 0
  before = jnp.pad(hidden[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
  return jnp.where(begins[..., None], first, before)


def completion_mask(completions: types.Completions) -> Array:
  """bool[N, G, T], True on every token that is not padding."""
  return completions.kind != types.KIND_PAD


def hidden_states(
    policy: Policy,
    params: Any,
    prefix: types.Prefix,
    prompts: types.Prompts,
    completions: types.Completions,
) -> Array:
  """[N, G, T, D], aligned to the token each state predicts.

  With `completions.segment` the documents of a row do not see each other.
  Where there is no prompt (P = 0) the first token of each is predicted by
  zeros: mask it.

  Raises:
    ValueError: packed prompts whose completions are not; media of a family
      that does not read them in completions.
  """
  if prompts.segment is not None and completions.segment is None:
    raise ValueError(
        'prompts.segment without completions.segment: of several prompts in a '
        'row, which one a completion token belongs to must be said.')
  hidden = policy.apply(
      policy.gathered(params), prefix, prompts.mask, completions.tokens,
      completions.positions, completion_mask(completions), completions.segment,
      prompts.segment, completions.media, method='completion_pass')
  return shift(prefix.last, hidden, completions.segment)


def _statistics(
    logits: Array, tokens: Array, divided: bool,
) -> tuple[Array, Array, Array]:
  """log p f32[.., V], of the tokens f32[..], entropy f32[..].

  `divided`: V lies over devices.
  """
  logp = jax.nn.log_softmax(logits, axis=-1)
  # 0 * -inf is NaN, in value and in gradient: banned ids leave the sum first.
  finite = jnp.isfinite(logp)
  safe = jnp.where(finite, logp, 0.0)
  entropy = -jnp.sum(jnp.where(finite, jnp.exp(safe) * safe, 0.0), -1)
  if divided:  # to look a token up, all of V would have to be on one device
    own = jnp.arange(logp.shape[-1], dtype=tokens.dtype) == tokens[..., None]
    chosen = jnp.sum(jnp.where(own, logp, 0.0), -1)
  else:
    chosen = jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
  return safe, chosen, entropy


class TokenScores(NamedTuple):
  """f32[N, G, T] each, 0 where masked.

  Fields:
    logp, entropy: of the policy.
    pair: divergence of the policy from the other distribution, or None.
    other: log-probability of the token under the other one, or None.
  """
  logp: Array
  entropy: Array
  pair: Array | None = None
  other: Array | None = None


def token_scores(
    policy: Policy,
    params: Any,
    hidden: Array,
    tokens: Array,
    mask: Array,
    temperature: Array,
    *,
    other_params: Any = None,
    other_hidden: Array | None = None,
    divergence: divergences.Divergence = divergences.kl,
) -> TokenScores:
  """Log-probability and entropy of each token, chunked over tokens.

  Args:
    policy: the model and its constants.
    params: its parameters.
    hidden: [N, G, T, D], aligned to the predicted token.
    tokens: i32[N, G, T].
    mask: bool[N, G, T]; results are 0 where False.
    temperature: f32[], logits are divided by it.
    other_params, other_hidden: parameters and hidden states of a second
      distribution (a reference, another view of the prompt), or None.
    divergence: of the first from the second, a sum over V.
  """
  n, g, t = tokens.shape
  params, other_params = map(policy.gathered, (params, other_params))
  # Chunks run along G x T and keep N whole: where N is divided over devices
  # each of them makes the logits of its own prompts, and of no others.
  size = policy.head_chunk * policy.layout.shards(n) // n
  chunks = -(-g * t // max(size, 1))
  size = -(-g * t // chunks)  # even chunks: little padding in the last
  pad = chunks * size - g * t

  def rows(x):
    x = x.reshape((n, g * t) + x.shape[3:])
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape((n, chunks, size) + x.shape[2:]), 1, 0)

  # A masked token may be any id, a banned one included: its log-probability
  # would be -inf and its gradient NaN, so it is read at eos and then dropped.
  inputs = [rows(hidden), rows(jnp.where(mask, tokens, policy.eos_id))]
  if other_hidden is not None:
    inputs.append(rows(other_hidden))

  divided = policy.layout.divides_vocabulary

  def one(inputs):
    logits = policy.logits(params, inputs[0], temperature)
    logp, chosen, entropy = _statistics(logits, inputs[1], divided)
    if other_hidden is None:
      return chosen, entropy
    other = policy.logits(other_params, inputs[2], temperature)
    other_logp, other_chosen, _ = _statistics(other, inputs[1], divided)
    return chosen, entropy, divergence(logp, other_logp), other_chosen

  # The checkpoint makes the backward pass rebuild a chunk's logits instead of
  # keeping all of them.
  one = jax.checkpoint(one)
  if chunks == 1:
    outputs = one([x[0] for x in inputs])
  else:
    outputs = jax.lax.map(one, inputs)

  def back(x):
    x = x[None] if chunks == 1 else x
    x = jnp.moveaxis(x, 0, 1).reshape(n, -1)[:, :g * t]
    return jnp.where(mask, x.reshape(n, g, t), 0.0)

  return TokenScores(*map(back, outputs))


def score(
    policy: Policy,
    params: Any,
    prefix: types.Prefix,
    block: types.Block,
    temperature: Array,
    *,
    ref_params: Any = None,
    looks: Sequence[tuple[looks_lib.Look, types.Prefix]] = (),
) -> types.Scores:
  """Scores of a block under `params`, given its prompts' prefix.

  With `ref_params` and `block.ref_hidden`, `pairs['kl_ref']` holds the exact
  KL(policy || reference) of every token. `value` is there if the model has
  that head: entry t is the state's value before token t is chosen.

  Args:
    policy: the model and its constants.
    params: all parameters.
    prefix: of the block's prompts.
    block: reads prompts, completions, mask, ref_hidden.
    temperature: f32[].
    ref_params: see above.
    looks: other views of the prompts with their prefixes: `views[name]`, and
      `pairs[name]` where they have a divergence.
  """
  hidden = hidden_states(
      policy, params, prefix, block.prompts, block.completions)
  tokens, mask = block.completions.tokens, block.mask
  own = token_scores(
      policy, params, hidden, tokens, mask, temperature,
      other_params=ref_params, other_hidden=block.ref_hidden)
  pairs = {} if own.pair is None else {'kl_ref': own.pair}
  views: dict[str, Array] = {}
  for look, look_prefix in looks:
    seen = params if look.gradient else jax.lax.stop_gradient(params)
    states = hidden_states(
        policy, seen, look_prefix, block.prompts, block.completions)
    if look.divergence is None:
      views[look.name] = token_scores(
          policy, seen, states, tokens, mask, temperature).logp
    else:
      both = token_scores(
          policy, params, hidden, tokens, mask, temperature,
          other_params=seen, other_hidden=states, divergence=look.divergence)
      views[look.name], pairs[look.name] = both.other, both.pair
  value = None
  if 'value' in policy.module.config.scalars:
    value = policy.apply(params, hidden, 'value', method='scalar')
    value = jnp.where(mask, value, 0.0)
  return types.Scores(
      logp=own.logp, entropy=own.entropy, views=views, pairs=pairs,
      value=value)


def reward(
    policy: Policy, params: Any, prompts: types.Prompts,
    completions: types.Completions, prefix: types.Prefix | None = None,
) -> Array:
  """f32[N, G], what the head 'reward' says at each completion's last token.

  A completion without tokens is judged at the end of its prompt. `prefix`: of
  the prompts, where it is there already.
  """
  if prefix is None:
    prefix = policy.prompt_pass(params, prompts)
  mask = completion_mask(completions)
  params = policy.gathered(params)
  hidden = policy.apply(
      params, prefix, prompts.mask, completions.tokens, completions.positions,
      mask, completions.segment, None, completions.media,
      method='completion_pass')
  length = jnp.sum(mask, -1)
  last = jnp.take_along_axis(
      hidden, jnp.maximum(length - 1, 0)[..., None, None], axis=2)[:, :, 0]
  last = jnp.where(length[..., None] > 0, last, prefix.last[:, None])
  return policy.apply(params, last, 'reward', method='scalar')


def logp_and_hidden(
    policy: Policy,
    params: Any,
    prompts: types.Prompts,
    completions: types.Completions,
    mask: Array,
    temperature: Array,
) -> tuple[Array, Array]:
  """A pass without gradient, for old and reference log-probabilities.

  Returns:
    logp f32[N, G, T] and the aligned hidden states [N, G, T, D].
  """
  prefix = policy.prompt_pass(params, prompts)
  hidden = hidden_states(policy, params, prefix, prompts, completions)
  logp = token_scores(
      policy, params, hidden, completions.tokens, mask, temperature).logp
  return jax.lax.stop_gradient((logp, hidden))
