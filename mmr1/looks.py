"""A second look: the same completions under other images or parameters.

A view changes the images of a prompt (`mmr1.views`); a look is the pass over
the completions that it is for, and what that pass is made with. Terms, weights,
advantages and probes read looks by name: a keyword called `view` is a request.
"""

from collections.abc import Callable
import dataclasses
import zlib

import jax
import jax.numpy as jnp

from mmr1 import types
from mmr1.losses import divergence as divergences

Array = jax.Array

PARAMS = ('policy', 'reference', 'ema')
WHEN = ('rollout', 'update')


@dataclasses.dataclass(frozen=True)
class Look:
  """What a section of `views` asks for.

  Fields:
    name: of the section.
    fn: (Media, keys [N]) -> Media, everything else bound.
    params: whose parameters look: the 'policy' (that made the rollout, or with
      when='update' the one that trains), the 'reference' or the 'ema'.
    when: once for a 'rollout', or at every 'update' with its parameters.
    gradient: of an update's look, whether it has one.
    divergence: of the completions' own distribution from the look's, summed
      over the vocabulary; None: only the log-probs of the tokens are made.
    entropy: the look's entropy of each token is made too; with a divergence
      it is, of the completions' own distribution.
  """
  name: str
  fn: Callable[[types.Media, Array], types.Media]
  params: str = 'policy'
  when: str = 'rollout'
  gradient: bool = False
  divergence: divergences.Divergence | None = None
  entropy: bool = False

  def shown(self, prompts: types.Prompts) -> types.Prompts:
    """The prompts with other images.

    What is drawn depends on `prompts.noise` and on the name of the view: all
    samples of a prompt see the same, in every pass.
    """
    if not prompts.media:
      return prompts
    keys = jax.vmap(jax.random.fold_in, (0, None))(
        jax.random.wrap_key_data(prompts.noise),
        jnp.uint32(zlib.crc32(self.name.encode())))
    return prompts.replace(media={
        tower: self.fn(media, keys) for tower, media in prompts.media.items()})


def noise(key: Array, uid: Array) -> Array:
  """u32[N, 2], what views of a step's prompts draw from.

  Args:
    key: from `keys.step_key`.
    uid: i32[N].
  """
  return jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key, uid))
