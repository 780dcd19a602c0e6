"""Completions that go on from an edited form of themselves: the `revise` socket.

Two host functions of the rl section, after the rewards of a rollout are known
and before anything else is made of it:

`revise.fn`: (samples, columns, meta, rng, *, ...) -> {(group, slot): records.Edit}
`revise.keep`: (before, after, meta, *, ...) -> bool[N, G]

  samples: this host's, as `records.Sample`.
  columns: {name: f64[N, G]}, all rewards of the rollout; nan: no value.
  meta: 'done' bool[N, G], ended by eos; 'lengths' int[N, G], tokens. For `keep`
    of the continued completions, with 'new' int[N, G], tokens sampled behind
    what was put in, and 'asked' bool[N, G].
  rng: (*address) -> np.random.Generator; () is one that every host has alike,
    (group, slot) one of a sample.
  before, after: columns of the completions as they were, and as they are.

What is kept takes the place of the completion it came from, with its rewards;
the others stay as they were. Tokens are never made of text again: an edit keeps
whole tokens of what was sampled, and only what is put in is encoded.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import asking
from mmr1 import context
from mmr1 import hosts
from mmr1 import records
from mmr1 import rl_setup
from mmr1 import rollouts as rollouts_lib
from mmr1 import types
from mmr1.data import encode
from mmr1.rewards import combine
from mmr1.rewards import score as score_lib
from mmr1.sampling import keys
from mmr1.sampling import read as read_lib
from mmr1.sampling import sample as sample_lib

_VIEW = 0x4ed  # in the key law: what no sampler draws from


class Revising:
  """Of one stage; without a function everything stays as it is."""

  def __init__(self, ctx: context.Context, stage: str, section: Any,
               plan: rl_setup.Plan, rollouts: rollouts_lib.Rollouts):
    self._ctx, self._stage, self._section = ctx, stage, section
    self._plan, self._rollouts = plan, rollouts

  def __call__(self, state: types.TrainState, made: asking.Made, k: int,
               round_: int = 0) -> asking.Made:
    """The rollout with its revisions, scored."""
    if self._plan.revise is None:
      return made
    before = self._rollouts.scored(made)
    given, put = self._given(made, before, k, round_)
    asked = put.any(-1)
    again = self._sampled(state, made, given, put, k, round_)
    after = self._rollouts.scored(again)
    lengths = again.host.lengths
    keep = asked & self._plan.revise_keep(
        before.named(), after.named(), {
            'done': again.host.done, 'lengths': lengths, 'asked': asked,
            'new': lengths - given.length})
    return _merged(made, before, again, after, keep, {
        'revise/asked': asked.mean(), 'revise/kept': keep.mean()})

  def _rng(self, k: int, round_: int) -> Callable[..., np.random.Generator]:
    start = [self._ctx.config.seed, self._ctx.index(self._stage), k, round_, 3]
    # With its length: a trailing 0 seeds what the shorter address has (M27).
    return lambda *more: np.random.default_rng([*start, 1 + len(more), *more])

  def _given(self, made, before, k, round_):
    """`Given` of every completion, and bool[N, G, T], what was put in. One that
    is not asked is given eos alone, so that it costs a step."""
    host, processor = made.host, self._ctx.processor
    edits, error = hosts.attempt(lambda: self._edits(
        made, before, self._rng(k, round_)), {})
    tokens = np.full(host.tokens.shape, processor.eos_id, np.int32)
    length = np.ones(tokens.shape[:2], np.int32)
    put = np.zeros(tokens.shape, bool)
    for part in hosts.share(edits, error):
      for (i, j), (kept, ids) in part.items():
        # There is room for one token more at least.
        if kept + len(ids) < tokens.shape[2]:
          length[i, j] = kept + len(ids)
          tokens[i, j, :kept] = host.tokens[i, j, :kept]
          tokens[i, j, kept:length[i, j]] = ids
          put[i, j, kept:length[i, j]] = True
    return sample_lib.Given(tokens, length), put

  def _edits(self, made, before, rng):
    """{(row, slot): (tokens kept, ids put in)} of this host's samples."""
    host, processor = made.host, self._ctx.processor
    samples = {(s.group, s.slot): s for s in made.samples}
    edits = self._plan.revise(
        made.samples, before.named(),
        {'done': host.done, 'lengths': host.lengths}, rng)
    return {place: (kept_tokens(samples[place], edit.said, processor),
                    encode.encode_given([edit.put], processor))
            for place, edit in edits.items()}

  def _sampled(self, state, made, given, put, k, round_) -> asking.Made:
    """The continued completions, whose rewards are on their way."""
    ctx, section = self._ctx, self._section
    sampler = ctx.sampler
    rollout = sampler(
        sampler.publish(state.params['policy']), made.rollout.prompts,
        keys.step_key(ctx.config.seed, ctx.index(self._stage), k,
                      round_=round_, view=_VIEW),
        self._plan.sampling.replace(sharpness=np.float32(
            section.temperature / section.revise.temperature)),
        state.step, group=section.samples_per_prompt,
        length=section.max_new_tokens, given=given)
    kind = np.where(put, types.KIND_FORCED, types.KIND_SAMPLED)
    rollout = _with_kind(rollout, ctx.policy.layout.spread(
        kind.astype(np.int8)))
    return self._rollouts.made(
        made.at, made.step, made.prompted, made.asked, rollout,
        inserted=True)


