"""What a compiled program moves: bytes of memory and of collectives.

XLA's own count takes the body of a loop once. Here a body is counted as often
as it runs, and of an operand that a loop cuts slices out of, the slices.
"""

from collections.abc import Iterator, Mapping
import dataclasses

from mmr1.planning import costs
from mmr1.planning import hlo

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
               'collective-permute')
# These move nothing: what they name is there, or counted where it is made.
_FREE = frozenset((
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
    'conditional', 'call', 'after-all', 'partition-id', 'replica-id',
    'opt-barrier', 'add-dependency', 'async-start', 'async-done',
    'async-update', 'custom-call-start'))


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


def moved(module: hlo.Module, trips: int = 1) -> Moved:
  """What a program moves.

  Args:
    module: the program.
    trips: of loops whose length is not known, such as decoding.
  """
  total = Moved()
  _Count(module).add(module.entry, 1.0, trips, total, fused=False)
  return total


class _Count:
  """Adds a program up."""

  def __init__(self, module: hlo.Module):
    self._module, self._computations = module, module.computations

  def add(self, name: str, times: float, trips: int, total: Moved,
           fused: bool) -> None:
    computation = self._computations.get(name, {})
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
        known = self._module.trips(one)
        if known is None:
          total.unknown_loops += 1
        inner = times * (trips if known is None else known)
      branches = hlo.BRANCHES.search(one.rest)
      if branches:  # the dearest of them: which one runs is known at run time
        self._add_branches(
            [x.strip().lstrip('%') for x in branches[1].split(',')], inner,
            trips, total, fused, one.rest)
      elif one.opcode in ('while', 'call', 'fusion', 'async-start',
                          'conditional', 'custom-call'):
        for called in hlo.CALLS.findall(one.rest):
          self.add(called, inner, trips, total,
                    fused or one.opcode == 'fusion')

  def _add_branches(self, names, times, trips, total, fused, scope) -> None:
    """The dearest, and how dear they are together, see `costs.of_branches`."""
    found = []
    for name in names:
      part = Moved()
      self.add(name, times, trips, part, fused)
      found.append(part)
    dearest = max(found, key=lambda p: (p.bytes, p.sent))
    total.bytes += costs.of_branches([p.bytes for p in found], scope)
    total.unknown_loops += dearest.unknown_loops
    for kind, (count, sent) in dearest.collectives.items():
      before = total.collectives.get(kind, (0.0, 0.0))
      total.collectives[kind] = (before[0] + count, before[1] + sent)

  def _bytes(self, one: hlo.Instruction,
             computation: Mapping[str, hlo.Instruction]) -> float:
    operands = [computation[name] for name in one.operands
                if name in computation]
    if one.opcode == 'broadcast':
      return hlo.held(one.shape)
    if one.opcode in ('dynamic-slice', 'gather', 'slice'):
      outside = bool(operands) and not hlo.held(operands[0].shape)
      return hlo.held(one.shape) + (0.0 if outside else hlo.size(one.shape))
    if one.opcode == 'dynamic-update-slice':
      update = computation.get(one.operands[1])
      return (2 * hlo.size(update.shape) * (hlo.held(one.shape) > 0) if update
              else hlo.held(one.shape))
    if one.opcode == 'copy-start':  # its shape names what it copies too
      return hlo.held(one.shape)
    called = hlo.CALLS.search(one.rest) if one.opcode == 'fusion' else None
    if called is None or called[1] not in self._computations:
      return hlo.held(one.shape) + sum(hlo.held(x.shape) for x in operands)
    return self._fusion_bytes(called[1], one, operands)

  def _fusion_bytes(self, name: str, one: hlo.Instruction,
                    operands: list[hlo.Instruction]) -> float:
    """A fusion that cuts a slice out of an operand reads the slice, and one
    that updates a slice in place writes it."""
    read = 0.0
    for index, operand in enumerate(operands):
      if hlo.held(operand.shape):
        read += self._read(name, index, hlo.size(operand.shape))
    written = hlo.held(one.shape)
    for update, whole in self._updates(name):
      if written:
        written = max(0.0, written - whole) + update
    return read + written

  def _read(self, name: str, index: int, whole: float) -> float:
    """Bytes that a computation reads of its argument."""
    inside = self._computations.get(name, {})
    found = [x for x in inside.values() if x.opcode == 'parameter'
             and x.operands and x.operands[0] == str(index)]
    return min(whole, self._used(inside, found[0], whole)) if found else whole

  def _used(self, inside: Mapping[str, hlo.Instruction], value: hlo.Instruction,
            whole: float) -> float:
    """Bytes that the users of a value read of it."""
    total = 0.0
    for user in inside.values():
      if value.name not in user.operands:
        continue
      place = user.operands.index(value.name)
      called = hlo.CALLS.search(user.rest) if user.opcode == 'fusion' else None
      if user.opcode in ('dynamic-slice', 'gather', 'slice') and not place:
        total += hlo.size(user.shape)
      elif user.opcode == 'dynamic-update-slice' and not place:
        update = inside.get(user.operands[1])
        total += hlo.size(update.shape) if update else whole
      elif user.opcode == 'bitcast':
        total += self._used(inside, user, whole)
      elif called:
        total += self._read(called[1], place, whole)
      else:
        return whole
    return total

  def _updates(self, name: str) -> Iterator[tuple[float, float]]:
    """(bytes of the slice, of the array) of updates in place, nested ones too.
    """
    inside = self._computations.get(name, {})
    for one in inside.values():
      if one.opcode == 'dynamic-update-slice':
        update = inside.get(one.operands[1])
        if update:
          yield hlo.size(update.shape), hlo.size(one.shape)
      elif one.opcode == 'fusion':
        called = hlo.CALLS.search(one.rest)
        if called:
          yield from self._updates(called[1])


def _sent(one: hlo.Instruction, kind: str,
          computation: Mapping[str, hlo.Instruction]) -> float:
  """Bytes that one device sends, in a ring."""
  operand = sum(hlo.size(computation[name].shape) for name in one.operands
                if name in computation)
  if not operand:
    operand = hlo.size(one.shape)
  n = max(one.group, 2)
  share = (n - 1) / n
  return {'all-gather': operand * (n - 1), 'all-reduce': 2 * operand * share,
          'reduce-scatter': operand * share, 'all-to-all': operand * share,
          'collective-permute': operand}[kind]
