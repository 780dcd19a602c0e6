"""Benchmarks, read from local files in the layouts they are published in.

`open_benchmark(name, path)`: parquet files as on Hugging Face, or the same
columns as JSON lines or a JSON list. A reader makes of a row a question, a gold
answer, images and meta: `benchmark`, `id`, `golds` and what its rule needs
(`mmr1.rewards.official`).
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from mmr1 import records
from mmr1 import resolve
from mmr1.data import media
from mmr1.data import sources

Row = Mapping[str, Any]
Made = tuple[str, list[str], list[Any], dict[str, Any]]
# Of a row that is not as its reader expects; the last of a list as text.
_BAD = (KeyError, TypeError, AttributeError, ValueError, SyntaxError)
_SLOT = re.compile(r'<image ?(\d)>')


def _lettered(question: str, choices: list[str]) -> str:
  return '\n'.join([question, *(
      f'({chr(65 + i)}) {choice}' for i, choice in enumerate(choices))])


def _listed(value: Any) -> list[str]:
  """A list, or one that is written as text (MMMU's)."""
  if isinstance(value, str):
    value = ast.literal_eval(value) if value.startswith('[') else [value]
  return [str(x) for x in value]


def mathvista(row: Row) -> Made:
  """AI4Math/MathVista: pid, question, choices, answer, decoded_image ..."""
  choices = list(row['choices'] or ())
  image = row.get('decoded_image') or row['image']
  meta = dict(id=str(row['pid']), type=row['answer_type'],
              precision=row.get('precision'))
  if choices:
    meta['choices'] = choices
  return (_lettered(row['question'], choices), [str(row['answer'])], [image],
          meta)


def mmmu(row: Row) -> Made:
  """MMMU/MMMU: options as text of a list, image_1 to image_7, question_type."""
  choices = _listed(row['options'])
  question = _lettered(row['question'], choices) if choices else (
      row['question'])
  order = _SLOT.findall(question)
  images = [row[f'image_{i}'] for i in order] if order else [
      row[f'image_{i}'] for i in range(1, 8)
      if row.get(f'image_{i}') is not None]
  meta = dict(id=row['id'])
  if choices:
    meta['choices'] = choices
    golds = [row['answer']]
  else:
    golds = _listed(row['answer'])
  return _SLOT.sub('<image>', question), golds, images, meta


def mmmu_pro(row: Row) -> Made:
  """MMMU/MMMU_Pro: as MMMU; of the vision split only image and options."""
  if 'question' in row:
    return mmmu(row)
  choices = _listed(row['options'])
  return ('Answer the question in the image.', [row['answer']], [row['image']],
          dict(id=row['id'], choices=choices))


def mmstar(row: Row) -> Made:
  """Lin-Chen/MMStar: index, question with its options, image, answer."""
  return (row['question'], [row['answer'].strip()], [row['image']],
          dict(id=str(row['index']), letters='ABCD', answer_type='choice'))


def ai2d(row: Row) -> Made:
  """lmms-lab/ai2d: question, options, answer (number of one), image."""
  choices = list(row['options'])
  return (_lettered(row['question'], choices),
          ['ABCDEFGH'[int(row['answer'])]], [row['image']],
          dict(choices=choices))


def mme_realworld(row: Row) -> Made:
  """yifanzhang114/MME-RealWorld: index, question, bytes (base64), answer,
  multi-choice options, whose texts start with their letter."""
  options = list(row['multi-choice options'])
  image = row['bytes']
  if isinstance(image, str):
    image = f'data:image/any;base64,{image}'
  return ('\n'.join([row['question'], *options]), [row['answer'].strip()],
          [image], dict(id=str(row['index']), letters='ABCDE',
                        options=options, answer_type='choice'))


def chartqa(row: Row) -> Made:
  """HuggingFaceM4/ChartQA (query, label), lmms-lab/ChartQA (question, answer)
  or the project's own test_human.json (imgname, query, label)."""
  question = row['query'] if 'query' in row else row['question']
  gold = row['label'] if 'label' in row else row['answer']
  image = row['image'] if 'image' in row else f'../png/{row["imgname"]}'
  return question, _listed(gold)[:1], [image], {}


def docvqa(row: Row) -> Made:
  """lmms-lab/DocVQA, or the project's own JSON: questionId, question, answers,
  image."""
  return (row['question'], list(row['answers']), [row['image']],
          dict(id=str(row['questionId'])))


def refcoco(row: Row) -> Made:
  """RefCOCO, + and g as jsonl of image, sent, bbox (left, top, right, bottom in
  pixels), one expression a row."""
  box = [float(x) for x in row['bbox']]
  return (f'Give the box [x1, y1, x2, y2] of: {row["sent"]}', [json.dumps(box)],
          [row['image']], dict(box=box, answer_type='box'))


def screenspot(row: Row) -> Made:
  """rootsautomation/ScreenSpot (bbox as left, top, right, bottom in 0 to 1), or
  the project's own JSON (img_filename; left, top, width, height in pixels)."""
  a, b, c, d = (float(x) for x in row['bbox'])
  meta: dict[str, Any] = dict(unit_box=[a, b, c, d])
  if 'img_filename' in row:
    meta = dict(box=[a, b, a + c, b + d])
  image = row['image'] if 'image' in row else row['img_filename']
  return (f'Give the point [x, y] to click: {row["instruction"]}',
          [json.dumps([a, b, c, d])], [image], {**meta, 'answer_type': 'text'})


_READERS: dict[str, Callable[[Row], Made]] = {
    fn.__name__: fn for fn in (
        mathvista, mmmu, mmmu_pro, mmstar, ai2d, mme_realworld, chartqa, docvqa,
        refcoco, screenspot)}
NAMES = tuple(_READERS)


def _rows(path: str) -> list[Row]:
  file = epath.Path(path)
  if not file.exists():
    raise ValueError(f'{path}: no such file. Check benchmark_path.')
  if path.endswith('.parquet'):
    from pyarrow import parquet  # only users of parquet pay for it
    with file.open('rb') as opened:
      return parquet.read_table(opened).to_pylist()
  if not path.endswith(('.json', '.jsonl')):
    raise ValueError(f'{path}: known are files ending in .parquet, .jsonl or '
                     '.json.')
  try:
    if path.endswith('.jsonl'):
      return [json.loads(x) for x in file.read_text().splitlines()
              if x.strip()]
    whole = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f'{path}: bad json: {error}') from error
  if isinstance(whole, dict):  # DocVQA's, and MathVista's by pid
    whole = whole['data'] if 'data' in whole else list(whole.values())
  return whole


