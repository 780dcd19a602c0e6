"""ARES (arXiv 2510.08457): how often a response is unsure where it turns.

Not the entropy of a token but the mean over a few that follow each other marks
a moment that matters; moments are counted where a word of a list begins one.
Source: `verl/workers/rollout/vllm_rollout_spmd.py` and, of the threshold,
`verl/trainer/ray_trainer.py` of https://github.com/shawn0728/ARES.

Entropies are in nats. `shaping` turns the counts into rewards.
"""

from collections.abc import Collection, Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np

from mmr1 import records

FORMS = ('code', 'paper')
WIDTH = 4
START = 1.5  # the threshold of the code before it has seen anything

# Words at which reasoning turns, goes on or looks back [ours]; the released
# list, `data/crucial_token_final_version.json`, has 174.
TRIGGERS = (
    'wait', 'check', 'so', 'because', 'then', 'but', 'hmm', 'again',
    'actually', 'alternatively', 'however', 'therefore', 'thus', 'since', 'if',
    'maybe', 'perhaps', 'suppose', 'instead', 'verify', 'first', 'next', 'now',
)


class Count(NamedTuple):
  """What `high_entropy` finds in a response.

  Fields:
    number: N_HE, moments at or above the threshold.
    cost: the soft cost, nats: by how much they lie above it, summed.
  """
  number: int
  cost: float


def topk_entropy(logp: np.ndarray, *, tail: bool = True) -> np.ndarray:
  """- sum_k p_k log p_k - p_tail log p_tail, p_tail = max(0, 1 - sum_k p_k).

  Probabilities .5, .2, .1 have a tail of .2: H = 1.220607. A lower bound of the
  entropy, which it reaches where the tail is one token. The code has K = 10.

  Args:
    logp: f[..., K], log-probs of the most likely tokens; -inf is p = 0.
    tail: whether the last term counts. The code leaves it out of what the
      threshold is made of, and so has a lower threshold.

  Returns:
    f64[...], from 0.

  Raises:
    ValueError: nan, or a log-prob above 0.
  """
  logp = np.asarray(logp, np.float64)
  # A log-softmax in f32 may end up above 0 by a rounding error.
  if not (logp <= 1e-6).all():
    raise ValueError('topk_entropy: got nan or a log-prob above 0; needed are '
                     'logarithms of probabilities.')
  logp = np.minimum(logp, 0.0)
  p = np.exp(logp)
  entropy = -(p * np.where(p > 0, logp, 0.0)).sum(-1)
  if tail:
    rest = np.maximum(1 - p.sum(-1), 0.0)
    entropy -= rest * np.log(np.where(rest > 0, rest, 1.0))
  return entropy


def window_means(
    entropy: np.ndarray, width: int = WIDTH, form: str = 'code') -> np.ndarray:
  """The mean entropy of the window of each token.

      code   of the `width` tokens that follow t, t + 1 .. t + width
      paper  of t .. t + width - 1

  In the code's form the last `width` tokens, after which too few follow, get
  the mean of the windows before them; where there is none (T <= width), all get
  the entropy of the first token.

  Args:
    entropy: f[T], of each token of one response.
    width: w; the paper found 4 to 8 best.
    form: 'code' or 'paper'.

  Returns:
    f64[T], or f64[max(T - width + 1, 0)] in the paper's form.

  Raises:
    ValueError: an unknown form, width below 1, another shape, or a number
      that is not finite.
  """
  entropy = np.asarray(entropy, np.float64)
  if form not in FORMS:
    raise ValueError(f'ARES: got form={form!r}; allowed are {FORMS}.')
  if entropy.ndim != 1 or width < 1:
    raise ValueError(
        f'window_means: got entropy {entropy.shape}, width={width}; needed are '
        '[T] of one response, and 1 at least.')
  if not np.isfinite(entropy).all():
    raise ValueError('window_means: got an entropy that is not finite.')
  width = int(width)
  following = entropy[1:] if form == 'code' else entropy
  means = np.zeros(0) if len(following) < width else (
      np.lib.stride_tricks.sliding_window_view(following, width).mean(-1))
  if form == 'paper' or not len(entropy):
    return means
  pad = means.mean() if len(means) else entropy[0]
  return np.append(means, np.full(len(entropy) - len(means), pad))


def trigger_positions(
    pieces: Sequence[str], triggers: Collection[str] = TRIGGERS) -> list[int]:
  """Indices of the pieces that, lower-cased and stripped, are in the list.

  A whole token has to be a word: ' Wait' is one, 'Wait,' and half a word are
  not. The code reads the most likely token in place of the sampled one.
  """
  triggers = frozenset(triggers)
  return [i for i, piece in enumerate(pieces)
          if piece.strip().lower() in triggers]


