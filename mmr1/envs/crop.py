"""An environment with one tool: a part of the picture, from its own pixels.

The policy sees a picture as its checkpoint resizes it; a crop is cut from the
picture itself, so that it may show what the policy could not see. Boxes are in
pixels of the picture as it is seen, where the family has that frame, else of
the picture itself. A crop is never cut from a crop.
"""

from collections.abc import Callable, Mapping
import json
import re
from typing import Any, NamedTuple

from PIL import Image

from mmr1 import records
from mmr1 import resolve

Box = tuple[float, float, float, float]
FORMS = ('tool', 'inline')
_TOOL = re.compile(r'<tool_call>(.*?)</tool_call>', re.DOTALL)
_INLINE = re.compile(r'\{[^{}]*"bbox_2d"[^{}]*\}')  # other braces are words


class State(NamedTuple):
  """The picture, (height, width) of the frame of boxes, and whether the
  environment has spoken."""
  image: Image.Image
  seen: tuple[int, int]


class Crop:
  """`step` of a turn that asks for a crop brings it; any other turn is the end.

  Attributes:
    role: who speaks, see `records.Observation`.
  """

  def __init__(self, *, rule: str, form: str = 'tool', prompt: str = '',
               role: str = 'user', blank: bool = False, size: tuple = (),
               lenient: bool = False, close: bool = False):
    """Makes the environment.

    Args:
      rule: function (image, box) -> crop, of mmr1/papers; its ValueError is
        told to the model.
      form: 'tool', `<tool_call>{"name": ..., "arguments": {"bbox_2d": [...],
        ...}}</tool_call>`; or 'inline', the last `{"bbox_2d": [...]}`.
      prompt: text behind the crop.
      role: 'user' or 'tool', a turn of its own; '' inside the assistant's.
      blank: crops are grey, to see what they are for.
      size: keywords of `rule` as pairs (name, value).
      lenient: what is no box, or one that the rule refuses, is passed over: the
        turn goes on without a word about it.
      close: an `<answer>` that a turn opens and does not close is the end, and
        read as if it were closed (the released environment of VLM-R3; its
        paper says nothing of it). A turn that a cap cut stays as it is.

    Raises:
      ValueError: another form.
    """
    if form not in FORMS:
      raise ValueError(f'crop: got form {form!r}; allowed are {FORMS}.')
    self.role, self._form, self._prompt = role, form, prompt
    self._blank, self._lenient, self._close = blank, lenient, close
    self._rule: Callable[..., Image.Image] = resolve.function(
        rule, 'mmr1.papers')
    self._size = dict(size)
    resolve.check_kwargs(self._rule, self._size, 'crop: size')

  @staticmethod
  def unusable(example: records.Example) -> str:
    """Why an example is skipped: it has no picture; '' where it has."""
    return '' if example.images else 'there is no picture to cut from'

  def reset(self, example: records.Example, seed: int) -> State:
    """Of an example with a picture; nothing is drawn.

    Raises:
      ValueError: it has none.
    """
    del seed
    if why := self.unusable(example):
      raise ValueError(f'crop: {why}')
    image = example.images[0]
    width, height = image.size
    return State(image, tuple(example.meta.get('seen') or (height, width)))

  def step(self, state: State, sample: records.Sample,
           ) -> tuple[State, records.Observation]:
    said = sample.turns[-1].text
    if self._close and '<answer>' in said and '</answer>' not in said:
      return state, records.Observation(text='</answer>', done=True)
    asked = called(said, self._form)
    if asked is None and self._lenient and said.rstrip().endswith('}'):
      return state, self._refused(said[-200:], 'the call is not JSON')
    if asked is None:
      return state, records.Observation(
          done=True, reason='answer' if '</answer>' in said else 'no_answer')
    try:
      box = box_of(asked)
      image = self._crop(state, box)
    except ValueError as error:
      return state, self._refused(asked, str(error))
    return state, records.Observation(
        text=f'<image>{self._prompt}', images=(image,), role=self.role,
        call={'box': list(box)})

  def _refused(self, asked: str, why: str) -> records.Observation:
    text = '\n' if self._lenient else f'Error: {why}'
    return records.Observation(
        text=text + ('' if self._lenient else self._prompt), role=self.role,
        call={'said': asked[:200]}, error='invalid')

  def _crop(self, state: State, box: Box) -> Image.Image:
    width, height = state.image.size
    down, across = height / state.seen[0], width / state.seen[1]
    own = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    image = self._rule(state.image, own, **self._size)
    return Image.new('RGB', image.size, (127,) * 3) if self._blank else image


def called(said: str, form: str) -> str | None:
  """The JSON text of the call in a turn; None: it has none."""
  if form == 'tool':
    found = _TOOL.findall(said)
    return found[-1].strip() if found and '</answer>' not in (
        said.rpartition('</tool_call>')[2]) else None
  if '</answer>' in said:
    return None
  found = _INLINE.findall(said)
  return found[-1] if found else None


def box_of(asked: str) -> Box:
  """The box that a call asks for.

  Raises:
    ValueError: no JSON, no box of four numbers.
  """
  try:
    value = json.loads(asked)
  except (ValueError, RecursionError):
    raise ValueError('the call is not JSON') from None
  if isinstance(value, Mapping) and 'arguments' in value:
    value = value['arguments']
  box = value.get('bbox_2d') if isinstance(value, Mapping) else None
  if not isinstance(box, list) or len(box) != 4 or any(
      isinstance(x, bool) or not isinstance(x, (int, float)) or
      not abs(x) < 1e9 for x in box):
    raise ValueError('bbox_2d must be a list of 4 numbers')
  return tuple(map(float, box))


def boxes(sample: records.Sample) -> list[Any]:
  """What was cropped in an episode, as asked for."""
  return [turn.call['box'] for turn in sample.calls if 'box' in turn.call]


def zoomed(sample: records.Sample, knobs: Mapping[str, float], *,
           needed: bool | None = None) -> float | None:
  """1 if a part was looked at, 0 if not.

  `needed`: None for questions whose meta 'needs_zoom' is another.
  """
  del knobs
  if needed is not None and sample.example.meta.get('needs_zoom') != needed:
    return None
  return float(bool(boxes(sample)))


zoomed.range = (0.0, 1.0)
zoomed.no_gold = 'earned by looking closer; the answer is given at once here'
