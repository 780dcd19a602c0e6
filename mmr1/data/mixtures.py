"""Mixtures that a stage names for itself, beside that of the run's prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmr1 import records
from mmr1 import resolve
from mmr1.data import datasets
from mmr1.data import files
from mmr1.data import rows
from mmr1.data import sources


def open_pairs(
    config: Any, names: Sequence[str], weights: Sequence[float], split: str, *,
    written: Mapping[str, str], order: int = 0) -> sources.Mixture:
  """Pairs of completions.

  A name is that of a section of `tasks`, with the `fn` of a world whose examples
  have two completions or the `path` of a file with columns chosen and rejected,
  or that of a collect stage that wrote such a file. Of files one of every
  `data.holdout` records is kept for evaluation, or they have an `eval_path`.

  Args:
    config: the resolved config.
    names: see above.
    weights: one for each.
    split: 'train' or 'eval'.
    written: {collect stage: the file it wrote}.
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
      [_opened(config, name, split, written) for name in names], weights,
      seed=config.seed, order=order,
      shuffle=split == 'train')  # pairs of one sample stay together


def _opened(config: Any, name: str, split: str,
            written: Mapping[str, str]) -> sources.Source:
  data, about = config.data, records.Member(name=name)
  if name in written:
    return sources.Labelled(_held_out(
        written[name], rows.RowFormat.needing('pair'), data, split), about)
  section = config.tasks[name].as_dict()
  if 'fn' in section:
    fn = resolve.function(section.pop('fn'), 'mmr1.data.tasks')
    resolve.check_kwargs(fn, section, f'tasks.{name}', ('uid_offset',))
    size = data.train_size if split == 'train' else data.eval_size
    return sources.Labelled(sources.TaskSource(
        fn, seed=config.seed, split=split, size=size, **section), about)
  path, own = section.pop('path'), section.pop('eval_path', None)
  if section:
    raise ValueError(f'tasks.{name}: got {sorted(section)} beside a path; '
                     'allowed is eval_path.')
  form = datasets.form(data, 'pair')
  if own is not None:
    return sources.Labelled(files.open_path(
        path if split == 'train' else own, form=form), about)
  return sources.Labelled(_held_out(path, form, data, split), about)


def _held_out(path: str, form: rows.RowFormat, data: Any,
              split: str) -> sources.Source:
  return sources.holdout(
      files.open_path(path, form=form), every=data.holdout)[split != 'train']
