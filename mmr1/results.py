"""`mmr1.run` for notebooks and scripts: what a run came to, as an object."""

import builtins
from collections.abc import Mapping
import html
import importlib.util
import pathlib
from typing import Any

from absl import logging
from etils import epath
from ml_collections import config_dict

from mmr1 import context
from mmr1 import log
from mmr1 import resolve
from mmr1 import runner
from mmr1 import tables
from mmr1 import workdir as workdir_lib


class Results(dict[str, Mapping[str, float]]):
  """{stage: evaluation metrics}, the base first; shown as tables.

  Attributes:
    workdir: the run's folder.
  """

  def __init__(self, evaluations: Mapping[str, Mapping[str, float]],
               workdir: epath.Path):
    super().__init__(evaluations)
    self.workdir = workdir

  @property
  def report(self) -> epath.Path:
    """The page of the run; there is none with `config.report=False`."""
    return self.workdir / 'report.html'

  def rows(self, stage: str) -> list[dict[str, Any]]:
    """Metrics of every step of a stage, without those of evaluations."""
    self._known(stage)
    return [row for row in log.read_rows(self.workdir / 'metrics.jsonl')
            if row['stage'] == stage and 'grad_norm' in row]

  def curve(self, stage: str, metric: str) -> list[float | None]:
    """A metric over the steps of a stage; None where a step has no value.

    Raises:
      ValueError: no step has it; lists the nearest that there are.
    """
    rows = self.rows(stage)
    known = dict.fromkeys(name for row in rows for name in row)
    if metric not in known:
      raise ValueError(f'{stage}: no step has {metric!r}. '
                       f'{resolve.nearest(metric, known)}')
    return [row.get(metric) for row in rows]

  def samples(self, stage: str) -> list[dict[str, Any]]:
    """Completions that a stage has kept, with rewards and advantage; names of
    pictures are below samples/images/."""
    self._known(stage)
    path = self.workdir / 'samples' / f'{stage}.jsonl'
    return log.read_rows(path) if path.exists() else []

  def _known(self, stage: str) -> None:
    stages = resolve.from_json(
        (self.workdir / 'config.json').read_text())['stages']
    if stage not in stages:
      raise ValueError(f'{stage!r} is no stage of this run. '
                       f'{resolve.nearest(stage, stages)}')

  def __repr__(self) -> str:
    return '\n\n'.join('\n'.join((one.title, *(
        '  '.join(map(str, row)) for row in (one.columns, *one.rows))))
                       for one in tables.of(self)) or 'no evaluation'

  def _repr_html_(self) -> str:
    """What a notebook shows."""
    def row(cells, tag):
      return '<tr>' + ''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>'
                              for cell in cells) + '</tr>'
    return ''.join(
        f'<table><caption>{html.escape(one.title)}</caption>'
        + row(one.columns, 'th') + ''.join(row(cells, 'td')
                                           for cells in one.rows)
        + '</table>' for one in tables.of(self)) or 'no evaluation'


def run(config: config_dict.ConfigDict | str, workdir: str,
        **kwargs: Any) -> Results:
  """Runs the stages of a config that are not done yet, see `runner.run`.

  A process may run several, one after the other. In a notebook the button that
  interrupts saves the state, as Ctrl-C does; the same call goes on from there.

  Args:
    config: from a config file's get_config, or the path of such a file with
      its argument, 'configs/vision_r1.py:zero'.
    workdir: where everything goes.
    **kwargs: of `runner.run`.

  Raises:
    ValueError: the config cannot work; says which key and what is allowed.
    KeyboardInterrupt: a notebook's run was interrupted and is saved.
  """
  from configs import common  # of a checkout: needed where something runs
  if isinstance(config, str):
    config = load(config)
  kwargs.setdefault('defaults', common.get_base(config.scale))
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
  try:
    evaluations = runner.run(config, workdir, **kwargs)
  except context.Preempted:
    if not hasattr(builtins, '__IPYTHON__'):
      raise  # of a script: the process ends
    raise KeyboardInterrupt('The state is saved: call mmr1.run again.'
                            ) from None
  return Results(evaluations, workdir_lib.absolute(workdir))


def load(path: str) -> config_dict.ConfigDict:
  """The config of a file, 'configs/vision_r1.py:zero'.

  Raises:
    ValueError: there is no such file.
  """
  file, _, arg = path.partition(':')
  found = pathlib.Path(file)
  if not found.is_file():
    raise ValueError(
        f'config: {file} is no file. Give its path, as in '
        'configs/vision_r1.py, from the folder you are in.')
  spec = importlib.util.spec_from_file_location(found.stem, found)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg or None)
