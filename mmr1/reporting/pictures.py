"""Thumbnails inside of a page: once each, small, within a budget."""

from collections.abc import Sequence
import base64
import io

from PIL import Image

from mmr1.reporting import reading

_AS_IT_IS = 2048  # bytes of a file that needs no other form
_SIDES = (128, 96, 64)
CHUNK = 200


def collect(run: reading.Run, names: Sequence[str],
            budget: int) -> dict[str, str]:
  """{name: data URI} of a run's thumbnails; what is missing becomes a note.

  Args:
    run: its folder has samples/images; its notes grow.
    names: of files there.
    budget: characters for all of them.
  """
  found, missing, left = {}, [], 0
  side, used = _side(run, names, budget), 0
  for name in names:
    try:
      data = (run.path / 'samples' / 'images' / name).read_bytes()
      uri = _uri(data, side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
      missing.append(name)  # SyntaxError: what PIL calls a broken PNG
      continue
    if used + len(uri) > budget:
      left += 1
      continue
    found[name], used = uri, used + len(uri)
  if missing:
    run.notes.append(
        f'{len(missing)} of {len(names)} images are missing or broken, the '
        f'first is samples/images/{missing[0]}.')
  if left:
    run.notes.append(f'{left} of {len(names)} images did not fit on this page; '
                     'they are in samples/images.')
  return found


def _side(run: reading.Run, names: Sequence[str], budget: int) -> int:
  """The largest side at which all would fit, by a few of them."""
  some = names[::max(1, len(names) // 20)][:20]
  for side in _SIDES:
    sizes = []
    for name in some:
      try:
        sizes.append(len(_uri(
            (run.path / 'samples' / 'images' / name).read_bytes(), side)))
      except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        continue
    if not sizes or sum(sizes) / len(sizes) * len(names) < 0.9 * budget:
      return side
  return _SIDES[-1]


def _uri(data: bytes, side: int) -> str:
  image = Image.open(io.BytesIO(data))
  kind = 'png'
  if len(data) > _AS_IT_IS or max(image.size) > _SIDES[0]:
    image = image.convert('RGB')
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, 'WEBP', quality=70, method=2)
    data, kind = buffer.getvalue(), 'webp'
  else:
    image.load()  # a broken file says so
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def chunks(found: dict[str, str]) -> tuple[
    list[dict[str, str]], dict[str, int]]:
  """Images in parts that are unpacked together, and the part of each name."""
  names = list(found)
  parts = [{name: found[name] for name in names[start:start + CHUNK]}
           for start in range(0, len(names), CHUNK)]
  return parts, {name: i for i, part in enumerate(parts) for name in part}
