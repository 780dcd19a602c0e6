"""Questions about a scene of coloured objects: answers, facts and steps.

A scene is a sequence of mappings with `kind`, `colour`, `row` and `column`
(from 1, at the top left). A question is a form and a query: `a` (and `b`) are
specs (colour, kind) with None for any; `relation` and `prices` where the form
has them. Nothing here looks at a picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = ('red', 'green', 'blue', 'yellow')
KINDS = ('circle', 'square', 'triangle', 'cross')
RELATIONS = ('left of', 'right of', 'above', 'below')
FORMS = (
    'count_colour', 'count_kind', 'count_both', 'colour_of', 'kind_of',
    'relation', 'compare', 'total', 'difference', 'cost')

Spec = tuple[str | None, str | None]
Scene = Sequence[Mapping[str, Any]]


def solve(scene: Scene, form: str, query: Mapping[str, Any]) -> str:
  """The answer of a question of one of `FORMS`, from the scene alone."""
  first = matching(scene, query['a'])
  if form in ('count_colour', 'count_kind', 'count_both'):
    return str(len(first))
  if form == 'colour_of':
    return first[0]['colour']
  if form == 'kind_of':
    return first[0]['kind']
  second = matching(scene, query['b'])
  if form == 'relation':
    axis, low_first = axis_of(query['relation'])
    here, there = first[0][axis], second[0][axis]
    return yes(here < there if low_first else here > there)
  if form == 'compare':
    return yes(len(first) > len(second))
  if form == 'total':
    return str(len(first) + len(second))
  if form == 'difference':
    return str(len(first) - len(second))
  if form == 'cost':
    p, q = query['prices']
    return str(len(first) * p + len(second) * q)
  raise ValueError(f'shapes: form {form!r} does not exist; allowed: {FORMS}.')


def yes(condition: bool) -> str:
  """'yes' or 'no'."""
  return 'yes' if condition else 'no'


def axis_of(relation: str) -> tuple[str, bool]:
  """(coordinate compared, whether the smaller one makes the answer yes)."""
  axis = 'column' if relation in ('left of', 'right of') else 'row'
  return axis, relation in ('left of', 'above')


def fits(colour: str, kind: str, spec: Spec) -> bool:
  """Whether an object of this colour and kind is meant by `spec`."""
  return spec[0] in (None, colour) and spec[1] in (None, kind)


def matching(scene: Scene, spec: Spec) -> Scene:
  """The objects that `spec` means."""
  return [o for o in scene if fits(o['colour'], o['kind'], spec)]


def named(spec: Spec) -> str:
  """The spec in words: 'red', 'circle' or 'red circle'."""
  return ' '.join(word for word in spec if word)


def _parts(scene: Scene, spec: Spec) -> list[tuple[str, int]]:
  """A count split by the attribute that `spec` leaves open, zeros left out."""
  colour, kind = spec
  if colour and kind:
    return [(named(spec), len(matching(scene, spec)))]
  finer = [(colour, k) for k in KINDS] if colour else [
      (c, kind) for c in COLOURS]
  parts = [(named(s), len(matching(scene, s))) for s in finer]
  return [(name, n) for name, n in parts if n] or [(named(spec), 0)]


def reason(
    scene: Scene, form: str, query: Mapping[str, Any], answer: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """How to get from the picture to `answer`.

  Returns:
    (facts, steps): all that has to be seen, and a chain that starts with the
    facts, makes one inference per further step and ends with the answer.
  """
  if form.startswith('count'):
    parts = _parts(scene, query['a'])
    facts = tuple(f'{name} {n}' for name, n in parts)
    if len(parts) == 1:
      return facts, facts
    return facts, facts + ('+'.join(str(n) for _, n in parts) + f'={answer}',)
  if form in ('colour_of', 'kind_of'):
    facts = (f'{named(query["a"])} {answer}',)
    return facts, facts
  if form == 'relation':
    axis, _ = axis_of(query['relation'])
    a, b = (matching(scene, query[key])[0][axis] for key in ('a', 'b'))
    facts = tuple(
        f'{named(query[key])} {axis} {n}' for key, n in (('a', a), ('b', b)))
  else:
    a, b = (len(matching(scene, query[key])) for key in ('a', 'b'))
    facts = (f'{named(query["a"])} {a}', f'{named(query["b"])} {b}')
  if form in ('relation', 'compare'):
    sign = '<' if a < b else '>' if a > b else '='
    return facts, facts + (f'{a}{sign}{b} {answer}',)
  if form == 'cost':
    p, q = query['prices']
    return facts, facts + (
        f'{a}*{p}={a * p}', f'{b}*{q}={b * q}', f'{a * p}+{b * q}={answer}')
  sign = '+' if form == 'total' else '-'
  return facts, facts + (f'{a}{sign}{b}={answer}',)
