"""A user's own environment; configs name it 'tests.own_env:Asking'."""

import numpy as np
from PIL import Image

from mmr1 import records


class Asking:
  """Answers every turn with words and, to every second one, a picture."""
  role = 'user'

  def __init__(self, *, turns: int = 2, spread: int = 1, fails: int = 0,
               pictures: bool = True, **kwargs):
    """`turns`: after so many it ends, and up to `spread` - 1 more by the
    number of the example; `fails`: one of so many samples of a
    group has an environment that breaks, 0: none; `pictures`: False: words
    alone; `kwargs`: of whatever it takes the place of."""
    del kwargs
    self._turns, self._spread, self._fails = turns, spread, fails
    self._pictures = pictures

  def reset(self, example, seed):
    return (example.uid, seed, 0)

  def step(self, state, sample):
    uid, seed, n = state
    if self._fails and sample.slot % self._fails == 1:
      raise RuntimeError('it broke')
    state = uid, seed, n + 1
    turns = self._turns + uid % self._spread
    if n + 1 + (sample.slot % 2) >= turns:
      return state, records.Observation(done=True, reward=float(n))
    rng = np.random.default_rng([uid, n])
    image = Image.fromarray(rng.integers(0, 256, (16, 32, 3), np.uint8))
    return state, records.Observation(
        text=f'{n}', call={'n': n}, reward=.25,
        images=(image,) * (self._pictures and sample.slot % 2 == 0))
