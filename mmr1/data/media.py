"""Images and clips as people store them, fully decoded or refused.

A value is a path, bytes, a `{'bytes', 'path'}` dict, a `data:` URL, an array
or a PIL image. Every failure is a RecordError whose text starts with a short
kind, then a colon: failures are counted by kind.
"""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps
from PIL import ImageSequence

from mmr1 import records

_MAX_ASPECT = 200
_DEFAULT_FPS = 2.0
_ANIMATED = ('.gif', '.webp', '.png', '.apng')
_SHOWN = 200  # characters of a value in a message


class RecordError(ValueError):
  """A record that cannot be used; the text is the reason for a person."""


def image(value: Any, folder: str, *, load: bool = True) -> Image.Image:
  """Opens an image, upright as its EXIF says (as transformers opens files).

  Gray of 16 bits becomes gray of 8, white staying white: a later conversion
  to RGB would cut it at 255 and leave almost everything white.

  Args:
    value: see the module's docstring.
    folder: where relative paths start.
    load: False reads the header only; the pixels are decoded at first use,
      or now if EXIF turns them.

  Raises:
    RecordError: missing, corrupt, truncated, empty, absurdly long, or of 32
      bits a channel.
  """
  if isinstance(value, Image.Image):
    return _eight_bits(_checked(value, 'image'))
  if isinstance(value, np.ndarray):
    return _checked(_from_array(value), 'image')
  data, name = _read(value, folder)
  try:
    picture = Image.open(io.BytesIO(data))
  except Exception as error:  # PIL plugins raise anything: named, not hidden
    raise RecordError(f'corrupt image: {name}: {_why(error)}') from error
  _checked(picture, name)
  if load or _turned(picture, name):
    return _loaded(picture, name)
  return picture


def _turned(picture: Image.Image, name: str) -> bool:
  """True if EXIF asks for another orientation; decodes no pixels."""
  if picture.format == 'PNG' and 'exif' not in picture.info:
    return False  # getexif would read on, through the pixels
  try:
    return picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
  except Exception as error:
    raise RecordError(f'corrupt image: {name}: {_why(error)}') from error


def _loaded(picture: Image.Image, name: str) -> Image.Image:
  """The picture with all its pixels; a truncated file is an error."""
  try:
    picture.load()
    # Turned or copied: drops the file, keeps palette and transparency.
    return _eight_bits(ImageOps.exif_transpose(picture))
  except Exception as error:
    raise RecordError(f'corrupt image: {name}: {_why(error)}') from error


def _eight_bits(picture: Image.Image) -> Image.Image:
  """65535, white in 16 bits, becomes 255."""
  if not picture.mode.startswith('I;16'):
    return picture
  deep = np.asarray(picture).astype(np.uint32)
  return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


def clip(value: Any, folder: str, *, load: bool = True) -> records.Video:
  """Opens a clip: a list of images, `{'frames', 'fps'}`, or an animated file.

  Args:
    value: a list of image values at 2 Hz, a dict with `frames` (a list, or an
      animated image) and `fps`, or an animated image: a path to a GIF, WebP or
      APNG, its bytes or a `data:` URL.
    folder: where relative paths start.
    load: False reads the headers of frames only.

  Raises:
    RecordError: as for images; no frames, sizes that differ, or a format that
      needs a video decoder.
  """
  fps = None
  if isinstance(value, Mapping) and 'frames' in value:
    fps = value.get('fps')
    if fps is not None and (isinstance(fps, bool) or not isinstance(
        fps, (int, float)) or not 0 < fps < float('inf')):
      raise RecordError(f'wrong type: fps={fps!r}; needed is a positive number')
    value = value['frames']
  if isinstance(value, (list, tuple)) or (
      isinstance(value, np.ndarray) and value.ndim in (1, 4)):
    frames = tuple(image(frame, folder, load=load) for frame in value)
    natural = _DEFAULT_FPS
  else:
    frames, natural = _animated(value, folder)
  if not frames:
    raise RecordError('empty video: no frames')
  sizes = sorted({frame.size for frame in frames})
  if len(sizes) > 1:
    raise RecordError(
        f'bad video: frames of different sizes {sizes[:3]} (width, height)')
  return records.Video(
      frames=frames, fps=float(natural if fps is None else fps))


