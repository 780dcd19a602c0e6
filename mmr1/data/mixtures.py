"""Mixtures that a stage names for itself, beside that of the run's prompts."""

from collections.abc import Sequence
from typing import Any

from mmr1 import records
from mmr1 import resolve
from mmr1.data import datasets
from mmr1.data import files
from mmr1.data import rows
from mmr1.data import sources


def open_pairs(
    config: Any, names: Sequence[str], weights: Sequence[float], split: str, *,
    order: int = 0) -> sources.Mixture:
  """Pairs of completions from sections of `tasks`.

  A section has the `fn` of a world whose examples have two completions, or the
  `path` of a file with columns chosen and rejected, of which one of every
  `data.holdout` records is kept for evaluation (or which has an `eval_path`).

  Args:
    config: the resolved config.
    names: of the sections.
    weights: one for each.
    split: 'train' or 'eval'.
    order: see `sources.Mixture`.

  Raises:
    ValueError: weights that do not fit; a section that cannot be opened.
  """
  if not names or len(names) != len(weights) or not all(
      0 < weight < float('inf') for weight in weights):
    raise ValueError(
        f'weights: got {tuple(weights)} for mixture={tuple(names)}; needed is '
        'at least one section of tasks, and one positive number for each.')
  return sources.Mixture(
      [_opened(config, name, split) for name in names], weights,
      seed=config.seed, order=order)


def _opened(config: Any, name: str, split: str) -> sources.Source:
  section, data = config.tasks[name].as_dict(), config.data
  about = records.Member(name=name)
  if 'fn' in section:
    fn = resolve.function(section.pop('fn'), 'mmr1.data.tasks')
    resolve.check_kwargs(fn, section, f'tasks.{name}', ('uid_offset',))
    size = data.train_size if split == 'train' else data.eval_size
    return sources.Labelled(sources.TaskSource(
        fn, seed=config.seed, split=split, size=size, **section), about)
  path, held = section.pop('path'), section.pop('eval_path', None)
  if section:
    raise ValueError(f'tasks.{name}: got {sorted(section)} beside a path; '
                     'allowed is eval_path.')
  form = datasets.form(data, pairs=True)
  if held is not None:
    return sources.Labelled(files.open_path(
        path if split == 'train' else held, form=form), about)
  return sources.Labelled(sources.holdout(
      files.open_path(path, form=form), every=data.holdout)[split != 'train'],
                          about)
