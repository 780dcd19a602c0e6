"""Random blocks with ragged masks for the tests of losses."""

import jax.numpy as jnp
import numpy as np

from mmr1 import types

# All that terms read of completions: whether several share a row.
UNPACKED = types.Completions(tokens=None, kind=None, positions=None)


def block(seed=0, shape=(2, 4, 5), *, lengths=None, wide=False, **fields):
  """(scores, block): every number random, one row without any token."""
  rng = np.random.default_rng(seed)
  n, g, t = shape
  if lengths is None:
    lengths = rng.integers(1, t + 1, (n, g))
    lengths[0, -1] = 0
  mask = np.arange(t) < np.asarray(lengths)[..., None]
  def draw(scale=1.0, size=shape):
    return jnp.asarray(rng.normal(size=size) * scale, jnp.float32)
  logp = -jnp.abs(draw())
  scores = types.Scores(
      logp=logp, entropy=jnp.abs(draw()), pairs={'kl_ref': jnp.abs(draw())},
      value=draw())
  values = dict(
      mask=jnp.asarray(mask),
      advantage=draw(size=shape if wide else (n, g, 1)),
      old=logp + draw(0.4), ref=logp + draw(0.4),
      extra={'values': draw(), 'returns': draw()})
  return scores, types.Block(
      prompts=None, completions=UNPACKED, **{**values, **fields})
