"""VL-Rethinker (arXiv 2504.08837, NeurIPS 2025): what only this paper needs.

Selective Sample Replay (SSR): responses of advantage 0 make room for others of
earlier steps, drawn by |A|. Forced rethinking: a trigger is put behind finished
responses, and continuations that end right replace them. Source:
https://github.com/TIGER-AI-Lab/VL-Rethinker,
`openrlhf/trainer/ppo_utils/{experience_maker,replay_buffer}.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    limit_s: float = math.LIMIT_S,
) -> float | None:
  r"""`shaped` of a completion, -.1 to 1.1.

  The answer is in the last `\boxed{}`, matched by `answer.match`. Not valid are
  those without end or box and those with more than `most_waits` times 'wait'.
  A response in which a trigger was inserted gets no bonus.

  Args:
    sample: the completion; reads truncated and kinds.
    knobs: unused.
    native_waits: False: without the bonus.
    most_waits: of a valid response.
    form: of `shaped`.
    limit_s: seconds for symbolic algebra; see `answer.match` for its errors.

  Returns:
    None when the example has no gold answer.
  """
  del knobs
  if sample.example.answer is None:
    return None
  boxed = text.last_boxed(sample.text)
  correct = bool(answer.match(boxed, sample.example, limit_s=limit_s))
  valid = (not sample.truncated and bool(boxed and boxed.strip())
           and sample.text.lower().count('wait') <= most_waits)
  paid = native_waits and _FORCED not in sample.kinds
  return shaped(
      correct, valid, waits(sample.text) if paid else 0, form=form)


outcome.range = (-0.1, 1.1)

# -------------------------------------------------------- forced rethinking

NEUTRAL = ('\n\nWait', '\n\nWait, does it seem right?')
VERIFY = "\n\nWait, let's double check"
CORRECT = '\n\nWait, there might be a mistake'


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
  probability `dropped`. The order of both rules in the code is not known: here
  they are independent [ours].

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


def cut(said: str, rng: np.random.Generator, *, share: float = 0.5) -> str:
  r"""A response without its end, with probability `share`; else as it is.

  It ends before the last 'Wait', of what is left before the last '\boxed', of
  that before the first 'answer', and of that before the last blank line, each
  where there is one.

  Args:
    said: the response, without eos.
    rng: of this response; one number is drawn.
    share: probability of a cut.
  """
  if rng.random() >= share:
    return said
  for place in (lambda x: x.rfind('Wait'), lambda x: x.rfind('\\boxed'),
                lambda x: x.find('answer'), lambda x: x.rfind('\n\n')):
    at = place(said)
    said = said if at < 0 else said[:at]
  return said


def trigger(correct: bool, rng: np.random.Generator, *,
            neutral: float = 0.5, plain: float = 0.4) -> str:
  """What is put behind a response, so that it goes on.

  With probability `neutral` one of `NEUTRAL`, the first with probability
  `plain` of that; else `VERIFY` behind a right answer, `CORRECT` behind a wrong
  one.

  Args:
    correct: the answer of the first round.
    rng: of this response; two numbers are drawn, whatever comes of them.
    neutral, plain: probabilities.
  """
  first, second = rng.random(2)
  if first < neutral:
    return NEUTRAL[int(second >= plain)]
  return VERIFY if correct else CORRECT


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

  Right ones, of least < new tokens < most, with at most `most_waits` waits in
  all (the trigger is one of them), the first `per_prompt` of each group.

  Args:
    correct: bool[N, G], the answers after the continuation; False where there
      was none.
    new: int[N, G], tokens of the continuation.
    waited: int[N, G], waits of the whole text.
    least, most, most_waits, per_prompt: see above.
  """
  new = np.asarray(new)
  good = np.asarray(correct, bool) & (least < new) & (new < most) & (
      np.asarray(waited) <= most_waits)
  return good & (np.cumsum(good, axis=1) <= per_prompt)


# ---------------------------------------------------- selective sample replay


class Replay(NamedTuple):
  """Which items train: rows of this step's rollout, and of the kept ones.

  Fields:
    current: int[n], indices of the rollout's items.
    old: int[m], indices of the kept items. n + m is half of the rollout, less
      only where nothing is kept.
  """
  current: np.ndarray
  old: np.ndarray


def probabilities(size: np.ndarray, *, power: float = 1.0,
                  floor: float = 0.0) -> np.ndarray:
  """p_j = (|A_j|^power + floor) / their sum; all 0 where the sum is.

  Section 3.2. The current part has floor 0, the replayed one 1e-4.

  Args:
    size: f64[n], |A|.
    power: the paper's alpha, 1 there; above 0.
    floor: added to each.

  Raises:
    ValueError: power not above 0: items of advantage 0 would be drawn.
  """
  if not power > 0:
    raise ValueError(f'SSR: got power={power}; it must be above 0.')
  weight = np.abs(np.asarray(size, np.float64))**power + floor
  total = weight.sum()
  return weight / total if total else np.zeros_like(weight)


def fifo(old: Sequence[Any], new: Sequence[Any], capacity: int) -> list[Any]:
  """The kept items after this step: the newest `capacity`, oldest first."""
  return [*old, *new][-capacity:] if capacity > 0 else []


def replayed(
    advantage: np.ndarray,
    old: np.ndarray,
    rng: np.random.Generator,
    *,
    power: float = 1.0,
    floor: float = 1e-4,
) -> Replay:
  """Draws a step's items: half as many as the rollout has, all with A != 0.

  Current part: of the items with A != 0, half of the rollout at most (which
  ones is random), as many are drawn with replacement, by |A|. The rest comes
  from the kept ones, by |A| + floor, with replacement; where more are needed
  than there are, whole copies of them first. Without kept items there is no
  such part, and nothing trains where nothing has an advantage either; there the
  released code goes on forever.

  Args:
    advantage: f64[n], of the rollout's items.
    old: f64[m], advantages of the kept items, those of this step included:
      `fifo` comes first, with capacity n // 2.
    rng: of this step.
    power, floor: of `probabilities`.
  """
  advantage, old = (np.asarray(x, np.float64) for x in (advantage, old))
  target = len(advantage) // 2
  effective = rng.permutation(np.flatnonzero(advantage))[:target]
  current = effective
  if len(effective):
    current = rng.choice(effective, len(effective), p=probabilities(
        advantage[effective], power=power))
  return Replay(current, _drawn(old, target - len(current), rng, power, floor))


def _drawn(advantage: np.ndarray, need: int, rng: np.random.Generator,
           power: float, floor: float) -> np.ndarray:
  """Indices: whole copies while more are needed than there are, then by p."""
  size = len(advantage)
  if not need or not size:
    return np.zeros(0, np.int64)
  copies = (need - 1) // size
  p = probabilities(advantage, power=power, floor=floor)
  return np.append(np.tile(np.arange(size), copies),
                   rng.choice(size, need - copies * size, p=p))
