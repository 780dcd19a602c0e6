"""Documents that the embedded model is pre-trained on.

Each image carries several questions, each answered in one of the forms below.
The mixture holds what later stages build on: direct answers, chains without
tags, tagged reasoning, over-long tagged reasoning, read-outs, captions and
arithmetic without an image. No form is tied to one paper.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from mmr1 import records
from mmr1.data import traces
from mmr1.data.tasks import digits
from mmr1.data.tasks import geometry
from mmr1.data.tasks import shapes

STEP = ' Think step by step.'
TAGS = ' Think first, then answer, in tags.'
LONG = ' Think very carefully, then answer, in tags.'
READ = ' Only say what you see.'
DETAIL = 'Describe the image in detail.'
CAPTION = 'Describe the image briefly.'
# Relative frequency of each form.
FORMS = {
    'direct': 2.0, 'step': 1.5, 'tags': 2.0, 'long': 2.0, 'read': 2.0,
    'detail': 1.5, 'caption': 0.3, 'arithmetic': 1.0, 'unasked': 0.5,
}
WORLDS: dict[str, tuple[Callable[..., records.Example], float]] = {
    'digits': (digits.digits, 0.5),
    'shapes': (shapes.shapes, 0.25),
    'geometry': (geometry.geometry, 0.25),
}


@dataclasses.dataclass(frozen=True)
class Document:
  """One exchange about an image: user text (no placeholder) and reply."""
  user: str
  reply: str


def pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
  names = list(weights)
  p = np.asarray([weights[name] for name in names])
  return names[int(rng.choice(len(names), p=p / p.sum()))]


def tagged(think: str, answer: str, rng: np.random.Generator) -> str:
  """A tagged reply in one of the two published spellings."""
  if rng.random() < 0.8:
    return (f'<think>{think}</think>'
            f'<answer> Final Answer:{answer} </answer>')
  return f'<think>{think}</think><answer>{answer}</answer>'


def arithmetic(rng: np.random.Generator) -> Document:
  """Sums, differences and products of small numbers, no image needed."""
  form = str(rng.choice(np.asarray(digits.FORMS)))
  values = [int(v) for v in rng.integers(0, 10, int(rng.integers(2, 6)))]
  total, steps = digits.operate(form, values)
  if rng.random() < 0.5:
    left, _, right = steps[-1].partition('=')
    return Document(f'What is {left}?', right)
  question = digits.questions(form)[0]
  listed = ','.join(map(str, values))
  return Document(f'Digits {listed}. {question}',
                  f'{traces.chain((), steps)} Answer: {total}')


def detail(example: records.Example) -> str:
  """Everything in the picture, in reading order; trains the eyes."""
  scene = example.meta['scene']
  if example.source == 'digits':
    return example.meta['facts'][0]
  if example.source == 'geometry':
    values = ','.join(map(str, scene['values']))
    return f'{scene["colour"]} {scene["figure"]} {values}'
  return ';'.join(
      f'{o["colour"]} {o["kind"]} {o["row"]},{o["column"]}' for o in scene)


def document(
    example: records.Example, rng: np.random.Generator) -> Document:
  """One exchange about the example's image."""
  form = pick(rng, FORMS)
  question = example.question.replace('<image>', '')
  facts, steps = example.meta['facts'], example.meta['steps']
  answer = str(example.answer)
  if form == 'arithmetic':
    return arithmetic(rng)
  if form == 'read':
    return Document(question + READ, traces.read(facts))
  if form == 'detail':
    return Document(DETAIL, detail(example))
  if form == 'caption':
    return Document(CAPTION, example.meta['caption'])
  if form == 'direct':
    return Document(question, answer)
  if form == 'step':
    return Document(question + STEP,
                    f'{traces.concise(facts, steps)} Answer: {answer}')
  if form == 'tags':
    return Document(question + TAGS,
                    tagged(traces.concise(facts, steps), answer, rng))
  if form == 'long':
    think = traces.verbose(
        facts, steps, rng, rounds=int(rng.integers(1, 5)), slip_rate=0.2)
    return Document(question + LONG, tagged(think, answer, rng))
  think = traces.verbose(facts, steps, rng, rounds=int(rng.integers(0, 2)))
  return Document(question, tagged(think, answer, rng))  # 'unasked'


def cells(example: records.Example) -> dict[tuple[int, int], tuple[str, ...]]:
  """{(row, column) of a 16-px cell: the words it shows}, blank cells absent."""
  scene = example.meta['scene']
  if example.source == 'digits':
    return {(0, k): (str(d),) for k, d in enumerate(scene['digits'])}
  if example.source == 'geometry':
    return {(row, column + k): (char,)
            for text, row, column in scene['labels']
            for k, char in enumerate(text)}
  return {(o['row'] - 1, o['column'] - 1): (f' {o["colour"]}', f' {o["kind"]}')
          for o in scene}


def page(
    seed: int, i: int, questions: int,
) -> tuple[records.Example, list[Document]]:
  """Image `i` and its documents. The image and facts are shared by all."""
  rng = np.random.default_rng([seed, 977, i])
  world = pick(rng, {name: weight for name, (_, weight) in WORLDS.items()})
  example = WORLDS[world][0](seed, 'train', i)
  return example, [document(example, rng) for _ in range(questions)]
