"""A number with an optional unit, compared exactly.

A unit matters only where both sides name one: gold '5' accepts '5 cm', gold
'5 cm' accepts '5' and not '5 m'. Units are a closed list; a word outside it
makes the text something other than a quantity. A percent sign is read as both
are used: 50% is 1/2, and beside a bare number above 1 it is 50.
"""

import dataclasses
import fractions
import re

from mmr1 import text

_NAMES = {
    'mm': 'mm millimeter millimeters millimetre millimetres',
    'cm': 'cm centimeter centimeters centimetre centimetres',
    'm': 'm meter meters metre metres',
    'km': 'km kilometer kilometers kilometre kilometres',
    'in': 'in inch inches',
    'ft': 'ft foot feet',
    'yd': 'yd yard yards',
    'mi': 'mi mile miles',
    'mg': 'mg milligram milligrams',
    'g': 'g gram grams',
    'kg': 'kg kilogram kilograms',
    'lb': 'lb lbs pound pounds',
    'ml': 'ml milliliter milliliters',
    'l': 'l liter liters litre litres',
    's': 's sec second seconds',
    'min': 'min minute minutes',
    'h': 'h hr hour hours',
    'day': 'day days',
    'week': 'week weeks',
    'month': 'month months',
    'year': 'year years',
    'degree': 'degree degrees deg',
    'dollar': 'dollar dollars usd',
    'cent': 'cent cents',
    'unit': 'unit units',
    '%': 'percent',
    'mph': 'mph',
    'km/h': 'km/h kmh',
    'm/s': 'm/s',
}
_UNITS = {
    alias: unit for unit, names in _NAMES.items() for alias in names.split()}
_POWERS = {
    'square ': '2', 'sq ': '2', 'sq. ': '2', 'cubic ': '3', None: None}
_TEX_TEXT = re.compile(r'\\(?:text|textrm|mathrm|mbox|rm)\s*\{\s*([^{}]*)\}')
# Not between digits: there \, may stand for a thousands comma.
_TEX_SPACE = re.compile(r'(?<![0-9])\\[,;:! ]|\\[,;:! ](?![0-9])|~')
# \frac12 and \frac{1}2 are \frac{1}{2}, and 3\frac{1}{2} is 3 1/2.
_FRAC_TOP = re.compile(r'(\\[dt]?frac)\s*([0-9])')
_FRAC_BOTTOM = re.compile(r'(\\[dt]?frac\{[^{}]*\})\s*([0-9])(?![0-9])')
_TEX_MIXED = re.compile(
    r'(?<![0-9.,}])([0-9]+)\s*\\[dt]?frac\{\s*([0-9]+)\s*\}\s*'
    r'\{\s*([0-9]+)\s*\}')
# A name in front: 'x =', "AB' =", '\angle ABC =', 'm\angle A =', 'f(x) ='.
NAME = re.compile(
    r'(?:m?\s*\\angle\s*|\\triangle\s*|m?\s*∠\s*)?'
    r"(?:[A-Za-z]{1,4}'?|\\[a-z]+)(?:_\{?[A-Za-z0-9]{1,3}\}?)?"
    r'(?:\([a-z]\))?\s*=(?!=)\s*')
_SPLIT = re.compile(
    r'(?P<number>.*?[0-9.})%])\s*(?:(?P<degree>°|\^\s*\{?\s*\\circ\s*\}?|'
    r'\\degree)|(?P<power>square |sq\.? |cubic )?(?P<unit>[a-z]+(?:/[a-z]+)?)'
    r'(?:\^\{?(?P<exponent>[23])\}?)?)', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Quantity:
  """`value` exact; `unit` a canonical name ('cm^2'), '' when there is none.

  Of '50%' the unit is '%' and the value 1/2.
  """
  value: fractions.Fraction
  unit: str = ''


def parse(answer: str) -> Quantity | None:
  r"""Of '5', '1/2', '3\frac12', '5 cm', '$5$ cm^2', '30°', '$5', '50%'."""
  if len(answer) > 200:
    return None
  plain = _plain(answer)
  value = text.parse_number(plain)
  if value is not None:
    return Quantity(value, '%' if plain.endswith('%') else '')
  if plain.startswith(('$', '\\$')):
    value = text.parse_number(plain.lstrip('\\').removeprefix('$'))
    return None if value is None else Quantity(value, 'dollar')
  found = _SPLIT.fullmatch(' '.join(plain.split()))
  if not found:
    return None
  value = text.parse_number(found['number'])
  unit = 'degree' if found['degree'] else _UNITS.get(found['unit'].lower())
  if value is None or unit is None:
    return None
  exponent = found['exponent'] or _POWERS[
      found['power'].lower() if found['power'] else None]
  if unit == '%':
    value /= 100
  return Quantity(value, f'{unit}^{exponent}' if exponent else unit)


def _plain(answer: str) -> str:
  """Unwrapped, LaTeX's spaces, texts and fractions written plainly."""
  plain = _TEX_TEXT.sub(r' \1', text.unwrap(text.fold(answer)))
  plain = _TEX_SPACE.sub(' ', plain)
  # '$5$ cm': one formula beside its unit. A space, so that 1$5$ is no 15.
  if plain.count('$') == 2 and '\\$' not in plain:
    plain = plain.replace('$', ' ')
  if plain.count('\\(') == plain.count('\\)') == 1:
    plain = plain.replace('\\(', ' ').replace('\\)', ' ')
  plain = _FRAC_BOTTOM.sub(r'\1{\2}', _FRAC_TOP.sub(r'\1{\2}', plain))
  return _TEX_MIXED.sub(r'\1 \2/\3', plain).strip()


def named(answer: str) -> Quantity | None:
  """As `parse`, also with a name in front: 'x = 5'."""
  if len(answer) > 200:
    return None
  plain = _plain(answer)
  found = NAME.match(plain)
  return parse(plain[found.end():] if found else answer)


def same_unit(gold: Quantity, answer: Quantity) -> bool:
  """True unless both name a unit and the units differ ('unit' fits any)."""
  ours, theirs = (
      '' if q.unit.startswith('unit') else q.unit for q in (gold, answer))
  return not ours or not theirs or ours == theirs


def values(
    gold: Quantity, answer: Quantity) -> tuple[fractions.Fraction, ...]:
  """What the answer may mean beside this gold answer; () if the units differ.

  '50%' is 1/2 or, where the gold answer is a bare number above 1, 50. Beside
  gold '50%' a bare 50 may be percent, or 50.
  """
  if not same_unit(gold, answer):
    return ()
  if answer.unit == '%' and not gold.unit and abs(gold.value) > 1:
    return answer.value, answer.value * 100
  if gold.unit == '%' and not answer.unit:
    return answer.value, answer.value / 100
  return (answer.value,)


def equal(gold: Quantity, answer: Quantity) -> bool:
  """Same value, and no contradiction between the units."""
  return gold.value in values(gold, answer)
