"""Pairs of completions as blocks, and how well a reward model orders them.

An example with completions (chosen, rejected) is one prompt row with G = 2.
"""

from collections.abc import Sequence
import hashlib
import json
from typing import Any

import jax
import numpy as np

from mmr1 import arrays
from mmr1 import asking
from mmr1 import context
from mmr1 import records
from mmr1 import scoring
from mmr1 import significance
from mmr1 import types
from mmr1 import workdir as workdir_lib
from mmr1.data import encode
from mmr1.data import pipeline
from mmr1.data import sources
from mmr1.sampling import sample

TIES = ('half', 'wrong')
_BOTH_ORDERS = (0, 1, 1, 0)


def assemble(
    pairs: Sequence[pipeline.Pair], shape: pipeline.Shape, length: int, *,
    order: Sequence[int] | None = None, pad_rows: int = 0) -> types.Block:
  """A block of N prompts with their completions, closed by eos.

  For ids [5, 2] and [7, 9, 2] under T = 4: tokens [[5, 2, pad, pad],
  [7, 9, 2, pad]]. `extra` has f32[N, G, 1] each: 'margin', the record's (1
  where it has none), and 'label', its `labels` (1 of the first completion and
  0 of the others where it has none).

  Args:
    pairs: examples with completions, and their prompts encoded.
    shape: how prompts are written.
    length: T; no completion is longer.
    order: which completions; None: all of them.
    pad_rows: rows without completions, to fill a batch.
  """
  chosen = [_chosen(example, order, shape) for example, _ in pairs]
  g = len(chosen[0][0])
  ids, labels, margins = map(list, zip(*chosen))
  prompts = shape.collate([one for _, one in pairs], pad_rows=pad_rows)
  nothing = [np.zeros(0, np.int32)] * g
  tokens, kind = asking.traces(
      [*ids, *[nothing] * pad_rows], g, length, shape.processor.pad_id)
  wide = ((0, pad_rows), (0, 0), (0, 0))
  return types.Block(
      prompts=prompts, completions=types.Completions(
          tokens=tokens, kind=kind, positions=np.asarray(
              sample.text_positions(prompts.next_position, tokens.shape))),
      mask=kind != types.KIND_PAD,
      advantage=np.zeros((len(tokens), g, 1), np.float32),
      extra={'margin': np.pad(np.broadcast_to(np.asarray(
          margins, np.float32)[:, None, None], (len(ids), g, 1)), wide),
             'label': np.pad(np.asarray(labels, np.float32)[..., None], wide)})


def _chosen(example: records.Example, order: Sequence[int] | None,
            shape: pipeline.Shape):
  """Ids of the completions, their labels, the margin."""
  texts = example.completions
  order = range(len(texts)) if order is None else order
  labels = example.meta.get('labels') or [
      float(i == 0) for i in range(len(texts))]
  margin = example.meta.get('margin')
  return ([encode.encode_completion(texts[i], shape.processor) for i in order],
          [float(labels[i]) for i in order],
          1.0 if margin is None else float(margin))


