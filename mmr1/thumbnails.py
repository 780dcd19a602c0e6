"""Keeps pixels out of text logs: images become small files (M23)."""

from collections.abc import Mapping
import hashlib
import io
import re
from typing import Any

from etils import epath
import numpy as np
from PIL import Image

_SIDE = 160
_DATA_URI = re.compile(r'data:[\w/+.-]*;base64,[A-Za-z0-9+/=\s]*')
_LONG_RUN = re.compile(r'[A-Za-z0-9+/]{512,}={0,2}')


def without_pixels(value: Any, folder: epath.Path) -> Any:
  """The JSON-like `value` with every image replaced by a file's name.

  PIL images and uint8[H, W] or [H, W, 3] arrays are written to `folder` as PNG
  with sides up to 160, under a hash of their content, so that a group's shared
  image exists once. Bytes, other arrays of more than 64 values, data URIs and
  long base64 runs are replaced by a description. Numpy and jax scalars become
  numbers; a tuple becomes a list.
  """
  if value is None or isinstance(value, (bool, int, float)):
    return value
  if isinstance(value, str):
    return _text(value)
  if isinstance(value, Mapping):
    return {_text(str(k)): without_pixels(v, folder) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [without_pixels(item, folder) for item in value]
  if isinstance(value, Image.Image):
    return _write(value, folder)
  if isinstance(value, (bytes, bytearray)):
    return f'<{len(value)} bytes>'
  if not hasattr(value, 'dtype'):
    return _text(str(value))
  array = np.asarray(value)
  if array.dtype == np.uint8 and (
      array.ndim == 2 or array.ndim == 3 and array.shape[-1] == 3):
    return _write(Image.fromarray(array), folder)
  if array.size > 64:
    return f'<{array.dtype}{list(array.shape)}>'
  # A bfloat16 has no Python counterpart of its own.
  return (array.astype(np.float32) if array.dtype.kind == 'V'
          else array).tolist()


def _text(text: str) -> str:
  text = _DATA_URI.sub(lambda m: f'<data URI of {len(m[0])} characters>', text)
  return _LONG_RUN.sub(_run, text)


def _run(match: re.Match) -> str:
  run = match[0]
  # A degenerate completion ('aaaa...') is worth seeing; encoded bytes use all
  # kinds of characters.
  encoded = len(set(run)) > 32
  return f'<base64 of {len(run)} characters>' if encoded else run


def _write(image: Image.Image, folder: epath.Path) -> str:
  digest = hashlib.sha1(f'{image.mode}{image.size}'.encode())
  digest.update(image.tobytes())
  path = folder / f'{digest.hexdigest()[:16]}.png'
  if not path.exists():
    small = image.convert('RGB')
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, 'PNG')
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f'.{path.name}.tmp'  # a kill leaves no half of it
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)
  return path.name
