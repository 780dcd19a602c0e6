"""Models fused leaf by leaf: out of their files, into a folder.

Of each model one part is in memory at a time, see `mmr1.parents`, and of the
result the tensor that is written.
"""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

from etils import epath
import jax
import numpy as np

from mmr1 import hosts
from mmr1 import merging
from mmr1 import parents as parents_lib
from mmr1.models import checkpoints as model_checkpoints
from mmr1.models import weights


class Family:
  """A base and its parents, all still in their files.

  Attributes:
    parents: their names, in order.
  """

  def __init__(self, models: Mapping[str, Mapping[str, Any]], section: Any,
               module: Any, structs: Any):
    """What is fused, and whose the rest is.

    Args:
      models: {'base' or parent: {name: leaf}}, see `parents.opened`.
      section: of the stage; reads leaves, rest and embeddings.
      module: of the result; structs: its parameters, or their shapes.
    """
    self.parents = tuple(name for name in models if name != parents_lib.BASE)
    self._models, self._module = models, module
    self._depths = model_checkpoints.layers(module)
    self._depth = module.config.depth
    self._fused = parents_lib.chosen(
        structs, section.leaves, f'{section.where}.leaves')
    self._owner = {
        leaf: name for name in models
        for leaf in parents_lib.taken(self._depths, section, name)}

  def _unit(self, name: str, part: int) -> int:
    """Whose coefficient it has: a decoder layer's, or -1."""
    return part if name.startswith(parents_lib.LAYERS) else -1

  def _parts(self, name: str) -> Iterator[tuple[int, np.ndarray, list[Any]]]:
    """(number, base, parents) of the layers of a leaf, one by one."""
    every = zip(*(self._models[key][name].parts()
                  for key in (parents_lib.BASE, *self.parents)), strict=True)
    for i, (base, *parents) in enumerate(every):
      yield i, base, parents

  def grams(self) -> np.ndarray:
    """f64[L + 1, P, P], see `merging.gram`, of every layer and of what is fused
    beside them."""
    count = len(self.parents)
    total = np.zeros((self._depth + 1, count, count))
    for name in sorted(self._fused):
      for i, base, parents in self._parts(name):
        total[self._unit(name, i)] += merging.gram(base, parents)
    return total

  def write(self, folder: epath.Path, coefficients: merging.Coefficients,
            dtype: str) -> None:
    """Fuses into a folder, a tensor at a time, in place of one that is there.

    What is in no decoder layer has the mean of the layers' coefficients.
    """
    made = {name: weights.Made(
        self._models[self._owner[name]][name].shape,
        functools.partial(self._fuse, name, coefficients)
        if name in self._fused else
        self._models[self._owner[name]][name].parts)
            for name in self._depths}
    _, error = hosts.attempt(lambda: self._save(folder, made, dtype), None)
    hosts.share(None, error)

  def _fuse(self, name, coefficients) -> Iterator[np.ndarray]:
    for i, base, parents in self._parts(name):
      own = {parent: float(c.mean() if self._unit(name, i) < 0 else c[i])
             for parent, c in coefficients.items()}
      yield merging.fuse(base, dict(zip(self.parents, parents)), own)

  def _save(self, folder, made, dtype) -> None:
    if jax.process_index() == 0:
      if folder.exists():
        folder.rmtree()  # of a run that was killed
      model_checkpoints.save(
          folder, self._module, _nested(made), dtype=dtype)
      return
    for leaf in made.values():  # checkpoints are read by all hosts together
      for _ in leaf.parts():
        pass


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  result: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, last = path.split('/')
    node = result
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return result
