"""Rows of benchmarks, in the layouts that they are published in.

A reader makes of a row a question, the gold answers, the images and meta: `id`,
what the benchmark's rule needs (`mmr1.rewards.official`), and `labels`, the
groups that the benchmark reports its accuracy for, the most important first.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Made = tuple[str, list[str], list[Any], dict[str, Any]]
# Of a row that is not as its reader expects; the last of a list as text.
BAD = (LookupError, TypeError, AttributeError, ValueError, SyntaxError)
_SLOT = re.compile(r'<image ?(\d)>')
_IN_IMAGE = 'Answer the question in the image.'


def _lettered(question: str, choices: list[str]) -> str:
  return '\n'.join([question, *(
      f'({chr(65 + i)}) {choice}' for i, choice in enumerate(choices))])


def _listed(value: Any) -> list[str]:
  """A list, or one that is written as text (MMMU's)."""
  if isinstance(value, str):
    value = ast.literal_eval(value) if value.startswith('[') else [value]
  return [str(x) for x in value]


def _labels(row: Row | None, **keys: str) -> dict[str, str]:
  """{label: the row's value of a key}, where it has one."""
  found = {label: (row or {}).get(key) for label, key in keys.items()}
  return {label: str(value) for label, value in found.items()
          if value not in (None, '')}


def mathvista(row: Row) -> Made:
  """AI4Math/MathVista: pid, question, choices, answer, answer_type, precision,
  decoded_image or image, metadata."""
  choices = _listed(row['choices'] or ())
  image = row.get('decoded_image') or row['image']
  meta = dict(id=str(row['pid']), type=row['answer_type'],
              precision=row.get('precision'), labels=_labels(
                  row.get('metadata'), task='task', category='category'))
  if choices:
    meta['choices'] = choices
  return (_lettered(row['question'], choices), [str(row['answer'])], [image],
          meta)


def mathverse(row: Row) -> Made:
  """AI4Math/MathVerse, testmini: sample_index, problem_version, question (empty
  where it stands in the image), image (none of a problem of text alone),
  answer, question_type, metadata."""
  image, kind = row.get('image'), row['question_type']
  if isinstance(image, Mapping):
    image = image if any(image.values()) else None
  meta = dict(id=str(row['sample_index']), type=kind, labels={
      'version': str(row['problem_version']), **_labels(
          row.get('metadata'), subject='subject', subfield='subfield')})
  if kind == 'multi-choice':
    meta['answer_type'] = 'choice'
  return (row['question'].strip() or _IN_IMAGE, [str(row['answer']).strip()],
          [image] if image else [], meta)


def mathvision(row: Row) -> Made:
  """MathLLMs/MathVision, or the project's own test.jsonl: id, question,
  options, decoded_image or image, answer (the letter of an option), level,
  subject."""
  choices = _listed(row['options'])
  meta: dict[str, Any] = dict(id=str(row['id']), labels=_labels(
      {**row, 'level': f'level {row["level"]}'},
      level='level', subject='subject'))
  if choices:
    meta.update(choices=choices, answer_type='choice')
  # One picture, however often it is named; choices may be in it.
  question = _lettered(row['question'], choices) if choices else row['question']
  question = _SLOT.sub('', _SLOT.sub('<image>', question, count=1))
  return (question, [str(row['answer']).strip()],
          [row.get('decoded_image') or row['image']], meta)


def mmmu(row: Row) -> Made:
  """MMMU/MMMU: id, question, options as text of a list, image_1 to image_7,
  answer (a letter; of an open question a text, or a list as text)."""
  choices = _listed(row['options'])
  question = _lettered(row['question'], choices) if choices else (
      row['question'])
  order = _SLOT.findall(question)
  images = [row[f'image_{i}'] for i in order] if order else [
      row[f'image_{i}'] for i in range(1, 8)
      if row.get(f'image_{i}') is not None]
  # validation_Accounting_1; Pro has a column.
  subject = re.fullmatch(r'[^_]+_(.+)_\d+', row['id'])
  meta: dict[str, Any] = dict(id=row['id'], labels=_labels(
      row, subject='subject') or ({'subject': subject[1]} if subject else {}))
  if choices:
    meta['choices'] = choices
    golds = [str(row['answer'])]
  else:
    gold = row['answer']
    golds = _listed(gold if isinstance(gold, list) else str(gold))
  return _SLOT.sub('<image>', question), golds, images, meta


def mmmu_pro(row: Row) -> Made:
  """MMMU/MMMU_Pro: as MMMU; of the vision split only id, image, options,
  answer, subject."""
  if 'question' in row:
    return mmmu(row)
  choices = _listed(row['options'])
  return (_IN_IMAGE, [str(row['answer'])], [row['image']], dict(
      id=row['id'], choices=choices, labels=_labels(row, subject='subject')))


def mmstar(row: Row) -> Made:
  """Lin-Chen/MMStar: index, question with its options, image, answer, category,
  l2_category."""
  return (row['question'], [row['answer'].strip()], [row['image']], dict(
      id=str(row['index']), answer_type='choice',
      labels=_labels(row, category='category', l2_category='l2_category')))


def ai2d(row: Row) -> Made:
  """lmms-lab/ai2d: question, options, answer (number of one), image."""
  choices, right = _listed(row['options']), int(row['answer'])
  if not 0 <= right < len(choices):
    raise ValueError(f'answer {right} of {len(choices)} options')
  return (_lettered(row['question'], choices),
          [chr(65 + right)], [row['image']],
          dict(choices=choices))


def mme_realworld(row: Row) -> Made:
  """yifanzhang114/MME-RealWorld: index, question, bytes (base64), answer,
  multi-choice options, category, l2-category; or the project's own JSON:
  Question_id, Text, Image, Answer choices, Ground truth, Task, Subtask. Options
  start with their letter."""
  own = 'Question_id' in row
  options = list(row['Answer choices' if own else 'multi-choice options'])
  image = row['Image' if own else 'bytes']
  if not own and isinstance(image, str):
    image = f'data:image/any;base64,{image}'
  labels = _labels(row, task='Task', subtask='Subtask') if own else _labels(
      row, task='category', subtask='l2-category')
  return ('\n'.join([row['Text' if own else 'question'], *options]),
          [row['Ground truth' if own else 'answer'].strip()], [image], dict(
              id=str(row['Question_id' if own else 'index']), options=options,
              answer_type='choice', labels=labels))


def chartqa(row: Row) -> Made:
  """HuggingFaceM4/ChartQA (query, label, human_or_machine), lmms-lab/ChartQA
  (question, answer, type), each with image, or the project's own
  test_human.json (imgname, query, label)."""
  question = row['query'] if 'query' in row else row['question']
  gold = row['label'] if 'label' in row else row['answer']
  image = row['image'] if 'image' in row else f'../png/{row["imgname"]}'
  labels = _labels(row, type='type')
  if row.get('human_or_machine') is not None:
    labels = {'type': ('human', 'augmented')[int(row['human_or_machine'])]}
  return question, _listed(gold)[:1], [image], dict(labels=labels)


def docvqa(row: Row) -> Made:
  """lmms-lab/DocVQA, or the project's own JSON: questionId, question, answers,
  image."""
  return (row['question'], _listed(row['answers']), [row['image']],
          dict(id=str(row['questionId'])))


def refcoco(row: Row) -> Made:
  """RefCOCO, + and g, as lmms-lab/RefCOCO (question_id, image, answer: one or
  more expressions, bbox: left, top, width, height), JSON lines of Qwen-VL
  (image, sent, bbox: two corners) or JSON of VLM-R1 (image, problem, solution:
  two corners); boxes in pixels."""
  if 'solution' in row:
    question, box = row['problem'], [float(x) for x in row['solution']]
  else:
    said = row['sent'] if 'sent' in row else row['answer']
    if not isinstance(said, str):
      raise TypeError(f'an expression is text, got {said!r}')
    question = f'Give the box [x1, y1, x2, y2] of: {said}'
    a, b, c, d = (float(x) for x in row['bbox'])
    box = [a, b, c, d] if 'sent' in row else [a, b, a + c, b + d]
  meta = dict(box=box, answer_type='box')
  if 'question_id' in row:
    meta['id'] = str(row['question_id'])
  return question, [json.dumps(box)], [row['image']], meta


def screenspot(row: Row) -> Made:
  """rootsautomation/ScreenSpot (image, instruction, bbox as left, top, right,
  bottom in 0 to 1, data_type, data_source), or the project's own JSON
  (img_filename; bbox as left, top, width, height in pixels)."""
  a, b, c, d = (float(x) for x in row['bbox'])
  meta: dict[str, Any] = dict(
      unit_box=[a, b, c, d], labels=_platform(row), answer_type='text')
  if 'img_filename' in row:
    del meta['unit_box']
    meta['box'] = [a, b, a + c, b + d]
  image = row['image'] if 'image' in row else row['img_filename']
  return (f'Give the point [x, y] to click: {row["instruction"]}',
          [json.dumps([a, b, c, d])], [image], meta)


def _platform(row: Row) -> dict[str, str]:
  """Mobile, desktop or web, and text or icon, as ScreenSpot reports them."""
  if not row.get('data_source') or not row.get('data_type'):
    return {}
  source = row['data_source'].lower()
  place = next((name for name, parts in (
      ('mobile', ('ios', 'android')), ('desktop', ('macos', 'windows')))
                if any(part in source for part in parts)), 'web')
  kind = 'text' if row['data_type'] == 'text' else 'icon'
  return {'element': f'{place} {kind}'}


READERS: dict[str, Callable[[Row], Made]] = {
    fn.__name__: fn for fn in (
        mathvista, mathverse, mathvision, mmmu, mmmu_pro, mmstar, ai2d,
        mme_realworld, chartqa, docvqa, refcoco, screenspot)}


def problems(name: str, row: Row) -> list[Row]:
  """The row, or a row for each of its expressions (RefCOCO)."""
  several = row.get('answer') if isinstance(row, Mapping) else None
  if name != 'refcoco' or not isinstance(several, (list, tuple)) or (
      not several):
    return [row]
  return [{**row, 'answer': said} for said in several]
