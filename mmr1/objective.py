"""From the sections of an rl stage to the terms of its objective.

Objective = sum over terms of coefficient x reduce(term): `policy`, `kl` and
`entropy`, which every stage has, and those of the library `terms` that it
names. Numbers of a config become knobs: traced values, so that changing them
between steps compiles nothing (M28). Knob names: 'coef/<term>',
'<term>/<keyword>'.
"""

from collections.abc import Mapping
import functools
import inspect
import math
from typing import Any, NamedTuple

import jax

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
    views: names of the looks that terms of the library read, sorted: programs
      go through them, and no order may come from a set (M15, M27).
    weights: names of the weights that they read, sorted.
  """
  terms: tuple[update.Term, ...]
  knobs: dict[str, float]
  reference: bool
  reference_hidden: bool
  views: tuple[str, ...] = ()
  weights: tuple[str, ...] = ()


def split(kwargs: Mapping[str, Any], term: str):
  """(keywords to trace as {knob: value}, their names, keywords to bind)."""
  traced = {k: float(v) for k, v in kwargs.items()
            if isinstance(v, (int, float)) and not isinstance(v, bool)}
  static = {k: v for k, v in kwargs.items() if k not in traced}
  return {f'{term}/{k}': v for k, v in traced.items()}, tuple(traced), static


def with_knobs(fn, term, names, **static):
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
    section: Any, hooked: frozenset[str] = frozenset(),
    library: Any = None) -> Objective:
  """Reads the sections of an rl stage.

  Args:
    section: has policy, kl, entropy, terms, max_new_tokens.
    hooked: knobs that a hook moves; their terms stay although they start at
      0.
    library: the sections `terms` of the config.

  Raises:
    ValueError: an unknown name or value.
  """
  reduction = _reduction(section.policy, section.max_new_tokens)
  made, knobs = [_policy(section.policy, reduction)], {}
  made.append(_kl(section.kl, reduction))
  made.append(_entropy(section.entropy, reduction))
  for name in section.terms:
    if name in ('policy', 'kl', 'entropy') or name in section.terms[
        :section.terms.index(name)]:
      raise ValueError(
          f'{section.where}.terms: {name!r} is there already; give the section '
          'of `terms` another name.')
    made.append(named(name, library[name], reduction))
  kept, reads = [], set()
  for term, coefficient, values in made:
    name = f'coef/{term.name}'
    if coefficient == 0 and name not in hooked:
      continue
    kept.append(term)
    knobs.update({name: coefficient, **values})
    if term.name in section.terms:
      reads |= _read(library[term.name])
  kl_on = any(term.name == 'kl' for term in kept)
  return Objective(
      tuple(kept), knobs, kl_on or ('target', 'ref') in reads,
      kl_on and section.kl.estimator == 'full',
      views=tuple(sorted(x for key, x in reads if key == 'view')),
      weights=tuple(sorted(x for key, x in reads if key == 'weight')))


def _read(section: Any) -> set[tuple[str, str]]:
  """(keyword, name) of what a term of the library asks the stage for."""
  fn = resolve.function(section.fn, 'mmr1.losses.terms')
  defaults = inspect.signature(fn).parameters
  given = {key: defaults[key].default for key in ('view', 'weight', 'target')
           if key in defaults} | section.kwargs.as_dict()
  return {(key, x) for key, x in given.items()
          if key in ('view', 'weight', 'target') and isinstance(x, str)}


def named(name: str, section: Any, reduction: Mapping[str, Any]):
  """A term of the library; `fn.parts`, if there is such a function, makes more
  means to be logged, {name: (sum, count)} of the term's own arguments;
  `fn.whole`, if there is such a thing, says that it compares a group."""
  fn = resolve.function(section.fn, 'mmr1.losses.terms')
  kwargs = section.kwargs.as_dict()
  resolve.check_kwargs(fn, kwargs, f'{section.where}.kwargs', ('reduction',))
  values, names, static = split(kwargs, name)
  if 'reduction' in inspect.signature(fn).parameters:
    static = {**static, 'reduction': reduction}
  term = with_knobs(fn, name, names, **static)
  parts = getattr(fn, 'parts', None)
  parts = parts and with_knobs(parts, name, names, **static)

  def metrics(scores, block, knobs):
    scores = jax.lax.stop_gradient(scores)
    said = {f'term/{name}': term(scores, block, knobs)}
    if parts:
      said |= {f'term/{name}/{key}': pair
               for key, pair in parts(scores, block, knobs).items()}
    return said, {}
  return update.Term(
      name, term, metrics, getattr(fn, 'whole', False)
  ), section.coefficient, values


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
  values, names, static = split(kwargs, 'policy')
  shared = dict(
      surrogate=surrogate, level=section.ratio, sequence=section.sequence,
      clamp=None if math.isinf(section.clamp) else section.clamp, **static)
  term = update.Term(
      'policy',
      with_knobs(functools.partial(terms.policy, reduction=reduction),
                  'policy', names, **shared),
      with_knobs(terms.policy_metrics, 'policy', names, **shared))
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
    values, names, static = split(kwargs, 'kl')
    fn = functools.partial(
        terms.kl, estimator=estimator, bias_correction=bias,
        reduction=reduction)
  term = with_knobs(fn, 'kl', names, **static)

  def metrics(scores, block, knobs):
    total, count = term(scores, block, knobs)
    return {'kl': (total, count)}, {}
  return update.Term('kl', term, metrics), section.coefficient, values


def _entropy(section: Any, reduction: Mapping[str, Any]):
  if section.source not in terms.ENTROPIES:
    raise ValueError(
        f'{section.where}.source: got {section.source!r}; allowed are '
        f'{terms.ENTROPIES}.')
  if section.reduce is not None:
    if section.reduce not in reduce.MODES or section.reduce == 'constant':
      raise ValueError(
          f'{section.where}.reduce: got {section.reduce!r}; allowed are '
          'token_mean, seq_mean and seq_sum, or None for that of the policy.')
    reduction = {'mode': section.reduce}
  term = functools.partial(
      terms.entropy, source=section.source, reduction=reduction)
  return update.Term('entropy', term), section.coefficient, {}
