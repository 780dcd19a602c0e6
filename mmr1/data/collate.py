"""Encoded prompts to fixed shapes: who fits, stacking."""

from collections.abc import Sequence

import numpy as np

from mmr1 import types
from mmr1.data import encode

TOWER = 'vision'


def misfit(
    encoded: encode.Encoded, *, prompt_length: int, patches: int) -> str | None:
  """Why a prompt does not fit the shapes, or None if it does.

  A prompt that does not fit is dropped and counted, never cut: cutting would
  split an image's span (M5).
  """
  if len(encoded.tokens) > prompt_length:
    return (f'too long: prompt of {len(encoded.tokens)} tokens, allowed are '
            f'{prompt_length}')
  if len(encoded.patches) > patches:
    return (f'too many patches: {len(encoded.patches)} with window padding, '
            f'allowed are {patches}')
  return None


def smallest(sizes: Sequence[int], needed: int) -> int:
  """The first of ascending `sizes` that is `needed` or more, else the last."""
  return next((size for size in sizes if needed <= size), sizes[-1])


def collate(
    rows: Sequence[encode.Encoded],
    *,
    prompt_length: int,
    patches: int,
    pad_id: int = 0,
    pad_rows: int = 0,
) -> types.Prompts:
  """Stacks prompts, left-padded, into `types.Prompts` of numpy arrays.

  Args:
    rows: N encoded prompts.
    prompt_length: P.
    patches: S. With 0 the result has no 'vision' media at all.
    pad_id: token where padded; masked, so any id does.
    pad_rows: rows to append that are padding throughout (uid 0, mask False).

  Raises:
    ValueError: a row does not fit (see `misfit`), or there are no rows.
  """
  if not rows:
    raise ValueError('collate: no prompts.')
  for row in rows:
    reason = misfit(row, prompt_length=prompt_length, patches=patches)
    if reason:
      raise ValueError(f'prompt with uid {row.uid}: {reason}.')
  n, p, s = len(rows) + pad_rows, prompt_length, patches
  tokens = np.full((n, p), pad_id, np.int32)
  mask = np.zeros((n, p), bool)
  place = np.zeros((n, p, 3), np.int32)
  slot = np.full((n, p), -1, np.int32)
  pixels = np.zeros((n, s, rows[0].patches.shape[1]), np.float32)
  patch_position = np.zeros((n, s, 2), np.int32)
  segment = np.zeros((n, s), np.int32)
  following = np.zeros(n, np.int32)
  uid = np.zeros(n, np.int32)
  more = _more(rows[0], n, p, s)
  for i, row in enumerate(rows):
    start, count = p - len(row.tokens), len(row.patches)
    tokens[i, start:] = row.tokens
    mask[i, start:] = True
    place[i, start:] = row.positions
    slot[i, start:] = row.slot
    pixels[i, :count] = row.patches
    patch_position[i, :count] = row.patch_position
    segment[i, :count] = row.patch_segment
    following[i] = row.next_position
    uid[i] = row.uid
    if 'extent' in more:
      more['extent'][i, :count] = row.patch_extent
    if 'taps' in more:
      more['taps'][i, start:] = row.taps
      more['weights'][i, start:] = row.weights
  media = {} if not s else {TOWER: types.Media(
      patches=pixels, position=patch_position, segment=segment, slot=slot,
      **more)}
  return types.Prompts(
      tokens=tokens, mask=mask, positions=place, next_position=following,
      media=media, uid=uid)


def _more(
    row: encode.Encoded, n: int, p: int, s: int) -> dict[str, np.ndarray]:
  """Zeros for the fields of `types.Media` that only some families have."""
  more = {}
  if row.patch_extent is not None:
    more['extent'] = np.zeros((n, s, 2), np.int32)
  if row.taps is not None:
    blended = row.taps.shape[1]
    more['taps'] = np.zeros((n, p, blended), np.int32)
    more['weights'] = np.zeros((n, p, blended), np.float32)
  return more
