"""Scores of made pictures: `(images f32[G, H, W, 3], example, ...) -> f64[G]`.

Pixels are -1 to 1. NumPy only.
"""

import numpy as np

from mmr1 import records


def edited(images: np.ndarray, example: records.Example) -> np.ndarray:
  """How far pictures follow an instruction of the world `edits`, 0 to 1.

      share of right pixels among those to change
      x share of right pixels among those to keep

  A pixel is right if each of its channels is on the side of 0 that the
  target's is on: all colours of that world are corners of the cube.

  Args:
    images: f32[G, H, W, 3], the samples of one prompt.
    example: `images[0]` is the source, meta['target'] what is asked for.

  Raises:
    ValueError: another size than the target's.
  """
  source, target = (np.asarray(image) > 127 for image in (
      example.images[0], example.meta['target']))
  if images.shape[1:] != target.shape:
    raise ValueError(f'edited: got pictures of {images.shape[1:]}; those of '
                     f'{example.source} are {target.shape}.')
  right = ((images > 0) == target).all(-1)
  changed = (source != target).any(-1)
  return right[:, changed].mean(-1) * right[:, ~changed].mean(-1)


edited.range = (0.0, 1.0)
