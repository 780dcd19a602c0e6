"""VL-Rethinker (arXiv 2504.08837): selective sample replay (SSR, section 3.2).

Responses of advantage 0 make room for others of earlier steps, drawn by |A|,
so that half as many train as the rollout has, all of them with an advantage.
Source: https://github.com/TIGER-AI-Lab/VL-Rethinker,
`openrlhf/trainer/ppo_utils/replay_buffer.py::active_sampling`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmr1 import types
from mmr1.losses import terms


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


def selected(
    columns: Mapping[str, np.ndarray],
    advantage: np.ndarray,
    meta: Mapping[str, np.ndarray],
    state: Any,
    rng: np.random.Generator,
    *,
    power: float = 1.0,
) -> tuple[np.ndarray, dict[str, float], bool, Any]:
  """The current part, a `select`: int[N, G], how often each response trains.

  Of those with A != 0, half of the rollout at most (which ones is random), as
  many are drawn with replacement, by |A|. The code also lets in some responses
  of groups that are all right: they have A = 0 and are never drawn.

  Args:
    columns, meta, state: see `mmr1.select`.
    advantage: f32[N, G, 1].
    rng: of this step.
    power: of `probabilities`.

  Returns:
    How often, 'select/effective' (the share with A != 0), False, state.
  """
  del columns, meta
  a = np.asarray(advantage[..., 0], np.float64).ravel()
  effective = rng.permutation(np.flatnonzero(a))[:len(a) // 2]
  count = np.zeros(len(a), np.int64)
  if len(effective):
    np.add.at(count, rng.choice(
        effective, len(effective),
        p=probabilities(a[effective], power=power)), 1)
  return count.reshape(advantage.shape[:2]), {
      'select/effective': float((a != 0).mean())}, False, state


def filtered(
    columns: Mapping[str, np.ndarray],
    advantage: np.ndarray,
    meta: Mapping[str, np.ndarray],
    state: Any,
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict[str, float], bool, Any]:
  """The baseline 'Filter', a `select`: responses with A != 0, again and again
  until they are as many as the rollout has.

  Args, Returns: as `selected`. Which of them are there once more is random.
  """
  del columns, meta
  a = advantage[..., 0].ravel()
  effective = rng.permutation(np.flatnonzero(a))
  count = np.zeros(len(a), np.int64)
  if len(effective):
    count[effective] = len(a) // len(effective)
    count[effective[:len(a) % len(effective)]] += 1
  return count.reshape(advantage.shape[:2]), {
      'select/effective': float((a != 0).mean())}, False, state


def refilled(
    advantage: np.ndarray,
    keep: np.ndarray,
    stored: np.ndarray,
    rng: np.random.Generator,
    *,
    capacity: int,
    rows: int,
    power: float = 1.0,
    floor: float = 1e-4,
) -> tuple[np.ndarray, np.ndarray]:
  """The replayed part, a `replay.fn`: what is missing to half of the rollout.

  Every response with A != 0 goes into the memory first (capacity N G / 2 in the
  code). Of the memory as many as are missing are drawn, by |A| + floor, with
  replacement; where more are needed than there are, whole copies of them first.
  An empty memory gives none, and nothing trains where nothing has an advantage
  either; there the released code goes on forever.

  Args:
    advantage, keep, stored, rng, capacity, rows: see `mmr1.experience`.
    power, floor: of `probabilities`.
  """
  a = np.asarray(advantage, np.float64)
  memory = np.append(stored, a[a != 0])[-capacity:]
  need = min(a.size // 2 - int(keep.sum()), rows)
  if need <= 0 or not len(memory):
    return a != 0, np.zeros(0, np.int64)
  copies = (need - 1) // len(memory)
  p = probabilities(memory, power=power, floor=floor)
  return a != 0, np.append(
      np.tile(np.arange(len(memory)), copies),
      rng.choice(len(memory), need - copies * len(memory), p=p))


def imitation(
    scores: types.Scores,
    block: types.Block,
    knobs: Mapping[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """The auxiliary SFT loss, a term: NLL of rethought responses with A > 0.

      sum of -log p over their tokens / how many these are

  Rethought are those in which a trigger was put in.
  """
  forced = jnp.any(
      block.completions.kind == types.KIND_FORCED, -1, keepdims=True)
  good = forced & jnp.any(block.advantage > 0, -1, keepdims=True)
  return terms.nll(
      scores, block.replace(mask=block.mask & good, weight=None), knobs)
