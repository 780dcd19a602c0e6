"""MM-HELIX (arXiv 2510.08540, ICLR 2026): what only it needs.

Puzzles with verifiers (mmr1/data/tasks/puzzles.py), reflective traces made of
their solver's steps, and Adaptive Hybrid Policy Optimization (AHPO): a prompt
of which the policy solves too little learns from a trace as well.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any
import zlib

import jax
import numpy as np

from mmr1 import advantages
from mmr1 import columns
from mmr1 import masked
from mmr1 import records
from mmr1 import text
from mmr1 import types
from mmr1.data import traces
from mmr1.losses import reading
from mmr1.losses import terms
from mmr1.rewards import answer

Array = jax.Array


def hybrid(
    rewards: np.ndarray,
    tokens: columns.Tokens,
    *,
    threshold: int = 2,
    success: float = 1.0,
    ddof: int = 1,
    eps: float = 1e-6,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  r"""GRPO's advantage of the group's own samples, and the gate of its trace.

      A_i = (R_i - mean) / (std + eps)     over own samples; 0 of a trace
      xi  = 1 if #{i : R_i >= success} < threshold, else 0           eq. 6

  The term `guided` reads the gate. threshold=0 is GRPO, G + 1 always imitates.
  The paper's is 2 with 5 samples; a reward of .1 (format alone) is no success.

  Args:
    rewards: float[N, G, 1].
    tokens: reads expert bool[N, G].
    threshold: R hat.
    success: rewards from it on are successes, within 1e-6.
    ddof, eps: of the standard deviation.

  Returns:
    float[N, G, 1], and f32[N, G, 1] of 'gate', 0 where there is no trace, and
    of 'per_prompt', 1 / G, with which a term counts prompts.
  """
  expert = columns.need(tokens, 'expert', 'hybrid')[..., None]
  own = np.where(expert, np.nan, rewards)
  solved = (own >= success - 1e-6).sum(axis=(1, 2))
  gate = (solved < threshold)[:, None, None] & expert.any(1, keepdims=True)
  shape = (*rewards.shape[:2], 1)
  return advantages.grpo(own, ddof=ddof, eps=eps), {
      'gate': np.broadcast_to(gate, shape).astype(np.float32),
      'per_prompt': np.full(shape, 1 / shape[1], np.float32)}


hybrid.hands = ('gate', 'per_prompt')


def guided(
    scores: types.Scores,
    block: types.Block,
    knobs: Mapping[str, Array],
) -> terms.Term:
  r"""xi x the negative log-likelihood of the trace, eq. 1 and 4.

      L_off = -xi (1 / |y*|) sum_t log pi(y*_t)

  mean over all prompts, those with a closed gate or without a trace included.
  For the paper's eq. 5 see `shared`.

  Args:
    scores: of the policy; reads logp.
    block: reads mask, kind, extra['gate'], extra['per_prompt'].
    knobs: not read.

  Raises:
    ValueError: the stage's advantage is not `hybrid`.
  """
  del knobs
  total, _ = _gated(scores, block, {'mode': 'seq_mean'})
  return total, block.extra['per_prompt'].sum()


def _gated(scores: types.Scores, block: types.Block,
           reduction: Mapping[str, Any]) -> terms.Term:
  """-xi log pi of traces."""
  if 'gate' not in block.extra:
    raise ValueError("guided, shared: there is no gate; set rl.advantage.fn to "
                     "'mmr1.papers.mm_helix:hybrid'.")
  block = reading.experts(block)
  loss = -block.extra['gate'] * masked.fill(scores.logp, block.mask)
  return reading.over_block(loss, block, reduction)


def shared(
    scores: types.Scores,
    block: types.Block,
    knobs: Mapping[str, Array],
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
) -> terms.Term:
  r"""Samples and traces under one normaliser, eq. 5; it is the whole objective.

      -1/Z [sum_samples sum_t CLIP_t + sum_traces sum_t xi log pi(y*_t)]

  The paper does not define Z; here it is the number of tokens of all samples
  and traces, those behind a closed gate included [ours]. In place of the terms
  `policy` (coefficient 0) and `guided`.

  Args:
    scores: of the policy; reads logp.
    block: reads mask, kind, advantage, old, weight, extra['gate'].
    knobs: not read.
    eps_low, eps_high: of the clip.
  """
  own, counted = terms.policy(
      scores, block, knobs, eps_low=eps_low, eps_high=eps_high)
  theirs, there = _gated(scores, block, terms.TOKEN_MEAN)
  return own + theirs, counted + there


def elicited(
    examples: Sequence[records.Example], ctx: Any, init: str, *,
    rounds: int = 1, slip_rate: float = 0.2,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: Step-Elicited Response Generation.

  The solver's steps are the skeleton; the trace says them, doubts, and says
  them again, and is kept if the verifier accepts its answer. In the paper a
  large model rewrites the skeleton; the rewriting by rule is ours [ours].

  Args:
    examples: of worlds whose meta has facts and steps.
    ctx, init: not read.
    rounds: doubts at most; each trace has 0 to as many.
    slip_rate: of a wrong step that the text takes back.
  """
  del ctx, init
  made, wrong = [], 0
  for example in examples:
    rng = np.random.default_rng([zlib.crc32(b'elicited'), example.uid])
    think = traces.verbose(
        example.meta['facts'], example.meta['steps'], rng,
        rounds=int(rng.integers(rounds + 1)), slip_rate=slip_rate)
    trace = f'<think>{think}</think><answer>{example.answer}</answer>'
    if not answer.match(text.parse_think_answer(trace).answer, example):
      wrong += 1
      continue
    made.append(dataclasses.replace(example, completions=(trace,)))
  return made, {'wrong': wrong}
