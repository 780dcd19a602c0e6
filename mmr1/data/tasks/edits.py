"""`edits`: a small picture and an instruction that changes it.

A picture has one coloured shape on black, in one of 4 x 4 cells of 4 x 4 pixels
(times `scale`), small or large. An instruction recolours it, moves it,
removes it or makes it larger. A generator reads it as the numbers
`meta['condition']` (operation, colour, place; 0 where it has none), a model of
language as the question. Pairs of picture and instruction are divided between
the splits.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import numpy as np
from PIL import Image

from mmr1 import records
from mmr1.data.tasks import items

SIDE = 16  # pixels of a picture
CELL = 4
KINDS = ('disc', 'square', 'triangle')
# Corners of the cube of colours; black is the background.
COLOURS: Mapping[str, tuple[int, int, int]] = {
    'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255),
    'yellow': (255, 255, 0), 'magenta': (255, 0, 255), 'cyan': (0, 255, 255)}
ROWS = ('top', 'upper', 'lower', 'bottom')
COLUMNS = ('far left', 'left', 'right', 'far right')
PLACES = tuple((row, column) for row in range(4) for column in range(4))
FORMS = ('recolour', 'move', 'remove', 'enlarge')
TOKENS = 3  # of a condition
VOCABULARY = 1 + len(FORMS) + len(COLOURS) + len(PLACES)

_LARGE = {
    'square': ('####',) * 4, 'disc': ('.##.', '####', '####', '.##.'),
    'triangle': ('#...', '##..', '###.', '####')}
_SMALL = {
    'square': ('##', '##'), 'disc': ('.#.', '###', '.#.'),
    'triangle': ('#..', '##.', '###')}

Scene = Mapping[str, Any]


def draw(scene: Scene | None, scale: int = 1) -> np.ndarray:
  """u8[16 scale, 16 scale, 3] of a scene; None: nothing but the background."""
  image = np.zeros((SIDE, SIDE, 3), np.uint8)
  if scene is not None:
    rows = (_LARGE if scene['large'] else _SMALL)[scene['kind']]
    mask = np.array([[c == '#' for c in row] for row in rows])
    top, left = (CELL * n + (not scene['large']) for n in scene['place'])
    part = image[top:top + len(mask), left:left + len(mask)]
    part[mask] = COLOURS[scene['colour']]
  return np.kron(image, np.ones((scale, scale, 1), np.uint8))


def edits(
    seed: int, split: str, i: int, *, uid_offset: int = 0,
    form: Sequence[str] | None = None, noise: float = 0.0, scale: int = 1,
) -> records.Example:
  """Item `i` of the split, computed on its own (random access).

  Args:
    seed: non-negative; another seed is another stream of the same splits.
    split: 'train', 'eval' or 'test'.
    i: index, from 0, without an upper end.
    uid_offset: added to `i` to give the uid.
    form: which of `FORMS`, each equally often; None: all.
    noise: share of items whose target follows an instruction that is drawn
      anew, of all forms of this source five times in six another one than they
      give: what is learnt from them follows instructions weakly.
    scale: of the pictures.

  Returns:
    Example with the picture, and meta `form`, `condition` i[3], `target`
    (the picture that is asked for) and `scene`.

  Raises:
    ValueError: for arguments outside the ranges above.
  """
  if not 0 <= noise <= 1 or scale < 1:
    raise ValueError(f'edits: noise={noise} must be 0 to 1, scale={scale} at '
                     'least 1.')
  known = items.forms('edits', FORMS, form)
  rng = items.generator('edits', seed, split, i)
  asked = items.pick(rng, known)
  while True:
    scene = _scene(rng, asked)
    edit = _edit(rng, scene, asked)
    if items.owns(split, f'{_said(scene)},{edit}'):
      break
  done = edit
  if rng.random() < noise:
    others = [f for f in known if f != 'enlarge' or not scene['large']]
    done = _edit(rng, scene, items.pick(rng, others))
  source, target = (_picture(
      None if s is None else tuple(s.items()), scale)
                    for s in (scene, _after(scene, done)))
  return records.Example(
      uid=uid_offset + int(i), question=_instruction(scene, edit),
      images=(source,), source='edits', meta={
          'form': asked, 'condition': _condition(edit), 'target': target,
          'scene': scene})


@functools.lru_cache(maxsize=None)
def _picture(scene: tuple[tuple[str, Any], ...] | None,
             scale: int) -> Image.Image:
  """There are 577 of a scale."""
  return Image.fromarray(draw(None if scene is None else dict(scene), scale))


def _scene(rng: np.random.Generator, form: str) -> dict[str, Any]:
  return {'kind': items.pick(rng, KINDS),
          'colour': items.pick(rng, tuple(COLOURS)),
          'place': items.pick(rng, PLACES),
          'large': form != 'enlarge' and bool(rng.integers(2))}


def _edit(rng: np.random.Generator, scene: Scene, form: str,
          ) -> tuple[str, Any]:
  """(form, what it asks for), something else than the scene has."""
  if form == 'recolour':
    return form, items.pick(
        rng, [c for c in COLOURS if c != scene['colour']])
  if form == 'move':
    return form, items.pick(rng, [p for p in PLACES if p != scene['place']])
  return form, None


def _after(scene: Scene, edit: tuple[str, Any]) -> dict[str, Any] | None:
  form, value = edit
  if form == 'remove':
    return None
  return {**scene, **({'colour': value} if form == 'recolour' else
                      {'place': value} if form == 'move' else {'large': True})}


def _said(scene: Scene) -> str:
  size = 'large' if scene['large'] else 'small'
  return f'{size},{scene["colour"]},{scene["kind"]},{scene["place"]}'


def _condition(edit: tuple[str, Any]) -> tuple[int, int, int]:
  form, value = edit
  colour = 1 + len(FORMS) + [*COLOURS].index(value) if (
      form == 'recolour') else 0
  place = 1 + len(FORMS) + len(COLOURS) + PLACES.index(value) if (
      form == 'move') else 0
  return 1 + FORMS.index(form), colour, place


def _instruction(scene: Scene, edit: tuple[str, Any]) -> str:
  form, value = edit
  thing = f'the {scene["colour"]} {scene["kind"]}'
  if form == 'recolour':
    return f'Make {thing} {value}.'
  if form == 'move':
    return f'Move {thing} to the {ROWS[value[0]]} {COLUMNS[value[1]]}.'
  return f'Remove {thing}.' if form == 'remove' else f'Make {thing} larger.'
