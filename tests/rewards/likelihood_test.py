"""How likely an answer is after its reasoning: which tokens, and their mean."""

import numpy as np
import pytest

from mmr1 import records
from mmr1.data import encode
from mmr1.data import processor as processor_lib
from mmr1.rewards import likelihood


@pytest.fixture(scope='module')
def pieces_of():
  """text -> pieces of the embedded model's tokenizer, eos last."""
  processor = processor_lib.Processor.open('mmr1/assets/tiny')
  return lambda text: tuple(
      encode.decode([token], processor)
      for token in encode.encode_completion(text, processor))


def sample(pieces):
  return records.Sample(
      text=''.join(pieces), tokens=(1,) * len(pieces),
      kinds=(1,) * len(pieces), length=len(pieces), truncated=False,
      example=records.Example(uid=0), uid=0, group=0, slot=0, pieces=pieces)


# Text, its pieces joined by '|', and those that hold the answer: with the rest
# of the opening tag, and without it.
CASES = [
    # The usual one: '>' is a token of its own.
    ('<think>I see 3.</think> <answer>3</answer>',
     '<think|>I| see| |3|.</|think|>| |<|answer|>|3|</|answer|>|',
     '>|3', '3'),
    ('<think>It is at row 1.</think> <answer>12</answer>',
     '<think|>I|t| is| |at| row| |1|.</|think|>| |<|answer|>|1|2|</|answer|>|',
     '>|1|2', '1|2'),
    # '>I' begins the answer and '.</' ends it: both hold a character of it.
    ('<answer>I think.</answer>',
     '<|answer|>I| th|ink|.</|answer|>|', '>I| th|ink|.</', '>I| th|ink|.</'),
    # '><' ends one tag and begins the next: of that it says nothing.
    ('<think>x</think><answer>1</answer>',
     '<think|>|x|</|think|><|answer|>|1|</|answer|>|', '>|1', '1'),
    # Blanks around are in the block.
    ('<answer>\n1\n</answer>', '<|answer|>|\n|1|\n|</|answer|>|',
     '>|\n|1|\n', '\n|1|\n'),
    # Of several blocks the first; the '><' between them closes it.
    ('<answer>1</answer><answer>B</answer>',
     '<|answer|>|1|</|answer|><|answer|>|B|</|answer|>|', '>|1', '1'),
    # A character of several tokens shows as one replacement for each byte.
    ('<answer>1²</answer>', '<|answer|>|1|�|�|</|answer|>|',
     '>|1|�|�', '1|�|�'),
    # Nothing in it: only the '>', or nothing.
    ('<answer></answer>', '<|answer|>|</|answer|>|', '>', ''),
    # No block, one that is cut off, one that never began, and another tag.
    ('I see 3.', 'I| see| |3|.|', '', ''),
    ('<answer>3', '<|answer|>|3|', '', ''),
    ('3</answer> <answer>', '3|</|answer|>| |<|answer|>|', '', ''),
    ('<answers>3</answers>', '<|answer|s|>|3|</|answer|s|>|', '', ''),
]


@pytest.mark.parametrize('text, pieces, opened, inside', CASES)
def test_tokens_of_the_answer_by_hand(pieces_of, text, pieces, opened, inside):
  found = pieces_of(text)
  assert '|'.join(found) == pieces
  for opening, wanted in ((True, opened), (False, inside)):
    chosen = likelihood.within(found, 'answer', opening=opening)
    assert '|'.join(found[i] for i in chosen) == wanted
    # In one piece, right before the closing tag.
    assert chosen == list(range(chosen[0], chosen[0] + len(chosen))
                          if chosen else [])


def test_the_place_of_repeated_pieces():
  """'3' is said before and after; what counts stands in the block."""
  pieces = ('3', '<', 'answer', '>', '3', '</', 'answer', '>', '3')
  assert likelihood.within(pieces, 'answer', opening=True) == [3, 4]
  assert likelihood.within(pieces, 'answer', opening=False) == [4]


@pytest.mark.parametrize('pieces, opened, inside', [
    # Tags of one token each, as other tokenizers have them.
    (('<answer>', '4', '2', '</answer>'), [0, 1, 2], [1, 2]),
    (('<answer', '>4', '2</', 'answer>'), [1, 2], [1, 2]),
    # A whole block of one token.
    (('a', '<answer>4</answer>', 'b'), [1], [1]),
    # Special tokens are '' and take no place.
    (('', '<', 'answer', '', '>', '', '4', '', '</', 'answer', '>', ''),
     [4, 6], [6])])
def test_tokens_of_other_tokenizers(pieces, opened, inside):
  assert likelihood.within(pieces, 'answer', opening=True) == opened
  assert likelihood.within(pieces, 'answer', opening=False) == inside


def test_another_tag(pieces_of):
  pieces = pieces_of('<think>I see 3.</think> <answer>3</answer>')
  for opening in (True, False):  # '>I' holds a character of the chain
    assert likelihood.within(pieces, 'think', opening=opening) == [
        1, 2, 3, 4, 5]


def test_a_geometric_mean():
  """sqrt(.9 x .5) = .670820, not the product .45 nor the mean .7."""
  pieces = ('<answer>', '4', '2', '</answer>')
  logp = np.log([.01, .9, .5, .02]).astype(np.float32)
  got = likelihood.answer(sample(pieces), logp, opening=False)
  assert got == pytest.approx(.670820, abs=1e-6) and isinstance(got, float)
  # With the opening tag: (.01 x .9 x .5)^(1/3).
  assert likelihood.answer(sample(pieces), logp) == pytest.approx(
      .0045**(1 / 3), abs=1e-6)


def test_only_the_answer_is_read(pieces_of):
  pieces = pieces_of('<think>I see 3.</think> <answer>12</answer>')
  inside = likelihood.within(pieces, 'answer', opening=True)
  assert len(inside) == 3
  logp = np.full(len(pieces) + 5, np.nan, np.float32)  # a row's padding, too
  logp[inside] = np.log([.5, .25, .125])
  assert likelihood.answer(sample(pieces), logp) == pytest.approx(.25)


@pytest.mark.parametrize('text', ['I see 3.', '<answer>3', ''])
def test_without_a_block_nothing_is_unlikely(pieces_of, text):
  pieces = pieces_of(text)
  logp = np.full(len(pieces), -9.0, np.float32)
  assert likelihood.answer(sample(pieces), logp) == 1.0


def test_the_loss_of_demonstrations():
  """- (log .5 + log .25) / 2 = 1.0397, of who is imitated alone."""
  def of(**member):
    return records.Sample(
        text='', tokens=(1, 1), kinds=(4, 4), length=2, truncated=False, uid=0,
        example=records.Example(uid=0, member=records.Member(**member)),
        group=0, slot=0)
  logp = np.log(np.array([.5, .25, 1e-9], np.float32))  # the last is padding
  copied = of(name='copying', imitate=True)
  assert likelihood.nll(copied, logp) == pytest.approx(1.5 * np.log(2))
  assert likelihood.nll(copied, logp, members=('copying', 'x')) is not None
  assert likelihood.nll(copied, logp, members=('x',)) is None
  assert likelihood.nll(of(name='copying'), logp) is None