def high_entropy(
    pieces: Sequence[str],
    entropy: np.ndarray,
    threshold: float,
    *,
    width: int = WIDTH,
    form: str = 'code',
    triggers: Collection[str] | None = TRIGGERS,
) -> Count:
  """N_HE and the soft cost of one response.

      N_HE = #{i: trigger, window mean_i >= threshold}   (paper: > threshold)
      cost = sum over triggers of max(0, window mean_i - threshold)

  Only triggers with a whole window count, never those with a padded mean.

  Args:
    pieces: text of each of its T tokens.
    entropy: f[T or more], of each token; what lies behind T is not read.
    threshold: tau, see `threshold`.
    width, form: see `window_means`.
    triggers: the list; None: every token is one.

  Raises:
    ValueError: fewer entropies than pieces, and as `window_means`.
  """
  entropy = np.asarray(entropy, np.float64)
  if entropy.ndim == 1 and len(entropy) < len(pieces):
    raise ValueError(f'high_entropy: got {len(entropy)} entropies of '
                     f'{len(pieces)} tokens.')
  means = window_means(entropy[:len(pieces)], width, form)
  whole = len(pieces) - int(width) + (form == 'paper')
  places = range(len(pieces)) if triggers is None else trigger_positions(
      pieces, triggers)
  found = means[[i for i in places if i < whole]]
  high = found >= threshold if form == 'code' else found > threshold
  return Count(int(high.sum()),
               float(np.maximum(found - threshold, 0.0).sum()))


def level(
    entropy: np.ndarray, width: int = WIDTH, form: str = 'code', *,
    percent: float = 95.0,
) -> float:
  """The 95th percentile of the window means of one response, interpolated.

  Padded means are among them, as in the code. nan where there is no window.

  Args:
    entropy: f[T], of each token; of the code without the tail's term.
    width, form: see `window_means`.
    percent: 0 to 100.
  """
  means = window_means(entropy, width, form)
  return float(np.percentile(means, percent)) if len(means) else math.nan


def threshold(
    levels: Sequence[float], before: float | None = None, form: str = 'code',
    *, decay: float = 0.99,
) -> float:
  """tau, from which on a window is one of high entropy.

      code   decay before + (1 - decay) median of the levels of a batch
      paper  their mean

  The code counts a batch with the threshold of those before it; at the first
  it has the mean over a pass of validation, or 1.5 (`START`), and its average
  begins with the median of that batch.

  Args:
    levels: of each response, see `level`; nan: none.
    before: tau of the step before; None at the first.
    form: 'code' or 'paper'.
    decay: of the code's form, 0 to 1.

  Returns:
    The threshold; without any level that before, or `START`.

  Raises:
    ValueError: an unknown form, or decay out of range.
  """
  if form not in FORMS or not 0 <= decay <= 1:
    raise ValueError(f'ARES: got form={form!r}, decay={decay}; allowed are '
                     f'{FORMS}, and 0 to 1.')
  levels = np.asarray(levels, np.float64)
  levels = levels[~np.isnan(levels)]
  if not levels.size:
    return START if before is None else float(before)
  if form == 'paper':
    return float(levels.mean())
  median = float(np.median(levels))
  return median if before is None else decay * before + (1 - decay) * median


# Probes: columns made of the policy's own entropies. They read the entropy over
# the whole vocabulary; the code, whose sampler knows the ten likeliest tokens,
# has `topk_entropy` of these, and leaves out the tail's term for `level`.


def highest(
    sample: records.Sample, entropy: np.ndarray, *, width: int = WIDTH,
    form: str = 'code', percent: float = 95.0,
) -> float | None:
  """A probe: `level` of a response; None where there is no window."""
  found = level(_own(sample, entropy), width, form, percent=percent)
  return None if math.isnan(found) else found


def moments(
    sample: records.Sample, entropy: np.ndarray, *, threshold: float = START,
    width: int = WIDTH, form: str = 'code', triggers: Collection[str] = (),
) -> float:
  """A probe: N_HE of a response.

  Args:
    sample: reads pieces.
    entropy: f[T] of each token.
    threshold: tau of the steps before; `followed` moves it.
    width, form: see `window_means`.
    triggers: words; (): `TRIGGERS`.
  """
  return float(_count(sample, entropy, threshold, width, form, triggers).number)


def soft_cost(
    sample: records.Sample, entropy: np.ndarray, *, threshold: float = START,
    width: int = WIDTH, form: str = 'code', triggers: Collection[str] = (),
) -> float:
  """A probe: the soft cost of a response; arguments as of `moments`."""
  return _count(sample, entropy, threshold, width, form, triggers).cost


def followed(
    knobs: Mapping[str, float], state: Mapping[str, Any],
    columns: Mapping[str, np.ndarray], metrics: Mapping[str, float | None],
    step: int, *, knob: str | Sequence[str], column: str = 'level',
    form: str = 'code', decay: float = 0.99,
) -> tuple[dict[str, float], dict[str, Any]]:
  """A hook: tau, by `threshold`; probes count with it from the next step on.

  Args:
    knobs, state, columns, metrics, step: see `mmr1.hooks`.
    knob: one or several, of the probes that count.
    column: of the probe `highest`.
    form, decay: of `threshold`.

  Raises:
    ValueError: there is no such column.
  """
  del metrics, step
  if column not in columns:
    raise ValueError(f'followed: there is no column {column!r}; the columns '
                     f'are {sorted(columns)}.')
  tau = threshold(columns[column].ravel(), state.get('tau'), form, decay=decay)
  return {**knobs, **dict.fromkeys(
      (knob,) if isinstance(knob, str) else knob, tau)}, {'tau': tau}


def _own(sample: records.Sample, entropy: np.ndarray) -> np.ndarray:
  return np.asarray(entropy, np.float64)[:len(sample.pieces)]


def _count(sample, entropy, tau, width, form, triggers) -> Count:
  return high_entropy(sample.pieces, _own(sample, entropy), tau, width=width,
                      form=form, triggers=triggers or TRIGGERS)
