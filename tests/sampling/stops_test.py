"""Strings recognised on tokens, however they fall into them."""

import random

import numpy as np
import pytest

from mmr1.sampling import stops


def test_the_example_of_the_docstring():
  np.testing.assert_array_equal(
      stops.table(('a', 'b', 'xa', 'ba'), ('ab',)),
      [[1, 0, 1, 1], [1, 2, 1, 2], [2, 2, 2, 2]])


def test_it_stops_where_the_text_first_has_a_string():
  """Random texts in random pieces, against a search in the text."""
  rng, strings = random.Random(0), ('</t>', ']}', '] }', 'aab', '}}')
  pieces = sorted({''.join(rng.choices('<>/t]} ab', k=rng.randint(1, 4)))
                   for _ in range(120)})
  table = stops.table(pieces, strings)
  for _ in range(300):
    tokens = rng.choices(range(len(pieces)), k=12)
    state, stopped = 0, None
    for n, token in enumerate(tokens):
      state = table[state, token]
      if state == len(table) - 1 and stopped is None:
        stopped = n
    texts = (''.join(pieces[t] for t in tokens[:n + 1]) for n in range(12))
    want = next((n for n, text in enumerate(texts)
                 if any(s in text for s in strings)), None)
    assert stopped == want


@pytest.mark.parametrize('strings', [(), ('',), ('a', '')])
def test_no_string_is_an_error(strings):
  with pytest.raises(ValueError, match='stop'):
    stops.table(('a',), strings)
