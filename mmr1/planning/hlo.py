"""What a compiled program moves: bytes of memory and of collectives.

XLA's own count takes the body of a loop once. Here it is read from the text of
the program and counted as often as it runs.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import re
from typing import NamedTuple

from mmr1.planning import costs

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
               'collective-permute')
# These move nothing: what they name is there, or counted where it is made.
_FREE = frozenset((
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
    'conditional', 'call', 'after-all', 'partition-id', 'replica-id',
    'opt-barrier', 'add-dependency', 'async-start', 'async-done',
    'async-update', 'custom-call-start'))
_SIZES = {'pred': 1, 's4': .5, 'u4': .5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2,
          'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8,
          'u64': 8, 'f64': 8, 'c64': 8}
_SHAPE = re.compile(r'\b(' + '|'.join(_SIZES) + r')\[([\d,]*)\]')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_LINE = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$')
_CALLS = re.compile(
    r'(?:calls|to_apply|body|condition|true_computation|false_computation)='
    r'%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'known_trip_count[^}]*?"?n"?\s*[:=]\s*"?(\d+)')
_GROUPS = re.compile(r'replica_groups=\[(\d+),(\d+)\]|replica_groups=\{\{([\d,]*)')


def size(shape: str) -> float:
  """Bytes of 'f32[2,3]{1,0}' or of a tuple of such."""
  return sum(_SIZES[kind] * math.prod(int(n) for n in dims.split(',') if n)
             for kind, dims in _SHAPE.findall(shape))


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


@dataclasses.dataclass
class Moved:
  """What a program moves on one device.

  Fields:
    bytes: read and written in its memory.
    collectives: {kind: (how many, bytes that the device sends)}.
    unknown_loops: loops whose length is not known, counted `trips` times.
  """
  bytes: float = 0.0
  collectives: dict[str, tuple[float, float]] = dataclasses.field(
      default_factory=dict)
  unknown_loops: int = 0

  @property
  def sent(self) -> float:
    """Bytes of all collectives."""
    return sum(sent for _, sent in self.collectives.values())


class Module:
  """A compiled program's text, taken apart."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = ''
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
      head = _HEAD.match(line)
      if head and ' = ' not in line.split('(')[0]:
        current = self.computations[head[2]] = {}
        if head[1]:
          self.entry = head[2]
        continue
      found = _LINE.match(line)
      if found:
        one = _instruction(*found.groups())
        if one is not None:
          current[one.name] = one

  def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array that an instruction makes."""
    for computation in self.computations.values():
      for one in computation.values():
        for kind, dims in _SHAPE.findall(one.shape):
          yield kind, tuple(int(n) for n in dims.split(',') if n)

  def moved(self, trips: int = 1) -> Moved:
    """Adds up the program.

    Args:
      trips: of loops whose length is not known, such as decoding.
    """
    total = Moved()
    self._add(self.entry, 1.0, trips, total, fused=False)
    return total

  def _add(self, name: str, times: float, trips: int, total: Moved,
           fused: bool) -> None:
    computation = self.computations.get(name, {})
    for one in computation.values():
      kind = one.opcode.removesuffix('-start')
      if kind in COLLECTIVES:
        count, sent = total.collectives.get(kind, (0.0, 0.0))
        total.collectives[kind] = (
            count + times, sent + times * _sent(one, kind, computation))
      if not fused and one.opcode not in _FREE and (
          not one.opcode.endswith('-done')):
        total.bytes += times * self._bytes(one, computation)
      inner = times
      if one.opcode == 'while':
        known = one.trips
        if known is None:
          total.unknown_loops += 1
        inner = times * (trips if known is None else known)
      branches = _BRANCHES.search(one.rest)
      if branches:  # the dearest of them: which one runs is known at run time
        self._add_branches(
            [x.strip().lstrip('%') for x in branches[1].split(',')], inner,
            trips, total, fused, one.rest)
      elif one.opcode in ('while', 'call', 'fusion', 'async-start',
                          'conditional', 'custom-call'):
        for called in _CALLS.findall(one.rest):
          self._add(called, inner, trips, total,
                    fused or one.opcode == 'fusion')

  def _add_branches(self, names, times, trips, total, fused, scope) -> None:
    """The dearest, and how dear they are together, see `costs.of_branches`."""
    found = []
    for name in names:
      part = Moved()
      self._add(name, times, trips, part, fused)
      found.append(part)
    dearest = max(found, key=lambda p: (p.bytes, p.sent))
    total.bytes += costs.of_branches([p.bytes for p in found], scope)
    total.unknown_loops += dearest.unknown_loops
    for kind, (count, sent) in dearest.collectives.items():
      before = total.collectives.get(kind, (0.0, 0.0))
      total.collectives[kind] = (before[0] + count, before[1] + sent)

  def _bytes(self, one: Instruction,
             computation: Mapping[str, Instruction]) -> float:
    if one.opcode in ('dynamic-slice', 'gather', 'slice', 'broadcast'):
      return 2 * size(one.shape)
    if one.opcode == 'dynamic-update-slice':
      update = computation.get(one.operands[1])
      return 2 * size(update.shape) if update else size(one.shape)
    operands = [computation[name] for name in one.operands
                if name in computation]
    called = _CALLS.search(one.rest) if one.opcode == 'fusion' else None
    if called is None or called[1] not in self.computations:
      return size(one.shape) + sum(size(x.shape) for x in operands)
    return self._fusion_bytes(self.computations[called[1]], one, operands)

  def _fusion_bytes(self, inside: Mapping[str, Instruction], one: Instruction,
                    operands: list[Instruction]) -> float:
    """A fusion that cuts a slice out of an operand reads the slice, and one
    that updates a slice in place writes it."""
    total, written = 0.0, size(one.shape)
    parameters = {x.name: int(x.operands[0]) if x.operands else 0
                  for x in inside.values() if x.opcode == 'parameter'}
    for name, index in parameters.items():
      users = [x for x in inside.values() if name in x.operands]
      whole = size(operands[index].shape) if index < len(operands) else 0.0
      if users and all(x.opcode in ('dynamic-slice', 'gather') and
                       x.operands[0] == name for x in users):
        total += min(whole, sum(size(x.shape) for x in users))
      elif users and all(x.opcode == 'dynamic-update-slice' and
                         x.operands[0] == name for x in users):
        updates = [inside.get(x.operands[1]) for x in users]
        part = sum(size(x.shape) for x in updates if x)
        total += part
        written = max(0.0, written - whole) + part
      else:
        total += whole
    return total + written


def _sent(one: Instruction, kind: str,
          computation: Mapping[str, Instruction]) -> float:
  """Bytes that one device sends, in a ring."""
  operand = sum(size(computation[name].shape) for name in one.operands
                if name in computation)
  if not operand:
    operand = size(one.shape)
  n = max(one.group, 2)
  share = (n - 1) / n
  return {'all-gather': operand * (n - 1), 'all-reduce': 2 * operand * share,
          'reduce-scatter': operand * share, 'all-to-all': operand * share,
          'collective-permute': operand}[kind]


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
