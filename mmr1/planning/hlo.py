"""A compiled program, from the text that XLA writes of it."""

from collections.abc import Iterator
import math
import re
from typing import NamedTuple

_SIZES = {'pred': 1, 's4': .5, 'u4': .5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2,
          'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8,
          'u64': 8, 'f64': 8, 'c64': 8}
_SHAPE = re.compile(r'\b(' + '|'.join(_SIZES) + r')\[([\d,]*)\]')
# With its layout, which names the memory space if it is not the main one.
_PLACED = re.compile(_SHAPE.pattern + r'(\{[^}]*\})?')
_SPACE = re.compile(r'S\([1-9]\d*\)')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_LINE = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$')
CALLS = re.compile(
    r'(?:calls|to_apply|body|condition|true_computation|false_computation)='
    r'%?([\w.\-]+)')
_CONDITION = re.compile(r'condition=%?([\w.\-]+)')
BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'known_trip_count[^}]*?"?n"?\s*[:=]\s*"?(\d+)')
_GROUPS = re.compile(r'replica_groups=\[(\d+),(\d+)\]|replica_groups=\{\{([\d,]*)')


def size(shape: str) -> float:
  """Bytes of 'f32[2,3]{1,0}' or of a tuple of such."""
  return sum(_SIZES[kind] * math.prod(int(n) for n in dims.split(',') if n)
             for kind, dims in _SHAPE.findall(shape))


def held(shape: str) -> float:
  """As `size`, of what is in the main memory: not on the chip."""
  return sum(size(f'{kind}[{dims}]')
             for kind, dims, layout in _PLACED.findall(shape)
             if not _SPACE.search(layout))


class Instruction(NamedTuple):
  """One line: its name, shape, opcode, operands and the rest of it."""
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str

  @property
  def trips(self) -> int | None:
    """How often a loop runs, if the compiler knows."""
    found = _TRIPS.search(self.rest)
    return int(found[1]) if found else None

  @property
  def group(self) -> int:
    """Devices that a collective joins; 0: not said."""
    found = _GROUPS.search(self.rest)
    if not found:
      return 0
    return int(found[2]) if found[2] else found[3].count(',') + 1


class Module:
  """A compiled program's text, taken apart."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry, self._roots = '', {}
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
      head = _HEAD.match(line)
      if head and ' = ' not in line.split('(')[0]:
        name = head[2]
        current = self.computations[name] = {}
        if head[1]:
          self.entry = head[2]
        continue
      found = _LINE.match(line)
      if found:
        one = _instruction(*found.groups())
        if one is not None:
          current[one.name] = one
          if line.lstrip().startswith('ROOT '):
            self._roots[name] = one

  def trips(self, loop: Instruction) -> int | None:
    """How often a loop runs: what the compiler says, or the n of `i < n`; None:
    that is decided at run time."""
    if loop.trips is not None:
      return loop.trips
    condition = _CONDITION.search(loop.rest)
    return self._bound(condition[1], ()) if condition else None

  def _bound(self, name: str, given: tuple[Instruction | None, ...],
             ) -> int | None:
    """The constant that a computation compares with, if it does nothing else;
    `given` are its arguments."""
    root, inside = self._roots.get(name), self.computations.get(name, {})
    if root is None:
      return None

    def value(operand):
      one = inside.get(operand)
      if one is not None and one.opcode == 'parameter' and given:
        return given[int(one.operands[0])]
      return one
    found = tuple(map(value, root.operands))
    called = CALLS.search(root.rest) if root.opcode == 'fusion' else None
    if called:
      return self._bound(called[1], found)
    bounds = [int(one.operands[0]) for one in found
              if one is not None and one.opcode == 'constant']
    if root.opcode == 'compare' and 'direction=LT' in root.rest and (
        len(bounds) == 1):
      return bounds[0]
    return None

  def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array that an instruction makes."""
    for computation in self.computations.values():
      for one in computation.values():
        for kind, dims in _SHAPE.findall(one.shape):
          yield kind, tuple(int(n) for n in dims.split(',') if n)


def _instruction(name: str, text: str) -> Instruction | None:
  """'f32[2]{0} add(%a, %b), metadata=...' taken apart."""
  end = _closing(text, 0) + 1 if text.startswith('(') else text.find(' ')
  if end <= 0:
    return None
  shape, rest = text[:end], text[end:].lstrip()
  open_ = rest.find('(')
  if open_ < 0:
    return None
  close = _closing(rest, open_)
  inside = rest[open_ + 1:close]
  # Older texts repeat the shape in front of an operand's name.
  operands = tuple(re.findall(r'%([\w.\-]+)', inside)) or tuple(
      part.strip().split(' ')[-1] for part in inside.split(',') if part.strip())
  return Instruction(name, shape, rest[:open_], operands, rest[close + 1:])


def _closing(text: str, start: int) -> int:
  """Index of the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[i], 0)
    if not depth:
      return i
  return len(text)
