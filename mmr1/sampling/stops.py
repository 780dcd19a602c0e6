"""Strings at which a turn ends, recognised on tokens.

An automaton over the vocabulary: each token moves a row from one state to the
next, by the characters it stands for. So a string is found however it falls
into tokens, and the tokens stay those that were sampled: the one in which the
string ends is the last, with whatever it has behind it.
"""

from collections.abc import Sequence

import numpy as np


def table(pieces: Sequence[str], strings: Sequence[str]) -> np.ndarray:
  """What each token does (Aho and Corasick 1975).

  For 'ab' and the tokens 'a', 'b', 'xa', 'ba' there are the states '', 'a' and
  found: [[1, 0, 1, 1], [1, 2, 1, 2], [2, 2, 2, 2]].

  Args:
    pieces: text of every token, V of them.
    strings: at least one, none empty.

  Returns:
    i32[Z, V], the next state; 0 is the first, Z - 1 that a string was found.

  Raises:
    ValueError: no string, or an empty one.
  """
  if not strings or not all(strings):
    raise ValueError(f'stop: got {tuple(strings)}; allowed are strings with '
                     'at least one character.')
  # States are the strings' beginnings, the shortest first.
  begun = sorted({s[:i] for s in strings for i in range(len(s))},
                 key=lambda s: (len(s), s))
  number = {s: i for i, s in enumerate(begun)}
  found = len(begun)
  letters = {c for s in strings for c in s}

  def step(state: str, letter: str) -> int:
    text = state + letter
    if any(text.endswith(s) for s in strings):
      return found
    return next(number[text[i:]] for i in range(len(text) + 1)
                if text[i:] in number)
  other = np.append(np.zeros(found, np.int32), found)
  moves = {c: np.append([step(s, c) for s in begun], found) for c in letters}
  result = np.empty((found + 1, len(pieces)), np.int32)
  for token, piece in enumerate(pieces):
    state = np.arange(found + 1)
    for letter in piece:
      state = moves.get(letter, other)[state]
    result[:, token] = state
  return result
