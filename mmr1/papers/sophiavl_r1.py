"""SophiaVL-R1 (arXiv 2505.17018): what only this paper needs.

A judge scores the reasoning of every response; a group's right and wrong
answers say how far to trust it (Trust-GRPO).
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

import numpy as np

from mmr1 import records
from mmr1 import text
from mmr1.rewards import answer
from mmr1.rewards import choice_set
from mmr1.rewards import combine
from mmr1.rewards import math
from mmr1.rewards import text_overlap


def outcome(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    transcript: str = 'exp',
    choices: str = 'set',
    prefilled: bool = False,
    limit_s: float = math.LIMIT_S,
) -> float | None:
  """The rule reward R° of a completion, by the type of its problem.

      ocr              exp(-WER), see `text_overlap.transcript`
      free-form        mean of ROUGE-1, -2 and -L, F measure
      multiple choice  1 for the same set of choices
      else             1 for the same answer, see `answer.match`

  0 unless the text is one think and one answer block. `$` signs are stripped
  from texts and choices. Source: `verl/utils/reward_score/math.py` of
  https://github.com/kxfan2002/SophiaVL-R1. Its pattern also lets text stand
  between both blocks, and its math grader is another one.

  The type is `example.meta['problem_type']`, of which case, spaces and hyphens
  do not matter; without one 'multiple choice' is an example whose
  `answer.kind` is 'choice' or 'choices'.

  Args:
    sample: the completion.
    knobs: unused.
    transcript: 'exp', as in the code; 'negative', as in the paper: -WER, down
      to -1. A text without the format then earns more than a poor transcript.
    choices: form of `choice_set.equal`: 'set', or 'released'.
    prefilled: the prompt's template already wrote `<think>`.
    limit_s: seconds for symbolic algebra; see `answer.match` for its errors.

  Returns:
    0 to 1, from -1 with transcript='negative'; None when the example has no
    gold answer.
  """
  del knobs
  example = sample.example
  if example.answer is None:
    return None
  parsed = text.parse_think_answer(sample.text, prefilled=prefilled)
  if not parsed.ok:
    return 0.0
  gold, said = (part.replace('$', '') for part in (
      example.answer, parsed.answer))
  type_ = re.sub(r'[^a-z]', '', str(
      example.meta.get('problem_type') or '').lower())
  if type_ == 'ocr':
    return text_overlap.transcript(gold, said, transcript)
  if type_ == 'freeform':
    return text_overlap.rouge(gold, said)
  if type_ == 'multiplechoice' or not type_ and answer.kind(
      example) in ('choice', 'choices'):
    return float(choice_set.equal(
        gold, said, example.meta.get('choices'), form=choices))
  return float(answer.match(parsed.answer, example, limit_s=limit_s))


outcome.range = (-1.0, 1.0)
outcome.perfect = 1.0


def trust(
    columns: np.ndarray,
    names: Sequence[str],
    knobs: Mapping[str, float],
    state: Any,
    *,
    weights: Mapping[str, float],
    outcome: str = 'outcome',
    thinking: str = 'thinking',
    alpha: float = 0.3,
    decay: float = 1.0,
    right: float = 0.5,
    flat_low: float = 0.1,
    flat_high: float = 0.9,
    judge_min_outcome: float | None = None,
    trusting: bool = True,
) -> combine.Combined:
  r"""The weighted sum of the rewards + what the judge says, as far as trusted.

  With R° the outcome and t the thinking score of a response, in each group:

      mu_c, mu_w = mean of t where R° >= right, and elsewhere (0 of none)
      gamma      = 1 if mu_c >= mu_w or nobody is right, else exp(mu_c - mu_w)
      R_i        = R°_i + gamma alpha decay t_i

  A flat group, all R° >= flat_high or all <= flat_low, gets no thinking reward,
  so that it has no signal. Every response is judged, as in the paper. Source:
  section 3.3 and `verl/workers/reward/custom.py` of
  https://github.com/kxfan2002/SophiaVL-R1, which logs exp(2 (mu_c - mu_w)) and
  applies this; here what is applied is logged.

  The paper's decay is exp(-step / T): a hook moves the knob `combine/decay`,
  `exponential` with start 1, factor 1/e and steps T, all of the stage's in the
  paper, 500 in the code.

  Args:
    columns: f64[N, G, K], nan where there is no value; a response without a
      thinking score gets none and is in no mean.
    names: K names.
    knobs, state: as in `combine.weighted_sum`.
    weights: one per name; 0 of `thinking`, which alpha weighs.
    outcome, thinking: names of the columns.
    alpha: weight of the thinking score, 0 to 1.
    decay: what anneals it.
    right: outcomes from it on are right.
    flat_low, flat_high: bounds of flat groups.
    judge_min_outcome: responses of a lower outcome count as judged 0, .2 in
      the code. With outcomes of 0 and 1 gamma is then always 1.
    trusting: False: gamma is 1, an ablation.

  Returns:
    f64[N, G, 1]; the means of gamma and of gamma alpha decay over groups, and
    the share of flat ones; the state.

  Raises:
    ValueError: no such column, or thinking is weighed twice.
  """
  total, says, state = combine.weighted_sum(
      columns, names, knobs, state, weights=weights)
  for name in (outcome, thinking):
    if name not in names:
      raise ValueError(f'trust: there is no column {name!r}; the columns are '
                       f'{list(names)}.')
  if weights[thinking]:
    raise ValueError(
        f'trust: got weight {weights[thinking]} of {thinking!r}; it must be 0, '
        'since combine.kwargs.alpha weighs it.')
  rule, score = (columns[..., list(names).index(name)]
                 for name in (outcome, thinking))
  known = ~np.isnan(rule)
  if judge_min_outcome is not None:
    score = np.where(known & (rule < judge_min_outcome), 0.0, score)
  judged = ~np.isnan(score)
  score = np.where(judged, score, 0.0)
  ok, wrong = known & judged & (rule >= right), known & judged & (rule < right)
  mu_c, mu_w = (_mean(score, part) for part in (ok, wrong))
  gamma = np.where(ok.any(1) & trusting, np.exp(np.minimum(mu_c - mu_w, 0)), 1)
  flat = (np.where(known, rule, np.inf) >= flat_high).all(1) | (
      np.where(known, rule, -np.inf) <= flat_low).all(1)
  weight = np.where(flat, 0.0, gamma * alpha * decay)
  return total + (weight[:, None] * score)[..., None], {
      **says, 'reward/trust/mean': float(gamma.mean()),
      'reward/trust/weight': float(weight.mean()),
      'reward/trust/flat_frac': float(flat.mean())}, state


def _mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """f64[N], over each group where the mask is; 0 of none."""
  return np.where(mask, values, 0.0).sum(1) / np.maximum(mask.sum(1), 1)
