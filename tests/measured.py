"""What the tests of model families measure, for the table of families.

`python -m experiments.parity` names a file in MMR1_PARITY and runs them; a
test's own tolerance is asserted where it is measured, with or without.
"""

import json
import os

import numpy as np

FILE = os.environ.get('MMR1_PARITY')
# Rows of a family's test batch, by what a prompt holds.
KINDS = ('text', 'image', 'images', 'video')


def logits(family: str, row: int, got: np.ndarray, expected: np.ndarray,
           atol: float = 1e-4) -> None:
  """Asserts that logits of a row of the test batch agree, and notes by how
  much; rows after those of KINDS have videos and images."""
  np.testing.assert_allclose(got, expected, atol=atol, rtol=0)
  record(family, f'logits/{KINDS[min(row, len(KINDS) - 1)]}',
         np.abs(np.asarray(got) - expected).max())


def record(family: str, what: str, value: float) -> None:
  """Notes a figure: 'logits/<kind>', 'bf16', 'pixels', 'gradient', 'export'
  (largest differences), 'greedy' (tokens that agree), 'positions' (0: equal).
  """
  if FILE:
    with open(FILE, 'a') as f:  # two processes may write: one line at once
      f.write(json.dumps([family, what, float(value)]) + '\n')
