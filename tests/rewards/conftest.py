import pytest

from mmr1 import records


def _make(text, gold='15', *, truncated=False, uid=0, slot=0, question='',
          **meta):
  example = records.Example(uid=uid, answer=gold, question=question, meta=meta)
  return records.Sample(
      text=text, tokens=(1, 2), kinds=(1, 1), length=2, truncated=truncated,
      example=example, uid=uid, group=0, slot=slot)


@pytest.fixture(scope='session')
def make():
  """make(text, gold, **meta) -> Sample."""
  return _make


@pytest.fixture(scope='session')
def tagged():
  """tagged(answer) -> a well-formed text with that answer."""
  return lambda answer, think='I look.': (
      f'<think> {think} </think><answer> {answer} </answer>')
