"""Device-side records: what crosses a jit boundary.

Letters: N prompts, G samples per prompt, P prompt length (left-padded), T
completion length (right-padded), E most examples packed into a row, S image
patches per prompt row, C values per patch, M merged image cells per row (S /
merge^2), V vocabulary, D width, L layers, K reward columns, H key/value heads,
h head width.

Law 1: everything about completions is [N, G, ...]; a prompt, its images and
its keys and values exist once per group. Law 2: entry t of every [N, G, T]
array speaks about completion token t.
"""

from typing import Any

import flax.struct
import jax

Array = jax.Array

# Provenance of a completion token (law 3). Masks are made from these.
KIND_PAD = 0
KIND_SAMPLED = 1
KIND_OBSERVATION = 2
KIND_FORCED = 3
KIND_EXPERT = 4


@flax.struct.dataclass
class Media:
  """The images or videos of N prompt rows, for one tower.

  Patches of a row lie in attention-window order, each window padded to its
  full number of patches, so that window attention is a reshape. The `merge^2`
  patches of one merged cell are contiguous.

  Fields:
    patches: f32[N, S, C], normalised pixels; zeros where padded.
    position: i32[N, S, 2], (row, column) of the patch in its frame.
    segment: i32[N, S], frame number inside the row from 1; 0 is padding.
      Full attention stays inside a segment.
    slot: i32[N, P], for every prompt token the merged cell (0 <= slot < M) it
      is replaced by, or -1 for text. -2 is a learned token of the family's own
      (LLaVA-OneVision: the end of a row of cells).
    extent: i32[N, S, 2] | None, rows and columns of the patch's frame, for
      towers whose position table is resampled to it.
    taps, weights: i32, f32[N, P, A] | None: a token with a cell is then the
      weighted sum of A cells instead of the one in `slot`.
  """
  patches: Array
  position: Array
  segment: Array
  slot: Array
  extent: Array | None = None
  taps: Array | None = None
  weights: Array | None = None


@flax.struct.dataclass
class Prompts:
  """N prompts, left-padded.

  Fields:
    tokens: i32[N, P].
    mask: bool[N, P], True on real tokens.
    positions: i32[N, P, 3], (time, height, width) rotary positions.
    next_position: i32[N], rotary position of the first completion token.
    media: {tower name: Media}; absent towers are absent keys.
    uid: i32[N], the example's uid (law 6).
    segment: i32[N, P] | None, where a row holds the prompts of several
      examples, one after the other: which one from 1, 0 is padding. For two of
      two and three tokens under P = 7: [0, 0, 1, 1, 2, 2, 2]. A token sees its
      own prompt only, and positions start anew in each. `next_position` and
      `uid` are then those of the last.
    noise: u32[N, 2] | None, what views of the row's images draw from.
    ends: i32[N, E] | None, with `segment`: where the last token of prompt 1, 2
      ... is, [3, 6] above; any index for those the row does not have.
  """
  tokens: Array
  mask: Array
  positions: Array
  next_position: Array
  media: dict[str, Media]
  uid: Array
  segment: Array | None = None
  ends: Array | None = None
  noise: Array | None = None


@flax.struct.dataclass
class Prefix:
  """What a prompt leaves behind for its completions. Float leaves only.

  Fields:
    keys, values: [L, N, H, P, h], rotated keys.
    last: [N, D], hidden state (after the final norm) of the last prompt token:
      it predicts completion token 0. [N, E, D] of packed prompts, whose last
      tokens predict the first of their own completions.
  """
  keys: Array
  values: Array
  last: Array


@flax.struct.dataclass
class Completions:
  """N x G completions, right-padded.

  Fields:
    tokens: i32[N, G, T].
    kind: i8[N, G, T], KIND_*; 0 is padding. For example a sampled answer of
      two tokens and eos under T = 5: [1, 1, 1, 0, 0].
    positions: i32[N, G, T, 3], rotary positions.
    turn: i8[N, G, T] | None, number of the assistant's turn that the token is
      of, from 0; -1 for what others said, and padding. None: one turn.
    segment: i32[N, G, T] | None, packed documents, numbered from 1, 0 where
      padded; a token sees its own, and of packed prompts the one of the same
      number. None: one document a row.
    media: images that came on the way | None: as of prompts, with arrays
      [N, G, S, ...] and `slot` i32[N, G, T].
  """
  tokens: Array
  kind: Array
  positions: Array
  turn: Array | None = None
  segment: Array | None = None
  media: dict[str, Media] | None = None


