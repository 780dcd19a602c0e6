"""A number with an optional unit, compared exactly.

A unit matters only where both sides name one: gold '5' accepts '5 cm', gold
'5 cm' accepts '5' and not '5 m'. Units are a closed list; a word outside it
makes the text something other than a quantity.
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
    'mph': 'mph',
    'km/h': 'km/h kmh',
    'm/s': 'm/s',
}
_UNITS = {
    alias: unit for unit, names in _NAMES.items() for alias in names.split()}
_POWERS = {
    'square ': '2', 'sq ': '2', 'sq. ': '2', 'cubic ': '3', None: None}
_TEX_TEXT = re.compile(r'\\(?:text|textrm|mathrm|mbox|rm)\s*\{\s*([^{}]*)\}')
_SPLIT = re.compile(
    r'(?P<number>.*?[0-9.})%])\s*(?:(?P<degree>°|\^\s*\{?\s*\\circ\s*\}?|'
    r'\\degree)|(?P<power>square |sq\.? |cubic )?(?P<unit>[a-z]+(?:/[a-z]+)?)'
    r'(?:\^\{?(?P<exponent>[23])\}?)?)', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Quantity:
  """`value` exact; `unit` a canonical name ('cm^2'), '' when there is none."""
  value: fractions.Fraction
  unit: str = ''


def parse(answer: str) -> Quantity | None:
  r"""Of '5', '1/2', '5 cm', '5\text{ cm}^2', '30°', '$5'; else None."""
  value = text.parse_number(answer)
  if value is not None:
    return Quantity(value)
  if len(answer) > 200:
    return None
  plain = text.unwrap(text.fold(answer))
  plain = _TEX_TEXT.sub(r' \1', plain).replace('~', ' ')
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
  return Quantity(value, f'{unit}^{exponent}' if exponent else unit)


def same_unit(gold: Quantity, answer: Quantity) -> bool:
  """True unless both name a unit and the units differ ('unit' fits any)."""
  ours, theirs = (
      '' if q.unit.startswith('unit') else q.unit for q in (gold, answer))
  return not ours or not theirs or ours == theirs


def equal(gold: Quantity, answer: Quantity) -> bool:
  """Same value, and no contradiction between the units."""
  return gold.value == answer.value and same_unit(gold, answer)
