"""Answers that a critic speaks about, and that are given again: a loop of text.

    answer = ask(question)
    repeat `rounds` times:  critique = criticise(answer)
                            if satisfied(critique): stop
                            answer = ask(rewrite(question, critique))

Nothing is trained: the critique moves the prompt, and not the weights.
"""

from collections.abc import Callable, Sequence
import dataclasses
import re
from typing import NamedTuple

from mmr1 import records

HISTORIES = ('replace', 'accumulate')
_MEDIA = re.compile(r'<(image|video)>')


class Turn(NamedTuple):
  """One answer.

  Fields:
    asked: the question it is to.
    answer: the text, or None where the question did not fit.
    critique: what was said about it; None: nobody was asked, or it did not fit.
  """
  asked: str
  answer: str | None
  critique: str | None = None


Ask = Callable[[Sequence[records.Example]], Sequence[str | None]]
Criticise = Callable[[Sequence[records.Example], Sequence[str]],
                     Sequence[str | None]]


def refine(
    examples: Sequence[records.Example],
    ask: Ask,
    criticise: Criticise,
    *,
    rounds: int,
    rewrite: Callable[[str, str], str],
    satisfied: Callable[[str], bool],
    history: str = 'replace',
) -> list[list[Turn]]:
  """Turns of every problem; the answer of the last one is what counts.

  Args:
    examples: problems.
    ask: the reasoner: problems -> answers.
    criticise: the critic: (problems, answers) -> critiques.
    rounds: critiques of an answer at most, 0 or more.
    rewrite: (question, critique) -> the next question.
    satisfied: critique -> whether there is nothing to be done.
    history: 'replace': the critique is put to the question itself, so that
      the last one alone is there; 'accumulate': to the question before.

  Raises:
    ValueError: a number or a history that is not allowed.
  """
  if rounds < 0 or history not in HISTORIES:
    raise ValueError(
        f'refine: got rounds={rounds} (allowed: 0 or more), '
        f'history={history!r} (allowed: {HISTORIES}).')
  turns = [[Turn(example.asked, answer)]
           for example, answer in zip(examples, ask(examples))]
  active = list(range(len(examples)))
  for _ in range(rounds):
    active = [i for i in active if turns[i][-1].answer is not None]
    if not active:
      break
    critiques = criticise([examples[i] for i in active],
                          [turns[i][-1].answer for i in active])
    for i, critique in zip(active, critiques):
      turns[i][-1] = turns[i][-1]._replace(critique=critique)
    active = [i for i, critique in zip(active, critiques)
              if critique is not None and not satisfied(critique)]
    if not active:
      break
    asked = [rewrite(turns[i][0 if history == 'replace' else -1].asked,
                     _MEDIA.sub(r'\1', turns[i][-1].critique))
             for i in active]
    answers = ask([dataclasses.replace(
        examples[i], question=question, messages=())
                   for i, question in zip(active, asked)])
    for i, question, answer in zip(active, asked, answers):
      turns[i].append(Turn(question, answer))
  return turns


def answer_after(turns: Sequence[Turn], rounds: int) -> str | None:
  """The answer that stands after so many rounds: the last one that was given.

  Where a rewritten question did not fit, the answer before stands.
  """
  given = [turn.answer for turn in turns[:rounds + 1]
           if turn.answer is not None]
  return given[-1] if given else None
