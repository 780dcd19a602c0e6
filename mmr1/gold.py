"""A right and well-formed completion of a problem, and what rewards give it.

A reward says what such a completion earns as `fn.perfect`; one that it cannot
be asked of says why as `fn.no_gold`, in a few words. How a completion is to be
written (tags, a box, an answer alone) is what the rewards of a stage ask for:
the first of `FORMS` that has all of their full marks, or most of them. An
instruction about a box allows forms with one alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmr1 import boxes
from mmr1 import first_samples
from mmr1 import generator
from mmr1 import grades
from mmr1 import records
from mmr1 import rl_setup
from mmr1 import types
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.data import traces
from mmr1.rewards import score

OWN = 'the completion of the data'
FORMS = {
    'think and answer tags': '<think>{why}</think><answer>{answer}</answer>',
    'answer tags alone': '<answer>{answer}</answer>',
    'think tags and a box': '<think>{why}</think>\n\\boxed{{{answer}}}',
    'a box': '{why}\n\\boxed{{{answer}}}'}
_WHY = 'I look at what is given and work it out.'
_CLOSE = 1e-3  # boxes are written in whole hundredths


class Row(NamedTuple):
  """What a reward gives.

  Fields:
    name: of the reward.
    value: as it came; None: no value.
    full: marks of a perfect completion; None: there are none.
    ok: True or False, or None where it cannot be said.
    why: in words, where ok is not True.
  """
  name: str
  value: float | None
  full: float | None
  ok: bool | None
  why: str = ''


class Scored(NamedTuple):
  """A completion: how it was written, its sample, and a row of each reward."""
  form: str
  sample: records.Sample
  rows: tuple[Row, ...]

  @property
  def wrong(self) -> int:
    """Rewards that do not give it their full marks."""
    return sum(row.ok is False for row in self.rows)


def answer(example: records.Example) -> str | None:
  """The gold answer, a box in the frame that the model's family writes."""
  box, frame = example.meta.get('box'), example.meta.get('box_frame')
  asked = example.answer is None or example.answer.lstrip()[:1] in ('[', '(')
  if box is None or not asked or not frame or not example.images:
    return example.answer  # what a box is of may be asked for as well
  width, height = example.images[0].size
  seen = example.meta.get('seen')
  numbers = boxes.convert(
      boxes.Box(*map(float, box), 'original'), frame,
      image=boxes.Size(height, width), seen=seen and boxes.Size(*seen))[:4]
  return f'[{",".join(f"{x:.2f}" for x in numbers)}]'


def reasoning(example: records.Example) -> str:
  """The solver's trace where the world has one, else a sentence."""
  facts, steps = (example.meta.get(key) for key in ('facts', 'steps'))
  return traces.concise(facts, steps) if facts and steps else _WHY


def written(example: records.Example, *, prefilled: bool, boxed: bool,
            ) -> Iterator[tuple[str, str]]:
  """(form, text) of the right answer in every form; none without an answer.

  Args:
    example: the problem.
    prefilled: the prompt ends with an open `<think>`.
    boxed: a box and nothing else is asked for: only forms with one, so that a
      reward which reads none is found out.
  """
  if example.completions:
    yield OWN, example.completions[0]
  said = answer(example)
  if said is None:
    return
  for form in FORMS:
    if boxed and 'box' not in form:
      continue
    text = FORMS[form].format(why=reasoning(example), answer=said)
    yield form, text.removeprefix('<think>') if prefilled else text


def sample(text: str, example: records.Example,
           processor: processor_lib.Processor | None) -> records.Sample:
  """The completion as if it had been sampled; without a processor (the model is
  not there) its words stand for tokens."""
  if processor is None:
    ids = range(len(text.split()))
  else:
    ids = encode.encode_completion(text, processor).tolist()
    text = encode.decode(ids, processor)
  return records.Sample(
      text=text, tokens=tuple(ids), kinds=(types.KIND_SAMPLED,) * len(ids),
      length=len(ids), truncated=False, example=example, uid=example.uid,
      group=0, slot=0, end='answer',
      turns=(records.Turn('assistant', text),))


def best(example: records.Example, rewards: Mapping[str, score.Reward],
         knobs: Mapping[str, float], *, prefilled: bool, boxed: bool,
         processor: processor_lib.Processor | None,
         also: Callable[[str], Sequence[Row]] = lambda text: (),
         ) -> Scored | None:
  """The completion with all full marks, or with most; None without an answer.

  Args:
    example: the problem.
    rewards: of the stage.
    knobs: numbers that rewards read.
    prefilled, boxed: see `written`.
    processor: of the model; None: it is not there.
    also: more rows about a text.
  """
  found = None
  for form, text in written(example, prefilled=prefilled, boxed=boxed):
    one = sample(text, example, processor)
    made = Scored(form, one, (*rows(one, rewards, knobs), *also(one.text)))
    if found is None or made.wrong < found.wrong:
      found = made
    if not made.wrong:
      break
  return found


