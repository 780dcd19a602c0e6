"""ReVisual-R1 (arXiv 2506.04207): what only this paper needs.

Rewards on how a response is written, and Prioritized Advantage Distillation
(PAD): which responses of a rollout train, and how often. Source:
https://github.com/CSfufu/Revisual-R1, `examples/reward_function/{math,text}.py`
and `verl/trainer/ray_trainer.py`. The paper describes of the rewards only that
on length.

Its totals, with w = .05, are weighted sums (`combine.weighted_sum`):

    multimodal  (1 - 4w) accuracy + w (self_critic + image_revisit
                + repetition + efficient_length)
    text        (1 - 3w) accuracy + 2w repetition + w self_critic
"""

from collections.abc import Mapping
import collections
import math
import re

import numpy as np

from mmr1 import records
from mmr1 import select

FORMS = ('code', 'paper')
_MOST = 200_000  # characters that are read

# ------------------------------------------------------------------ rewards

# The lists of words are ours, as the weights of their phrases [ours].
CRITIC = {
    'wait': .3, 'let me check': .3, 'let me verify': .3, 'double-check': .3,
    'double check': .3, 'check again': .3, 'mistake': .3, 'that is wrong': .3,
    'reconsider': .2, 'recalculate': .2, 'is that right': .2, 'hmm': .1,
    'actually': .1, 'alternatively': .1,
}
REVISIT = {
    'look at the image again': .5, 'looking at the image again': .5,
    'look back at the image': .5, 'looking back at the image': .5,
    'back to the image': .5, 'check the image': .4, 're-examine the image': .5,
    'from the image': .2, 'in the image': .2, 'in the figure': .2,
    'in the diagram': .2, 'look again': .3, 'i see': .1,
}
CIRCLES = ('as i said', 'as mentioned', 'as stated before', 'again and again',
           'going in circles', 'back to where', 'let me start over')


def _compiled(phrases):
  return {re.compile(rf'(?<!\w){re.escape(phrase)}(?!\w)'): weight
          for phrase, weight in phrases.items()}


_CRITIC, _REVISIT = _compiled(CRITIC), _compiled(REVISIT)
_CIRCLE = re.compile(rf"(?<!\w)(?:{'|'.join(CIRCLES)})(?!\w)")
_SENTENCE = re.compile(r'(?<=[.!?])\s+|\n+')
_WORD = re.compile(r'\w+')


def self_critic(
    sample: records.Sample, knobs: Mapping[str, float]) -> float:
  """min(1, the weights of the phrases of `CRITIC` that occur), 0 to 1.

  A phrase counts once, however often it is said [ours].
  """
  del knobs
  return _said(sample, _CRITIC)


self_critic.range = (0.0, 1.0)
self_critic.no_gold = 'pays phrases, which a right answer need not have'


def image_revisit(
    sample: records.Sample, knobs: Mapping[str, float]) -> float:
  """The same of `REVISIT`, phrases that go back to the image, 0 to 1."""
  del knobs
  return _said(sample, _REVISIT)


image_revisit.range = (0.0, 1.0)
image_revisit.no_gold = self_critic.no_gold


def repetition(
    sample: records.Sample, knobs: Mapping[str, float]) -> float:
  """1 for a text that does not repeat itself, down to 0.

      1 - min(.5, .1 sentences said before) - min(.3, .05 repeated 5-grams)
        - min(.2, .1 phrases of `CIRCLES`)

  Sentences end with . ! ? and white space, or with a line. Repeated 5-grams are
  those, of words, that occur more than once, each counted once [ours]. The last
  part is ours: the code's is not taken over.
  """
  del knobs
  said = sample.text[:_MOST].lower()
  sentences = [' '.join(part.split()) for part in _SENTENCE.split(said)]
  sentences = [part for part in sentences if part]
  again = len(sentences) - len(set(sentences))
  words = _WORD.findall(said)
  grams = collections.Counter(zip(*(words[i:] for i in range(5))))
  repeated = sum(count > 1 for count in grams.values())
  circles = len(_CIRCLE.findall(said))
  left = 1 - min(.5, .1 * again) - min(.3, .05 * repeated) - min(
      .2, .1 * circles)
  return max(left, 0.0)  # .5 + .3 + .2 may miss 1 by a rounding error


repetition.range = (0.0, 1.0)
repetition.perfect = 1.0


def efficient_length(
    sample: records.Sample,
    knobs: Mapping[str, float],
    *,
    budget: int,
    alpha: float = 0.005,
    delta: float = 0.5,
) -> float:
  """clip(alpha (L_b - L) + delta, 0, 1), L the sampled tokens.

  Section 3.3. With L_b = 8192 it is 1 up to 8092 tokens, 0 from 8292 on; the
  text stage has alpha .001, delta .95.

  Args:
    sample: the completion; reads length.
    knobs: unused.
    budget: L_b, tokens.
    alpha: slope, per token.
    delta: its value at L_b.
  """
  del knobs
  return min(max(alpha * (budget - sample.length) + delta, 0.0), 1.0)


