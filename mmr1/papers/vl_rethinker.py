"""VL-Rethinker (arXiv 2504.08837, NeurIPS 2025): rewards, forced rethinking.

A trigger is put behind finished responses, and continuations that end right
replace them. `vl_rethinker_replay` has the other half, selective sample replay.
Source: https://github.com/TIGER-AI-Lab/VL-Rethinker,
`openrlhf/trainer/ppo_utils/experience_maker.py`.
"""

from collections.abc import Callable, Mapping, Sequence
import re
from typing import Any

import numpy as np

from mmr1 import records
from mmr1 import text
from mmr1.rewards import answer
from mmr1.rewards import math

FORMS = ('valid', 'released')
_INVALID = -0.1
_FORCED = 3  # types.KIND_FORCED; a worker of rewards must not import jax

# ------------------------------------------------------------------ rewards


def waits(said: str) -> int:
  """How often a text stops to think: 'wait,', 'wait a', 'alternatively'.

  Occurrences of each, in any case of letters.
  """
  said = said.lower()
  return sum(said.count(phrase) for phrase in (
      'wait,', 'wait a', 'alternatively'))


def shaped(correct: bool, valid: bool, waited: int, *,
           form: str = 'valid') -> float:
  """The reward of a response, with the bonus for thinking again by itself.

      valid and correct    1; with n_w = 1 or 2 waits 1.1,
                           else max(1 - .2 n_w, -.1)
      valid and wrong      0
      not valid            -.1

  Args:
    correct: its answer.
    valid: ended, with a box, and does not go on waiting.
    waited: n_w; 0 leaves the reward as it is, as where none is paid.
    form: 'valid': responses that are not valid get -.1 [ours]; 'released': a
      correct one of them gets 1.1 as well, with 1 or 2 waits.

  Raises:
    ValueError: an unknown form.
  """
  if form not in FORMS:
    raise ValueError(f'shaped: got form={form!r}; allowed are {FORMS}.')
  base = float(correct) if valid else _INVALID
  if not correct or not valid and form == 'valid':
    return base
  if waited in (1, 2):
    return 1.1
  # In tenths: 1 - .2 x 3 is .4, and not .3999.
  return max(round(10 * base) - 2 * waited, -1) / 10


def outcome(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    native_waits: bool = True,
    most_waits: int = 5,
    form: str = 'valid',
    boxed: bool = True,
    limit_s: float = math.LIMIT_S,
) -> float | None:
  r"""`shaped` of a completion, -.1 to 1.1.

  The answer is in the last `\boxed{}`, matched by `answer.match`. Not valid are
  those without end or answer and those with more than `most_waits` times 'wait'.
  A response in which a trigger was inserted gets no bonus.

  Args:
    sample: the completion; reads truncated and kinds.
    knobs: unused.
    native_waits: False: without the bonus.
    most_waits: of a valid response.
    form: of `shaped`.
    boxed: False: the answer is in the one answer block.
    limit_s: seconds for symbolic algebra; see `answer.match` for its errors.

  Returns:
    None when the example has no gold answer.
  """
  del knobs
  if sample.example.answer is None:
    return None
  said = (text.last_boxed(sample.text) if boxed
          else text.extract_answer(sample.text, strict=True))
  correct = bool(answer.match(said, sample.example, limit_s=limit_s))
  valid = (not sample.truncated and bool(said and said.strip())
           and sample.text.lower().count('wait') <= most_waits)
  paid = native_waits and _FORCED not in sample.kinds
  return shaped(
      correct, valid, waits(sample.text) if paid else 0, form=form)


outcome.range = (-0.1, 1.1)
outcome.perfect = 1.0  # without doubts; after one or two it is 1.1


def waited(sample: records.Sample, knobs: Mapping[str, float]) -> float:
  """How often 'wait' is in a completion, up to 100; a column of weight 0, for
  `rethought`.

  Every one of the whole text [ours]; the code counts 1 for the trigger and what
  `waits` finds in the continuation, which a sample does not tell apart.
  """
  del knobs
  return float(min(sample.text.lower().count('wait'), 100))


waited.range = (0.0, 100.0)
waited.no_gold = 'counts doubts: none is better than another'

# -------------------------------------------------------- forced rethinking

NEUTRAL = ('\n\nWait', '\n\nWait, does it seem right?')
VERIFY = "\n\nWait, let's double check"
CORRECT = '\n\nWait, there might be a mistake'
# What a response is cut before, one after the other, and which of several.
MARKS = (('Wait', 'last'), ('\\boxed', 'last'), ('answer', 'first'),
         ('\n\n', 'last'))


def candidates(
    correct: np.ndarray,
    done: np.ndarray,
    lengths: np.ndarray,
    rng: np.random.Generator,
    *,
    longest: int,
    easy: float = 0.7,
    dropped: float = 0.35,
) -> np.ndarray:
  """bool[N, G], the responses that are made to think again.

  Those that ended and leave room for 1024 tokens; not the wrong ones of a group
  of which more than a share `easy` is right; of the rest each is left out with
  probability `dropped`.

  Args:
    correct: bool[N, G], of the first round.
    done: bool[N, G], ended by eos.
    lengths: int[N, G], tokens.
    rng: of this step.
    longest: tokens at most, `longest` = max - 1024 in the paper.
    easy, dropped: see above.
  """
  correct = np.asarray(correct, bool)
  hopeless = ~correct & (correct.mean(1, keepdims=True) > easy)
  fits = np.asarray(done, bool) & (np.asarray(lengths) <= longest)
  return fits & ~hopeless & (rng.random(correct.shape) >= dropped)


