"""Stage `refine`: an evaluation in which another model speaks in between.

The model of `init` answers, the model of `critic` says what is wrong with the
answer, and the first answers again with that in its prompt (`mmr1.refining`).
Both decode greedily and stay as they are. It makes no model.
"""

from collections.abc import Mapping, Sequence
import functools
import json
from typing import Any

import jax
import numpy as np

from mmr1 import context
from mmr1.data import datasets
from mmr1.data import pipeline
from mmr1 import grades
from mmr1 import records
from mmr1 import refining
from mmr1 import resolve
from mmr1.rewards import answer as answer_lib
from mmr1.sampling import several
from mmr1 import significance
from mmr1 import text
from mmr1 import workdir as workdir_lib

# In the table at the end of a run.
_SHOWN = ('eval/accuracy', 'eval/accuracy_low', 'eval/accuracy_high', 'eval/n',
          'eval/round_0/accuracy', 'eval/fixed_frac', 'eval/broken_frac')
_FUNCTIONS = ('ask', 'rewrite', 'satisfied', 'score')


def setup(section: Any, stage: str, config: Any) -> Mapping[str, Any]:
  """Checks the section, and resolves its functions, before anything runs."""
  for key, least in (('examples', 1), ('prompts_per_batch', 1), ('rounds', 0),
                     ('max_new_tokens', 1), ('critic_tokens', 1)):
    if section[key] < least:
      raise ValueError(f'{stage}.{key}: got {section[key]}; allowed: at least '
                       f'{least}.')
  for key, allowed in (('parser', grades.PARSERS),
                       ('history', refining.HISTORIES)):
    if section[key] not in allowed:
      raise ValueError(
          f'{stage}.{key}: got {section[key]!r}; allowed are {allowed}.')
  context.check_init(section.init, stage, config)
  if section.critic != 'self':
    context.check_init(section.critic, stage, config, 'critic')
  section.instruction, section.fixed  # read in run
  found = {}
  for key in _FUNCTIONS:
    if section[key].fn is None:
      if key != 'score':
        raise ValueError(f'{stage}.{key}.fn: None; name a function.')
      continue
    fn = resolve.function(section[key].fn, 'mmr1.papers')
    kwargs = section[key].kwargs.as_dict()
    resolve.check_kwargs(fn, kwargs, f'{stage}.{key}.kwargs')
    found[key] = functools.partial(fn, **kwargs)
  return found


class _Critic:
  """Critiques of a model, or the same words always."""

  def __init__(self, ctx, section, plan, params):
    self._ctx, self._section, self._plan = ctx, section, plan
    self._params = params
    self.lengths: list[int] = []

  def __call__(self, examples: Sequence[records.Example],
               answers: Sequence[str]) -> list[str | None]:
    if self._section.fixed:
      return [self._section.fixed] * len(examples)
    asked = [records.Example(
        uid=example.uid, images=example.images, videos=example.videos,
        question=self._plan['ask'](example, answer))
             for example, answer in zip(examples, answers)]
    said = _greedy(self._ctx, self._params, asked, self._section,
                   self._section.critic_tokens, '')
    self.lengths += [one.length for one in said if one]
    return [one and one.text for one in said]


def _greedy(ctx, params, examples, section, length: int,
            instruction: str | None) -> list[records.Sample | None]:
  """A response to each; None where the prompt does not fit."""
  found = several.responses(
      ctx, params, examples, count=1, max_new_tokens=length, temperature=0.0,
      instruction=instruction, rows=section.prompts_per_batch)
  return [one[0] if one else None for one in found]


def run(
    ctx: context.Context, stage: str, section: Any, plan: Mapping[str, Any],
) -> None:
  """Runs the loop over held-out problems, and writes all that was said."""
  examples = _problems(ctx, section)
  # Both as one tree where they are one model: nothing is there twice.
  reasoner = ctx.params(section.init)
  critic = _Critic(ctx, section, plan, reasoner if section.critic in (
      'self', section.init) or section.fixed else ctx.params(section.critic))

  def ask(asked):
    return [one and one.text for one in _greedy(
        ctx, reasoner, asked, section, section.max_new_tokens,
        section.instruction)]
  turns = refining.refine(
      examples, ask, critic, rounds=section.rounds, rewrite=plan['rewrite'],
      satisfied=plan['satisfied'], history=section.history)
  prefilled = ctx.shape(section.instruction).prefilled
  marks = [[_grade(refining.answer_after(one, k), example, section, prefilled)
            for one, example in zip(turns, examples)]
           for k in range(section.rounds + 1)]
  metrics = summary(turns, marks, plan, examples)
  if critic.lengths:
    metrics['eval/critic/length'] = float(np.mean(critic.lengths))
  _write(ctx, stage, section, examples, turns, marks, metrics)
  ctx.logger.truncate(stage, -1)
  ctx.logger.write(stage, 0, metrics)
  ctx.logger.samples(stage, 0, _samples(turns, examples))
  ctx.logger.flush()  # before DONE: a marker promises the row
  ctx.checkpoints.finish(stage, {'eval': {
      name: metrics[name] for name in _SHOWN}})