class Evaluation:
  """Held-out pairs, in both orders, opened once."""

  def __init__(self, ctx: context.Context, source: sources.Mixture,
               shape: pipeline.Shape, *, examples: int, rows: int, length: int,
               ties: str):
    """Makes it; nothing is read before the first call.

    Args:
      ctx: the run.
      source: the pairs.
      shape: how they are written.
      examples: how many; rows: of a batch.
      length: of completions, at most.
      ties: what two equal scores count for, of TIES.
    """
    self._ctx, self._source, self._shape = ctx, source, shape
    self._examples, self._rows = examples, rows
    self._length, self._ties = length, ties
    self._pairs: list[pipeline.Pair] = []
    self._broken: list[records.Broken] = []

  def __call__(self, params: Any, stage: str, step: int) -> dict[str, float]:
    """Metrics of these parameters, and the card and the scores on disk."""
    if not self._pairs:
      self._pairs, self._broken = pipeline.all_examples(
          self._source, self._shape, self._examples,
          max_broken_frac=self._ctx.config.data.max_broken_frac)
    said = self._scores(params)
    examples = [example for example, _ in self._pairs]
    metrics = summary(said, examples, self._ties)
    if not jax.process_index():
      self._write(stage, step, said, metrics)
    return metrics

  def _scores(self, params: Any) -> np.ndarray:
    """f64[n, 4]: chosen, rejected, rejected, chosen."""
    found, layout = [], self._ctx.policy.layout
    for start in range(0, len(self._pairs), self._rows):
      part = self._pairs[start:start + self._rows]
      block = layout.spread(assemble(
          part, self._shape, self._length, order=_BOTH_ORDERS,
          pad_rows=self._rows - len(part)))
      found.append(arrays.fetch(scoring.given(
          self._ctx.policy, params, block.prompts,
          block.completions))[:len(part)])
    return np.concatenate(found).astype(np.float64)

  def _write(self, stage, step, said, metrics) -> None:
    asked = hashlib.sha256()
    for example, encoded in self._pairs:
      asked.update(encoded.tokens.tobytes())
      asked.update(json.dumps(example.completions).encode())
    card = {
        'stage': stage, 'step': step, 'n': len(said),
        'broken': len(self._broken), 'prompt_hash': asked.hexdigest()[:16],
        'pixels': self._ctx.processor.pixels, 'ties': self._ties,
        'interval': 'Wilson, 95%', 'metrics': metrics}
    rows = [{'uid': example.uid, 'source': source_of(example),
             'sample': sample_of(example), 'chosen': scores[0],
             'rejected': scores[1], 'texts': example.completions}
            for (example, _), scores in zip(self._pairs, said.tolist())]
    base = self._ctx.path / 'eval' / f'{stage}_{step}'
    workdir_lib.write_whole(
        base.parent / f'{base.name}.json', json.dumps(card, indent=2) + '\n')
    workdir_lib.write_whole(
        base.parent / f'{base.name}.jsonl',
        ''.join(json.dumps(row) + '\n' for row in rows))


def source_of(example: records.Example) -> str:
  """What its accuracy is reported under: the member of the mixture."""
  return example.member.name or example.source.rpartition(':')[0] or 'pairs'


def sample_of(example: records.Example) -> str:
  """Pairs of one sample have the same: `sample` of the record, else its own."""
  return f'{source_of(example)}/{example.meta.get("sample", example.uid)}'


def won(chosen: np.ndarray, rejected: np.ndarray, ties: str) -> np.ndarray:
  """f64[n], 1 where the chosen one has more, 0 where less; of two equal scores
  0.5 (`ties='half'`) or 0 ('wrong')."""
  tie = 0.5 if ties == 'half' else 0.0
  return np.where(chosen == rejected, tie, (chosen > rejected).astype(float))


def summary(said: np.ndarray, examples: Sequence[records.Example],
            ties: str) -> dict[str, float]:
  """What scores of pairs come to.

    eval/pair_accuracy       of pairs whose chosen completion has more
    eval/sample_accuracy     of samples with all of their pairs right (Acc+)
    eval/<source>/pair_accuracy  where there are several sources
    eval/macro_accuracy      the mean of those
    eval/tie_frac            of pairs with equal scores
    eval/order_diff_max      largest change of a score with the order of a pair
    eval/ahead               mean of s_w - s_l
    eval/bradley_terry       mean of -log sigma(s_w - s_l)

  Args:
    said: f64[n, 4], chosen, rejected, and in the other order rejected, chosen.
    examples: n.
    ties: see `won`.
  """
  s = said[:, :2]
  right = won(s[:, 0], s[:, 1], ties)
  n = len(right)
  low, high = significance.wilson(right.sum(), n)
  samples: dict[str, list[float]] = {}
  sources_: dict[str, list[float]] = {}
  for example, one in zip(examples, right):
    samples.setdefault(sample_of(example), []).append(one)
    sources_.setdefault(source_of(example), []).append(one)
  ahead = s[:, 0] - s[:, 1]
  metrics = {
      'eval/pair_accuracy': right.mean(), 'eval/pair_accuracy_low': low,
      'eval/pair_accuracy_high': high,
      'eval/sample_accuracy': np.mean([
          min(every) == 1 for every in samples.values()]),
      'eval/tie_frac': np.mean(ahead == 0),
      'eval/order_diff_max': np.abs(s - said[:, 3:1:-1]).max(),
      'eval/ahead': ahead.mean(),
      'eval/bradley_terry': np.logaddexp(0, -ahead).mean()}
  if len(sources_) > 1:
    each = {name: np.mean(every) for name, every in sorted(sources_.items())}
    metrics |= {f'eval/{name}/pair_accuracy': x for name, x in each.items()}
    metrics['eval/macro_accuracy'] = np.mean([*each.values()])
  return {name: float(x) for name, x in metrics.items()} | {'eval/n': n}