def cut(said: str, rng: np.random.Generator, *, share: float = 0.5,
        marks: Sequence[tuple[str, str]] = MARKS) -> str:
  r"""A response without its end, with probability `share`; else as it is.

  It ends before the last 'Wait', of what is left before the last '\boxed', of
  that before the first 'answer', in any case of letters, and of that before the
  last blank line, without white space at its end, each where there is one.

  Args:
    said: the response, without eos.
    rng: of this response; one number is drawn.
    share: probability of a cut.
    marks: (text, 'first', in any case of letters, or 'last'), in place of those
      above.
  """
  if rng.random() >= share:
    return said
  for mark, which in marks:
    found = re.search(re.escape(mark), said, re.IGNORECASE)
    at = said.rfind(mark) if which == 'last' else found.start() if found else -1
    if at >= 0:
      said = said[:at] if mark.strip() else said[:at].rstrip()
  return said


def trigger(correct: bool, rng: np.random.Generator, *,
            neutral: float = 0.5, plain: float = 0.4,
            texts: Sequence[str] = (*NEUTRAL, VERIFY, CORRECT)) -> str:
  """What is put behind a response, so that it goes on.

  With probability `neutral` one of `NEUTRAL`, the first with probability
  `plain` of that; else `VERIFY` behind a right answer, `CORRECT` behind a wrong
  one.

  Args:
    correct: the answer of the first round.
    rng: of this response; two numbers are drawn, whatever comes of them.
    neutral, plain: probabilities.
    texts: two that are neutral, one behind a right answer, one behind a wrong
      one.
  """
  first, second = rng.random(2)
  if first < neutral:
    return texts[int(second >= plain)]
  return texts[2 if correct else 3]


def kept(
    correct: np.ndarray,
    new: np.ndarray,
    waited: np.ndarray,
    *,
    least: int = 30,
    most: int = 1024,
    most_waits: int = 4,
    per_prompt: int = 2,
) -> np.ndarray:
  """bool[N, G], the continuations that replace their responses.

  Right ones, of least < new tokens < most, the first `per_prompt` of each
  group; of these those with at most `most_waits` waits in all (the trigger is
  one of them). One with more still has its place among the first.

  Args:
    correct: bool[N, G], the answers after the continuation; False where there
      was none.
    new: int[N, G], tokens of the continuation.
    waited: int[N, G], waits of the whole text.
    least, most, most_waits, per_prompt: see above.
  """
  new = np.asarray(new)
  good = np.asarray(correct, bool) & (least < new) & (new < most)
  first = good & (np.cumsum(good, axis=1) <= per_prompt)
  return first & (np.asarray(waited) <= most_waits)


def rethink(
    samples: Sequence[records.Sample],
    columns: Mapping[str, np.ndarray],
    meta: Mapping[str, np.ndarray],
    rng: Callable[..., np.random.Generator],
    *,
    longest: int,
    queries: float = 1.0,
    correct: str = 'correct',
    share: float = 0.5,
    neutral: float = 0.5,
    texts: Sequence[str] = (*NEUTRAL, VERIFY, CORRECT),
    marks: Sequence[tuple[str, str]] = MARKS,
    **kw: float,
) -> dict[tuple[int, int], records.Edit]:
  """A `revise.fn`: `candidates`, `cut` and `trigger` of a rollout.

  Args:
    samples, columns, meta, rng: see `mmr1.revising`.
    longest: tokens of a response that is asked again, at most.
    queries: share of the groups that are asked; the paper's is not known.
    correct: column of the answers, 1 where right.
    share, marks: of `cut`; neutral, texts: of `trigger`.
    **kw: easy, dropped of `candidates`.
  """
  right, draw = columns[correct] == 1, rng()
  asked = candidates(right, meta['done'], meta['lengths'], draw,
                     longest=longest, **kw)
  asked &= draw.random((len(asked), 1)) < queries
  edits = {}
  for s in samples:
    if asked[s.group, s.slot]:
      own = rng(s.group, s.slot)
      edits[s.group, s.slot] = records.Edit(
          cut(s.text, own, share=share, marks=marks),
          trigger(bool(right[s.group, s.slot]), own, neutral=neutral,
                  texts=texts))
  return edits


def rethought(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    meta: Mapping[str, np.ndarray],
    *,
    correct: str = 'correct',
    waits: str = 'waits',
    **kw: Any,
) -> np.ndarray:
  """A `revise.keep`: bool[N, G], `kept` of continued responses.

  Args:
    before, after, meta: see `mmr1.revising`.
    correct, waits: columns of the answers and of `waited`.
    **kw: of `kept`.
  """
  del before
  return kept((after[correct] == 1) & meta['asked'] & meta['done'],
              meta['new'], after[waits], **kw)
