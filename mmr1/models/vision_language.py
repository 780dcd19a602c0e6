"""A decoder that reads images and videos through a vision tower.

The prompt's placeholder tokens are replaced by the tower's cells; the rest is
`mmr1.models.decoder`. Beside its `language/` the parameters have `visual/`.
A family says which tower (`tower`) and how wide a patch is; its config has a
`vision` with `window_patches` and `patch_values`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmr1 import types
from mmr1.models import attention_share
from mmr1.models import decoder
from mmr1.models import partition

Array = jax.Array

TOWER = 'vision'  # the tower's key in `Prompts.media`


class Model(decoder.LanguageModel):
  """Use `module.apply({'params': params}, ..., method='...')`."""

  def setup(self):
    super().setup()
    self.visual = self.tower()

  def tower(self) -> nn.Module:
    """A module `types.Media` -> cells [N, M, D], in the media's order; or what
    `cells` is made to read."""
    raise NotImplementedError

  def cells(self, media: types.Media) -> tuple[Array, tuple[Array, ...]]:
    """Cells [N, M, D] that stand in for tokens, and K maps of more of them
    that are added to those after each of the first K decoder layers."""
    return self.visual(media), ()

  def inputs(self, prompts: types.Prompts) -> tuple[Array, Array | None]:
    """Embeddings, and cells where the media put them, see `decoder`.

    Args:
      prompts: `media` holds the key 'vision' or nothing; without it the tower
        is not run.

    Raises:
      ValueError: media of a tower that this family does not have.
    """
    return self.seen(self.language.embedded(prompts.tokens), prompts.media)

  def inserted(self, tokens: Array, media: Any) -> tuple[Array, Array | None]:
    x = self.language.embedded(tokens)
    if not media:
      return x, None
    # A completion is as good as a prompt here.
    n, g = tokens.shape[:2]
    x, add = self.seen(*jax.tree.map(
        lambda a: a.reshape((n * g, *a.shape[2:])), (x, media)))
    return x.reshape((n, g, *x.shape[1:])), (
        add if add is None else add.reshape((len(add), n, g, *add.shape[2:])))

  def seen(self, x: Array, media: Any) -> tuple[Array, Array | None]:
    """`inputs` of tokens' embeddings [N, P, D] and their media."""
    unknown = set(media) - {TOWER}
    if unknown:
      raise ValueError(f'media of towers {sorted(unknown)}: this family has '
                       f'only {TOWER!r}.')
    if TOWER not in media:
      return x, None
    media = media[TOWER]

    def placed(cells, rest):
      return jnp.where(media.slot[..., None] >= 0,
                       read_cells(cells, media).astype(x.dtype), rest)

    # A tower is small: its images go over the devices that share a prompt too.
    lie = functools.partial(partition.constrain, self.config.partition)
    cells, maps = jax.tree.map(
        lambda x: lie(x, 'rows'), self.cells(jax.tree.map(
            lambda x: lie(x, 'images'), media)))
    add = [placed(more, jnp.zeros((), x.dtype)) for more in maps]
    return placed(cells, x), jnp.stack(add) if add else None

  def attention_share(self, prompts: types.Prompts) -> tuple[Array, Array]:
    """How much the words of prompts look at images.

    Returns:
      f32[L, N], in every layer the sum over the words that can see an image;
      and f32[N], how many there are: 0 of a prompt without one.

    Raises:
      ValueError: no media in any prompt.
    """
    if TOWER not in prompts.media:
      raise ValueError('attention_share: none of the prompts has media.')
    marked = attention_share.marks(prompts.mask, prompts.media[TOWER].slot)
    _, shares = self._read(prompts, functools.partial(
        attention_share.share, marked=marked))
    return shares, jnp.sum(marked.asks, -1, dtype=jnp.float32)


def read_cells(cells: Array, media: types.Media) -> Array:
  """[N, P, D], what each prompt token reads of cells [N, M, D].

  Arbitrary but finite where `Media.slot` is negative.
  """
  if media.taps is None:
    return jnp.take_along_axis(
        cells, jnp.maximum(media.slot, 0)[..., None], axis=1)
  n, p, count = media.taps.shape
  found = jnp.take_along_axis(
      cells, media.taps.reshape(n, p * count)[..., None], axis=1)
  found = found.reshape(n, p, count, -1).astype(jnp.float32)
  return jnp.einsum('npa,npad->npd', media.weights, found).astype(cells.dtype)


def init_params(module: Model, rng: Array) -> Any:
  """Random parameters, float32; see `decoder.init_params`."""
  v = module.config.vision
  place = jnp.zeros((1, v.window_patches, 2), jnp.int32)
  return decoder.init_params(module, rng, {TOWER: types.Media(
      patches=jnp.zeros((1, v.window_patches, v.patch_values)),
      position=place, segment=jnp.ones((1, v.window_patches), jnp.int32),
      slot=jnp.zeros((1, 1), jnp.int32), extent=place + 1)})