def kept_tokens(sample: records.Sample, said: str, processor: Any) -> int:
  """How many of a sample's tokens say `said`, or as much of it as whole tokens
  do.

  Raises:
    ValueError: it is no prefix of the sample's text.
  """
  if not sample.text.startswith(said):
    raise ValueError(f'revise: {said[-40:]!r} is the end of no prefix of the '
                     f'completion {sample.text!r}.')
  low, high = 0, len(sample.tokens)
  while low < high:
    middle = (low + high + 1) // 2
    # Where a character is several tokens, its first ones say U+FFFD, which is no
    # part of the text: without it, more tokens never say less.
    whole = encode.decode(sample.tokens[:middle], processor).rstrip('\ufffd')
    if said.startswith(whole) and (
        sample.tokens[middle - 1] != processor.eos_id):
      low = middle
    else:
      high = middle - 1
  while not said.startswith(encode.decode(sample.tokens[:low], processor)):
    low -= 1
  return low


@jax.jit
def _with_kind(rollout: types.Rollout, kind: jax.Array) -> types.Rollout:
  """Of what is there, which tokens were put in."""
  completions = rollout.completions
  return rollout.replace(completions=completions.replace(
      kind=jnp.where(completions.kind > 0, kind, 0)))


@jax.jit
def _chosen(keep: jax.Array, new: Any, old: Any) -> Any:
  """Of two trees of [N, G, ...] the completions `keep` bool[N, G] of `new`."""
  def one(a, b):
    return jnp.where(
        keep.reshape(keep.shape + (1,) * (a.ndim - 2)), a, b)
  return jax.tree.map(one, new, old)


def _merged(made: asking.Made, before: score_lib.Scored, again: asking.Made,
            after: score_lib.Scored, keep: np.ndarray,
            says: Mapping[str, float]) -> asking.Made:
  """`made` with the completions `keep` of `again`."""
  old, new = made.rollout, again.rollout
  fields = ('completions', 'logp', 'behaviour', 'done', 'entropy')
  chosen = _chosen(keep, *({name: getattr(x, name) for name in fields}
                           for x in (new, old)))
  host = read_lib.Host(
      *(np.where(keep.reshape(keep.shape + (1,) * (a.ndim - 2)), a, b)
        for a, b in zip(again.host[:3], made.host[:3])), inserted=True)
  samples = [b if keep[a.group, a.slot] else a
             for a, b in zip(made.samples, again.samples)]
  columns = np.where(keep[..., None], after.columns, before.columns)
  # What failed is a share of all calls; both scorings had as many.
  failed = {name: (x + after.metrics[name]) / 2
            for name, x in before.metrics.items() if name.endswith('_frac')}
  scored = dataclasses.replace(
      before, columns=columns, failures=before.failures + after.failures,
      metrics={**before.metrics, **failed,
               **combine.means(columns, before.names), **says})
  return made._replace(rollout=old.replace(**chosen), host=host,
                       samples=samples, scored=scored)
