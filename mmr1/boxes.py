"""Boxes, and the frame that their numbers are in (standard library only).

Models write boxes in frames of their own, and data sets in pixels of the file.
A box without its frame is four numbers: every `Box` says which it is in, and
nothing compares two of them before both are in one. Which frame a family
writes is its codec's `box_frame`; sizes that a prompt was resized to are its
`seen`.
"""

from typing import NamedTuple

# Of the image as it came; as the model sees it, resized; 0 to 1000 along each
# side; 0 to 1 along each side.
FRAMES = ('original', 'seen', 'thousand', 'unit')


class Size(NamedTuple):
  """Pixels of an image."""
  height: int
  width: int


class Box(NamedTuple):
  """Left, top, right and bottom edge, x to the right and y down."""
  left: float
  top: float
  right: float
  bottom: float
  frame: str


def _sides(frame: str, image: Size, seen: Size | None) -> tuple[float, float]:
  """(width, height) of the whole image in a frame."""
  if frame not in FRAMES:
    raise ValueError(f'box frame {frame!r}: allowed are {FRAMES}.')
  if frame == 'seen' and seen is None:
    raise ValueError("box frame 'seen' needs the size that the image was "
                     'resized to: the `seen` of the codec.')
  size = seen if frame == 'seen' else image
  if frame in ('original', 'seen'):
    return float(size.width), float(size.height)
  return (1000.0, 1000.0) if frame == 'thousand' else (1.0, 1.0)


def convert(box: Box, frame: str, *, image: Size,
            seen: Size | None = None) -> Box:
  """The same box in another frame.

  Args:
    box: in its own frame.
    frame: of FRAMES.
    image: size of the image as it came.
    seen: size it was resized to; needed if either frame is 'seen'.

  Raises:
    ValueError: an unknown frame, or 'seen' without its size.
  """
  old, new = _sides(box.frame, image, seen), _sides(frame, image, seen)
  x, y = (b / a for a, b in zip(old, new))
  return Box(box.left * x, box.top * y, box.right * x, box.bottom * y, frame)


def iou(a: Box, b: Box, *, image: Size, seen: Size | None = None) -> float:
  """Intersection over union, 0 to 1, in the frame of the image as it came.

  A box whose edges are in the wrong order, or that is not finite, has no area:
  0 with everything, itself included.
  """
  a, b = (convert(x, 'original', image=image, seen=seen) for x in (a, b))
  areas = [(x.right - x.left) * (x.bottom - x.top)
           if x.left < x.right and x.top < x.bottom else 0.0 for x in (a, b)]
  width = min(a.right, b.right) - max(a.left, b.left)
  height = min(a.bottom, b.bottom) - max(a.top, b.top)
  inside = width * height if width > 0 and height > 0 else 0.0
  union = sum(areas) - inside
  # Also False where anything is nan or inf.
  if not (min(areas) > 0 and 0 < union < float('inf')):
    return 0.0
  return inside / union
