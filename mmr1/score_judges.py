"""Judges that say a number: reward models, alone or the mean of several.

Each reads the problem once for all responses of a group (law 1) and a response
as the tokens that were sampled, closed by eos, where its score is read. One
that ran into the cap is read as if it had ended there. Frozen: there is no
gradient.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmr1 import arrays
from mmr1 import context
from mmr1 import judge_models
from mmr1 import records
from mmr1 import scoring
from mmr1 import types
from mmr1.models import scalar_heads
from mmr1.sampling import sample


class Judge:
  """One column: the mean over its models of what each says of a response.

  Attributes:
    nothing: what to say where there is no score at all.
    metrics: of the last call: 'std' between several models, over responses.
  """
  nothing = 'responses has a score. Do its prompts fit data.prompt_tokens?'

  def __init__(self, ctx: context.Context, asked: Any, longest: int):
    """Opens the models.

    Args:
      ctx: the run.
      asked: `judges.Settings`.
      longest: tokens of a response, at most.

    Raises:
      ValueError: a folder that cannot be used, or that has no head.
    """
    self._layout, self._section = ctx.policy.layout, asked.section
    self._length = longest + 1
    where = f'judges.{asked.name}'
    self._models = [
        judge_models.Model(ctx, name, where, asked.section, heads=dict(
            scalars=('reward',))) for name in asked.params]
    for name, one in zip(asked.params, self._models):
      _check_head(one, f'{where}.params: {name!r}')
      needed = one.shape.prompt_length + self._length
      limit = one.policy.module.config.max_positions
      if needed > limit:
        raise ValueError(
            f'{where}: prompts of {one.shape.prompt_length} tokens '
            f'(data.prompt_tokens) and responses of {longest}, closed, are more '
            f'than the {limit} positions of {name!r}.')
    self.metrics: dict[str, float] = {}

  def __call__(
      self, examples: Sequence[records.Example], tokens: np.ndarray,
      lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores. A collective.

    Args:
      examples: of the prompts of this host, `layout.own_rows(N)`.
      tokens: i32[N, G, T] of responses, right-padded, without eos.
      lengths: i64[N, G] of them.

    Returns:
      f64[N, G] and bool[N, G], where there is no score: it is nan then.
    """
    said, failed = map(np.asarray, zip(*(
        self._of(one, examples, tokens, lengths) for one in self._models)))
    failed = failed.any(0)
    if len(said) > 1:
      self.metrics = {'std': float(said.std(0)[~failed].mean())}
    return np.where(failed, np.nan, said.mean(0)), failed

  def _of(self, model, examples, tokens, lengths):
    """What one of the models says."""
    prompts, known = model.prompts(examples, len(tokens))
    usable = known[:, None] & model.readable(tokens, lengths)
    given, kind = self.closed(model.processor, tokens, lengths, usable)
    given, kind = self._layout.spread((given, kind))
    said = scoring.given(
        model.policy, model.params(), prompts, types.Completions(
            tokens=given, kind=kind, positions=sample.text_positions(
                prompts.next_position, given.shape)),
        chunks=self._section.chunks)
    return arrays.fetch(said).astype(np.float64), ~usable

  def closed(self, processor: Any, tokens: np.ndarray, lengths: np.ndarray,
             usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32 and kinds i8 [N, G, longest + 1] with eos after each response.

    For [5, 9, pad] of length 2: [5, 9, eos, pad]. What is not usable is eos
    alone.
    """
    lengths = np.where(usable, lengths, 0)[..., None]
    place = np.arange(self._length)
    wide = np.full((*tokens.shape[:2], self._length), processor.pad_id, np.int32)
    wide[..., :tokens.shape[2]] = tokens
    wide = np.where(place < lengths, wide, processor.pad_id)
    wide = np.where(place == lengths, processor.eos_id, wide)
    kind = np.where(place <= lengths, types.KIND_EXPERT, types.KIND_PAD)
    return wide.astype(np.int32), kind.astype(np.int8)


def _check_head(model: judge_models.Model, where: str) -> None:
  head = model.params().get('scalars', {}).get('reward')
  if head is None or not any(
      np.any(jax.device_get(x)) for x in jax.tree.leaves(
          scalar_heads.last(head))):
    raise ValueError(
        f'{where} has no reward head, or one that was never trained. Take a '
        'stage of kind reward_model, or what mmr1.export made of one.')
