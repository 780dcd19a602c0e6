"""The models that a stage merges, read leaf by leaf.

A folder is read layer by layer. A stage of this run has its layers stacked in
one array per leaf, so that of it one leaf is held; of a stage with adapters,
whose kernels must be put together, the whole model.

The base may be a language model alone: its layers have the same names here as
those of the model that sees (`mmr1.models.decoder_weights`).
"""

from collections.abc import Iterator, Mapping
import contextlib
import re
from typing import Any

import jax
import numpy as np

from mmr1 import context
from mmr1 import lineage as lineage_lib
from mmr1 import trees
from mmr1.data import datasets
from mmr1.models import checkpoints as model_checkpoints
from mmr1.models import lora
from mmr1.models import weights

BASE = 'base'
LAYERS = 'language/layers/'
WORDS = re.compile(r'language/(embed|norm/.*|head)')
# Of a decoder's config: with others the same numbers would mean other things.
_DECODER = ('depth', 'width', 'heads', 'kv_heads', 'head_width', 'mlp_width',
            'activation', 'qkv_bias', 'qk_norm', 'out_norms', 'norm_offset')
_ROTARY = ('theta', 'scaling')


def named(section: Any) -> dict[str, str]:
  """{key below the stage: model} of a merge: its base and its parents."""
  return {BASE: section.base, **{
      f'parents.{name}': model
      for name, model in section.parents.as_dict().items()}}


def check(config: Any) -> None:
  """Refuses folders that cannot be merged, before a stage begins.

  Raises:
    ValueError: a folder that is missing or no model, or whose model differs in
      what is fused or taken from it; names the key.
  """
  for stage in config.stages:
    section = config[stage]
    if section.kind != lineage_lib.MERGES:
      continue
    module, structs = _described(config, config.model.path)
    here = {name: x.shape for name, x in trees.named(structs).items()}
    fused = chosen(structs, section.leaves, f'{stage}.leaves')
    for key, name in named(section).items():
      if name in ('base', 'previous', *config.stages):
        continue  # the run's own model
      where = f'{stage}.{key}'
      _check_folder(name, where)
      other, there = _described(config, name)
      _check_decoder(where, module.config, other.config)
      wanted = fused | taken(here, section, key.removeprefix('parents.'))
      there = {leaf: x.shape for leaf, x in trees.named(there).items()}
      wrong = sorted(x for x in wanted if there.get(x) != here[x])
      if wrong:
        raise ValueError(
            f'{where}: {name!r} cannot be merged into model.path: '
            f'{wrong[0]!r} is {there.get(wrong[0], "absent")} there and '
            f'{here[wrong[0]]} here ({len(wrong)} differ). Take a checkpoint of '
            'the same base, or leave these out of leaves and embeddings.')


def _described(config: Any, path: str) -> tuple[Any, Any]:
  return model_checkpoints.describe(
      datasets.model_path(path), **_given(config))


def _given(config: Any) -> dict[str, Any]:
  """How the run reads folders; scanned layers have the same parameters, and are
  traced once."""
  return dict(param_dtype=config.model.param_dtype, layers='scan',
              **context.heads_of(config.model))


def _check_folder(name: str, where: str) -> None:
  try:
    datasets.model_path(name)
  except ValueError:
    raise ValueError(
        f'{where}: there is no {name!r}. Put a Hugging Face checkpoint folder '
        f'there, or say where it is with --config.{where}=...') from None


def _check_decoder(where: str, here: Any, there: Any) -> None:
  for field in _DECODER:
    a, b = getattr(here, field), getattr(there, field)
    if a != b:
      raise ValueError(
          f'{where}: another architecture than model.path: {field} is {b!r} '
          f'there and {a!r} here. Task vectors need checkpoints of one base.')


def rotary_differs(config: Any, path: str) -> str | None:
  """In words, where a folder's positions turn at another rate than the run's."""
  here, there = (_described(config, p)[0].config
                 for p in (config.model.path, path))
  told = [f'{field} {getattr(there, field)!r} there, {getattr(here, field)!r} '
          'here' for field in _ROTARY
          if getattr(there, field) != getattr(here, field)]
  return '; '.join(told) or None


def chosen(structs: Any, patterns: tuple[str, ...], where: str) -> set[str]:
  """Names of the leaves that are fused.

  Raises:
    ValueError: a pattern that matches none.
  """
  return {name for name, on in trees.named(
      trees.select(structs, patterns, where)).items() if on}


def taken(leaves: Any, section: Any, parent: str) -> set[str]:
  """Names of the leaves that the result has from this parent ('base' too) as
  they are, unless they are fused."""
  words = {name for name in leaves if WORDS.fullmatch(name)}
  rest = {*leaves} - words if parent == section.rest else set()
  return rest | (words if parent == section.embeddings else set())


class Stored:
  """A leaf that a stage of this run ended with, still in its checkpoint."""

  def __init__(self, models: lineage_lib.Lineage, stage: str, name: str,
               struct: Any, layers: int):
    self._models, self._stage, self._name = models, stage, name
    self.shape, self._dtype, self._layers = struct.shape, struct.dtype, layers

  def parts(self) -> Iterator[np.ndarray]:
    """As `weights.Leaf.parts`."""
    # Stands for an array to be read; it has no memory of its own.
    target: Any = np.broadcast_to(np.zeros((), self._dtype), self.shape)
    for key in reversed(('params', 'policy', *self._name.split('/'))):
      target = {key: target}
    read = self._models.checkpoints.restore(
        self._stage, target, step=self._models.ended(self._stage))
    (leaf,) = jax.tree.leaves(read.tree)
    yield from leaf if self._layers else leaf[None]


@contextlib.contextmanager
def opened(
    config: Any, models: lineage_lib.Lineage, module: Any, name: str,
) -> Iterator[Mapping[str, Any]]:
  """{name: leaf with `shape` and `parts()`} of a model.

  Args:
    config: the resolved config.
    models: of the run.
    module: of the run.
    name: 'base', a finished stage or a folder.

  Raises:
    ValueError: a stage that has not finished; a damaged folder.
  """
  layers = model_checkpoints.layers(module)
  section = config[name] if name in config.stages else None
  if section is not None and section.kind != lineage_lib.MERGES:
    if lineage_lib.rank_of(section):
      params = trees.named(lora.merge(models.params(name)))
      yield {path: _whole(leaf, layers[path]) for path, leaf in params.items()}
    else:
      yield {path: Stored(models, name, path, x, layers[path])
             for path, x in trees.named(models.structs).items()}
    return
  if section is not None:
    models.ended(name)
    path = str(models.merged(name))
  else:
    path = datasets.model_path(config.model.path if name == BASE else name)
  with model_checkpoints.opened(path, **_given(config)) as leaves:
    yield leaves


def _whole(leaf: Any, layers: int) -> weights.Made:
  """A parameter that is in memory."""
  leaf = np.asarray(leaf)
  return weights.Made(
      leaf.shape, lambda: iter(leaf if layers else leaf[None]))


def distinct(models: Mapping[str, str], stage: str) -> None:
  """Refuses a model that is merged with itself.

  Args:
    models: {key: what it stands for}, see `named`.
    stage: whose keys they are.

  Raises:
    ValueError: names two keys.
  """
  seen: dict[str, str] = {}
  for key, name in models.items():
    if name in seen:
      raise ValueError(
          f'{stage}.{key}: {name!r} is {stage}.{seen[name]} as well: there is '
          'nothing between a model and itself. Name another stage or folder.')
    seen[name] = key
