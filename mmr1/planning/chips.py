"""Accelerators, as their makers publish them, and the slices one can rent.

https://cloud.google.com/tpu/docs (v5e, v5p, v6e), NVIDIA's data sheets. Memory
of a TPU is what its compiler hands out, a little less than is sold.
"""

from typing import NamedTuple

from mmr1 import resolve

_GIB = 2**30


class Chip(NamedTuple):
  """One chip.

  Fields:
    name: as in `--topology`.
    memory: bytes for programs and their arrays.
    flops: bfloat16 matrix operations per second, at most.
    bandwidth: bytes per second of its memory.
    link: bytes per second to its neighbours, all links together.
    kind: 'tpu', 'gpu' or 'cpu'.
  """
  name: str
  memory: float
  flops: float
  bandwidth: float
  link: float
  kind: str


CHIPS = {chip.name: chip for chip in (
    Chip('v5e', 15.75 * _GIB, 197e12, 819e9, 200e9, 'tpu'),
    Chip('v5p', 95 * _GIB, 459e12, 2765e9, 600e9, 'tpu'),
    Chip('v6e', 31.25 * _GIB, 918e12, 1640e9, 448e9, 'tpu'),
    Chip('a100', 79 * _GIB, 312e12, 2039e9, 300e9, 'gpu'),
    Chip('h100', 79 * _GIB, 989e12, 3350e9, 450e9, 'gpu'),
    Chip('h200', 139 * _GIB, 989e12, 4800e9, 450e9, 'gpu'),
    # A guess at two cores of a laptop, to have a number at all.
    Chip('cpu', 8 * _GIB, 60e9, 20e9, 20e9, 'cpu'))}
_ALIASES = {'gpu': 'h100'}
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
SLICES = {
    'v5e': _FLAT,
    'v6e': _FLAT,
    'v5p': ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8',
            '8x8x8', '8x8x16')}


class Topology(NamedTuple):
  """Chips of one kind.

  Fields:
    chip: of which there are
    count: so many.
    shape: of a TPU slice, '4x4x4'; '' elsewhere.
  """
  chip: Chip
  count: int
  shape: str

  @property
  def name(self) -> str:
    """'v5p:4x4x4', 'h100:8', 'cpu'."""
    return f'{self.chip.name}:{self.shape or self.count}'


def topology(name: str) -> Topology:
  """What `--topology` says: 'v5p:4x4x4', 'gpu:8', 'h200:1', 'cpu'.

  Raises:
    ValueError: no such chip, or a slice that is not listed.
  """
  kind, _, rest = name.partition(':')
  chip = CHIPS.get(_ALIASES.get(kind, kind))
  if chip is None:
    known = [*CHIPS, *_ALIASES]
    raise ValueError(
        f'topology: {kind!r} of {name!r} is unknown; allowed are {known}. '
        f'{resolve.nearest(kind, known)}')
  if chip.kind != 'tpu':
    if rest and not (rest.isdigit() and int(rest)):
      raise ValueError(f'topology: got {name!r}; after {kind} comes how many, '
                       f'as in {kind}:8.')
    return Topology(chip, int(rest or 1), '')
  if rest not in SLICES[chip.name]:
    raise ValueError(
        f'topology: got {name!r}; slices of {chip.name} are '
        f'{list(SLICES[chip.name])}, as in {chip.name}:{SLICES[chip.name][-3]}.')
  count = 1
  for side in rest.split('x'):
    count *= int(side)
  return Topology(chip, count, rest)


def slices(names: tuple[str, ...]) -> list[Topology]:
  """Those that are listed for these chips, fewest chips first.

  Raises:
    ValueError: a chip of which no slices are listed.
  """
  for name in names:
    if name not in SLICES:
      raise ValueError(
          f'chips: got {name!r}; allowed are {list(SLICES)}. '
          f'{resolve.nearest(name, list(SLICES))}')
  found = [topology(f'{name}:{shape}') for name in names
           for shape in SLICES[name]]
  return sorted(found, key=lambda t: t.count)
