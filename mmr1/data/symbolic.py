"""A symbolic observer and solver of the procedural worlds.

They say what a captioner and a text reasoner would say about an item, reading
the facts and steps of its meta instead of its pixels: the stand-ins of
Vision-R1's data engine.
"""

import numpy as np

from mmr1 import records
from mmr1.data import traces
from mmr1.data.tasks import scenes

_MOST_ROUNDS = 6
_STREAM = 401  # of the random numbers, beside the seed and the uid


def thought(example: records.Example) -> str:
  """Somebody who knows the answer: caption, needed facts, the solution."""
  meta = example.meta
  return (f'{meta["caption"]}. {"; ".join(meta["facts"])}. '
          f'{traces.chain(meta["facts"], meta["steps"])}').rstrip()


def description(example: records.Example, hint: str) -> str:
  """The caption, and of the needed facts those that the hint names.

  Without a hint every fact is lost: a caption does not know the question.
  """
  named = [fact for fact in example.meta['facts'] if fact in hint]
  return '. '.join([example.meta['caption'], *named])


class Solver:
  """Sees only a description, and doubts itself at length.

  The number of doubts grows with the steps of the problem, so that chains of
  hard problems run over any short cap: what a model learns from them is to
  over-think. Where the description lacks a fact, it guesses.
  """

  def __init__(self, *, seed: int, overlong: float, error_rate: float):
    """Makes the solver.

    Args:
      seed: with an example's uid fixes the reply.
      overlong: 0..1, how much it doubts; 0 writes short chains.
      error_rate: 0..1, chance of a wrong last step.

    Raises:
      ValueError: a value outside its range.
    """
    if not 0 <= overlong <= 1 or not 0 <= error_rate <= 1:
      raise ValueError(
          f'symbolic solver: got overlong={overlong}, error_rate={error_rate}'
          '; allowed are 0..1.')
    self._seed = seed
    self._overlong = overlong
    self._error_rate = error_rate

  def rounds(self, difficulty: int, rng: np.random.Generator) -> int:
    """Doubts in one chain, 0..6: geometric, likelier on hard problems."""
    again = min(0.95, self._overlong * (0.4 + 0.3 * difficulty))
    count = 0
    while count < _MOST_ROUNDS and rng.random() < again:
      count += 1
    return count

  def reply(self, example: records.Example, seen: str) -> str:
    """'<chain> Answer: <answer>' from a description."""
    facts, steps = example.meta['facts'], list(example.meta['steps'])
    rng = np.random.default_rng([self._seed, _STREAM, example.uid])
    named = [fact for fact in facts if fact in seen]
    if len(named) < len(facts):
      return (f'The description says {"; ".join(named) or "little"}. Hmm, not '
              f'enough, a guess. Answer: {guess(example, rng)}')
    final, slipped = example.answer, traces.slip(steps[-1], rng)
    numeric = slipped != steps[-1]  # else only the answer can be wrong
    if rng.random() < self._error_rate:
      final = slipped.rpartition('=')[2] if numeric else 'none of these'
      steps[-1] = slipped
    chain = traces.verbose(
        facts, steps, rng, rounds=self.rounds(example.meta['difficulty'], rng),
        slip_rate=0.2 if numeric else 0.0)
    chain = chain.replace('I see', 'The description says', 1)
    return f'{chain} Answer: {final}'


def guess(example: records.Example, rng: np.random.Generator) -> str:
  """A blind answer of the right kind: a letter, a word or a number 0..19."""
  options = ()
  if example.meta['answer_type'] == 'choice':
    options = 'ABCD'[:len(example.meta['choices'])]
  elif example.meta['answer_type'] == 'text':
    options = next((
        words for words in (('yes', 'no'), scenes.COLOURS, scenes.KINDS)
        if example.answer in words), ('unclear',))
  return (options[rng.integers(len(options))] if options else
          str(rng.integers(0, 20)))
