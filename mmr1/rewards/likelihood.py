"""Probes on what a look says of a part of a completion: the `probe` socket.

`(Sample, logp f32[T], *, ...) -> float or None`, see `mmr1.probing`.
"""

from collections.abc import Sequence
import math

import numpy as np

from mmr1 import records


def answer(
    sample: records.Sample, logp: np.ndarray, *, tag: str = 'answer',
    opening: bool = True,
) -> float:
  """The mean probability per token of what stands in a tag: exp(mean log p).

  A geometric mean: for probabilities .9 and .5 it is .6708. Of the first block
  `<tag>...</tag>`, given everything before it, the reasoning included. Without
  one it is 1: a mean over no tokens.

  Args:
    sample: reads pieces.
    logp: f32[T], of each token.
    tag: its name.
    opening: the rest of the opening tag after its name counts too, as in
      GRPO-CARE's code, where `>` is a token of its own.
  """
  chosen = within(sample.pieces, tag, opening=opening)
  if not chosen:
    return 1.0
  return math.exp(float(np.mean(np.asarray(logp, np.float64)[chosen])))


def nll(
    sample: records.Sample, logp: np.ndarray, *, members: Sequence[str] = (),
) -> float | None:
  """- mean log p of the tokens of a demonstration, nats: its loss.

  None for the others: what the policy sampled has no loss of this kind.

  Args:
    sample: of an example whose member is imitated.
    logp: f32[T], of each token.
    members: of the mixture, whose demonstrations are meant; (): all.
  """
  member = sample.example.member
  if not member.imitate or members and member.name not in members:
    return None
  return -float(np.mean(np.asarray(logp, np.float64)[:sample.length]))


def within(pieces: tuple[str, ...], tag: str, *, opening: bool) -> list[int]:
  """Indices of the tokens that hold a character of the first `<tag>` block."""
  text = ''.join(pieces)
  start = text.find(f'<{tag}>')
  end = text.find(f'</{tag}', start)
  if start < 0 or end < 0:
    return []
  start += len(tag) + (1 if opening else 2)
  found, place = [], 0
  for i, piece in enumerate(pieces):
    # A token that begins the closing tag as well says something about the
    # answer only where it holds a character of it.
    if max(place, start) < min(place + len(piece), end):
      found.append(i)
    place += len(piece)
  return found