def _animated(value: Any, folder: str) -> tuple[
    tuple[Image.Image, ...], float]:
  """Frames and rate of a GIF, WebP or APNG."""
  if isinstance(value, str) and not value.startswith('data:') and (
      not value.lower().endswith(_ANIMATED)):
    raise RecordError(
        f'bad video: {_short(value)}: only animated {", ".join(_ANIMATED)} and '
        'lists of frames are read; extract the frames of other formats first')
  data, name = _read(value, folder)
  try:
    with Image.open(io.BytesIO(data)) as picture:
      frames, seconds = [], 0.0
      for frame in ImageSequence.Iterator(picture):
        frame.load()
        seconds += frame.info.get('duration', 0) / 1000
        frames.append(frame.convert('RGBA'))
  except Exception as error:
    raise RecordError(f'corrupt video: {name}: {_why(error)}') from error
  _checked(frames[0], name)
  return tuple(frames), len(frames) / seconds if seconds else _DEFAULT_FPS


def _read(value: Any, folder: str) -> tuple[bytes, str]:
  """The bytes behind a value and a name for messages."""
  if isinstance(value, Mapping):
    if value.get('bytes') is not None:
      return _read(value['bytes'], folder)
    value = value.get('path')
  if isinstance(value, (bytes, bytearray)):
    return bytes(value), f'{len(value)} bytes'
  if not isinstance(value, str):
    raise RecordError(
        f'wrong type: an image is a path, bytes or a dict with bytes or path, '
        f'got {type(value).__name__}')
  if not value.strip():
    raise RecordError('missing image: the path is empty')
  if value.startswith('data:'):
    try:
      return base64.b64decode(value.split(',', 1)[1], validate=True), 'data URL'
    except (ValueError, IndexError) as error:  # a wrong alphabet is either
      raise RecordError(f'corrupt image: data URL: {error}') from error
  if value.startswith(('http://', 'https://')):
    raise RecordError(f'missing image: {_short(value)}: download it first')
  path = value if '://' in value else str(epath.Path(folder) / value)
  name = _short(path)
  try:
    return epath.Path(path).read_bytes(), name
  except FileNotFoundError as error:
    raise RecordError(f'missing image: {name}: no such file') from error
  except Exception as error:  # remote back ends raise anything: named
    raise RecordError(f'missing image: {name}: {_why(error)}') from error


def _from_array(value: np.ndarray) -> Image.Image:
  if value.dtype != np.uint8 or value.ndim not in (2, 3) or (
      value.ndim == 3 and value.shape[2] not in (1, 3, 4)):
    raise RecordError(
        f'wrong type: an image array is u8[H, W] or u8[H, W, 1, 3 or 4], got '
        f'{value.dtype}{list(value.shape)}')
  if 0 in value.shape:
    raise RecordError(f'bad image size: array {list(value.shape)}')
  return Image.fromarray(value[..., 0] if value.shape[2:] == (1,) else value)


def _checked(picture: Image.Image, name: str) -> Image.Image:
  if picture.mode in ('I', 'F'):  # no range of its own: what is white?
    raise RecordError(
        f'wrong type: {name}: pixels of 32 bits (mode {picture.mode!r}); '
        'convert the image to 8 bits first')
  width, height = picture.size
  if min(width, height) < 1:
    raise RecordError(f'bad image size: {name}: {width} x {height}')
  if max(width, height) > _MAX_ASPECT * min(width, height):
    raise RecordError(
        f'bad image size: {name}: {width} x {height}, one side more than '
        f'{_MAX_ASPECT} times the other')
  return picture


def _why(error: Exception) -> str:
  return _short(f'{type(error).__name__}: {error}'.rstrip(': '))


def _short(text: str) -> str:
  """The start of a text: base64 in place of a path must not fill the log."""
  if len(text) <= _SHOWN:
    return text
  return f'{text[:_SHOWN]}... ({len(text)} characters)'
