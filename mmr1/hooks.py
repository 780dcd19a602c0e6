"""Numbers that move: the `hook` socket.

`(knobs, state, columns, metrics, step, *, ...) -> (knobs, state)`, called on
the host after the rewards of a step are known and before its update.

  knobs: {name: float}, fed to the compiled step as traced values.
  state: {name: value}, this hook's own, checkpointed.
  columns: {name: float[N, G]}, rewards of this step.
  metrics: {name: float or None}, of the last finished step; None where it was
    not finite (a skipped update); empty at the first.
  step: updates done in this stage, from 0.

Inputs are not mutated. A schedule depends on the step alone, so that a
resumed run sees the same numbers.
"""

from collections.abc import Mapping
import math
from typing import Any

Knobs = Mapping[str, float]
State = Mapping[str, Any]
Metrics = Mapping[str, float | None]


def constant(
    knobs: Knobs, state: State, columns: Mapping[str, Any],
    metrics: Metrics, step: int, *, knob: str, value: float,
) -> tuple[Knobs, State]:
  """knob = value, at every step."""
  del columns, metrics, step
  return _set(knobs, knob, value), state


def linear(
    knobs: Knobs, state: State, columns: Mapping[str, Any],
    metrics: Metrics, step: int, *, knob: str, start: float,
    end: float, steps: int, begin: int = 0,
) -> tuple[Knobs, State]:
  """From `start` at step `begin` straight to `end`, `steps` later; then flat.

  Args:
    knobs, state, columns, metrics, step: see the module.
    knob: name of the knob.
    start, end: its values.
    steps: at least 1.
    begin: step at which it leaves `start`.

  Returns:
    (knobs with that one replaced, state).
  """
  del columns, metrics
  done = _progress(step, steps, begin)
  return _set(knobs, knob, start + (end - start) * done), state


def cosine(
    knobs: Knobs, state: State, columns: Mapping[str, Any],
    metrics: Metrics, step: int, *, knob: str, start: float,
    end: float, steps: int, begin: int = 0,
) -> tuple[Knobs, State]:
  """As `linear`, along half a cosine."""
  del columns, metrics
  done = 0.5 * (1 - math.cos(math.pi * _progress(step, steps, begin)))
  return _set(knobs, knob, start + (end - start) * done), state


def exponential(
    knobs: Knobs, state: State, columns: Mapping[str, Any],
    metrics: Metrics, step: int, *, knob: str, start: float,
    factor: float, steps: int, begin: int = 0, before: float | None = None,
) -> tuple[Knobs, State]:
  """start * factor ** ((step - begin) / steps): never flat.

  A decay exp(-step / T) is factor 1/e and steps T; `x .985 per update` is
  factor .985 and steps 1.

  Args:
    knobs, state, columns, metrics, step: see the module.
    knob: name of the knob.
    start: its value at step `begin`.
    factor: above 0; what it is multiplied by in `steps`.
    steps: at least 1.
    begin: step at which it leaves `start`.
    before: its value until then; None: `start`.

  Returns:
    (knobs with that one replaced, state).

  Raises:
    ValueError: no such knob; factor or steps out of range.
  """
  del columns, metrics
  if steps < 1:
    raise ValueError(f'A schedule needs steps >= 1, got {steps}.')
  if not 0 < factor < math.inf:
    raise ValueError(f'exponential: got factor={factor}; it must be above 0.')
  if step < begin:
    return _set(knobs, knob, start if before is None else before), state
  return _set(knobs, knob, start * factor**((step - begin) / steps)), state


def adaptive_kl(
    knobs: Knobs, state: State, columns: Mapping[str, Any],
    metrics: Metrics, step: int, *, knob: str, metric: str,
    target: float, horizon: float, samples: int,
) -> tuple[Knobs, State]:
  """beta *= 1 + clip(KL / target - 1, -0.2, 0.2) samples / horizon.

  Ziegler et al. (arXiv:1909.08593, sec. 2.2); verl `AdaptiveKLController`.
  The value lives in `state`, so that it survives a resume; it starts at that
  of the knob.

  Args:
    knobs, state, columns, metrics, step: see the module.
    knob: the coefficient of the KL term.
    metric: name of the measured KL; at the first step, and where its value
      is None, nothing moves.
    target: KL aimed at, > 0.
    horizon: samples over which an error is worked off, > 0.
    samples: samples per step.

  Returns:
    (knobs with that one replaced, state with its value).

  Raises:
    ValueError: no such knob or metric; target or horizon not above 0.
  """
  del columns, step
  if target <= 0 or horizon <= 0:
    raise ValueError(
        f'adaptive_kl: got target={target}, horizon={horizon}; both must be '
        'above 0.')
  value = state.get(knob, _known(knobs, knob))
  if metrics and metric not in metrics:
    raise ValueError(
        f'adaptive_kl: there is no metric {metric!r}; metrics are '
        f'{sorted(metrics)}.')
  if metrics and metrics[metric] is not None:
    error = min(max(metrics[metric] / target - 1, -0.2), 0.2)
    value = value * (1 + error * samples / horizon)
  return _set(knobs, knob, value), {**state, knob: value}


def _progress(step: int, steps: int, begin: int) -> float:
  if steps < 1:
    raise ValueError(f'A schedule needs steps >= 1, got {steps}.')
  return min(max((step - begin) / steps, 0.0), 1.0)


def _known(knobs: Knobs, knob: str) -> float:
  if knob not in knobs:
    raise ValueError(
        f'Hook on knob {knob!r}, which does not exist; knobs are '
        f'{sorted(knobs)}.')
  return knobs[knob]


def _set(knobs: Knobs, knob: str, value: float) -> dict[str, float]:
  _known(knobs, knob)
  return {**knobs, knob: float(value)}