def _problems(ctx, section) -> list[records.Example]:
  pairs, _ = pipeline.all_examples(
      datasets.open_split(ctx.config, 'eval'), ctx.shape(section.instruction),
      section.examples, unusable=answer_lib.unusable, warn=ctx.logger.warn,
      max_broken_frac=ctx.config.data.max_broken_frac)
  return [example for example, _ in pairs]


def _grade(said, example, section, prefilled) -> grades.Grade:
  if said is None:
    return grades.Grade(None, False)
  return grades.grade(
      said, example, parser=section.parser, prefilled=prefilled)


def summary(
    turns: Sequence[Sequence[refining.Turn]],
    marks: Sequence[Sequence[grades.Grade]],
    plan: Mapping[str, Any],
    examples: Sequence[records.Example],
) -> dict[str, float]:
  """What the loop did.

    eval/accuracy, _low, _high   after all rounds, with the 95% interval
    eval/round_<k>/accuracy      after k rounds; those that stopped stand
    eval/fixed_frac, broken_frac of all problems: wrong at first and right at
                                 last, and the other way round
    eval/critic/stopped_frac     loops that the critic ended before the last
    eval/critic/<name>           means of `score` over the critiques of first
                                 answers
  """
  right = np.asarray([[mark.right for mark in row] for row in marks])
  n = right.shape[1]
  low, high = significance.wilson(int(right[-1].sum()), n)
  found = {
      'eval/accuracy': right[-1].mean(), 'eval/accuracy_low': low,
      'eval/accuracy_high': high, 'eval/n': n,
      **{f'eval/round_{k}/accuracy': row.mean()
         for k, row in enumerate(right)},
      'eval/fixed_frac': (~right[0] & right[-1]).mean(),
      'eval/broken_frac': (right[0] & ~right[-1]).mean(),
      'eval/unparsed_frac': np.mean(
          [mark.extracted is None for mark in marks[-1]]),
      'eval/rounds': np.mean([len(one) - 1 for one in turns])}
  if len(marks) > 1:
    found['eval/critic/stopped_frac'] = np.mean(
        [one[-1].critique is not None for one in turns])
  if 'score' in plan:
    said = [plan['score'](one[0].critique, example, one[0].answer)
            for one, example in zip(turns, examples)
            if one[0].critique is not None]
    said = [one for one in said if one is not None]
    for name in said[0] if said else ():
      found[f'eval/critic/{name}'] = np.mean([one[name] for one in said])
  return {name: float(x) for name, x in found.items()}


def _write(ctx, stage, section, examples, turns, marks, metrics) -> None:
  if jax.process_index():
    return  # all hosts have the same
  card = {
      'stage': stage, 'n': len(examples), 'matcher':
      'mmr1.rewards.answer.match', 'parser':
      f'mmr1.text.extract_answer {section.parser}, version '
      f'{text.PARSER_VERSION}', 'pixels': ctx.processor.pixels,
      'sampling': {**section.as_dict(), 'temperature': 0.0},
      'interval': 'Wilson, 95%', 'metrics': metrics}
  rows = [{'uid': example.uid, 'source': example.source,
           'gold': example.answer, 'correct': [m.right for m in mark],
           'extracted': [m.extracted for m in mark],
           'errors': [m.error for m in mark if m.error],
           'turns': [one._asdict() for one in said]}
          for example, said, mark in zip(examples, turns, zip(*marks))]
  base = ctx.path / 'eval' / f'{stage}_0'
  workdir_lib.write_whole(
      base.parent / f'{base.name}.json', json.dumps(card, indent=2) + '\n')
  workdir_lib.write_whole(base.parent / f'{base.name}.jsonl', ''.join(
      json.dumps(row) + '\n' for row in rows))


def _samples(turns, examples) -> list[dict[str, Any]]:
  return [{'prompt': turn.asked, 'images': list(example.images),
           'answer': example.answer, 'completion': turn.answer,
           'critique': turn.critique, 'turn': k}
          for said, example in zip(turns[:8], examples)
          for k, turn in enumerate(said)]
