"""Rows of the samples file of an rl stage, with numbers of single tokens.

Of every row: what was asked and said, each reward, the combined one, and the
advantage. Of `count` rows a step also its first tokens, as they were sampled:

    'tokens': {'text': ['7', ...], 'kind': 'ss...', 'logp': [-0.12, ...],
               'entropy': [...], 'advantage': [...], ...}

`kind` is a letter a token: s(ampled), o(bservation), f(orced: put in) or
e(xpert). Numbers are there where something has made them: nothing is computed
for this file. None stands where a token has none, as what an environment says.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmr1 import arrays
from mmr1 import columns as columns_lib
from mmr1 import judged as judged_lib
from mmr1 import records
from mmr1 import types
from mmr1.data import encode
from mmr1.data import processor as processor_lib

LETTERS = {types.KIND_SAMPLED: 's', types.KIND_OBSERVATION: 'o',
           types.KIND_FORCED: 'f', types.KIND_EXPERT: 'e'}
TOKENS = 1024  # of a completion, at most
# What the sampler says; it has not seen an expert's tokens.
_SAMPLER = ('entropy', 'logp')

Numbers = dict[str, np.ndarray]  # f32[N, G, T] each


def rows(filled: judged_lib.Filled, groups: int,
         processor: processor_lib.Processor, *,
         count: int) -> list[dict[str, Any]]:
  """Of the first groups of this host. A collective.

  Args:
    filled: a step's completions.
    groups: how many.
    processor: names tokens.
    count: rows that have tokens, best and worst of every group first; 0: none.
  """
  judged = filled.judged
  reward = columns_lib.total(judged.rewards)
  shown = [s for s in judged.samples[:groups * judged.keep.shape[1]]
           if s.tokens]
  numbers = _numbers(filled) if count else {}
  chosen = _chosen(shown, reward, count)
  piece = _pieces(processor)
  return [{
      **_row(s, filled, reward),
      **({'tokens': of_tokens(s, numbers, piece)} if i in chosen else {})}
          for i, s in enumerate(shown)]


def _row(s: records.Sample, filled: judged_lib.Filled,
         reward: np.ndarray) -> dict[str, Any]:
  judged, at = filled.judged, (s.group, s.slot)
  return {
      'prompt': s.example.asked, 'images': list(s.example.images),
      'answer': s.example.answer, 'completion': s.text, 'length': s.length,
      'truncated': s.truncated, 'uid': s.uid, 'group': s.group,
      'slot': s.slot,
      'rewards': dict(zip(
          judged.scored.names, map(float, judged.scored.columns[at]))),
      'reward': float(reward[at]), 'advantage': _advantage(filled, at),
      'kept': int(judged.keep[at]), **episode(s)}


def _advantage(filled: judged_lib.Filled, at: tuple[int, int]) -> float:
  """That of the completion; the mean of those of its tokens."""
  value = filled.judged.advantage[at]
  if len(value) == 1:
    return float(value[0])
  said = filled.arrays.spoken[at]
  return float(value[said].mean()) if said.any() else 0.0


def episode(s: records.Sample) -> dict[str, Any]:
  """Who said what, with the images that came; nothing without an environment.
  """
  if not s.end:
    return {}
  return {'end': s.end, 'turns': [
      {'role': turn.role, 'text': turn.text, 'images': list(turn.images),
       **({} if turn.call is None else {'call': records.thawed(turn.call)}),
       **({'error': turn.error} if turn.error else {})} for turn in s.turns]}


def _numbers(filled: judged_lib.Filled) -> Numbers:
  """What is known of tokens, of all hosts."""
  rollout = filled.rollout
  found = {'entropy': rollout.entropy, 'logp': rollout.logp,
           'value': rollout.value}
  for name, seen in filled.looks.items():
    found[f'divergence of {name}'] = seen.pair
  found = arrays.fetch({
      name: x for name, x in found.items() if x is not None})
  made = {'advantage': filled.judged.advantage, **filled.judged.extra}
  return found | {name: x for name, x in made.items() if x.shape[-1] > 1}


def _chosen(samples: Sequence[records.Sample], reward: np.ndarray,
            count: int) -> set[int]:
  """`count` indices: of every group in turn the best, the worst, the second
  best, and so on."""
  groups: dict[int, list[int]] = {}
  for i, s in enumerate(samples):
    groups.setdefault(s.group, []).append(i)
  ranked = []
  for indices in groups.values():
    ordered = sorted(indices, key=lambda i: -np.nan_to_num(
        reward[samples[i].group, samples[i].slot], nan=-np.inf))
    ranked += [(turn, i) for turn, i in enumerate(
        ordered.pop(0 if turn % 2 == 0 else -1)
        for turn in range(len(ordered)))]
  return {i for _, i in sorted(ranked)[:count]}


def of_tokens(s: records.Sample, numbers: Numbers,
              piece: Callable[[int], str]) -> dict[str, Any]:
  """The first tokens of a sample, with their numbers."""
  tokens = s.tokens[:TOKENS]
  kind = ''.join(LETTERS[k] for k in s.kinds[:TOKENS])
  texts = [piece(token) for token in tokens]
  # Cells of an image are one token again and again: named once.
  texts = ['' if kind[i] == 'o' and i and token == tokens[i - 1] else texts[i]
           for i, token in enumerate(tokens)]
  found: dict[str, Any] = {'text': texts, 'kind': kind}
  for name, array in numbers.items():
    values, not_of = array[s.group, s.slot], 'oe' if name in _SAMPLER else 'o'
    found[name] = [None if letter in not_of else _short(values[i])
                   for i, letter in enumerate(kind)]
  if len(s.tokens) > TOKENS:
    found['left_out'] = len(s.tokens) - TOKENS
  return found


def _short(value: Any) -> float | None:
  return float(f'{value:.3g}') if np.isfinite(value) else None


def _pieces(processor: processor_lib.Processor) -> Callable[[int], str]:
  """The text of a token by itself; the name of a special one."""
  known: dict[int, str] = {}

  def piece(token: int) -> str:
    if token not in known:
      name = str(processor.tokenizer.convert_ids_to_tokens(token))
      text = encode.decode([token], processor) or name
      # What a SentencePiece tokenizer drops at the start of a text.
      known[token] = f' {text}' if (
          name.startswith('\u2581') and not text.startswith(' ')) else text
    return known[token]
  return piece
