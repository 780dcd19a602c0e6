r"""Metis-SPECS (arXiv 2510.25801, ICLR 2026): what only it needs.

The cold start is a preference: of two responses with the same content the one
in the right form is chosen. Both are the policy's own, after a short RL run:

    chosen    a right answer in the right form, whose reasoning a screen accepts
    rejected  the same text with its tags broken, in one of five ways

Four ways are named by digests of the paper; the fifth ('open') completes their
number and is ours. The stage `preference` does the rest.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

import numpy as np

from mmr1 import records
from mmr1 import resolve
from mmr1 import text
from mmr1.rewards import answer
from mmr1.rewards import format as format_lib
from mmr1.rewards import score
from mmr1.sampling import several

KINDS = ('bare', 'no_answer', 'displaced', 'plain', 'open')
_TAGS = re.compile(r'</?(?:think|answer)>|\bReasoning:|\bAnswer:')


def corrupt(said: str, kind: str) -> str:
  """A well-formed response with its form broken; not a word is changed.

  '<think>3+4=7.</think><answer>7</answer>' as
    bare       '3+4=7.\\n7'
    no_answer  '<think>3+4=7.</think>\\n7'
    displaced  '<answer>3+4=7.</answer><think>7</think>'
    plain      'Reasoning: 3+4=7.\\nAnswer: 7'
    open       '<think>3+4=7.<answer>7</answer>'

  Raises:
    ValueError: an unknown kind, or a text that is not well-formed.
  """
  if not text.parse_think_answer(said).ok:
    raise ValueError(f'corrupt: {said[:200]!r} is not well-formed.')
  think, _, last = said.strip().removeprefix('<think>').partition('</think>')
  last = last.strip().removeprefix('<answer>').removesuffix('</answer>')
  think, last = think.strip(), last.strip()
  made = {'bare': f'{think}\n{last}',
          'no_answer': f'<think>{think}</think>\n{last}',
          'displaced': f'<answer>{think}</answer><think>{last}</think>',
          'plain': f'Reasoning: {think}\nAnswer: {last}',
          'open': f'<think>{think}<answer>{last}</answer>'}
  if kind not in made:
    raise ValueError(f'corrupt: got kind={kind!r}; allowed are {KINDS}.')
  return made[kind]


def stripped(said: str) -> str:
  """A response without tags and without what `plain` puts in their place."""
  return ' '.join(_TAGS.sub(' ', said).split())


def pairs(
    examples: Sequence[records.Example],
    ctx: Any,
    init: str,
    *,
    rollouts: int = 8,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    kinds: Sequence[str] = KINDS,
    screen: str = '',
    rejects: str = 'chosen',
    coupled: bool = False,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: a self-distilled pair of every problem solved.

  Args:
    examples: problems with answers.
    ctx: the run.
    init: the model whose responses are chosen from.
    rollouts, max_new_tokens, temperature: of every problem's responses.
    kinds: of corruption, one after the other.
    screen: a reward that a chosen response must earn whole, in place of the
      paper's judge of reasoning; '': none.
    rejects: 'chosen': the rejected response is the chosen one, corrupted; or a
      model, of whose right responses it is one.
    coupled: an ablation: where a problem has a wrong response, that is what is
      corrupted, so that content differs as well.

  Returns:
    Examples with (chosen, rejected), and counts: examples = kept + 'unsolved'
    (no response is right, well-formed and accepted) + 'no_reject'; of the
    rejected '<kind>', 'as_it_was' (it had no form to break) and 'wrong'.

  Raises:
    ValueError: an unknown kind, or a reward that is not there.
  """
  for kind in kinds:
    if kind not in KINDS:
      raise ValueError(f'pairs: got kind {kind!r}; allowed are {KINDS}.')
  given = dict(count=rollouts, max_new_tokens=max_new_tokens,
               temperature=temperature)
  said = several.responses(ctx, ctx.params(init), examples, **given)
  judged = _judged(said, screen)
  others = said
  if rejects != 'chosen':
    others = several.responses(
        ctx, ctx.params(rejects), examples, draw=1, **given)
  counts = dict.fromkeys((
      'examples', 'unsolved', 'no_reject', *kinds, 'as_it_was', 'wrong'), 0)
  counts['examples'] = len(examples)
  made = []
  for example, own, marks, theirs in zip(examples, said, judged, others):
    best = [s.text for s, mark in zip(own, marks) if mark == 'best']
    if not best:
      counts['unsolved'] += 1
      continue
    wrong = [s.text for s, mark in zip(own, marks) if mark == 'wrong']
    if coupled and wrong:
      worse = wrong[0]
      counts['wrong'] += 1
    elif rejects == 'chosen':
      worse = best[0]
    else:
      right = [s.text for s in theirs if _right(s.text, example)]
      if not right:
        counts['no_reject'] += 1
        continue
      worse = right[0]
    kind = 'as_it_was'
    if text.parse_think_answer(worse).ok:
      kind = kinds[len(made) % len(kinds)]
      worse = corrupt(worse, kind)
    counts[kind] += 1
    made.append(dataclasses.replace(example, completions=(best[0], worse)))
  return made, counts


def _judged(
    said: Sequence[Sequence[records.Sample]], screen: str,
) -> list[list[str]]:
  """Of every sample 'best' (right, well-formed, accepted), 'wrong' or ''."""
  rewards = {'right': score.Reward(answer.correct),
             'form': score.Reward(format_lib.think_answer)}
  if screen:
    rewards['screen'] = score.Reward(resolve.function(screen, 'mmr1.rewards'))
  flat = [s for group in said for s in group]
  columns = score.Scorer(rewards).score(flat, len(flat), 1, {}).columns[:, 0]
  best = np.all([x >= reward.fn.perfect for x, reward in zip(
      columns.T, rewards.values())], axis=0)
  marks = iter(['best' if good else 'wrong' if lost else '' for good, lost in
                zip(best, (columns[:, 0] == 0) & (columns[:, 1] == 1))])
  return [[next(marks) for _ in group] for group in said]


def _right(said: str, example: records.Example) -> bool:
  """Whether an answer in any form is right."""
  return answer.right(text.extract_answer(said, strict=False), example)


def generalisation(
    inside: float, outside: float, *, beta: float = 2.0) -> float:
  r"""Gamma = (1 + b^2) G_in G_out / (b^2 G_in + G_out), of gains over the base.

  An F-score of gains in which beta > 1 has those out of the distribution count
  more: (10, 5) is 5.5556, (5, 10) 8.3333. 0 where one of them is no gain: the
  paper leaves it undefined where both are none [ours].
  """
  if inside <= 0 or outside <= 0:
    return 0.0
  square = beta * beta
  return (1 + square) * inside * outside / (square * inside + outside)


def factor(
    metrics: Mapping[str, float],
    base: Mapping[str, float],
    *,
    outside: str,
    beta: float = 2.0,
    accuracy: str = 'accuracy_sampled',
) -> dict[str, float]:
  """The Generalisation Factor of an evaluation, a function of `summary`.

  Args:
    metrics, base: of this model and of the base.
    outside: name of the evaluation out of the distribution.
    beta: see `generalisation`.
    accuracy: which one.

  Returns:
    'eval/gain/in' and 'eval/gain/out' in points, 'eval/generalisation_factor'.
  """
  gains = [100 * (metrics[name] - base[name]) for name in (
      f'eval/{accuracy}', f'eval/{outside}/{accuracy}')]
  return {'eval/gain/in': gains[0], 'eval/gain/out': gains[1],
          'eval/generalisation_factor': generalisation(*gains, beta=beta)}
