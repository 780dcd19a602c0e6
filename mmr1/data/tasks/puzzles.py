"""`puzzles`: six kinds of small puzzles in pictures, five levels each.

The tasks of MM-HELIX (arXiv 2510.08540) in miniature: every kind has a
generator, a solver that leaves a skeleton of the way to the answer, a picture
without which the question cannot be answered, and rules (`mmr1.puzzle_rules`)
that accept every right answer. What makes a level harder, the `LEVELS` of a
kind's module:

  sliding, maze   fewest moves to the goal
  sudoku          blanks
  ordering        letters and arrows
  twenty_four     cost of the cheapest expression
  container       bars and their greatest height

Contents are divided between the splits by what must be solved; the `content`
of a kind's module says what of it.
"""

from collections.abc import Sequence

from mmr1 import puzzle_rules
from mmr1 import records
from mmr1.data.tasks import container
from mmr1.data.tasks import items
from mmr1.data.tasks import maze
from mmr1.data.tasks import ordering
from mmr1.data.tasks import sliding
from mmr1.data.tasks import sudoku
from mmr1.data.tasks import twenty_four

KINDS = puzzle_rules.KINDS
LEVELS = (1, 5)
_MODULES = {
    'sliding': sliding, 'maze': maze, 'sudoku': sudoku, 'ordering': ordering,
    'twenty_four': twenty_four, 'container': container}


def puzzles(
    seed: int, split: str, i: int, *, uid_offset: int = 0,
    kinds: Sequence[str] | None = None, levels: tuple[int, int] = LEVELS,
) -> records.Example:
  """Item `i` of the split, computed on its own (random access).

  Args:
    seed: non-negative; another seed is another stream of the same splits.
    split: 'train', 'eval' or 'test'.
    i: index, from 0, without an upper end.
    uid_offset: added to `i` to give the uid.
    kinds: which of `KINDS` to draw, each equally often; None = all.
    levels: easiest and hardest, 1 <= easiest <= hardest <= 5, each equally
      often. Pictures are at most 64 x 64 pixels at levels 1 and 2, 96 x 96
      above.

  Returns:
    Example whose meta has `form` (the kind), `difficulty` (the level),
    `puzzle` (what `puzzle_rules.passes` judges answers by), `scene` (the same,
    and where things are in the picture), `answer_type` 'puzzle', `caption`,
    `facts` and `steps`. Its answer is the solver's, one of perhaps many.

  Raises:
    ValueError: for arguments outside the ranges above.
  """
  easiest, hardest = levels
  if not LEVELS[0] <= easiest <= hardest <= LEVELS[1]:
    raise ValueError(f'puzzles: levels={tuple(levels)} must satisfy 1 <= '
                     'easiest <= hardest <= 5.')
  known = items.forms('puzzles', KINDS, kinds)
  rng = items.generator('puzzles', seed, split, i)
  kind = items.pick(rng, known)
  level = int(rng.integers(easiest, hardest + 1))
  world = _MODULES[kind]
  while True:
    state = world.state(rng, level)
    if items.owns(split, f'{kind} {world.content(state)}'):
      break
  answer, facts, steps = world.solve(state)
  question = items.pick(rng, world.QUESTIONS)
  return records.Example(
      uid=uid_offset + int(i),
      question=f'<image>{question} Answer: {world.FORMAT}.', answer=answer,
      images=(world.render(rng, state),), source='puzzles', meta={
          'answer_type': 'puzzle', 'form': kind, 'difficulty': level,
          'caption': world.CAPTION, 'facts': facts, 'steps': steps,
          'puzzle': {'kind': kind, **state}, 'scene': state})