def rows(one: records.Sample, rewards: Mapping[str, score.Reward],
         knobs: Mapping[str, float]) -> list[Row]:
  """What each reward gives, called as a step calls it, in a worker where it
  asks for one. A member of a mixture is asked its own rewards."""
  asked = one.example.member.rewards
  mine = {name: reward for name, reward in rewards.items()
          if asked is None or name in asked}
  alone = {name: reward for name, reward in mine.items()
           if not score.is_group(reward.fn)}
  part = score.Scorer(alone, workers=1).call([one], 1, 1, knobs) if alone else (
      score.Part(np.zeros((1, 1, 0)), (), 0, ()))
  values = dict(zip(alone, part.columns[0, 0].tolist()))
  failed = {failure.name: failure.message for failure, _ in part.failures}
  return [_row(name, reward.fn, values.get(name), failed.get(name))
          for name, reward in mine.items()]


def _row(name: str, fn: Any, value: float | None, failed: str | None) -> Row:
  value = None if value is None or np.isnan(value) else value
  full = vars(fn).get('perfect')
  if failed is not None:
    told = [line for line in failed.splitlines() if line.strip()]
    return Row(name, value, full, False, told[-2])  # the last is of the sample
  if score.is_group(fn):
    return Row(name, None, full, None, 'compares the completions of a group')
  if full is None:
    return Row(name, value, None, None, vars(fn).get(
        'no_gold', 'does not say what a perfect completion earns (fn.perfect)'))
  if value is None:
    return Row(name, None, full, None, 'says nothing about this problem')
  ok = value >= full - _CLOSE
  return Row(name, value, full, ok, '' if ok else f'{value:g}, not {full:g}')


# Of a stage.


def of_stage(first: first_samples.First, config: Any, name: str, plan: Any,
       processor: processor_lib.Processor | None,
       ) -> Scored | list[Row] | None:
  """What the right answer earns in a stage.

  Returns:
    A completion with its rows; rows alone, of pictures; None: no answer.
  """
  section = config[name]
  if section.kind == 'flow':
    return _picture(first.example, section, plan)
  if section.kind not in ('rl', 'evaluate', 'refine'):
    return []
  rewards = rl_setup.rewards(section, config) if section.kind == 'rl' else {}
  parsers = [config.evaluation.parser] if section.kind == 'rl' else [
      section.parser]
  return best(
      first.example, rewards, {} if plan is None or section.kind != 'rl'
      else plan.objective.knobs, prefilled=first.prefilled,
      boxed='boxed' in first.instruction and (
          '<answer>' not in first.instruction), processor=processor,
      also=lambda text: [] if first.example.member.rewards is not None else [
          _parsed(text, first, parser) for parser in parsers])


def _parsed(text: str, first: first_samples.First, parser: str) -> Row:
  """Whether an evaluation reads the answer."""
  name = f'evaluation, {parser}'
  if parser not in grades.PARSERS:
    return Row(name, None, 1.0, None, "a benchmark's own rules")
  grade = grades.grade(
      text, first.example, parser=parser, prefilled=first.prefilled)
  return Row(name, float(grade.right), 1.0, grade.right, '' if grade.right
                  else grade.error or f'read {grade.extracted!r}')


def _picture(example: Any, section: Any, plan: Any) -> list[Row]:
  """The picture that is asked for, as if it had been made."""
  if section.judge is not None:
    return [Row(section.judge, None, None, None, 'a model, not asked here')]
  if plan is None or example.meta.get('target') is None:
    return []
  made = generator.pixels(example.meta['target'])[None]
  value = float(plan.reward(made, example)[0])
  low, high = plan.reward.func.range
  return [Row(section.reward.fn, value, high, value >= high,
                   '' if value >= high else f'range {low:g} to {high:g}')]


def others(section: Any) -> list[tuple[str, str]]:
  """Columns that no rule makes."""
  if section.kind != 'rl':
    return []
  found = [(name, 'a model (judges), not asked here') for name in section.judges]
  found += [(name, 'made of what the policy says of its tokens (probes)')
            for name in section.probes]
  if section.env is not None:
    found.append((section.env, 'an environment: the answer is given at once '
                  'here, without asking it'))
  return found
