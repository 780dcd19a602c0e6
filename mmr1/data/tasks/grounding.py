"""`grounding`: the box of the one object that a question names.

Flat shapes of different sizes, each inside a cell of its own, as in `shapes`.
The answer is the object's box in pixels of the picture, `[left,top,right,
bottom]`, the last two just outside; `meta['box']` has its numbers.
"""

from mmr1 import records
from mmr1.data.tasks import draw
from mmr1.data.tasks import items
from mmr1.data.tasks import scenes
from mmr1.data.tasks import shapes

_ASKED = (
    'Where is the {}? Answer with its box [left,top,right,bottom].',
    'Give the box [left,top,right,bottom] of the {}.',
)
_LEAST = 8  # pixels of a side


def grounding(
    seed: int, split: str, i: int, *, uid_offset: int = 0,
    objects: tuple[int, int] = (1, 3), grid: tuple[int, int] = (4, 4),
    colour: str = 'red', kind: str = 'square',
) -> records.Example:
  """Item `i` of the split.

  Args:
    seed: non-negative; another seed is another stream of the same splits.
    split: 'train', 'eval' or 'test'; none shares a picture with another.
    i: index, from 0, without an upper end.
    uid_offset: added to `i` to give the uid.
    objects: fewest and most objects, the one that is asked for included.
    grid: rows and columns of cells, each 2..9; 16 pixels per cell.
    colour, kind: of the object; no other of a picture has both.

  Raises:
    ValueError: for arguments outside the ranges above.
  """
  few, most = objects
  if not (all(2 <= n <= 9 for n in grid)
          and 1 <= few <= most <= grid[0] * grid[1]):
    raise ValueError(
        f'grounding: got objects={tuple(objects)}, grid={tuple(grid)}; allowed '
        'are 1 <= fewest <= most <= cells, on a grid of 2 to 9 each way.')
  if colour not in scenes.COLOURS or kind not in scenes.KINDS:
    raise ValueError(
        f'grounding: got colour={colour!r}, kind={kind!r}; allowed are '
        f'{scenes.COLOURS} and {scenes.KINDS}.')
  rng = items.generator('grounding', seed, split, i)
  others = [(c, k) for c in scenes.COLOURS for k in scenes.KINDS
            if (c, k) != (colour, kind)]
  while True:
    cells = rng.permutation(grid[0] * grid[1])[:rng.integers(few, most + 1)]
    named = [(colour, kind), *(items.pick(rng, others) for _ in cells[1:])]
    sides = rng.integers(_LEAST, draw.CELL + 1, len(cells))
    if items.owns(split, f'{cells.tolist()} {named} {sides.tolist()}'):
      break
  image = draw.canvas(rng, *grid)
  for cell, (shade, form), side in zip(cells, named, sides):
    row, column = divmod(int(cell), grid[1])
    left, top = (draw.CELL * at + int(rng.integers(draw.CELL - side + 1))
                 for at in (column, row))
    edges = left, top, left + int(side), top + int(side)
    draw.shape(image, form, (left, top, edges[2] - 1, edges[3] - 1),
               shapes.RGB[shade])
    if (shade, form) == (colour, kind):
      box = edges
  answer = f'[{",".join(map(str, box))}]'
  fact = f'{colour} {kind} {answer}'
  return records.Example(
      uid=uid_offset + int(i), answer=answer, images=(image,),
      question='<image>' + items.pick(rng, _ASKED).format(f'{colour} {kind}'),
      source='grounding', meta={
          'answer_type': 'box', 'box': box, 'difficulty': 0,
          'caption': f'{len(cells)} shapes on a light background',
          'facts': (fact,), 'steps': (fact,)})