class Benchmark:
  """A benchmark as a source; uid is the number of the row in the file."""

  def __init__(self, name: str, path: str):
    """Reads the file; images are opened when asked for.

    Raises:
      ValueError: an unknown name, file or layout.
    """
    if name not in _READERS:
      raise ValueError(f'benchmark: got {name!r}. '
                       f'{resolve.nearest(name, NAMES)}')
    self.name, self.path = name, path
    self._all = _rows(path)
    if not self._all:
      raise ValueError(f'{path}: no rows.')
    try:
      _READERS[name](self._all[0])
    except _BAD as error:
      got = sorted(self._all[0]) if isinstance(self._all[0], dict) else (
          type(self._all[0]).__name__)
      raise ValueError(
          f'{path}: not a layout of {name}: {type(error).__name__} {error}; '
          f'got columns {got}; allowed: {_READERS[name].__doc__}') from error

  def __len__(self) -> int:
    return len(self._all)

  def __getitem__(self, i: int) -> sources.Item:
    i = sources.check_index(i, len(self), self.path)
    where = f'{self.path}:row {i}'
    try:
      question, golds, images, meta = _READERS[self.name](self._all[i])
      folder = str(epath.Path(self.path).parent)
      images = tuple(media.image(x, folder) for x in images)
    except _BAD as error:
      return records.Broken(where, f'bad row: {type(error).__name__} {error}')
    if 'unit_box' in meta:
      w, h = images[0].size
      a, b, c, d = meta.pop('unit_box')
      meta['box'] = [a * w, b * h, c * w, d * h]
    return records.Example(
        uid=i, question=question, answer=golds[0] if golds else None,
        images=images, source=where, meta={
            'id': str(i), **meta, 'golds': golds, 'benchmark': self.name})
