"""From the `policy`, `kl` and `entropy` sections to the terms of an objective.

Objective = sum over terms of coefficient x reduce(term). Numbers of a config
become knobs: traced values, so that changing them between steps compiles
nothing (M28). Knob names: 'coef/<term>', '<term>/<keyword>'.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any, NamedTuple

from mmr1.losses import ratio
from mmr1.losses import reduce
from mmr1.losses import terms
from mmr1 import resolve
from mmr1 import update


class Objective(NamedTuple):
  """What a stage optimises.

  Fields:
    terms: those that are computed.
    knobs: {name: float}, where traced values start.
    reference: True if a term reads the reference's log-probs.
    reference_hidden: True if a term needs the reference over the whole
      vocabulary.
  """
  terms: tuple[update.Term, ...]
  knobs: dict[str, float]
  reference: bool
  reference_hidden: bool


def _split(kwargs: Mapping[str, Any], term: str):
  """(keywords to trace as {knob: value}, their names, keywords to bind)."""
  traced = {k: float(v) for k, v in kwargs.items()
            if isinstance(v, (int, float)) and not isinstance(v, bool)}
  static = {k: v for k, v in kwargs.items() if k not in traced}
  return {f'{term}/{k}': v for k, v in traced.items()}, tuple(traced), static


def _with_knobs(fn, term, names, **static):
  """`fn` with its traced keywords read from the knobs."""
  def call(scores, block, knobs):
    moving = {name: knobs[f'{term}/{name}'] for name in names}
    return fn(scores, block, knobs, **static, **moving)
  return call


def _reduction(policy: Any, max_new_tokens: int) -> dict[str, Any]:
  if policy.reduce not in reduce.MODES:
    raise ValueError(
        f'{policy.where}.reduce: got {policy.reduce!r}; allowed are '
        f'{reduce.MODES}.')
  if policy.rows not in reduce.ROWS:
    raise ValueError(
        f'{policy.where}.rows: got {policy.rows!r}; allowed are '
        f'{reduce.ROWS}.')
  if (policy.rows == 'none' and policy.reduce != 'constant') or (
      policy.rows != 'live' and policy.reduce == 'token_mean'):
    raise ValueError(
        f'{policy.where}.rows: got {policy.rows!r} with reduce='
        f"{policy.reduce!r}; token_mean counts no rows, so leave them at "
        "'live', and 'none' belongs to reduce='constant'.")
  length = policy.length
  if length is not None and not length > 0:
    raise ValueError(
        f'{policy.where}.length: got {length}; allowed: more than 0, or None '
        'for max_new_tokens.')
  if policy.reduce == 'constant':
    length = float(max_new_tokens) if length is None else length
  elif length is not None:
    raise ValueError(
        f'{policy.where}.length: got {length}; only reduce=\'constant\' '
        f'divides by a length, and reduce is {policy.reduce!r}.')
  return {'mode': policy.reduce, 'rows': policy.rows, 'length': length}


def build(
    section: Any, hooked: frozenset[str] = frozenset()) -> Objective:
  """Reads the sections of an rl stage.

  Args:
    section: has policy, kl, entropy, max_new_tokens.
    hooked: knobs that a hook moves; their terms stay although they start at
      0.

  Raises:
    ValueError: an unknown name or value.
  """
  reduction = _reduction(section.policy, section.max_new_tokens)
  made, knobs = [_policy(section.policy, reduction)], {}
  made.append(_kl(section.kl, reduction))
  made.append(_entropy(section.entropy, reduction))
  kept = []
  for term, coefficient, values in made:
    name = f'coef/{term.name}'
    if coefficient == 0 and name not in hooked:
      continue
    kept.append(term)
    knobs.update({name: coefficient, **values})
  kl_on = any(term.name == 'kl' for term in kept)
  full = kl_on and section.kl.estimator == 'full'
  return Objective(tuple(kept), knobs, kl_on, full)


def _policy(section: Any, reduction: Mapping[str, Any]):
  if section.ratio not in ratio.LEVELS:
    raise ValueError(
        f'{section.where}.ratio: got {section.ratio!r}; allowed are '
        f'{ratio.LEVELS}.')
  if section.sequence not in ratio.SEQUENCES:
    raise ValueError(
        f'{section.where}.sequence: got {section.sequence!r}; allowed are '
        f'{ratio.SEQUENCES}.')
  if not section.clamp > 0:
    raise ValueError(
        f'{section.where}.clamp: got {section.clamp}; allowed: more than 0, '
        'or inf for no bound.')
  surrogate = resolve.function(section.surrogate, 'mmr1.losses.surrogate')
  kwargs = section.kwargs.as_dict()
  resolve.check_kwargs(surrogate, kwargs, f'{section.where}.kwargs')
  values, names, static = _split(kwargs, 'policy')
  shared = dict(
      surrogate=surrogate, level=section.ratio, sequence=section.sequence,
      clamp=None if math.isinf(section.clamp) else section.clamp, **static)
  term = update.Term(
      'policy',
      _with_knobs(functools.partial(terms.policy, reduction=reduction),
                  'policy', names, **shared),
      _with_knobs(terms.policy_metrics, 'policy', names, **shared))
  return term, section.coefficient, values


def _kl(section: Any, reduction: Mapping[str, Any]):
  kwargs = section.kwargs.as_dict()
  if section.estimator == 'full':
    resolve.check_kwargs(terms.kl_full, kwargs, f'{section.where}.kwargs',
                         ('pair', 'reduction'))
    fn = functools.partial(terms.kl_full, reduction=reduction)
    values, names, static = {}, (), {}
  else:
    estimator = resolve.function(section.estimator, 'mmr1.losses.kl')
    # A keyword of the term, not of the estimator.
    bias = kwargs.pop('bias_correction', False)
    if not isinstance(bias, bool):
      raise ValueError(
          f'{section.where}.kwargs.bias_correction: got {bias!r}; allowed are '
          'True (the estimate times the ratio pi / pi_old) and False.')
    resolve.check_kwargs(estimator, kwargs, f'{section.where}.kwargs')
    values, names, static = _split(kwargs, 'kl')
    fn = functools.partial(
        terms.kl, estimator=estimator, bias_correction=bias,
        reduction=reduction)
  term = _with_knobs(fn, 'kl', names, **static)

  def metrics(scores, block, knobs):
    total, count = term(scores, block, knobs)
    return {'kl': (total, count)}, {}
  return update.Term('kl', term, metrics), section.coefficient, values


def _entropy(section: Any, reduction: Mapping[str, Any]):
  if section.source not in terms.ENTROPIES:
    raise ValueError(
        f'{section.where}.source: got {section.source!r}; allowed are '
        f'{terms.ENTROPIES}.')
  term = functools.partial(
      terms.entropy, source=section.source, reduction=reduction)
  return update.Term('entropy', term), section.coefficient, {}