@flax.struct.dataclass
class Rollout:
  """What the sampler returns.

  Fields:
    prompts, completions: as above.
    logp: f32[N, G, T], log-softmax(logits / temperature) of the token, before
      any truncation (law 5); 0 where not sampled.
    behaviour: f32[N, G, T], the same after top-k / top-p.
    entropy: f32[N, G, T] | None, of softmax(logits / temperature), nats.
    done: bool[N, G], ended by eos.
    version: i32[], optimiser steps taken by the sampling parameters.
    value: f32[N, G, T] | None, what the policy's critic says before each token.
  """
  prompts: Prompts
  completions: Completions
  logp: Array
  behaviour: Array
  done: Array
  version: Array
  entropy: Array | None = None
  value: Array | None = None


@flax.struct.dataclass
class Scores:
  """What one forward over a block yields (law 2 alignment).

  Fields:
    logp: f32[N, G, T].
    entropy: f32[N, G, T], nats.
    views: {name: f32[N, G, T]} log-probs of an update's looks (`mmr1.looks`).
    pairs: {name: f32[N, G, T]} sums over V of two distributions, made inside
      the head's chunk loop: 'kl_ref' = KL(policy || reference), or of a look.
    value: f32[N, G, T] | None.
    hidden: [N, G, T, D] | None.
    reward: f32[N, G, 1] | None, what a reward model says of each completion;
      with it there is nothing about tokens.
  """
  logp: Array | None
  entropy: Array | None
  views: dict[str, Array] = flax.struct.field(default_factory=dict)
  pairs: dict[str, Array] = flax.struct.field(default_factory=dict)
  value: Array | None = None
  hidden: Array | None = None
  reward: Array | None = None


@flax.struct.dataclass
class Seen:
  """What a rollout's look yields, f32[N, G, T], 0 where masked.

  Fields:
    logp: of the tokens.
    pair: the look's divergence | None.
    entropy: where there is a pair, of the completions' own distribution; where
      a probe reads it and there is none, of the look's | None.
  """
  logp: Array
  pair: Array | None = None
  entropy: Array | None = None


@flax.struct.dataclass
class Block:
  """One rectangle of completions with what the objective needs.

  Fields:
    prompts: Prompts of N rows.
    completions: [N, G, T].
    mask: bool[N, G, T], tokens that the objective speaks about.
    advantage: f32[N, G, 1 or T].
    old: f32[N, G, T] | None, old log-probs (None: the policy's own).
    ref: f32[N, G, T] | None, reference log-probs.
    ref_hidden: [N, G, T, D] | None, the reference's hidden states aligned to
      the token they predict (only for KL over the whole vocabulary).
    weight: f32[N, G, T] | None, a factor without gradient.
    times: f32[N, G, 1] | None, how often each completion is in every sum and
      count; None: once.
    extra: {name: array [N, G, 1 or T]}: 'sampler_logp', of a rollout's looks
      'view/<name>', 'pair/<name>' and 'entropy/<name>' (`Seen`), weights that
      terms name 'weight/<name>', and what an advantage hands to its terms.
  """
  prompts: Prompts
  completions: Completions
  mask: Array
  advantage: Array
  old: Array | None = None
  ref: Array | None = None
  ref_hidden: Array | None = None
  weight: Array | None = None
  times: Array | None = None
  extra: dict[str, Array] = flax.struct.field(default_factory=dict)


Batch = tuple[Block, ...]


@flax.struct.dataclass
class TrainState:
  """Everything that training changes.

  Fields:
    step: i32[], optimiser updates tried in this run of the stage.
    params: {name: tree}, 'policy' at least.
    opt: {name: tree}, optax states of the trainable part.
    slow: {name: tree}, ema, old, reference when it moves.
    aux: {name: tree}, duals, controllers, counters.
  """
  step: Array
  params: dict[str, Any]
  opt: dict[str, Any]
  slow: dict[str, Any] = flax.struct.field(default_factory=dict)
  aux: dict[str, Any] = flax.struct.field(default_factory=dict)
