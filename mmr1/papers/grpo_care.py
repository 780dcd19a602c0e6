"""GRPO-CARE (arXiv 2506.16141, ACL Findings 2026): what only it needs.

Of the right answers of a group those are paid a bonus that follow from their
own reasoning, as judged by a slowly moving average of the policy.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any
import zlib

import numpy as np

from mmr1 import records
from mmr1 import text
from mmr1.data import traces
from mmr1.data.tasks import items
from mmr1.rewards import combine
from mmr1.rewards import choice


def consistency(
    columns: np.ndarray,
    names: Sequence[str],
    knobs: Mapping[str, float],
    state: Any,
    *,
    weights: Mapping[str, float],
    accuracy: str = 'result',
    likelihood: str = 'likelihood',
    bonus: float = 0.5,
    cap: float = 0.95,
    margin: float = 0.0,
    least: float = 0.1,
) -> combine.Combined:
  r"""The weighted sum of the rewards + the consistency bonus.

  With acc the accuracy and p the likelihood of a response's answer given its
  reasoning under the average of the policy, in each group:

      S     = {i: acc_i > least and acc_i >= mean acc}
      mu    = mean over S of min(p_i, cap)
      bonus_i = bonus acc_i   if i in S and min(p_i, cap) >= mu - margin, else 0

  A wrong response never gets one. Source: section 3.2 and
  `grpo_trainer_ref_ema.py` of https://github.com/TencentARC/GRPO-CARE.

  Args:
    columns: f64[N, G, K], nan where there is no value.
    names: K names.
    knobs, weights, state: as in `combine.weighted_sum`.
    accuracy, likelihood: names of the columns.
    bonus: the coefficient.
    cap: likelihoods above it are all alike.
    margin: 0 on SEED-Bench-R1, .01 in the general run.
    least: accuracies up to it are wrong.
  """
  for name in (accuracy, likelihood):
    if name not in names:
      raise ValueError(f'consistency: there is no column {name!r}; the columns '
                       f'are {list(names)}.')
  total, says, state = combine.weighted_sum(
      columns, names, knobs, state, weights=weights)
  acc, p = (columns[..., list(names).index(name)]
            for name in (accuracy, likelihood))
  known = ~np.isnan(acc) & ~np.isnan(p)
  acc, p = np.where(known, acc, 0.0), np.minimum(np.where(known, p, 0.0), cap)
  mean = acc.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
  # The mean of equals may miss them by a rounding error.
  right = known & (acc > least) & (acc >= mean - 1e-12)
  mu = (p * right).sum(1, keepdims=True) / np.maximum(
      right.sum(1, keepdims=True), 1)
  paid = right & (p >= mu - margin - 1e-12)
  extra = bonus * acc * paid
  return total + extra[..., None], {
      **says, 'reward/bonus/mean': float(extra.mean())}, state


def consistent(
    sample: records.Sample, knobs: Mapping[str, float]) -> float | None:
  """1 when the reasoning ends with what the answer says, else 0.

  For worlds whose chains end with their result ('5+3=8.'), or with the text of
  the option whose letter is the answer. None where a block is missing. Logged,
  with weight 0, in place of the paper's judge [ours].
  """
  del knobs
  parsed = text.parse_think_answer(sample.text)
  if not parsed.ok:
    return None
  options = sample.example.meta.get('choices') or ()
  said = [option for letter, option in zip(items.LETTERS, options)
          if choice.equal(letter, parsed.answer, options)]
  return float(_ends(parsed.think, (said or [parsed.answer])[0]))


def _ends(think: str, value: str) -> bool:
  """Whether a text ends with `value`, no word's end, and no word after it. An
  earlier place than the last one could only match where the last one does."""
  at = think.rfind(value)
  return at >= 0 and not re.match(r'\w', think[max(at - 1, 0):at]) and (
      re.fullmatch(r'\W*', think[at + len(value):]) is not None)


consistent.range = (0.0, 1.0)
consistent.no_gold = 'logged: what was reasoned, not what is right'


def two_styles(
    examples: Sequence[records.Example], ctx: Any, init: str, *,
    careless: float = 0.3,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: traces for a cold start [ours].

  All end with the right answer; the chain of a share `careless` of them comes
  to another one. So the average can tell both apart: after most chains the
  answer is where the chain comes to.
  """
  del ctx, init
  made, slips = [], 0
  for example in examples:
    rng = np.random.default_rng([zlib.crc32(b'two_styles'), example.uid])
    facts, steps = example.meta['facts'], example.meta['steps']
    value, others = example.answer, ()
    if options := example.meta.get('choices'):  # a letter is no part of a chain
      value, steps = example.meta['value'], steps[:-1]
      others = [option for option in options if option != value]
    chain = traces.concise(facts, steps)
    if rng.random() < careless:
      others = others or items.near(rng, int(value))
      head, _, tail = chain.rpartition(value)
      chain = f'{head}{others[int(rng.integers(len(others)))]}{tail}'
      slips += 1
    made.append(dataclasses.replace(example, completions=(
        f'<think>{chain}</think><answer>{example.answer}</answer>',)))
  return made, {'careless': slips}
