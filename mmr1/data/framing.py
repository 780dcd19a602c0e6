"""The frame that a model family writes boxes in, for whoever reads its answer."""

import dataclasses
from typing import Any

from mmr1 import records


def framed(item: records.Example, codec: Any) -> records.Example:
  """Where a box is asked for, the example with the frame it is written in.

  Args:
    item: with `meta['box']`, or left as it is.
    codec: of the processor, or None.

  Returns:
    With meta 'box_frame', and 'seen', (height, width) as the model sees the
    first image, where boxes are in pixels of that.
  """
  if item.meta.get('box') is None or not (
      item.images and codec and codec.box_frame):
    return item
  seen = {}
  if codec.box_frame == 'seen':
    width, height = item.images[0].size
    seen = {'seen': tuple(codec.seen(height, width))}
  return dataclasses.replace(
      item, meta={**item.meta, 'box_frame': codec.box_frame, **seen})
