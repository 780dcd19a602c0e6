"""BaseReward (arXiv 2509.16127): what only its small run needs."""

from collections.abc import Sequence
import dataclasses
from typing import Any
import zlib

import numpy as np

from mmr1 import records
from mmr1.data.tasks import pairs


def sloppy(
    examples: Sequence[records.Example],
    ctx: Any,
    init: str,
    *,
    kinds: Sequence[str],
    count: tuple[int, int],
    off: int = 1,
    wrong: float = 0.4,
) -> tuple[list[records.Example], dict[str, int]]:
  """Engine of a `collect` stage: traces of problems of `digits` for a policy
  that makes mistakes [ours].

  They are of the kinds that reward models are taught to see, so that these have
  something to say of its responses.

  Args:
    examples: the problems.
    ctx, init: unused.
    kinds, count, off: see `pairs.mistaken`.
    wrong: the share of traces with a mistake, 0 to 1.

  Returns:
    Examples with a completion, and how many there are of each kind.

  Raises:
    ValueError: `wrong` out of range.
  """
  del ctx, init
  if not 0 <= wrong <= 1:
    raise ValueError(f'sloppy: got wrong={wrong}; allowed: 0 to 1.')
  made, counts = [], dict.fromkeys(('right', *kinds), 0)
  for example in examples:
    rng = np.random.default_rng([zlib.crc32(b'sloppy'), example.uid])
    kind = 'right'
    if rng.random() < wrong:
      kind = kinds[int(rng.integers(len(kinds)))]
    text = pairs.right(example) if kind == 'right' else pairs.mistaken(
        rng, kind, example, tuple(count), off)
    counts[kind] += 1
    made.append(dataclasses.replace(example, completions=(text,)))
  return made, counts