efficient_length.range = (0.0, 1.0)
efficient_length.perfect = 1.0


def _said(sample, phrases) -> float:
  said = sample.text[:_MOST].lower().replace('\u2019', "'")
  return min(sum(weight for phrase, weight in phrases.items()
                 if phrase.search(said)), 1.0)


# ---------------------------------------------------------------------- PAD


def pad_sizes(advantage: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """|sum_t A_t m_t / (sum_t m_t + 1e-8)|, f64[N, G]; 0 without tokens.

  Args:
    advantage: f32[N, G, 1 or T].
    mask: bool[N, G, T], tokens that train.
  """
  mask = np.asarray(mask, bool)
  total = np.where(mask, np.asarray(advantage, np.float64), 0.0).sum(-1)
  return np.abs(total / (mask.sum(-1) + 1e-8))


def pad_probabilities(
    size: np.ndarray,
    *,
    form: str = 'code',
    low: float = 0.03,
    high: float = 0.97,
    power: float = 1.5,
    temperature: float = 1.0,
) -> np.ndarray:
  """With which probability each response is drawn, by the size of its A.

      code   E = {i: low < a_i < high},   p_i = (a_i + 1e-8)^power / sum over E
      paper  E = {i: low <= a_i <= high}, p_i = exp(a_i / temperature) / ...

  The paper falls back to equal probabilities where its sum is 0: with the
  largest exponent subtracted it is at least 1, so that this does not occur. Its
  temperature falls from 1 to .3 in a straight line, a hook.

  Args:
    size: f64[...], a = |A|.
    form: 'code' or 'paper'.
    low, high: bounds of effective responses; the code's config .03 and .97,
      its defaults .05 and .95.
    power: of the code's form.
    temperature: of the paper's form, above 0.

  Returns:
    f64[...], with sum 1; all 0 where E is empty.

  Raises:
    ValueError: an unknown form, or temperature not above 0.
  """
  if form not in FORMS:
    raise ValueError(f'PAD: got form={form!r}; allowed are {FORMS}.')
  if not temperature > 0:
    raise ValueError(f'PAD: got temperature={temperature}; it must be above 0.')
  size = np.asarray(size, np.float64)
  if form == 'code':
    inside = (size > low) & (size < high)
    weight = power * np.log(np.where(inside, size, 1.0) + 1e-8)
  else:
    inside = (size >= low) & (size <= high)
    weight = np.where(inside, size, 0.0) / temperature
  if not inside.any():
    return np.zeros_like(size)
  weight = np.where(inside, np.exp(weight - weight[inside].max()), 0.0)
  return weight / weight.sum()


def pad_counts(
    p: np.ndarray,
    rng: np.random.Generator,
    *,
    form: str = 'code',
    share: float = 1.5,
) -> np.ndarray:
  """How often each response of a rollout trains.

  Drawn with replacement, of n = N G responses: in the code's form
  int(share n) times, and every response once where none is effective; in the
  paper's min(ceil(share n), |E|) times, and none then.

  Args:
    p: f64[N, G], of `pad_probabilities` in the same form.
    rng: of this step.
    form: 'code' or 'paper'.
    share: 1.5 in the code; the paper's rho is not known.

  Returns:
    i64[N, G].

  Raises:
    ValueError: share not above 0.
  """
  if not share > 0:
    raise ValueError(f'PAD: got share={share}; it must be above 0.')
  effective = int((p > 0).sum())
  if not effective:
    return np.full(p.shape, int(form == 'code'))
  draws = int(share * p.size) if form == 'code' else min(
      math.ceil(share * p.size), effective)
  drawn = rng.choice(p.size, draws, p=p.ravel())
  return np.bincount(drawn, minlength=p.size).reshape(p.shape)


def distil(
    columns: Mapping[str, np.ndarray],
    advantage: np.ndarray,
    meta: Mapping[str, np.ndarray],
    state: select.State,
    rng: np.random.Generator,
    *,
    form: str = 'code',
    share: float = 1.5,
    low: float = 0.03,
    high: float = 0.97,
    power: float = 1.5,
    temperature: float = 1.0,
) -> select.Selection:
  """PAD as a `select`: keep is `pad_counts`.

  A response that is drawn twice counts twice in every sum of its minibatch; in
  the code its copies may be in several minibatches, and there are `share` times
  as many of them.

  Args:
    columns: not read.
    advantage: f32[N, G, 1 or T].
    meta: reads 'spoken'.
    state, rng: see `mmr1.select`.
    form, low, high, power, temperature: as of `pad_probabilities`; hooks move
      the numbers ('select/temperature').
    share: as of `pad_counts`.
  """
  del columns
  p = pad_probabilities(
      pad_sizes(advantage, meta['spoken']), form=form, low=low, high=high,
      power=power, temperature=temperature)
  drawn = pad_counts(p, rng, form=form, share=share)
  return drawn, {
      'select/effective': int((p > 0).sum()), 'select/drawn': int(drawn.sum()),
      'select/distinct': int((drawn > 0).sum())}, False, state
