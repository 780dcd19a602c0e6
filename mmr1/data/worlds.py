"""One section of `tasks` as an endless stream of examples.

For stages that read examples as they are, not as prompts of the policy.
"""

from collections.abc import Sequence
from typing import Any

from mmr1 import resolve
from mmr1.data import datasets
from mmr1.data import sources


def open_world(
    config: Any, name: str, split: str, *, order: int, needs: Sequence[str],
) -> sources.Mixture:
  """The examples of a procedural world.

  Args:
    config: the resolved config; reads tasks, data.train_size and .eval_size.
    name: of the section.
    split: 'train' or 'eval'.
    order: see `sources.Mixture`.
    needs: keys that the examples' meta must have.

  Raises:
    ValueError: there is no such world, or its examples lack one of `needs`.
  """
  about, section = datasets.member(config, name)
  if 'fn' not in section:
    raise ValueError(f'tasks.{name}: this stage reads procedural worlds; give '
                     'one with an `fn`.')
  fn = resolve.function(section.pop('fn'), 'mmr1.data.tasks')
  resolve.check_kwargs(fn, section, f'tasks.{name}', ('uid_offset',))
  data = config.data
  made = sources.Labelled(sources.TaskSource(
      fn, seed=config.seed, split=split, size=data.train_size
      if split == 'train' else data.eval_size, **section), about)
  missing = [key for key in needs if key not in made[0].meta]
  if missing:
    raise ValueError(f'tasks.{name}: its examples have no meta of {missing}, '
                     f'which this stage reads; they have {[*made[0].meta]}.')
  return sources.Mixture([made], seed=config.seed, order=order)
